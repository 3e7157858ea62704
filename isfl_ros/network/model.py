"""The ISFL network as its block diagram reads (paper, figure 2)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isfl_ros.errors import InputError
from isfl_ros.images import mask_invalid
from isfl_ros.network.cfi import Cfi, LocalSum
from isfl_ros.network.config import MINIMUM_SIZE, IsflConfig
from isfl_ros.network.decoder import DecoderStage, Head
from isfl_ros.network.encoder import Encoder
from isfl_ros.network.layers import ConvNormAct


class IsflNet(nn.Module):
    """Fuses luma and infrared: encoders, one CFI a scale, decoder, head."""

    def __init__(self, config: IsflConfig):
        super().__init__()
        self.config = config
        if config.siamese:
            self.encoder = Encoder(config)
        else:
            self.encoder_visible = Encoder(config)
            self.encoder_infrared = Encoder(config)
        integrator = Cfi if config.cfi else LocalSum
        self.integrators = nn.ModuleList(integrator(config) for _ in range(config.scales))  # finest first
        self.decoders = nn.ModuleList(DecoderStage(config) for _ in range(config.scales - 1))  # finest first
        self.head = Head(config)

    @property
    def has_gates(self) -> bool:
        """Whether ``return_gates`` yields any."""
        return self.config.cfi

    def set_attention(self, implementation: str) -> None:
        """Names the implementation of the pooled cross-attention for every scale."""
        for module in self.modules():
            if isinstance(module, Cfi):
                module.attention = implementation

    def forward(
        self,
        visible: Tensor,
        infrared: Tensor,
        *,
        valid_visible: Tensor | None = None,
        valid_infrared: Tensor | None = None,
        return_gates: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Fuses one batch.

        Args:
            visible, infrared: luma and infrared (B, 1, H, W), floating, in [0, 1], H and W >= 32.
            valid_visible, valid_infrared: bool masks that broadcast to the pictures; invalid pixels enter as exactly 0.
                None: all valid.
            return_gates: also return the gates, coarsest first, (B, 1, h, w) in (0, 1) each.

        Returns:
            Fused luma (B, 1, H, W) in (0, 1), or that and the list of gates.

        Raises:
            InputError: shapes differ, are not one-channel, or are smaller than 32 pixels.
        """
        if visible.shape != infrared.shape or visible.dim() != 4 or visible.shape[1] != 1:
            raise InputError(
                "both modalities must have one shape (B, 1, H, W)",
                got=f"visible {tuple(visible.shape)}, infrared {tuple(infrared.shape)}",
            )
        if min(visible.shape[-2:]) < MINIMUM_SIZE:
            raise InputError(
                "picture too small", expected=f"height and width >= {MINIMUM_SIZE}", got=str(tuple(visible.shape[-2:]))
            )
        visible = mask_invalid(visible, valid_visible)
        infrared = mask_invalid(infrared, valid_infrared)
        encoder_visible = self.encoder if self.config.siamese else self.encoder_visible
        encoder_infrared = self.encoder if self.config.siamese else self.encoder_infrared
        features_visible = encoder_visible(visible)
        features_infrared = encoder_infrared(infrared)

        gates: list[Tensor] = []
        result: Tensor | None = None
        for k in reversed(range(self.config.scales)):  # coarsest first
            integrated, gate = self.integrators[k](features_visible[k], features_infrared[k])
            if gate is not None:
                gates.append(gate)
            result = integrated if result is None else self.decoders[k](result, integrated)
        fused = self.head(result)
        return (fused, gates) if return_gates else fused


def mean_gate(gates: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean of the gates of all scales at full size (paper, below equation 11).

    Args:
        gates: (B, 1, h, w) each, not empty.
        size: (H, W) of the picture.

    Returns:
        (B, 1, H, W) in (0, 1).
    """
    raised = [F.interpolate(gate.float(), size=size, mode="bilinear", align_corners=False) for gate in gates]
    return torch.stack(raised).mean(dim=0)


def for_inference(model: IsflNet) -> IsflNet:
    """A copy for inference: evaluation mode, norms folded into convolutions, channels-last, no gradients. Exact."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, ConvNormAct):
            module.fold_norm()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.to(memory_format=torch.channels_last)
