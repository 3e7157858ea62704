"""Causal Feature Integrator (paper, section 3.3, equations 5 to 8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from isfl_ros.network.config import IsflConfig
from isfl_ros.network.layers import ConvNormAct
from isfl_ros.ops.gated_blend import GateWeights, PreparedWeights, gated_blend, prepare_weights
from isfl_ros.ops.pooled_cross_attention import (
    FoldedProjections,
    Projections,
    attend_folded,
    fold_projections,
    pooled_cross_attention,
)


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

    def prepared(self, dtype: torch.dtype) -> PreparedWeights | None:
        """Weights as the fused operation takes them; None for the single convolution, which it does not have."""
        if len(self.layers) == 1:
            return None
        hidden, point = self.layers[0].conv, self.layers[1]
        weights = GateWeights(
            conv_weight=hidden.weight,
            conv_bias=hidden.bias,
            point_weight=point.weight.reshape(-1),
            point_bias=point.bias,
        )
        return prepare_weights(weights, dtype, hidden.weight.device)


class Cfi(nn.Module):
    """Attention between the modalities, gate, blend, refinement, at one scale.

    ``forward(visible, infrared)``: features (B, C, H, W) each; returns the integrated feature (B, C, H, W) and the gate
    (B, 1, H, W). ``implementation`` names who computes it: ``reference``, ``folded`` or ``triton``
    (:mod:`isfl_ros.ops`). With ``triton`` the gate and the blend are fused too once :meth:`prepare` was called; in
    training the gate needs the statistics of its batch between its two convolutions and stays in torch.
    """

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.grid = config.grid
        self.implementation = "folded"
        self.visible = ModalityProjection(config.width)
        self.infrared = ModalityProjection(config.width)
        self.gate = Gate(config)
        self.refine = ConvNormAct(config.width, config.width) if config.refine else nn.Identity()
        self._prepared: _Prepared | None = None

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        complementary = self._attend(visible, infrared)
        if self.implementation == "triton" and self._prepared is not None:
            blended, gate = gated_blend(
                complementary, visible, infrared, self._prepared.gate, implementation=self.implementation
            )
        else:
            local = visible + infrared  # equation 7
            gate = self.gate(complementary)
            # Equation 8, G*c + (1-G)*l, with one product fewer.
            blended = torch.lerp(local, complementary.to(local.dtype), gate.to(local.dtype))
        return self.refine(blended), gate

    def _attend(self, visible: Tensor, infrared: Tensor) -> Tensor:
        if self._prepared is not None and self.implementation != "reference":
            return attend_folded(
                visible,
                infrared,
                self._prepared.for_visible,
                self._prepared.for_infrared,
                grid=self.grid,
                implementation=self.implementation,
            )
        of_visible, of_infrared = self.visible.projections(), self.infrared.projections()
        if self._prepared is not None:  # the specification, in the precision of the features
            of_visible, of_infrared = (Projections(*(t.to(visible.dtype) for t in p)) for p in (of_visible, of_infrared))
        return pooled_cross_attention(
            visible, infrared, of_visible, of_infrared, grid=self.grid, implementation=self.implementation
        )

    def prepare(self) -> None:
        """Computes once what inference needs of the weights alone; after the norms are folded, on the final device."""
        of_visible, of_infrared = self.visible.projections(), self.infrared.projections()
        dtype = self.gate.layers[-1].weight.dtype
        self._prepared = _Prepared(
            for_visible=fold_projections(of_visible, of_infrared),
            for_infrared=fold_projections(of_infrared, of_visible),
            gate=self.gate.prepared(dtype),
        )


class _Prepared(NamedTuple):
    for_visible: FoldedProjections
    for_infrared: FoldedProjections
    gate: PreparedWeights | None


class LocalSum(nn.Module):
    """Stands where the CFI stood in the ablation without it: the local feature of equation 7, refined; no gate."""

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.refine = ConvNormAct(config.width, config.width) if config.refine else nn.Identity()

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, None]:
        return self.refine(visible + infrared), None
