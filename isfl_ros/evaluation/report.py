"""Second loop of the evaluation: score the pictures that were kept, and write tables and picture sheets."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from isfl_ros import __version__
from isfl_ros.errors import InputError
from isfl_ros.evaluation import targets
from isfl_ros.evaluation.metrics import METRICS, score
from isfl_ros.evaluation.predict import COMPLEXITY_SIZE, Complexity, PairSet, prediction_path, read_sources
from isfl_ros.io.folders import Pair, read_thermal, write_png

SOURCES = ("infrared", "visible")
"""Baselines that are a source itself: shown in the tables, never the best of them."""
SUMMARY_JSON, SUMMARY_MARKDOWN = "summary.json", "summary.md"
PER_IMAGE, PER_PERSON = "per_image.csv", "per_person.csv"

_PERSON_COLUMNS = {"person_median": "up", "person_p10": "up", "people": "shown"}
_ARROWS = {"up": " ↑", "down": " ↓", "shown": ""}


@dataclass
class Scores:
    """Every measured value."""

    images: list[dict[str, str | float]] = field(default_factory=list)
    """One row a fused picture: method, set, stem, then the metrics."""
    people: list[dict[str, str | float]] = field(default_factory=list)
    """One row a person and method: method, set, stem, contrast (see :mod:`isfl_ros.evaluation.targets`)."""


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
            ratios = targets.person_contrast(fused, sources.infrared, sources.luma, label)
            scores.people += [key | {"contrast": ratio} for ratio in ratios]
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


def summarize(scores: Scores, sets: Sequence[PairSet], methods: Sequence[str]) -> dict[str, dict]:
    """Means over each set.

    Returns:
        Set to ``{"spec", "pairs", "labelled_pairs", "methods"}``; ``methods`` maps each method to the means of the
        metrics, and where the set has labels to `people`, `person_median` and `person_p10`.
    """
    summary: dict[str, dict] = {}
    for pair_set in sets:
        labelled = sum(pair.label is not None for pair in pair_set.pairs)
        means: dict[str, dict[str, float]] = {}
        for method in methods:

            def mine(rows: list[dict], column: str) -> list[float]:
                return [row[column] for row in rows if (row["method"], row["set"]) == (method, pair_set.name)]

            means[method] = {metric: float(np.mean(mine(scores.images, metric))) for metric in METRICS}
            if labelled:
                means[method] |= targets.summarize(mine(scores.people, "contrast"))
        summary[pair_set.name] = {
            "spec": pair_set.spec, "pairs": len(pair_set.pairs), "labelled_pairs": labelled, "methods": means
        }
    return summary


def versions() -> dict[str, str]:
    """What computed the metrics."""
    return {
        "isfl_ros": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What the report says of a model beside its scores."""

    complexity: Complexity
    description: Mapping[str, str]
    """As :class:`isfl_ros.pipeline.FusionPipeline` describes itself."""


