"""The specification of the operation, written to be read. The folded implementation is tested against it.

Shapes: B batch, C channels, H height, W width, N prototypes, D entries of a prototype, d entries of a query.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from isfl_ros.ops.backdoor_adjustment.api import AdjustmentWeights


def reference_adjustment(
    features: Tensor, dictionary: Tensor, weights: AdjustmentWeights, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Second paper, equations 4 to 6, term by term."""
    count = dictionary.shape[0]
    x = features.permute(0, 2, 3, 1)  # B H W C
    query = x @ weights.query.T  # B H W d: W_q X
    key = dictionary @ weights.key.T  # N d: W_k z_i
    importance = torch.softmax(query @ key.T / math.sqrt(key.shape[1]), dim=-1)  # B H W N: lambda_i, equation 6
    expectation = importance @ dictionary * (1.0 / count)  # B H W D: sum of lambda_i z_i P(z_i), equation 5
    adjusted = x @ weights.feature.T + expectation @ weights.prototype.T  # B H W C: equation 4
    spread = scaled_entropy(importance)[:, None] if entropy else None
    return adjusted.permute(0, 3, 1, 2), spread


def scaled_entropy(importance: Tensor) -> Tensor:
    """Entropy of the weights (..., N) over that of N equal ones: (...,) in [0, 1]; 0 where one prototype has it all."""
    tiny = torch.finfo(importance.dtype).tiny
    entropy = -(importance * importance.clamp(min=tiny).log()).sum(-1)
    return (entropy / math.log(importance.shape[-1])).clamp(0.0, 1.0)
