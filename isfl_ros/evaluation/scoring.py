"""Second loop of the evaluation: score the pictures that were kept, in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.evaluation import flicker, missing, targets
from isfl_ros.evaluation.metrics import score
from isfl_ros.evaluation.predict import prediction_path
from isfl_ros.evaluation.sets import PairSet, read_sources
from isfl_ros.io.folders import Pair, read_thermal


@dataclass
class Scores:
    """Every measured value."""

    images: list[dict[str, str | float]] = field(default_factory=list)
    """One row a fused picture: method, set, stem, then the metrics."""
    people: list[dict[str, str | float]] = field(default_factory=list)
    """One row a person and method: method, set, stem, person, contrast (see :mod:`isfl_ros.evaluation.targets`)."""
    missing: list[dict[str, str | float | None]] = field(default_factory=list)
    """Of :func:`isfl_ros.evaluation.missing.score_pair`."""
    flicker: list[dict[str, str | float | None]] = field(default_factory=list)
    """Of :func:`isfl_ros.evaluation.flicker.score_step`."""

    def add(self, other: Scores) -> None:
        """Appends another's values."""
        self.images += other.images
        self.people += other.people
        self.missing += other.missing
        self.flicker += other.flicker


def score_pair(methods: Sequence[str], set_name: str, pair: Pair, predictions: Path) -> Scores:
    """Scores the kept pictures of one pair.

    Raises:
        InputError: a picture or the label cannot be read, or does not fit the pair.
    """
    sources = read_sources(pair)
    label = targets.read_label(pair.label, sources.luma.shape) if pair.label else None
    scores = Scores()
    for method in methods:
        fused = read_thermal(prediction_path(predictions, method, set_name, pair.stem))
        key = {"method": method, "set": set_name, "stem": pair.stem}
        scores.images.append(key | score(fused, sources.infrared, sources.luma))
        if label is not None:
            # Which people are measured depends on the sources alone: number k is the same person for every method.
            ratios = targets.person_contrast(fused, sources.infrared, sources.luma, label)
            scores.people += [key | {"person": k, "contrast": ratio} for k, ratio in enumerate(ratios, 1)]
    return scores


def _score_missing(*job) -> Scores:
    return Scores(missing=missing.score_pair(*job))


def _score_step(*job) -> Scores:
    return Scores(flicker=flicker.score_step(*job))


def score_predictions(
    methods: Sequence[str],
    sets: Sequence[PairSet],
    predictions: Path,
    *,
    jobs: int,
    sequences: Sequence[str] = (),
    models: Sequence[str] = (),
    missing_pairs: int = 0,
) -> Scores:
    """Scores everything that :func:`~isfl_ros.evaluation.predict.predict` kept.

    Args:
        methods: names of the methods.
        sets: the sets they were run on.
        predictions: folder of the kept pictures.
        jobs: processes, >= 1; 1 works in this one. The result does not depend on it.
        sequences: names of the sets whose flicker is measured.
        models: names of the methods of which pictures with one modality missing are kept.
        missing_pairs: most pairs of a set of which they are.

    Raises:
        InputError: as :func:`score_pair`, or `jobs` is below 1.
    """
    if jobs < 1:
        raise InputError("--jobs out of range", expected="at least 1", got=str(jobs))
    work: list[tuple[Callable[..., Scores], tuple]] = []
    for pair_set in sets:
        work += [(score_pair, (methods, pair_set.name, pair, predictions)) for pair in pair_set.pairs]
        if models:
            chosen = pair_set.spread(missing_pairs)
            work += [(_score_missing, (models, pair_set.name, pair, predictions)) for pair in chosen]
        if pair_set.name in sequences:
            steps = flicker.steps(pair_set)
            work += [(_score_step, (methods, pair_set.name, *step, predictions)) for step in steps]
    scores = Scores()
    with _mapper(min(jobs, len(work))) as mapped:
        for part in tqdm(mapped(_call, *zip(*work)), total=len(work), desc="score", unit="job"):
            scores.add(part)
    return scores


def _call(function: Callable[..., Scores], job: tuple) -> Scores:
    return function(*job)


@contextmanager
def _mapper(jobs: int) -> Iterator:
    if jobs == 1:
        yield map
        return
    # Spawned, not forked: the models' thread pools of this process do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield pool.map
