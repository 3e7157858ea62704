"""Exact algebra of the operation: pool before projecting, fold the query projection into the keys.

Shapes: B batch, C channels, H height, W width, N = H*W pixels, T = grid*grid pooled tokens.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from isfl_ros.ops.pooled_cross_attention.api import FoldedProjections

# Scores held at a time in inference: 1 MB in float32. It stays in a core's cache and below the size at which the C
# library maps fresh pages for every allocation (640x480, r = 8, 2 cores: 66 ms; with four times as many, 164 ms).
_SCORES_AT_A_TIME = 1 << 18
# A GPU wants few launches and has the memory: 256 MB in float32, all of a 1280x1024 picture in two chunks at r = 8.
_SCORES_AT_A_TIME_ON_CUDA = 1 << 26

_whole_frame = contextvars.ContextVar("whole_frame", default=False)


@contextlib.contextmanager
def whole_frame() -> Iterator[None]:
    """Within it the scores of all pixels are one tensor, also in inference: for tracing and export.

    The loop over chunks has a length that depends on the picture, so a traced network would be bound to one size.
    """
    token = _whole_frame.set(True)
    try:
        yield
    finally:
        _whole_frame.reset(token)


def frame_is_whole() -> bool:
    """Whether :func:`whole_frame` is in force."""
    return _whole_frame.get()


def folded_attention(
    visible: Tensor, infrared: Tensor, for_visible: FoldedProjections, for_infrared: FoldedProjections, grid: int
) -> Tensor:
    """Same value as the reference: 2*T*C multiply-adds per pixel and direction, no per-pixel query, key or value.

    In inference the T scores of a pixel exist for a chunk of pixels only (but see :func:`whole_frame`); with gradients
    they are kept for backward.
    """
    b, c, h, w = visible.shape
    kind = visible.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else visible.dtype
    asked_by_visible = _project(F.adaptive_avg_pool2d(infrared, grid), for_visible, dtype)
    asked_by_infrared = _project(F.adaptive_avg_pool2d(visible, grid), for_infrared, dtype)
    pixels_visible, pixels_infrared = _tokens(visible), _tokens(infrared)  # B N C

    differentiable = torch.is_grad_enabled() and any(
        t.requires_grad for t in (visible, infrared, *for_visible, *for_infrared)
    )
    if differentiable or frame_is_whole():
        keys, offsets, values = asked_by_visible
        result = _weights(pixels_visible, keys, offsets, dtype) @ values
        keys, offsets, values = asked_by_infrared
        result = result + _weights(pixels_infrared, keys, offsets, dtype) @ values
    else:
        n = h * w
        at_a_time = _SCORES_AT_A_TIME_ON_CUDA if visible.is_cuda else _SCORES_AT_A_TIME
        pixels_at_a_time = max(1, at_a_time // (b * grid * grid))
        result = visible.new_empty((b, n, c), dtype=dtype)
        for start in range(0, n, pixels_at_a_time):
            part = slice(start, min(start + pixels_at_a_time, n))
            keys, offsets, values = asked_by_visible
            torch.bmm(_weights(pixels_visible[:, part], keys, offsets, dtype), values, out=result[:, part])
            keys, offsets, values = asked_by_infrared
            result[:, part].baddbmm_(_weights(pixels_infrared[:, part], keys, offsets, dtype), values)
    return result.reshape(b, h, w, c).permute(0, 3, 1, 2)


def _tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H*W, C); free of copies for channels-last features."""
    b, c, h, w = features.shape
    return features.permute(0, 2, 3, 1).reshape(b, h * w, c)


def _project(pooled: Tensor, folded: FoldedProjections, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled (B, C, r, r) to keys (B, C, T) and offsets (B, 1, T) that act on raw features, and values (B, T, C)."""
    c = pooled.shape[1]
    projected = F.linear(_tokens(pooled).to(folded.matrix.dtype), folded.matrix, folded.bias).to(dtype)  # B T 2C+1
    keys, offsets, values = projected.split((c, 1, c), dim=-1)
    return keys.transpose(1, 2), offsets.transpose(1, 2), values


def _weights(pixels: Tensor, keys: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    scores = torch.baddbmm(offsets, pixels.to(dtype), keys)  # B n T
    return torch.softmax(scores, dim=-1).to(dtype)
