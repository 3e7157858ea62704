"""The specification of the operation, written to be read. The fused implementation is tested against it.

Shapes: B batch, C channels, H height, W width, G channels of the gate's 3x3 convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from isfl_ros.ops.gated_blend.api import PreparedWeights


def reference_blend(
    complementary: Tensor, visible: Tensor, infrared: Tensor, weights: PreparedWeights, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """Paper equations 7 and 8, term by term."""
    plain = weights.plain
    hidden = F.conv2d(complementary, plain.conv_weight, plain.conv_bias, padding=1)  # B G H W
    hidden = F.leaky_relu(hidden, negative_slope)
    gate = torch.sigmoid(F.conv2d(hidden, plain.point_weight[None, :, None, None], plain.point_bias))  # B 1 H W
    local = visible + infrared
    blended = gate * complementary + (1 - gate) * local  # B C H W
    return blended.to(complementary.dtype), gate.to(complementary.dtype)
