"""Contract of the pooled cross-attention and the explicit choice of who computes it.

Shapes: B batch, C channels, H height, W width, N = H*W pixels, T = grid*grid pooled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.ops.pooled_cross_attention.folded import folded_attention
from isfl_ros.ops.pooled_cross_attention.reference import reference_attention


class Projections(NamedTuple):
    """The 1x1 convolutions of one modality: weights (C, C) as (out, in), biases (C,)."""

    query_weight: Tensor
    query_bias: Tensor
    key_weight: Tensor
    key_bias: Tensor
    value_weight: Tensor
    value_bias: Tensor


# A fused kernel joins this table under its own name; nothing else has to change.
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": reference_attention,
    "folded": folded_attention,
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which implementation runs, and why; both are shown to the user (node diagnostics, demo summary)."""

    implementation: str
    reason: str


def choose_implementation(requested: str, device: torch.device | str) -> Choice:
    """Turns a request into the implementation that will run.

    Args:
        requested: ``auto`` or a key of :data:`IMPLEMENTATIONS`. A named implementation is never replaced by another.
        device: where the features live.

    Raises:
        InputError: the name is unknown.
    """
    if requested == "auto":
        kind = torch.device(device).type
        return Choice(
            implementation="folded",
            reason=f"auto on {kind}: exact, with the fewest multiply-accumulates of {', '.join(IMPLEMENTATIONS)}",
        )
    if requested not in IMPLEMENTATIONS:
        raise InputError(
            "unknown attention implementation",
            expected=f"auto or one of {', '.join(IMPLEMENTATIONS)}",
            got=repr(requested),
            do="name an implementation that this version has",
        )
    return Choice(implementation=requested, reason="asked for by name")


def pooled_cross_attention(
    visible: Tensor,
    infrared: Tensor,
    visible_projections: Projections,
    infrared_projections: Projections,
    *,
    grid: int,
    implementation: str,
) -> Tensor:
    """Complementary feature of ISFL: the sum of both cross-attention directions (paper equations 5 to 7).

    ``softmax(Q_v Pool(K_i)^T / sqrt(C)) Pool(V_i) + softmax(Q_i Pool(K_v)^T / sqrt(C)) Pool(V_v)`` with
    ``Pool`` the adaptive average pooling to ``grid x grid``.

    Args:
        visible, infrared: features (B, C, H, W) of equal shape, floating dtype and device.
        visible_projections, infrared_projections: 1x1 convolutions of each modality.
        grid: side r of the pooled grid, >= 1; it may exceed H or W (bins then overlap, as in adaptive pooling).
        implementation: a key of :data:`IMPLEMENTATIONS` (see :func:`choose_implementation`).

    Returns:
        (B, C, H, W), dtype of the features (under autocast: of the last matrix product).

    Raises:
        InputError: shapes, dtypes or devices differ, or the implementation is unknown.
    """
    if visible.dim() != 4 or visible.shape != infrared.shape:
        raise InputError(
            "features of both modalities must have one shape (B, C, H, W)",
            got=f"visible {tuple(visible.shape)}, infrared {tuple(infrared.shape)}",
        )
    if visible.dtype != infrared.dtype or visible.device != infrared.device:
        raise InputError(
            "features of both modalities must share dtype and device",
            got=f"visible {visible.dtype} on {visible.device}, infrared {infrared.dtype} on {infrared.device}",
        )
    if grid < 1:
        raise InputError("pooled grid too small", expected="grid >= 1", got=str(grid))
    channels = visible.shape[1]
    for name, projections in (("visible", visible_projections), ("infrared", infrared_projections)):
        for field, tensor in projections._asdict().items():
            wanted = (channels, channels) if field.endswith("weight") else (channels,)
            if tuple(tensor.shape) != wanted:
                raise InputError(f"{name} {field} has the wrong shape", expected=str(wanted), got=str(tuple(tensor.shape)))
    if implementation not in IMPLEMENTATIONS:
        raise InputError(
            "unknown attention implementation", expected=f"one of {', '.join(IMPLEMENTATIONS)}", got=repr(implementation)
        )
    return IMPLEMENTATIONS[implementation](visible, infrared, visible_projections, infrared_projections, grid)
