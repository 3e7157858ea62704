"""Exact algebra of the operation: the keys take the query's matrix in, the prototypes their own.

Shapes: B batch, C channels, H height, W width, N prototypes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isfl_ros.ops.backdoor_adjustment.reference import scaled_entropy
from isfl_ros.ops.pooled_cross_attention.folded import frame_is_whole

if TYPE_CHECKING:
    from isfl_ros.ops.backdoor_adjustment.api import AdjustmentTables

# Scores held at a time in inference: 1 MB in float32, as in the pooled cross-attention (640x480, C = 32, 2 cores:
# 20 ms, with all scores at once 38 ms). A GPU wants few launches.
_SCORES_AT_A_TIME = 1 << 18
_SCORES_AT_A_TIME_ON_CUDA = 1 << 26


def folded_adjustment(features: Tensor, tables: AdjustmentTables, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Same value as the reference: ``C (C + 2 N)`` multiply-adds a pixel, neither query nor expectation is formed."""
    b, c, h, w = features.shape
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
    pixels = features.permute(0, 2, 3, 1).reshape(-1, c).to(dtype)  # free of copies for channels-last features
    feature, scores, values = (table.to(dtype) for table in tables)
    total, count = pixels.shape[0], scores.shape[0]
    at_a_time = max(1, (_SCORES_AT_A_TIME_ON_CUDA if features.is_cuda else _SCORES_AT_A_TIME) // count)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (features, *tables))
    if differentiable or frame_is_whole() or total <= at_a_time:
        importance = _importance(pixels, scores)
        adjusted = torch.addmm(pixels @ feature.T, importance.to(dtype), values)
        spread = scaled_entropy(importance) if entropy else None
    else:
        adjusted = pixels.new_empty((total, c))
        spread = pixels.new_empty(total, dtype=_exact(dtype)) if entropy else None
        for start in range(0, total, at_a_time):
            part = slice(start, min(start + at_a_time, total))
            importance = _importance(pixels[part], scores)
            torch.addmm(pixels[part] @ feature.T, importance.to(dtype), values, out=adjusted[part])
            if spread is not None:
                spread[part] = scaled_entropy(importance)
    adjusted = adjusted.reshape(b, h, w, c).permute(0, 3, 1, 2)
    return adjusted, None if spread is None else spread.reshape(b, 1, h, w)


def _importance(pixels: Tensor, scores: Tensor) -> Tensor:
    """Softmax over the prototypes, (n, N); never in less than float32."""
    return torch.softmax((pixels @ scores.T).to(_exact(pixels.dtype)), dim=-1)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
