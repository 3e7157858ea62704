"""The BAFFM network (second paper, "Causality-Driven Infrared and Visible Image Fusion": figure 4, equations 4 to 6).

Shapes: B batch, C channels, H height, W width, N prototypes, D entries of a prototype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isfl_ros.errors import InputError
from isfl_ros.images import mask_invalid
from isfl_ros.network.cfi import Gate
from isfl_ros.network.config import BaffmConfig
from isfl_ros.network.encoder import Encoder
from isfl_ros.network.layers import ConvNormAct
from isfl_ros.network.model import check_inputs
from isfl_ros.ops.backdoor_adjustment import (
    AdjustmentTables,
    AdjustmentWeights,
    adjust_folded,
    backdoor_adjustment,
    check_implementation,
    fold_adjustment,
)
from isfl_ros.ops.gated_blend import NEGATIVE_SLOPE

MODALITIES = ("visible", "infrared")


class BackdoorAdjustment(nn.Module):
    """Equations 4 to 6 for one modality: features (B, C, H, W) to adjusted features of that shape.

    ``dictionary`` (N, D) is a buffer: it comes from the training pictures (:meth:`BaffmNet.set_dictionaries`) and is
    not learned. Until then it is NaN, and nothing can be made of the network.

    ``prototype.weight`` is W_g / N: equation 5 divides by N, and a parameter that had to make up for it would be out of
    proportion to the steps that Adam takes.
    """

    def __init__(self, config: BaffmConfig):
        super().__init__()
        self.implementation = "folded"
        self.feature = nn.Linear(config.width, config.width, bias=False)
        self.prototype = nn.Linear(config.entries, config.width, bias=False)
        self.query = nn.Linear(config.width, config.query, bias=False)
        self.key = nn.Linear(config.entries, config.query, bias=False)
        self.register_buffer("dictionary", torch.full((config.prototypes, config.entries), torch.nan))
        self._tables: AdjustmentTables | None = None

    def weights(self) -> AdjustmentWeights:
        """The matrices as the equations have them."""
        count = self.dictionary.shape[0]
        return AdjustmentWeights(
            feature=self.feature.weight,
            prototype=count * self.prototype.weight,
            query=self.query.weight,
            key=self.key.weight,
        )

    def forward(self, features: Tensor, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Adjusted features, and where asked for the entropy of lambda (B, 1, H, W) in [0, 1]."""
        if self._tables is not None and self.implementation != "reference":
            return adjust_folded(features, self._tables, entropy=entropy)
        dictionary, weights = self.dictionary, self.weights()
        if self._tables is not None:  # the specification, in the precision of the features
            dictionary = dictionary.to(features.dtype)
            weights = AdjustmentWeights(*(matrix.to(features.dtype) for matrix in weights))
        return backdoor_adjustment(
            features, dictionary, weights, entropy=entropy, implementation=self.implementation
        )

    def prepare(self) -> None:
        """Folds dictionary and weights once, for inference, on the final device.

        Raises:
            InputError: there is no dictionary yet.
        """
        if not torch.isfinite(self.dictionary).all():
            raise InputError(
                "the network has no confounder dictionary",
                do="train it (isfl train builds one before the first step), or load a trained model folder",
            )
        self._tables = fold_adjustment(self.weights(), self.dictionary)


class ConventionalAdjustment(nn.Module):
    """What stands there in the ablation ``w/o BAFFM``: (B, C, H, W) to (B, C, H, W), from the features alone.

    ``W_h x + W_g act(W_k^T act(W_q x))``: the four matrices have the shapes that they have in
    :class:`BackdoorAdjustment`, so that both variants have the same number of learned parameters, the same non-linear
    depth (act, a LeakyReLU, in place of the softmax) and about the same arithmetic. What is missing is what is being
    asked about: the dictionary and the expectation over it.
    """

    def __init__(self, config: BaffmConfig):
        super().__init__()
        self.feature = nn.Linear(config.width, config.width, bias=False)
        self.prototype = nn.Linear(config.entries, config.width, bias=False)
        self.query = nn.Linear(config.width, config.query, bias=False)
        self.key = nn.Linear(config.query, config.entries, bias=False)

    def forward(self, features: Tensor, *, entropy: bool = False) -> tuple[Tensor, None]:
        """The features, and None: there are no weights whose entropy could be asked for."""
        x = features.permute(0, 2, 3, 1)
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(self.feature.weight.dtype)
        hidden = F.leaky_relu(self.query(x), NEGATIVE_SLOPE)
        hidden = F.leaky_relu(self.key(hidden), NEGATIVE_SLOPE)
        adjusted = self.feature(x) + self.prototype(hidden)
        return adjusted.permute(0, 3, 1, 2).to(features.dtype), None


