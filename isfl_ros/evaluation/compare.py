"""What the scores say: means, and the paired comparison of every method with a reference method.

Methods are compared pair by pair of pictures, since a picture that is hard for one is hard for all: the interval is the
percentile bootstrap (Efron, 1979) of the mean difference, the pictures drawn with replacement, the same draws for all
methods and metrics. It tells how the mean would move with other pictures of the same kind, nothing about pictures of
another kind, and with fewer than about 20 pairs it is too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.evaluation import targets
from isfl_ros.evaluation.metrics import METRICS
from isfl_ros.evaluation.scoring import Scores
from isfl_ros.evaluation.sets import PairSet

HEADLINE = ("AG", "SF", "PSNR", "CC", "Qabf", "MI", "VIF", "SSIM")
"""The metrics by which the papers count a win; Nabf and person contrast are read beside them."""
PERSON = "person"
"""Name of the person contrast among the differences."""
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


def _differences(
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


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """One set: what it was, means, and differences to the reference."""

    spec: str
    pairs: int
    """Pairs that everything here is over."""
    total: int
    """Pairs in the set, those left out included."""
    left_out: list[dict[str, str]]
    labelled_pairs: int
    methods: dict[str, dict[str, float]]
    """Method to means of the metrics; with labels also ``people``, ``person_median``, ``person_p10``."""
    differences: dict[str, dict[str, Difference]]
    """Method (not the reference) to metric to difference; with people also :data:`PERSON`, a row of it a person, the
    pictures drawn whole."""

    def better_on(self, method: str) -> list[str]:
        """Those of :data:`HEADLINE` on which the mean of a method is above the reference's."""
        return [metric for metric in HEADLINE if self.differences[method][metric].mean > 0]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"better_on": {method: self.better_on(method) for method in self.differences}}


def summarize(
    scores: Scores, sets: Sequence[PairSet], methods: Sequence[str], *, reference: str, bootstrap: BootstrapConfig
) -> dict[str, SetSummary]:
    """Means over each set, and differences to the reference.

    Args:
        scores: of all methods on all sets.
        sets: the sets.
        methods: names, in the order of the rows.
        reference: one of them.
        bootstrap: how the intervals are drawn.

    Returns:
        By name of the set.
    """
    return {s.name: _summarize_set(scores, s, methods, reference, bootstrap) for s in sets}


def _summarize_set(
    scores: Scores, pair_set: PairSet, methods: Sequence[str], reference: str, bootstrap: BootstrapConfig
) -> SetSummary:
    labelled = sum(pair.label is not None for pair in pair_set.pairs)
    values = {method: _values(scores.images, method, pair_set.name) for method in methods}
    people = {method: _people(scores.people, method, pair_set.name) for method in methods}
    means: dict[str, dict[str, float]] = {}
    differences: dict[str, dict[str, Difference]] = {}
    for method in methods:
        means[method] = dict(zip(METRICS, (float(mean) for mean in values[method].mean(axis=0))))
        if labelled:
            means[method] |= targets.summarize(list(people[method].values()))
        if method == reference:
            continue
        # Where both are infinite (PSNR of identical pictures) they are equal.
        same = values[method] == values[reference]
        delta = np.subtract(values[method], values[reference], out=np.zeros_like(values[method]), where=~same)
        directions = [metric.better for metric in METRICS.values()]
        differences[method] = dict(zip(METRICS, _differences(delta, directions, bootstrap)))
        if people[method]:
            keys = list(people[method])
            ratios = np.array([[people[method][key] - people[reference][key]] for key in keys])
            stems = np.array([stem for stem, _ in keys])
            (differences[method][PERSON],) = _differences(ratios, ["up"], bootstrap, rows=stems)
    return SetSummary(
        spec=pair_set.spec,
        pairs=len(pair_set.pairs),
        total=pair_set.total,
        left_out=[{"stem": item.stem, "cause": item.cause, "why": item.why} for item in pair_set.left_out],
        labelled_pairs=labelled,
        methods=means,
        differences=differences,
    )


def _values(rows: Sequence[Mapping[str, Any]], method: str, set_name: str) -> np.ndarray:
    """(pairs, metrics), in the order of the pairs, which is the same for every method."""
    mine = [row for row in rows if row["method"] == method and row["set"] == set_name]
    return np.array([[row[metric] for metric in METRICS] for row in mine], dtype=np.float64)


def _people(rows: Sequence[Mapping[str, Any]], method: str, set_name: str) -> dict[tuple[str, int], float]:
    mine = [row for row in rows if row["method"] == method and row["set"] == set_name]
    return {(row["stem"], row["person"]): row["contrast"] for row in mine}
