"""Pictures to look at: the sources, what every method made of them, and the gates of every scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from isfl_ros.evaluation.baselines import SOURCES
from isfl_ros.evaluation.missing import CASES, missing_path
from isfl_ros.evaluation.predict import gate_paths, prediction_path, sheet_pairs
from isfl_ros.evaluation.sets import PairSet, read_sources
from isfl_ros.io.folders import read_thermal
from isfl_ros.visualization import colour_gate

_CELL_PX = 320  # width of a picture on a sheet
_MISSING_SHOWN = 3  # pairs of a set that are shown with a modality missing


@dataclass(frozen=True)
class SheetRow:
    """One pair: titles to pictures, (h, 320) uint8 grey or (h, 320, 3) uint8 RGB, all of one size."""

    stem: str
    cells: dict[str, np.ndarray]


def fused_rows(pair_set: PairSet, methods: Sequence[str], predictions: Path) -> Iterator[SheetRow]:
    """Infrared, visible, and every method that fuses."""
    for pair in sheet_pairs(pair_set):
        sources = read_sources(pair)
        cells = {"infrared": _small(sources.infrared), "visible": _small(sources.rgb)}
        for method in methods:
            if method not in SOURCES:
                cells[method] = _small(read_thermal(prediction_path(predictions, method, pair_set.name, pair.stem)))
        yield SheetRow(pair.stem, cells)


def gate_rows(pair_set: PairSet, method: str, predictions: Path) -> Iterator[SheetRow]:
    """The fused picture and the gate of every scale, finest first, in colour, of the pairs whose gates were kept."""
    for pair in sheet_pairs(pair_set):
        paths = gate_paths(predictions, method, pair_set.name, pair.stem)
        if not paths:
            continue
        fused = _small(read_thermal(prediction_path(predictions, method, pair_set.name, pair.stem)))
        cells = {"fused": fused}
        for scale, path in enumerate(paths, 1):
            gate = read_thermal(path)
            # A pixel of a coarse scale is seen as the square that it is.
            way = cv2.INTER_AREA if gate.shape[1] > _CELL_PX else cv2.INTER_NEAREST
            raised = cv2.resize(gate, fused.shape[1::-1], interpolation=way)
            title = f"scale {scale}, {gate.shape[1]}x{gate.shape[0]}, mean {gate.mean() / 255:.2f}"
            cells[title] = colour_gate(raised.astype(np.float32) / 255)
        yield SheetRow(pair.stem, cells)


def missing_rows(
    pair_set: PairSet, models: Sequence[str], predictions: Path, *, missing_pairs: int
) -> Iterator[SheetRow]:
    """What each model made with a modality missing, everywhere and in regions: some of the pairs that were measured."""
    measured = pair_set.spread(missing_pairs)
    for k in np.linspace(0, len(measured) - 1, min(_MISSING_SHOWN, len(measured))).round().astype(int):
        stem = measured[k].stem
        for model in models:
            cells = {
                f"no {modality}, {region}": _small(
                    read_thermal(missing_path(predictions, model, pair_set.name, stem, modality, region))
                )
                for modality, region in CASES
            }
            yield SheetRow(f"{stem}, {model}", cells)


def picture_sheet(rows: Sequence[SheetRow]) -> np.ndarray:
    """All rows in one picture, (height, columns * 320, 3) uint8 RGB, with their titles in it."""
    lines = []
    for row in rows:
        cells = [_titled(picture, title) for title, picture in row.cells.items()]
        _put_label(cells[0], row.stem, line=2)
        lines.append(np.hstack(cells))
    return np.vstack(lines)


def _small(picture: np.ndarray) -> np.ndarray:
    height = round(picture.shape[0] * _CELL_PX / picture.shape[1])
    return cv2.resize(picture, (_CELL_PX, height), interpolation=cv2.INTER_AREA)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    cell = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture.copy()
    _put_label(cell, title, line=1)
    return cell


def _put_label(cell: np.ndarray, text: str, *, line: int) -> None:
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # a dark rim reads on any picture
        cv2.putText(cell, text, (6, 18 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