def markdown(summary: Mapping[str, dict], models: Mapping[str, ModelReport]) -> str:
    """One table of means a set, best values bold, and one table of what the models cost."""
    parts = []
    for name, entry in summary.items():
        text = f"{entry['pairs']} pairs, means over all of them"
        better = {metric.name: metric.better for metric in METRICS.values()}
        if entry["labelled_pairs"]:
            better |= _PERSON_COLUMNS
            text += (
                f"; person columns: contrast kept of the better source (1: all), median and 10th percentile over the"
                f" people in {entry['labelled_pairs']} labelled pairs"
            )
        parts += [f"## {name}", text + ".", _table(entry["methods"], better)]
    parts.append("Bold: best of the rows that fuse (`infrared` and `visible` are the sources themselves).")
    if models:
        height, width = COMPLEXITY_SIZE
        rows = [f"## Models at {width}x{height}", ""]
        rows.append("| model | parameters | GMAC | median latency (ms) | device | implementation |")
        rows.append("|---|--:|--:|--:|---|---|")
        for name, model in models.items():
            cost, about = model.complexity, model.description
            rows.append(
                f"| {name} | {cost.parameters:,} | {cost.macs / 1e9:.2f} | {cost.latency_ms:.1f} "
                f"| {about['device']} | {about['implementation']} |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _table(methods: Mapping[str, Mapping[str, float]], better: Mapping[str, str]) -> str:
    def best_of(column: str) -> float | None:
        values = [row[column] for name, row in methods.items() if column in row and name not in SOURCES]
        if better[column] == "shown" or not values:
            return None
        return max(values) if better[column] == "up" else min(values)

    best = {column: best_of(column) for column in better}

    def cell(name: str, row: Mapping[str, float], column: str) -> str:
        if column not in row:
            return "-"
        text = f"{row[column]:.4g}"
        return f"**{text}**" if row[column] == best[column] and name not in SOURCES else text

    lines = ["| method | " + " | ".join(column + _ARROWS[better[column]] for column in better) + " |"]
    lines.append("|---|" + "--:|" * len(better))
    for name, row in methods.items():
        lines.append(f"| {name} | " + " | ".join(cell(name, row, column) for column in better) + " |")
    return "\n".join(lines)


_SHEET_PAIRS, _SHEET_CELL_PX = 6, 320  # pairs a sheet, width of a picture on it


def picture_sheet(pair_set: PairSet, methods: Sequence[str], predictions: Path) -> np.ndarray:
    """The first pairs of a set to look at: one row a pair; columns infrared, visible and every method that fuses.

    Returns:
        (height, columns * 320, 3) uint8 RGB.
    """
    rows = []
    for pair in pair_set.pairs[:_SHEET_PAIRS]:
        sources = read_sources(pair)
        columns = {"infrared": sources.infrared, "visible": sources.rgb}
        for method in methods:
            if method not in SOURCES:
                columns[method] = read_thermal(prediction_path(predictions, method, pair_set.name, pair.stem))
        cells = [_sheet_cell(picture, title) for title, picture in columns.items()]
        _put_label(cells[0], pair.stem, line=2)
        rows.append(np.hstack(cells))
    return np.vstack(rows)


def _sheet_cell(picture: np.ndarray, title: str) -> np.ndarray:
    height = round(picture.shape[0] * _SHEET_CELL_PX / picture.shape[1])
    cell = cv2.resize(picture, (_SHEET_CELL_PX, height), interpolation=cv2.INTER_AREA)
    cell = cv2.cvtColor(cell, cv2.COLOR_GRAY2RGB) if cell.ndim == 2 else cell
    _put_label(cell, title, line=1)
    return cell


def _put_label(cell: np.ndarray, text: str, *, line: int) -> None:
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # a dark rim reads on any picture
        cv2.putText(cell, text, (6, 18 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)


def write_report(
    folder: Path, scores: Scores, sets: Sequence[PairSet], methods: Sequence[str], models: Mapping[str, ModelReport]
) -> str:
    """Writes tables, JSON and sheets beside the kept pictures.

    Args:
        folder: holds ``predictions/`` already.
        scores: of all pictures.
        sets: the sets, whole.
        methods: names, in the order of the rows.
        models: the methods among them that are networks.

    Returns:
        The Markdown tables.
    """
    summary = summarize(scores, sets, methods)
    _write_csv(folder / PER_IMAGE, ["method", "set", "stem", *METRICS], scores.images)
    if any(entry["labelled_pairs"] for entry in summary.values()):
        _write_csv(folder / PER_PERSON, ["method", "set", "stem", "contrast"], scores.people)
    text = markdown(summary, models)
    (folder / SUMMARY_MARKDOWN).write_text(text, encoding="utf-8")
    document = {
        "versions": versions(),
        "sets": summary,
        "models": {name: asdict(m.complexity) | {"description": dict(m.description)} for name, m in models.items()},
    }
    (folder / SUMMARY_JSON).write_text(json.dumps(_finite(document), indent=2, allow_nan=False) + "\n")
    for pair_set in sets:
        write_png(folder / f"sheet_{pair_set.name}.png", picture_sheet(pair_set, methods, folder / "predictions"))
    return text


def _finite(value: object) -> object:
    """JSON has no infinity (the PSNR of identical pictures): null there."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
