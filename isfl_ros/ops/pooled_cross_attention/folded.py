"""Exact algebra of the operation: pool before projecting, fold the query projection into the keys.

Shapes: B batch, C channels, H height, W width, N = H*W pixels, T = grid*grid pooled tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from isfl_ros.ops.pooled_cross_attention.api import Projections

# Pixels whose scores (T floats each) are held at a time in inference: 16384 x 64 floats are 4 MB, about one core's cache.
_PIXELS_AT_A_TIME = 16384


def folded_attention(
    visible: Tensor, infrared: Tensor, visible_projections: Projections, infrared_projections: Projections, grid: int
) -> Tensor:
    """Same value as the reference with 2*T*C multiply-adds per pixel and direction and no per-pixel query, key or value.

    In inference the T scores of a pixel exist for a chunk of pixels only; with gradients they are kept for backward.
    """
    b, c, h, w = visible.shape
    pooled_visible = _tokens(F.adaptive_avg_pool2d(visible, grid))  # B T C
    pooled_infrared = _tokens(F.adaptive_avg_pool2d(infrared, grid))
    keys_for_visible = _fold(visible_projections, infrared_projections, pooled_infrared)
    keys_for_infrared = _fold(infrared_projections, visible_projections, pooled_visible)
    pixels_visible, pixels_infrared = _tokens(visible), _tokens(infrared)  # B N C

    differentiable = torch.is_grad_enabled() and (
        visible.requires_grad or infrared.requires_grad or visible_projections.query_weight.requires_grad
    )
    if differentiable:
        result = _attend(pixels_visible, *keys_for_visible) + _attend(pixels_infrared, *keys_for_infrared)
    else:
        n = h * w
        chunks = []
        for start in range(0, n, _PIXELS_AT_A_TIME):
            stop = min(start + _PIXELS_AT_A_TIME, n)
            chunk = _attend(pixels_visible[:, start:stop], *keys_for_visible)
            chunk += _attend(pixels_infrared[:, start:stop], *keys_for_infrared)
            chunks.append(chunk)
        result = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)
    return result.reshape(b, h, w, c).permute(0, 3, 1, 2)


def _tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H*W, C); free of copies for channels-last features."""
    b, c, h, w = features.shape
    return features.permute(0, 2, 3, 1).reshape(b, h * w, c)


def _fold(querying: Projections, attended: Projections, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (B, C, T) and score offsets (B, 1, T) that act on raw features, and values (B, T, C).

    q.k = (Wq x + bq).k = x.(Wq^T k) + bq.k; the offset bq.k differs between keys, so it stays.
    """
    scale = 1.0 / math.sqrt(pooled.shape[-1])
    keys = F.linear(pooled, attended.key_weight, attended.key_bias) * scale  # B T C
    values = F.linear(pooled, attended.value_weight, attended.value_bias)  # B T C
    folded_keys = (keys @ querying.query_weight).transpose(1, 2)  # B C T
    offsets = (keys @ querying.query_bias)[:, None, :]  # B 1 T
    return folded_keys, offsets, values


def _attend(pixels: Tensor, folded_keys: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    scores = torch.baddbmm(offsets, pixels, folded_keys)  # B n T
    return torch.softmax(scores, dim=-1) @ values  # B n C
