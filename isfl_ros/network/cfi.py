"""Causal Feature Integrator (paper, section 3.3, equations 5 to 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isfl_ros.network.config import IsflConfig
from isfl_ros.network.layers import ConvNormAct
from isfl_ros.ops.pooled_cross_attention import Projections, pooled_cross_attention


class ModalityProjection(nn.Module):
    """Query, key and value 1x1 convolutions of one modality (equation 5), as matrices (C, C) with biases (C,)."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def projections(self) -> Projections:
        return Projections(
            self.query.weight, self.query.bias, self.key.weight, self.key.bias, self.value.weight, self.value.bias
        )


class Gate(nn.Module):
    """Invariance gate (equation 8): complementary feature (B, C, H, W) to one channel (B, 1, H, W) in (0, 1)."""

    def __init__(self, config: IsflConfig):
        super().__init__()
        if config.gate_width:
            self.layers = nn.Sequential(
                ConvNormAct(config.width, config.gate_width), nn.Conv2d(config.gate_width, 1, kernel_size=1)
            )
        else:
            self.layers = nn.Sequential(nn.Conv2d(config.width, 1, kernel_size=3, padding=1))

    def forward(self, complementary: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(complementary))


class Cfi(nn.Module):
    """Attention between the modalities, gate, blend, refinement, at one scale.

    ``forward(visible, infrared)``: features (B, C, H, W) each; returns the integrated feature (B, C, H, W) and the gate
    (B, 1, H, W). ``attention`` names the implementation of the operation (see :mod:`isfl_ros.ops`).
    """

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.grid = config.grid
        self.attention = "folded"
        self.visible = ModalityProjection(config.width)
        self.infrared = ModalityProjection(config.width)
        self.gate = Gate(config)
        self.refine = ConvNormAct(config.width, config.width) if config.refine else nn.Identity()

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        complementary = pooled_cross_attention(
            visible,
            infrared,
            self.visible.projections(),
            self.infrared.projections(),
            grid=self.grid,
            implementation=self.attention,
        )
        local = visible + infrared  # equation 7
        gate = self.gate(complementary)
        # Equation 8, G*c + (1-G)*l, with one product fewer.
        blended = torch.lerp(local, complementary.to(local.dtype), gate.to(local.dtype))
        return self.refine(blended), gate


class LocalSum(nn.Module):
    """Stands where the CFI stood in the ablation without it: the local feature of equation 7, refined; no gate."""

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.refine = ConvNormAct(config.width, config.width) if config.refine else nn.Identity()

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, None]:
        return self.refine(visible + infrared), None
