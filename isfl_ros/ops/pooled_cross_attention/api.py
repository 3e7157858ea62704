"""Contract of the pooled cross-attention; who computes it is asked for by name and never replaced.

Shapes: B batch, C channels, H height, W width, N = H*W pixels, T = grid*grid pooled tokens.
"""

from __future__ import annotations

import contextlib
import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.ops.pooled_cross_attention.folded import folded_attention
from isfl_ros.ops.pooled_cross_attention.fused import fused_attention
from isfl_ros.ops.pooled_cross_attention.reference import reference_attention


class Projections(NamedTuple):
    """The 1x1 convolutions of one modality: weights (C, C) as (out, in), biases (C,)."""

    query_weight: Tensor
    query_bias: Tensor
    key_weight: Tensor
    key_bias: Tensor
    value_weight: Tensor
    value_bias: Tensor


class FoldedProjections(NamedTuple):
    """One affine map from a pooled token of the attended modality to all that the querying pixels need of it.

    ``matrix`` (2C+1, C) and ``bias`` (2C+1,) give ``[folded key (C) | score offset (1) | value (C)]`` of a token: the
    score of a raw pixel ``x`` is ``x . folded key + score offset``, with ``1/sqrt(C)`` and the query projection inside.
    """

    matrix: Tensor
    bias: Tensor


def fold_projections(querying: Projections, attended: Projections) -> FoldedProjections:
    """Folds the query projection of one modality into the key projection of the other (see ``README.md``).

    Depends on weights only, so in inference it is done once. Differentiable; in the dtype of the weights, also under
    autocast.

    Args:
        querying: projections of the modality whose pixels ask.
        attended: projections of the modality whose pooled tokens answer.
    """
    scale = 1.0 / math.sqrt(querying.query_weight.shape[0])
    kind = querying.query_weight.device.type
    full_precision = (
        torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()
    )
    with full_precision:
        # q.k = (Wq x + bq).(Wk p + bk) = x.(Wq^T Wk p + Wq^T bk) + (bq^T Wk p + bq.bk)
        key_matrix, key_bias = attended.key_weight * scale, attended.key_bias * scale
        query = torch.cat((querying.query_weight.t(), querying.query_bias[None]))  # C+1 C
        matrix = torch.cat((query @ key_matrix, attended.value_weight))
        bias = torch.cat((query @ key_bias, attended.value_bias))
    return FoldedProjections(matrix, bias)


# Those that work from folded projections: (visible, infrared, for_visible, for_infrared, grid) to (B, C, H, W).
FOLDED_IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {"folded": folded_attention, "triton": fused_attention}


def _after_folding(name: str) -> Callable[..., Tensor]:
    def attend(
        visible: Tensor,
        infrared: Tensor,
        visible_projections: Projections,
        infrared_projections: Projections,
        grid: int,
    ) -> Tensor:
        for_visible = fold_projections(visible_projections, infrared_projections)
        for_infrared = fold_projections(infrared_projections, visible_projections)
        return FOLDED_IMPLEMENTATIONS[name](visible, infrared, for_visible, for_infrared, grid)

    return attend


# All: (visible, infrared, visible_projections, infrared_projections, grid) to (B, C, H, W).
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": reference_attention,
    **{name: _after_folding(name) for name in FOLDED_IMPLEMENTATIONS},
}


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
        implementation: a key of :data:`IMPLEMENTATIONS`; which one runs is decided in
            :mod:`isfl_ros.backends.choice`.

    Returns:
        (B, C, H, W), dtype of the features (under autocast: of the last matrix product).

    Raises:
        InputError: shapes, dtypes or devices differ, or the implementation is unknown.
    """
    _check_features(visible, infrared, grid)
    _check_implementation(implementation, IMPLEMENTATIONS)
    channels = visible.shape[1]
    for name, projections in (("visible", visible_projections), ("infrared", infrared_projections)):
        for field, tensor in projections._asdict().items():
            wanted = (channels, channels) if field.endswith("weight") else (channels,)
            _check_weight(f"{name} {field}", tensor, wanted, visible.device)
    return IMPLEMENTATIONS[implementation](visible, infrared, visible_projections, infrared_projections, grid)


def attend_folded(
    visible: Tensor,
    infrared: Tensor,
    for_visible: FoldedProjections,
    for_infrared: FoldedProjections,
    *,
    grid: int,
    implementation: str,
) -> Tensor:
    """The operation of :func:`pooled_cross_attention` from projections that were folded beforehand.

    Args:
        visible, infrared: features (B, C, H, W) of equal shape, floating dtype and device.
        for_visible: ``fold_projections(visible_projections, infrared_projections)``: acts on pooled infrared tokens, is
            asked by visible pixels. float32, or the dtype of the features.
        for_infrared: the other direction.
        grid: side r of the pooled grid, >= 1 (``triton``: 1 to 16).
        implementation: a key of :data:`FOLDED_IMPLEMENTATIONS`. ``triton`` takes 1 to 64 channels in float32, float16
            or bfloat16 on a CUDA device; float32 features go through IEEE products unless
            ``torch.backends.cuda.matmul.fp32_precision`` is ``tf32``, the switch that torch's own products obey.

    Returns:
        (B, C, H, W), dtype of the features (``folded`` under autocast: of the last matrix product).

    Raises:
        InputError: shapes, dtypes or devices differ or are not supported, or the implementation is unknown.
    """
    _check_features(visible, infrared, grid)
    _check_implementation(implementation, FOLDED_IMPLEMENTATIONS)
    channels = visible.shape[1]
    for name, folded in (("for_visible", for_visible), ("for_infrared", for_infrared)):
        _check_weight(f"{name} matrix", folded.matrix, (2 * channels + 1, channels), visible.device)
        _check_weight(f"{name} bias", folded.bias, (2 * channels + 1,), visible.device)
    return FOLDED_IMPLEMENTATIONS[implementation](visible, infrared, for_visible, for_infrared, grid)


def _check_features(visible: Tensor, infrared: Tensor, grid: int) -> None:
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


def _check_weight(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name} has the wrong shape", expected=str(shape), got=str(tuple(tensor.shape)))
    if tensor.device != device:
        raise InputError(f"{name} is not where the features are", expected=str(device), got=str(tensor.device))


def _check_implementation(implementation: str, known: dict[str, Callable[..., Tensor]]) -> None:
    if implementation not in known:
        raise InputError(
            "unknown attention implementation", expected=f"one of {', '.join(known)}", got=repr(implementation)
        )