class TanhHead(nn.Module):
    """Reconstruction: 3x3 convolution and (tanh + 1) / 2; features (B, c, H, W) to fused luma (B, 1, H, W), 0 to 1."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # As in the heads of ISFL: half precision would quantise the picture itself.
        with torch.autocast(x.device.type, enabled=False):
            value = self.conv(x.to(self.conv.weight.dtype))
            return 0.5 * torch.tanh(value if value.dtype == torch.float64 else value.float()) + 0.5


class BaffmNet(nn.Module):
    """Fuses luma and infrared: an encoder and a back-door adjustment each, concatenation, reconstruction."""

    def __init__(self, config: BaffmConfig):
        super().__init__()
        self.config = config
        if config.siamese:
            self.encoder = Encoder(config)
        else:
            self.encoder_visible = Encoder(config)
            self.encoder_infrared = Encoder(config)
        adjustment = BackdoorAdjustment if config.needs_dictionary else ConventionalAdjustment
        self.adjust_visible = adjustment(config)
        self.adjust_infrared = adjustment(config)
        self.gate = Gate(config) if config.gate else None
        inputs = [2 * config.width] + [config.width] * config.mixing
        self.mixing = nn.Sequential(*(ConvNormAct(channels, config.width) for channels in inputs[:-1]))
        self.head = TanhHead(inputs[-1])

    @property
    def has_gates(self) -> bool:
        """Whether ``return_gates`` yields gates."""
        return self.config.gate

    @property
    def shows(self) -> str | None:
        """What the maps of ``return_gates`` are: ``gate``, ``entropy`` (of lambda), or None where there are none."""
        return "gate" if self.config.gate else "entropy" if self.config.needs_dictionary else None

    def encode(self, picture: Tensor, modality: str) -> list[Tensor]:
        """Features of one modality, ``visible`` or ``infrared``, at every scale, finest first: a picture (B, 1, H, W)
        in [0, 1] to (B, C, h, w) each."""
        encoder = self.encoder if self.config.siamese else getattr(self, f"encoder_{modality}")
        return encoder(picture)

    def set_dictionaries(self, visible: Tensor, infrared: Tensor) -> None:
        """Gives the network its confounder dictionaries, (N, D) each.

        Raises:
            InputError: another shape, NaN or infinity, or a network without the adjustment.
        """
        if not self.config.needs_dictionary:
            raise InputError("this network takes no dictionary", got=f"adjustment {self.config.adjustment}")
        for modality, values in zip(MODALITIES, (visible, infrared)):
            buffer = getattr(self, f"adjust_{modality}").dictionary
            if values.shape != buffer.shape or not torch.isfinite(values).all():
                raise InputError(
                    f"the {modality} dictionary does not fit",
                    expected=f"{tuple(buffer.shape)}, finite (prototypes x entries of the network)",
                    got=str(tuple(values.shape)),
                    do="make it anew with isfl dictionary for this configuration",
                )
            buffer.copy_(values)

    def set_implementation(self, name: str) -> None:
        """Names who computes the adjustments: ``reference`` or ``folded``.

        Raises:
            InputError: another name.
        """
        check_implementation(name)
        for module in self.modules():
            if isinstance(module, BackdoorAdjustment):
                module.implementation = name

    def why_not(self, implementation: str) -> str | None:
        """Why an implementation cannot run this network, in words; None if it can."""
        return "BAFFM has no fused kernels" if implementation == "triton" else None

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
            return_gates: also return the maps that :attr:`shows` names: with a gate that gate, else the entropy of
                lambda, the mean of the two modalities, in [0, 1]; (B, 1, H, W) in a list, which is empty where there
                are none.

        Returns:
            Fused luma (B, 1, H, W) in [0, 1], or that and the list of maps.

        Raises:
            InputError: shapes differ, are not one-channel, or are smaller than 32 pixels.
        """
        check_inputs(visible, infrared)
        pictures = mask_invalid(visible, valid_visible), mask_invalid(infrared, valid_infrared)
        features = [_sum_of_scales(self.encode(picture, name)) for picture, name in zip(pictures, MODALITIES)]
        entropy = return_gates and self.shows == "entropy"
        adjust = self.adjust_visible, self.adjust_infrared
        adjusted, spreads = zip(*(module(x, entropy=entropy) for module, x in zip(adjust, features)))
        maps: list[Tensor] = []
        if self.gate is not None:
            gate = self.gate(adjusted[0] + adjusted[1])
            # Equation 8 of the first paper, with the adjusted features in the place of the complementary one.
            adjusted = [torch.lerp(x, a.to(x.dtype), gate.to(x.dtype)) for x, a in zip(features, adjusted)]
            maps.append(gate)
        elif entropy:
            maps.append(0.5 * (spreads[0] + spreads[1]))
        fused = self.head(self.mixing(torch.cat(list(adjusted), dim=1)))
        return (fused, maps) if return_gates else fused


def _sum_of_scales(features: list[Tensor]) -> Tensor:
    """Features at every scale, finest first, to their sum at full size: from the coarsest on, raised and added."""
    total = features[-1]
    for finer in reversed(features[:-1]):
        total = finer + F.interpolate(total, size=finer.shape[-2:], mode="bilinear", align_corners=False)
    return total
