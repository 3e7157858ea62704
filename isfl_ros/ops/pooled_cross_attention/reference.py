"""The specification of the operation, written to be read. Every other implementation is tested against it.

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


def reference_attention(
    visible: Tensor, infrared: Tensor, visible_projections: Projections, infrared_projections: Projections, grid: int
) -> Tensor:
    """Paper equations 5 to 7, term by term: project every pixel, pool keys and values, attend, add."""
    q_v, k_v, v_v = _project(visible, visible_projections)
    q_i, k_i, v_i = _project(infrared, infrared_projections)
    visible_to_infrared = _attend(q_v, F.adaptive_avg_pool2d(k_i, grid), F.adaptive_avg_pool2d(v_i, grid))
    infrared_to_visible = _attend(q_i, F.adaptive_avg_pool2d(k_v, grid), F.adaptive_avg_pool2d(v_v, grid))
    return visible_to_infrared + infrared_to_visible


def _project(features: Tensor, projections: Projections) -> tuple[Tensor, Tensor, Tensor]:
    def conv1x1(weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(features, weight[:, :, None, None], bias)

    return (
        conv1x1(projections.query_weight, projections.query_bias),
        conv1x1(projections.key_weight, projections.key_bias),
        conv1x1(projections.value_weight, projections.value_bias),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    b, c, h, w = query.shape
    q = query.flatten(2).transpose(1, 2)  # B N C
    k = key.flatten(2)  # B C T
    v = value.flatten(2).transpose(1, 2)  # B T C
    weights = torch.softmax(q @ k / math.sqrt(c), dim=-1)  # B N T
    return (weights @ v).transpose(1, 2).reshape(b, c, h, w)
