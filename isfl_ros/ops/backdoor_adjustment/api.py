"""Contract of the back-door adjustment: features corrected by the expectation over the prototypes of a confounder.

Shapes: B batch, C channels, H height, W width, N prototypes, D entries of a prototype, d entries of a query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.ops.backdoor_adjustment.folded import folded_adjustment
from isfl_ros.ops.backdoor_adjustment.reference import reference_adjustment


class AdjustmentWeights(NamedTuple):
    """The learnable matrices of equations 4 and 6; without biases, as printed.

    Shapes: feature (C, C) is W_h, prototype (C, D) is W_g, query (d, C) is W_q, key (d, D) is W_k.
    """

    feature: Tensor
    prototype: Tensor
    query: Tensor
    key: Tensor


class AdjustmentTables(NamedTuple):
    """What :func:`fold_adjustment` makes of the weights and the dictionary.

    Shapes: feature (C, C); scores (N, C), which act on raw features; values (N, C), what a prototype adds.
    """

    feature: Tensor
    scores: Tensor
    values: Tensor


def _folded(
    features: Tensor, dictionary: Tensor, weights: AdjustmentWeights, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    return folded_adjustment(features, fold_adjustment(weights, dictionary), entropy)


# Every entry: (features, dictionary, weights, entropy) -> (adjusted, entropy or None).
IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "reference": reference_adjustment,
    "folded": _folded,
}


def check_implementation(name: str) -> None:
    """Refuses a name that is not in :data:`IMPLEMENTATIONS`.

    Raises:
        InputError: it is not.
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(
            "unknown implementation of the back-door adjustment",
            expected=f"one of {', '.join(IMPLEMENTATIONS)}",
            got=repr(name),
        )


def backdoor_adjustment(
    features: Tensor,
    dictionary: Tensor,
    weights: AdjustmentWeights,
    *,
    entropy: bool = False,
    implementation: str = "folded",
) -> tuple[Tensor, Tensor | None]:
    """``W_h x + W_g sum_i(lambda_i z_i / N)`` with ``lambda = softmax((W_q x)^T (W_k z_i) / sqrt(d))`` at every pixel.

    Second paper ("Causality-Driven Infrared and Visible Image Fusion"), equations 4 to 6, P(z_i) = 1/N.

    Args:
        features: x, (B, C, H, W), floating; channels-last is fastest.
        dictionary: z_1 to z_N, (N, D) with N >= 2, on the same device.
        weights: matrices that fit the two.
        entropy: also return the entropy of lambda over log N.
        implementation: ``reference`` (term by term) or ``folded`` (exact algebra, fewer products).

    Returns:
        The adjusted features (B, C, H, W), and the entropy (B, 1, H, W) in [0, 1] or None.

    Raises:
        InputError: an unknown implementation, or shapes that do not fit together.
    """
    check_implementation(implementation)
    _check(features, dictionary, weights)
    return IMPLEMENTATIONS[implementation](features, dictionary, weights, entropy)


def fold_adjustment(weights: AdjustmentWeights, dictionary: Tensor) -> AdjustmentTables:
    """The tables of the folded implementation, in the precision of the weights; differentiable in both arguments."""
    with torch.autocast(dictionary.device.type, enabled=False):  # small products that every pixel depends on
        key = dictionary @ weights.key.T  # N d
        scores = key @ weights.query / math.sqrt(key.shape[1])  # N C
        values = dictionary @ weights.prototype.T / dictionary.shape[0]  # N C
    return AdjustmentTables(weights.feature, scores, values)


def adjust_folded(features: Tensor, tables: AdjustmentTables, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """:func:`backdoor_adjustment` from tables that were made before."""
    return folded_adjustment(features, tables, entropy)


def _check(features: Tensor, dictionary: Tensor, weights: AdjustmentWeights) -> None:
    if features.dim() != 4:
        raise InputError("features have the wrong shape", expected="(B, C, H, W)", got=str(tuple(features.shape)))
    if dictionary.dim() != 2 or dictionary.shape[0] < 2:
        raise InputError(
            "dictionary has the wrong shape", expected="(N, D) with N >= 2", got=str(tuple(dictionary.shape))
        )
    c, d, entries = features.shape[1], weights.query.shape[0], dictionary.shape[1]
    wanted = {"feature": (c, c), "prototype": (c, entries), "query": (d, c), "key": (d, entries)}
    for name, shape in wanted.items():
        got = tuple(getattr(weights, name).shape)
        if got != shape:
            raise InputError(f"weights.{name} has the wrong shape", expected=str(shape), got=str(got))
