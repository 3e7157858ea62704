"""The ISFL network as its block diagram reads (paper, figure 2)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isfl_ros.errors import InputError
from isfl_ros.images import mask_invalid
from isfl_ros.network.cfi import Cfi, LocalSum
from isfl_ros.network.config import MINIMUM_SIZE, IsflConfig
from isfl_ros.network.decoder import HEADS, DecoderStage, reduce_picture
from isfl_ros.network.encoder import Encoder
from isfl_ros.network.layers import ConvNormAct
from isfl_ros.ops import gated_blend
from isfl_ros.ops.pooled_cross_attention import fused


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
        self.head = HEADS[config.head](config)

    @property
    def has_gates(self) -> bool:
        """Whether ``return_gates`` yields gates."""
        return self.config.cfi

    @property
    def shows(self) -> str | None:
        """What the maps of ``return_gates`` are: ``gate``, for another model ``entropy``; None where there are none."""
        return "gate" if self.config.cfi else None

    def encode(self, picture: Tensor, modality: str) -> list[Tensor]:
        """Features of one modality, ``visible`` or ``infrared``, at every scale, finest first: a picture (B, 1, H, W)
        in [0, 1], valid everywhere, to (B, C, h, w) each."""
        return self._encode(picture, modality, self._invalid(picture, None))

    def _encode(self, picture: Tensor, modality: str, invalid: list[Tensor]) -> list[Tensor]:
        encoder = self.encoder if self.config.siamese else getattr(self, f"encoder_{modality}")
        reduced = self._reduce(picture)
        return encoder(torch.cat((reduced, *invalid), dim=1) if invalid else reduced)

    def _invalid(self, picture: Tensor, valid: Tensor | None) -> list[Tensor]:
        """The map of what is invalid, 1 there, reduced as a picture; nothing for a network that is not shown it."""
        if not self.config.validity_input:
            return []
        # What is invalid, not what is valid: so that the zeros with which convolutions pad say "a valid black", as ever.
        return [self._reduce(torch.zeros_like(picture) if valid is None else (~valid).to(picture.dtype).expand_as(picture))]

    def _reduce(self, picture: Tensor) -> Tensor:
        return reduce_picture(picture, self.config.reduction, subpixel=self.config.subpixel)

    def set_implementation(self, name: str) -> None:
        """Names who computes the Causal Feature Integrator of every scale: ``reference``, ``folded`` or ``triton``."""
        for module in self.modules():
            if isinstance(module, Cfi):
                module.implementation = name

    def why_not(self, implementation: str) -> str | None:
        """Why an implementation cannot run this network, in words; None if it can."""
        if implementation != "triton":
            return None
        if not self.config.cfi:
            return "the network has no Causal Feature Integrator, which is what the kernels compute"
        if self.config.gate_width == 0:
            return "the gate is a single convolution (gate_width 0); the kernels have the one with hidden channels"
        width, grid, gate = fused.MAX_CHANNELS, fused.MAX_GRID, gated_blend.MAX_GATE_CHANNELS
        c = self.config
        if c.width > width or c.grid > grid or c.gate_width > gate:
            return (
                f"width {c.width}, grid {c.grid}, gate_width {c.gate_width}: the kernels have up to {width}, {grid} and {gate}"
            )
        return None

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
            Fused luma (B, 1, H, W) in [0, 1], or that and the list of gates.

        Raises:
            InputError: shapes differ, are not one-channel, or are smaller than 32 pixels.
        """
        check_inputs(visible, infrared)
        visible = mask_invalid(visible, valid_visible)
        infrared = mask_invalid(infrared, valid_infrared)
        invalid_visible, invalid_infrared = self._invalid(visible, valid_visible), self._invalid(infrared, valid_infrared)
        features_visible = self._encode(visible, "visible", invalid_visible)
        features_infrared = self._encode(infrared, "infrared", invalid_infrared)

        gates: list[Tensor] = []
        result: Tensor | None = None
        for k in reversed(range(self.config.scales)):  # coarsest first
            integrated, gate = self.integrators[k](features_visible[k], features_infrared[k])
            if gate is not None:
                gates.append(gate)
            result = integrated if result is None else self.decoders[k](result, integrated)
        fused = self.head(result, visible, infrared, invalid_visible + invalid_infrared)
        return (fused, gates) if return_gates else fused


def extended_by_validity(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights of a network without ``validity_input`` as those of ``network``, the same with it: the new channels of its first
    and last convolutions weigh nothing, so that it computes what the other one does until training says otherwise.

    Args:
        weights: state dictionary, which is not changed.
        network: whose shapes are wanted; weights that fit it, or differ in something else, are returned as they are.
    """
    extended = dict(weights)
    if not getattr(network.config, "validity_input", False):
        return extended
    apart = network.config.pixels_apart
    for name, wanted in network.state_dict().items():
        added = apart if name.endswith("blocks.0.0.conv.weight") else 2 * apart if name == "head.conv.weight" else 0
        had = weights.get(name)
        if added and had is not None and wanted.shape == (had.shape[0], had.shape[1] + added, *had.shape[2:]):
            extended[name] = torch.cat((had, had.new_zeros(had.shape[0], added, *had.shape[2:])), dim=1)
    return extended


def check_inputs(visible: Tensor, infrared: Tensor) -> None:
    """Refuses what no network here can fuse.

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


Network = TypeVar("Network", bound=nn.Module)

_STORAGE = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def for_inference(
    model: Network,
    *,
    implementation: str = "folded",
    precision: str | None = None,
    device: torch.device | str | None = None,
) -> Network:
    """A copy for inference: evaluation mode, norms folded into convolutions, channels-last, no gradients.

    Exact in ``fp32``. In ``fp16`` and ``bf16`` weights of convolutions and feature maps are of that type, products are
    summed in float32; the head (sigmoid or affine) gives the picture in float32, and with ``bf16`` its convolution too is
    in float32, since the steps of that type near white are as large as a grey level.

    Args:
        model: a network of this package (``IsflNet``, ``BaffmNet``); it is not changed.
        implementation: see :meth:`IsflNet.set_implementation`.
        precision: ``fp32``, ``tf32`` (stored as fp32), ``fp16``, ``bf16``; None keeps the dtype of the model.
        device: None keeps the device of the model.
    """
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, ConvNormAct):
            module.fold_norm()
    if device is not None:
        model = model.to(device)
    if precision is not None:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and not (precision == "bf16" and name.startswith("head")):
                module.to(_STORAGE[precision])
    for module in model.modules():
        if hasattr(module, "prepare"):  # the CFI, the back-door adjustment
            module.prepare()
    model.set_implementation(implementation)
    return model.to(memory_format=torch.channels_last)
