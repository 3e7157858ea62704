"""Second loop of the evaluation: score the pictures that were kept, in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.evaluation import targets
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


def score_predictions(methods: Sequence[str], sets: Sequence[PairSet], predictions: Path, *, jobs: int) -> Scores:
    """Scores everything that :func:`~isfl_ros.evaluation.predict.predict` kept.

    Args:
        methods: names of the methods.
        sets: the sets they were run on.
        predictions: folder of the kept pictures.
        jobs: processes, >= 1; 1 works in this one. The result does not depend on it.

    Raises:
        InputError: as :func:`score_pair`, or `jobs` is below 1.
    """
    if jobs < 1:
        raise InputError("--jobs out of range", expected="at least 1", got=str(jobs))
    work = [(methods, pair_set.name, pair, predictions) for pair_set in sets for pair in pair_set.pairs]
    scores = Scores()
    with _mapper(min(jobs, len(work))) as mapped:
        for part in tqdm(mapped(score_pair, *zip(*work)), total=len(work), desc="score", unit="pair"):
            scores.images += part.images
            scores.people += part.people
    return scores


@contextmanager
def _mapper(jobs: int) -> Iterator:
    if jobs == 1:
        yield map
        return
    # Spawned, not forked: the models' thread pools of this process do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield pool.map
