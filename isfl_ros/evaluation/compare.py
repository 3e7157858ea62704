"""What the scores say: means, and the paired comparison of every method with reference methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isfl_ros.evaluation import flicker, missing, targets
from isfl_ros.evaluation.bootstrap import BootstrapConfig, Difference, paired_differences
from isfl_ros.evaluation.flicker import FlickerSummary
from isfl_ros.evaluation.metrics import METRICS
from isfl_ros.evaluation.missing import MissingSummary
from isfl_ros.evaluation.scoring import Scores
from isfl_ros.evaluation.sets import PairSet

HEADLINE = ("AG", "SF", "PSNR", "CC", "Qabf", "MI", "VIF", "SSIM")
"""The metrics by which the papers count a win; Nabf and person contrast are read beside them."""
PERSON = "person"
"""Name of the person contrast among the differences."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A method against a reference by the means over one set."""

    better_on: list[str]
    """Those of :data:`HEADLINE` on which the method's mean is above the reference's."""
    lost: list[str]
    """The others of them."""
    nabf_not_worse: bool


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
    differences: dict[str, dict[str, dict[str, Difference]]]
    """Reference to method (another) to metric to difference; with people also :data:`PERSON`, a row of it a person, the
    pictures drawn whole."""
    missing: MissingSummary | None = None
    flicker: FlickerSummary | None = None

    def verdict(self, method: str, reference: str) -> Verdict:
        """A method against a reference."""
        differences = self.differences[reference][method]
        better = [metric for metric in HEADLINE if differences[metric].mean > 0]
        return Verdict(
            better_on=better,
            lost=[metric for metric in HEADLINE if metric not in better],
            nabf_not_worse=differences["Nabf"].mean <= 0,
        )

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        verdicts = {
            reference: {method: asdict(self.verdict(method, reference)) for method in methods}
            for reference, methods in self.differences.items()
        }
        return asdict(self) | {"verdicts": verdicts}


def summarize(
    scores: Scores,
    sets: Sequence[PairSet],
    methods: Sequence[str],
    *,
    references: Sequence[str],
    bootstrap: BootstrapConfig,
) -> dict[str, SetSummary]:
    """Means over each set, and differences to the references.

    Args:
        scores: of all methods on all sets.
        sets: the sets.
        methods: names, in the order of the rows.
        references: some of them.
        bootstrap: how the intervals are drawn.

    Returns:
        By name of the set.
    """
    return {s.name: _summarize_set(scores, s, methods, references, bootstrap) for s in sets}


def _summarize_set(
    scores: Scores,
    pair_set: PairSet,
    methods: Sequence[str],
    references: Sequence[str],
    bootstrap: BootstrapConfig,
) -> SetSummary:
    labelled = sum(pair.label is not None for pair in pair_set.pairs)
    values = {method: _values(scores.images, method, pair_set.name) for method in methods}
    people = {method: _people(scores.people, method, pair_set.name) for method in methods}
    means: dict[str, dict[str, float]] = {}
    for method in methods:
        means[method] = dict(zip(METRICS, (float(mean) for mean in values[method].mean(axis=0))))
        if labelled:
            means[method] |= targets.summarize(list(people[method].values()))
    return SetSummary(
        spec=pair_set.spec,
        pairs=len(pair_set.pairs),
        total=pair_set.total,
        left_out=[{"stem": item.stem, "cause": item.cause, "why": item.why} for item in pair_set.left_out],
        labelled_pairs=labelled,
        methods=means,
        differences={
            reference: {
                method: _to_reference(values, people, method, reference, bootstrap)
                for method in methods
                if method != reference
            }
            for reference in references
            if len(methods) > 1
        },
        missing=missing.summarize(scores.missing, pair_set, references, bootstrap),
        flicker=flicker.summarize(scores.flicker, pair_set, methods, references),
    )


def _to_reference(
    values: Mapping[str, np.ndarray],
    people: Mapping[str, Mapping[tuple[str, int], float]],
    method: str,
    reference: str,
    bootstrap: BootstrapConfig,
) -> dict[str, Difference]:
    """Metric to difference, over the pairs of one set."""
    # Where both are infinite (PSNR of identical pictures) they are equal.
    same = values[method] == values[reference]
    delta = np.subtract(values[method], values[reference], out=np.zeros_like(values[method]), where=~same)
    directions = [metric.better for metric in METRICS.values()]
    differences = dict(zip(METRICS, paired_differences(delta, directions, bootstrap)))
    if people[method]:
        keys = list(people[method])
        ratios = np.array([[people[method][key] - people[reference][key]] for key in keys])
        stems = np.array([stem for stem, _ in keys])
        (differences[PERSON],) = paired_differences(ratios, ["up"], bootstrap, rows=stems)
    return differences


def _values(rows: Sequence[Mapping[str, Any]], method: str, set_name: str) -> np.ndarray:
    """(pairs, metrics), in the order of the pairs, which is the same for every method."""
    mine = [row for row in rows if row["method"] == method and row["set"] == set_name]
    return np.array([[row[metric] for metric in METRICS] for row in mine], dtype=np.float64)


def _people(rows: Sequence[Mapping[str, Any]], method: str, set_name: str) -> dict[tuple[str, int], float]:
    mine = [row for row in rows if row["method"] == method and row["set"] == set_name]
    return {(row["stem"], row["person"]): row["contrast"] for row in mine}
