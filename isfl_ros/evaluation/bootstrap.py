"""Paired differences with their bootstrap intervals.

Methods are compared pair by pair of pictures, since a picture that is hard for one is hard for all: the interval is the
percentile bootstrap (Efron, 1979) of the mean difference, the pictures drawn with replacement, the same draws for all
methods and metrics. It tells how the mean would move with other pictures of the same kind, nothing about pictures of
another kind, and with fewer than about 20 pairs it is too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isfl_ros.errors import InputError

_DRAWS_AT_ONCE = 1000  # bounds memory: this times the number of pairs


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """How intervals are drawn.

    Raises:
        InputError: on construction, when a value is out of range.
    """

    resamples: int = 10_000
    """Draws; below 1000 the ends of the interval wobble."""
    confidence: float = 0.95
    """Part of the draws inside the interval, between 0 and 1."""
    seed: int = 0
    """The same seed and scores give the same interval, bit for bit."""

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise InputError("--resamples out of range", expected="at least 1", got=str(self.resamples))
        if not 0 < self.confidence < 1:
            raise InputError("confidence out of range", expected="between 0 and 1", got=str(self.confidence))
        if self.seed < 0:
            raise InputError("--seed out of range", expected="at least 0", got=str(self.seed))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A method minus the reference, over all pairs of a set."""

    mean: float
    low: float | None
    """Lower end of the interval; None with fewer than two pairs, or where a difference is infinite."""
    high: float | None
    wins: int | None
    """Pairs where the method is better; None where the metric has no better end."""
    losses: int | None
    ties: int | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def bootstrap_interval(
    numerators: np.ndarray, weights: np.ndarray, config: BootstrapConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of ``sum(numerators) / sum(weights)`` when rows are drawn with replacement.

    Args:
        numerators: (n, k) float64, finite, a row a pair of pictures.
        weights: (n,) float64 >= 0; all 1 for a mean. Draws whose weights are all 0 say nothing and are left out.
        config: draws, confidence, seed.

    Returns:
        Lower and upper ends, (k,) each.
    """
    count = len(numerators)
    random = np.random.default_rng(config.seed)
    ratios = []
    for start in range(0, config.resamples, _DRAWS_AT_ONCE):
        draws = min(_DRAWS_AT_ONCE, config.resamples - start)
        times = random.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)  # a draw a row
        below = times @ weights
        ratios.append((times @ numerators)[below > 0] / below[below > 0, None])
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(np.concatenate(ratios), (tail, 1 - tail), axis=0)
    return low, high


def paired_differences(
    differences: np.ndarray, directions: Sequence[str], config: BootstrapConfig, rows: np.ndarray | None = None
) -> list[Difference]:
    """One column a comparison.

    Args:
        differences: (m, k), method minus reference.
        directions: (k,) ``up``, ``down`` or ``shown``.
        rows: (m,) index of the pair of pictures each row belongs to, where several rows share one; None: a row a pair.
    """
    finite = np.isfinite(differences).all(axis=0)
    known = np.where(finite, differences, 0.0)
    if rows is None:
        numerators, weights = known, np.ones(len(known))
    else:
        pairs, rows = np.unique(rows, return_inverse=True)
        numerators, weights = np.zeros((len(pairs), known.shape[1])), np.bincount(rows).astype(np.float64)
        np.add.at(numerators, rows, known)
    interval = bootstrap_interval(numerators, weights, config) if len(numerators) > 1 else None
    found = []
    for k, direction in enumerate(directions):
        column = differences[:, k]
        better = {"up": column > 0, "down": column < 0}.get(direction)
        worse = {"up": column < 0, "down": column > 0}.get(direction)
        has_interval = interval is not None and finite[k]
        found.append(
            Difference(
                mean=float(column.mean()),
                low=float(interval[0][k]) if has_interval else None,
                high=float(interval[1][k]) if has_interval else None,
                wins=None if better is None else int(better.sum()),
                losses=None if worse is None else int(worse.sum()),
                ties=None if better is None else int((column == 0).sum()),
            )
        )
    return found
