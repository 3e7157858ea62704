"""Contract of the gated blend: invariance gate and blend of the Causal Feature Integrator, for inference.

Shapes: B batch, C channels, H height, W width, G channels of the gate's 3x3 convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.ops.gated_blend.fused import MAX_CHANNELS, MAX_GATE_CHANNELS, fused_blend
from isfl_ros.ops.gated_blend.reference import reference_blend

NEGATIVE_SLOPE = 0.01  # of LeakyReLU, everywhere in the networks

_SMALLEST_DOT = 16  # rows and columns that a tensor core takes at least


class GateWeights(NamedTuple):
    """The gate's two convolutions, with the BatchNorm between them folded into the first.

    Shapes: conv_weight (G, C, 3, 3), conv_bias (G,), point_weight (G,), point_bias (1,). The last two are the 1x1
    convolution to the one channel of the gate.
    """

    conv_weight: Tensor
    conv_bias: Tensor
    point_weight: Tensor
    point_bias: Tensor


@dataclass(frozen=True, kw_only=True)
class PreparedWeights:
    """What :func:`prepare_weights` makes of :class:`GateWeights`, once, so that no frame rearranges weights."""

    plain: GateWeights
    """The weights in the dtype and on the device of the features."""
    taps: Tensor
    """(9, C_padded, G_padded) in the dtype of the features: the 3x3 convolution, tap by tap, zero beyond C and G."""
    head: Tensor
    """(3, G_padded) float32: bias of the 3x3, weight of the 1x1, and in [2, 0] the bias of the 1x1."""


__all__ = [
    "IMPLEMENTATIONS",
    "MAX_CHANNELS",
    "MAX_GATE_CHANNELS",
    "NEGATIVE_SLOPE",
    "GateWeights",
    "PreparedWeights",
    "gated_blend",
    "prepare_weights",
]

# Every entry: (complementary, visible, infrared, prepared weights, negative slope) -> (blended, gate).
IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": reference_blend,
    "triton": fused_blend,
}


def prepare_weights(weights: GateWeights, dtype: torch.dtype, device: torch.device | str) -> PreparedWeights:
    """Casts, moves and rearranges the weights for features of ``dtype`` on ``device``.

    The padded sizes are powers of two and at least 16. The result is detached: it is for inference.

    Raises:
        InputError: the shapes do not fit together.
    """
    shape = tuple(weights.conv_weight.shape)
    if len(shape) != 4 or shape[2:] != (3, 3):
        raise InputError("gate conv_weight has the wrong shape", expected="(G, C, 3, 3)", got=str(shape))
    gate_width, channels = shape[:2]
    for field, wanted in (("conv_bias", (gate_width,)), ("point_weight", (gate_width,)), ("point_bias", (1,))):
        got = tuple(getattr(weights, field).shape)
        if got != wanted:
            raise InputError(f"gate {field} has the wrong shape", expected=str(wanted), got=str(got))
    c_padded, g_padded = padded(channels), padded(gate_width)
    with torch.no_grad():
        plain = GateWeights(*(tensor.detach().to(device=device, dtype=dtype) for tensor in weights))
        taps = torch.zeros(9, c_padded, g_padded, dtype=dtype, device=device)
        taps[:, :channels, :gate_width] = plain.conv_weight.permute(2, 3, 1, 0).reshape(9, channels, gate_width)
        head = torch.zeros(3, g_padded, dtype=torch.float32, device=device)
        head[0, :gate_width] = weights.conv_bias.detach()
        head[1, :gate_width] = weights.point_weight.detach()
        head[2, 0] = weights.point_bias.detach()[0]
    return PreparedWeights(plain=plain, taps=taps, head=head)


def padded(size: int) -> int:
    """The power of two, at least 16, that a dimension of a matrix product is padded to."""
    return max(_SMALLEST_DOT, 1 << (size - 1).bit_length())


def gated_blend(
    complementary: Tensor,
    visible: Tensor,
    infrared: Tensor,
    weights: GateWeights | PreparedWeights,
    *,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Gate of the complementary feature and blend with the local feature (paper equations 7 and 8), for inference.

    ``gate = sigmoid(point_weight . leaky_relu(conv3x3(complementary) + conv_bias) + point_bias)`` with zero padding and
    slope :data:`NEGATIVE_SLOPE`; ``blended = gate * complementary + (1 - gate) * (visible + infrared)``.

    Args:
        complementary, visible, infrared: features (B, C, H, W) of equal shape, floating dtype and device; H, W >= 1.
        weights: :class:`GateWeights`, or what :func:`prepare_weights` made of them for this dtype and device.
        implementation: a key of :data:`IMPLEMENTATIONS`. ``triton`` takes up to :data:`MAX_CHANNELS` channels, up to
            :data:`MAX_GATE_CHANNELS` gate channels and float32, float16 or bfloat16 on a CUDA device. It accumulates in
            float32. Products of float32 features are IEEE unless PyTorch's own matrix products may use tf32
            (:func:`isfl_ros.ops.triton_support.tf32_allowed`).

    Returns:
        blended (B, C, H, W) and gate (B, 1, H, W) in [0, 1], both in the dtype of the features; ``blended`` has the
        memory format of ``complementary``.

    Raises:
        InputError: shapes, dtypes or devices differ; the implementation is unknown or does not support them; a tensor
            requires a gradient while gradients are enabled (there is no backward; training runs the layers themselves).
    """
    features = {"complementary": complementary, "visible": visible, "infrared": infrared}
    if complementary.dim() != 4 or not complementary.shape == visible.shape == infrared.shape:
        raise InputError("features must have one shape (B, C, H, W)", got=_list(features, lambda t: tuple(t.shape)))
    if not complementary.dtype == visible.dtype == infrared.dtype:
        raise InputError("features must share one dtype", got=_list(features, lambda t: t.dtype))
    if not complementary.device == visible.device == infrared.device:
        raise InputError("features must share one device", got=_list(features, lambda t: t.device))
    if not complementary.dtype.is_floating_point:
        raise InputError("features must be floating point", got=str(complementary.dtype))
    if implementation not in IMPLEMENTATIONS:
        raise InputError(
            "unknown gated blend implementation",
            expected=f"one of {', '.join(IMPLEMENTATIONS)}",
            got=repr(implementation),
        )
    plain = weights.plain if isinstance(weights, PreparedWeights) else weights
    if torch.is_grad_enabled():
        named = {**features, **plain._asdict()}
        learning = [name for name, tensor in named.items() if tensor.requires_grad]
        if learning:
            raise InputError(
                "the gated blend has no backward",
                expected="tensors that require no gradient, or torch.no_grad() or torch.inference_mode() around it",
                got=f"{', '.join(learning)} with requires_grad",
            )
    if isinstance(weights, PreparedWeights):
        prepared = weights
        if prepared.taps.dtype != complementary.dtype or prepared.taps.device != complementary.device:
            raise InputError(
                "the gate's weights were prepared for other features",
                expected=f"{complementary.dtype} on {complementary.device}",
                got=f"{prepared.taps.dtype} on {prepared.taps.device}",
                do="call prepare_weights with the dtype and device of the features",
            )
    else:
        prepared = prepare_weights(weights, complementary.dtype, complementary.device)
    if prepared.plain.conv_weight.shape[1] != complementary.shape[1]:
        raise InputError(
            "gate conv_weight does not fit the features",
            expected=f"{complementary.shape[1]} input channels",
            got=str(prepared.plain.conv_weight.shape[1]),
        )
    return IMPLEMENTATIONS[implementation](complementary, visible, infrared, prepared, NEGATIVE_SLOPE)


def _list(tensors: dict[str, Tensor], describe: Callable[[Tensor], object]) -> str:
    return ", ".join(f"{name} {describe(tensor)}" for name, tensor in tensors.items())
