"""One modality missing: what a network makes of the other, of everything or in parts of the picture.

For a few pairs of a set, each modality is taken away from the whole picture and from the regions of
:mod:`isfl_ros.evaluation.regions`, and the pair fused as the node fuses it, with validity masks or without the
modality. What remains is known, so the fused picture is compared with it:

* SSIM (:func:`isfl_ros.evaluation.metrics.similarity`) to the remaining picture, where a whole modality is missing;
* mean absolute difference to it in grey levels: over the whole picture, or in the region at least 8 px from its edge;
* how visible the region's edge is (:mod:`isfl_ros.evaluation.seam`), and beside it what a hard switch at the edge,
  from the picture fused of both to the remaining one, would score.

Pictures are kept beside the others, ``<predictions>/<method>/<set>/missing/<stem>.<modality>.<region>.png``, with a
line each in ``<predictions>/<method>/missing.jsonl``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.evaluation.bootstrap import BootstrapConfig, Difference, bootstrap_interval, paired_differences
from isfl_ros.evaluation.ledger import Ledger
from isfl_ros.evaluation.methods import Method, Model
from isfl_ros.evaluation.metrics import similarity
from isfl_ros.evaluation.predict import KeptMethod, prediction_path
from isfl_ros.evaluation.regions import MODALITIES, REGIONS, WHOLE, make_region, region_digest, signed_distance
from isfl_ros.evaluation.seam import seam
from isfl_ros.evaluation.sets import PairSet, read_sources
from isfl_ros.io.folders import Pair, read_thermal, write_png

INNER_PX = 8.0
"""Inside a region, the difference is taken at least this far from its edge."""
LEAST_SSIM = 0.97
"""What is asked of a shipped model where a whole modality is missing."""
MOST_DIFFERENCE = 3.0
"""Grey levels: what is asked of a shipped model inside a region."""
FIGURES = {"SSIM": "up", "difference": "down", "seam": "down", "hard_seam": "shown"}
"""Columns of a measured picture, and which way is better; None in a row where the figure has no meaning there."""

CASES = tuple(itertools.product(MODALITIES, REGIONS))
"""(modality, region) of every picture that is made of a pair."""


def missing_path(predictions: Path, method: str, set_name: str, stem: str, modality: str, region: str) -> Path:
    """Where the fused luma of one case is kept."""
    return predictions / method / set_name / "missing" / f"{stem}.{modality}.{region}.png"


def _ledger(predictions: Path, method: str) -> Ledger:
    return Ledger(predictions / method / "missing.jsonl", ("set", "stem", "modality", "region"))


def _line(pair_set: PairSet, stem: str, modality: str, name: str, region: np.ndarray) -> dict[str, str]:
    return {
        "set": pair_set.name, "stem": stem, "modality": modality, "region": name,
        "sources": pair_set.source_keys[stem], "mask": region_digest(region),
    }


def predict_missing(
    methods: Sequence[Method], kept: Mapping[str, KeptMethod], sets: Sequence[PairSet], predictions: Path, *, pairs: int
) -> None:
    """Fuses every case that is not kept already, with every method that is a model, and keeps it.

    Args:
        methods: all rows.
        kept: of :func:`isfl_ros.evaluation.predict.predict`.
        sets: as :func:`~isfl_ros.evaluation.sets.examine` gives them.
        predictions: folder of the kept pictures.
        pairs: most pairs of a set, spread evenly.

    Raises:
        InputError: a pair cannot be read, or a device failed on the way; the pictures written so far stay.
    """
    models = [method for method in methods if isinstance(method, Model)]
    ledgers = {model.name: _ledger(predictions, model.name) for model in models}
    for ledger in ledgers.values():
        ledger.mend()
    work = [(pair_set, pair) for pair_set in sets for pair in pair_set.spread(pairs)]
    for pair_set, pair in tqdm(work, desc="fuse with parts missing", unit="pair"):
        sources = read_sources(pair)
        for modality, name in CASES:
            region = make_region(name, sources.luma.shape, pair.stem)
            line = _line(pair_set, pair.stem, modality, name, region)
            for model in models:
                path = missing_path(predictions, model.name, pair_set.name, pair.stem, modality, name)
                if ledgers[model.name].has(line) and path.is_file():
                    continue
                luma = model.fuse_without(sources, modality, region)
                kept[model.name].check_identity(model.identity())
                write_png(path, luma)
                ledgers[model.name].add(line)


def check_kept(kept: Mapping[str, KeptMethod], sets: Sequence[PairSet], predictions: Path, *, pairs: int) -> None:
    """Whether every picture that :func:`score_pair` needs is kept.

    Raises:
        InputError: naming the first that is not.
    """
    for method in _models(kept):
        ledger = _ledger(predictions, method)
        for pair_set in sets:
            for pair in pair_set.spread(pairs):
                shape = read_thermal(pair.thermal).shape
                for modality, name in CASES:
                    path = missing_path(predictions, method, pair_set.name, pair.stem, modality, name)
                    line = _line(pair_set, pair.stem, modality, name, make_region(name, shape, pair.stem))
                    if not ledger.has(line) or not path.is_file():
                        raise InputError(
                            f"{method} has kept no picture of {pair_set.name}/{pair.stem} without {modality} ({name})",
                            expected=str(path),
                            do="fuse with --missing and the same --missing-pairs, or leave --missing out",
                        )


def _models(kept: Mapping[str, KeptMethod]) -> list[str]:
    return [name for name, method in kept.items() if method.is_model]


def require_model(kept: Mapping[str, KeptMethod]) -> list[str]:
    """Names of the rows that run a network.

    Raises:
        InputError: there is none.
    """
    names = _models(kept)
    if not names:
        raise InputError("--missing needs a row that runs a network", expected="--model", got=", ".join(kept))
    return names


def score_pair(
    models: Sequence[str], set_name: str, pair: Pair, predictions: Path
) -> list[dict[str, str | float | None]]:
    """A row a model and case: method, set, stem, modality, region, then :data:`FIGURES`.

    Raises:
        InputError: a picture cannot be read.
    """
    sources = read_sources(pair)
    rows = []
    for modality, name in CASES:
        region = make_region(name, sources.luma.shape, pair.stem)
        remaining = sources.luma if modality == "infrared" else sources.infrared
        inner = signed_distance(region) >= INNER_PX
        for model in models:
            fused = read_thermal(missing_path(predictions, model, set_name, pair.stem, modality, name))
            row = {"method": model, "set": set_name, "stem": pair.stem, "modality": modality, "region": name}
            row |= dict.fromkeys(FIGURES)
            if inner.any():
                row["difference"] = float(np.abs(fused[inner].astype(np.float64) - remaining[inner]).mean())
            if name == WHOLE:
                row["SSIM"] = similarity(fused.astype(np.float64), remaining.astype(np.float64))
            else:
                of_both = read_thermal(prediction_path(predictions, model, set_name, pair.stem))
                switched = np.where(region, remaining, of_both)
                row["seam"] = seam(fused, sources.infrared, sources.luma, region)
                row["hard_seam"] = seam(switched, sources.infrared, sources.luma, region)
            rows.append(row)
    return rows


@dataclass(frozen=True, kw_only=True)
class MissingFigure:
    """One of :data:`FIGURES` of one method and case, over the pairs of a set."""

    mean: float
    low: float | None
    """Interval of the mean; None with fewer than two pairs."""
    high: float | None
    worst: float
    worst_stem: str
    pairs: int
    """Pairs in which the figure could be taken."""
    minus: dict[str, Difference]
    """Reference (a model too) to the difference over the same pairs."""


@dataclass(frozen=True, kw_only=True)
class MissingSummary:
    """One set."""

    pairs: int
    """Pairs that were measured."""
    methods: dict[str, dict[str, dict[str, dict[str, MissingFigure]]]]
    """Model to modality to region to figure."""


_Key = tuple[str, str, str, str]  # method, modality, region, figure


def summarize(
    rows: Sequence[dict], pair_set: PairSet, references: Sequence[str], bootstrap: BootstrapConfig
) -> MissingSummary | None:
    """Sums up the rows of :func:`score_pair` of one set; None where it has none."""
    mine = [row for row in rows if row["set"] == pair_set.name]
    if not mine:
        return None
    measured: dict[_Key, dict[str, float]] = {}  # stem to value, in the order of the pairs
    for row in mine:
        for figure in FIGURES:
            if row[figure] is not None:
                key = (row["method"], row["modality"], row["region"], figure)
                measured.setdefault(key, {})[row["stem"]] = row[figure]
    intervals = _intervals(measured, bootstrap)
    minus = _differences(measured, references, bootstrap)
    methods: dict = {}
    for key, by_stem in measured.items():
        method, modality, region, figure = key
        worst = (min if FIGURES[figure] == "up" else max)(by_stem, key=by_stem.get)
        low, high = intervals.get(key, (None, None))
        methods.setdefault(method, {}).setdefault(modality, {}).setdefault(region, {})[figure] = MissingFigure(
            mean=float(np.mean(list(by_stem.values()))), low=low, high=high, worst=by_stem[worst], worst_stem=worst,
            pairs=len(by_stem), minus=minus.get(key, {}),
        )
    return MissingSummary(pairs=len({row["stem"] for row in mine}), methods=methods)


def _by_stems(measured: Mapping[_Key, Mapping[str, float]]) -> list[list[_Key]]:
    """Keys whose values are over the same pairs: they share the draws of the bootstrap."""
    groups: dict[tuple[str, ...], list[_Key]] = {}
    for key, by_stem in measured.items():
        groups.setdefault(tuple(by_stem), []).append(key)
    return list(groups.values())


def _matrix(measured: Mapping[_Key, Mapping[str, float]], keys: Sequence[_Key]) -> np.ndarray:
    return np.array([list(measured[key].values()) for key in keys]).T


def _intervals(
    measured: Mapping[_Key, Mapping[str, float]], bootstrap: BootstrapConfig
) -> dict[_Key, tuple[float, float]]:
    found = {}
    for keys in _by_stems(measured):
        values = _matrix(measured, keys)
        if len(values) > 1:
            low, high = bootstrap_interval(values, np.ones(len(values)), bootstrap)
            found |= {key: (float(low[k]), float(high[k])) for k, key in enumerate(keys)}
    return found


def _differences(
    measured: Mapping[_Key, Mapping[str, float]], references: Sequence[str], bootstrap: BootstrapConfig
) -> dict[_Key, dict[str, Difference]]:
    found: dict[_Key, dict[str, Difference]] = {}
    for reference in references:
        # Whether there is a figure depends on region and size alone: it is there for every model or for none.
        mine = {key: v for key, v in measured.items() if key[0] != reference and (reference, *key[1:]) in measured}
        for keys in _by_stems(mine):
            delta = _matrix(measured, keys) - _matrix(measured, [(reference, *key[1:]) for key in keys])
            for key, difference in zip(keys, paired_differences(delta, [FIGURES[key[3]] for key in keys], bootstrap)):
                found.setdefault(key, {})[reference] = difference
    return found
