"""Flicker: what changes from frame to frame in the fused pictures of a sequence and in neither source.

With F, I and V the fused luma, infrared and visible luma of frame t, F', I' and V' those of frame t - 1, and W(P) a
picture P of frame t - 1 moved to where frame t has its contents, the figure of a step is the mean over pixels of

    max(0, |F - W(F')| - max(|I - W(I')|, |V - W(V')|))

in grey levels. W follows dense optical flow of the visible luma (Kroeger et al., 2016; OpenCV's DIS), bilinear. Pixels
without a valid flow are left out: those that come from outside the picture, and those whose flow there and back does
not close (Sundaram et al., 2010: |there + back|^2 > 0.01 (|there|^2 + |back|^2) + 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.evaluation.predict import prediction_path
from isfl_ros.evaluation.sets import PairSet, read_sources, size_text
from isfl_ros.io.folders import Pair, read_thermal

COLUMNS = ("flicker", "change", "left_out")
"""Of a step: the figure above; the mean of |F - W(F')| alone; the part (0..1) of the pixels that is left out."""


@dataclass(frozen=True, kw_only=True)
class MethodFlicker:
    """One method on one sequence."""

    flicker: float
    """Mean over the steps."""
    worst: float
    worst_stem: str
    """Frame at the end of the worst step."""
    change: float
    """Mean over the steps."""
    lower_than: dict[str, int]
    """Reference to the number of steps on which this method's flicker is lower."""


@dataclass(frozen=True, kw_only=True)
class FlickerSummary:
    """One sequence."""

    steps: int
    """Pairs of consecutive frames that were measured."""
    total: int
    """Those in the sequence; fewer are measured where frames were left out."""
    left_out: float
    """Mean part of the pixels without a valid flow."""
    methods: dict[str, MethodFlicker]
    """Empty where no step could be measured."""


def steps(pair_set: PairSet) -> list[tuple[Pair, Pair]]:
    """Consecutive frames, in the order of their names; none across a frame that was left out."""
    gaps = sorted(item.stem for item in pair_set.left_out)
    return [
        (first, second)
        for first, second in zip(pair_set.pairs, pair_set.pairs[1:])
        if not any(first.stem < stem < second.stem for stem in gaps)
    ]


def check_sequence(pair_set: PairSet) -> None:
    """Refuses what cannot be a sequence.

    Raises:
        InputError: it has no two consecutive frames, or frames of different sizes.
    """
    if not steps(pair_set):
        raise InputError(
            f"{pair_set.name} is no sequence", expected="two consecutive frames that can be used",
            got=f"{len(pair_set.pairs)} of {pair_set.total} frames",
        )
    sizes = [(pair, size_text(read_thermal(pair.thermal))) for pair in pair_set.pairs]
    for pair, size in sizes:
        if size != sizes[0][1]:
            raise InputError(
                f"{pair_set.name} is no sequence: {pair.thermal} has another size than the first frame",
                expected=sizes[0][1], got=size,
            )


class Warp:
    """Moves pictures of the previous frame to where the current frame has their contents.

    Args:
        previous, current: (H, W) uint8 visible luma.
    """

    def __init__(self, previous: np.ndarray, current: np.ndarray):
        back, there = _flow(current, previous), _flow(previous, current)
        height, width = current.shape
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        self._map = (x + back[..., 0], y + back[..., 1])
        within = (self._map[0] >= 0) & (self._map[0] <= width - 1) & (self._map[1] >= 0) & (self._map[1] <= height - 1)
        there = cv2.remap(there, *self._map, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        gap = np.square(there + back).sum(axis=-1)
        allowed = 0.01 * (np.square(there).sum(axis=-1) + np.square(back).sum(axis=-1)) + 0.5
        self.valid = within & (gap <= allowed)
        """(H, W) bool: where the flow can be trusted."""

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """(H, W) uint8 to (H, W) float32 grey levels; whatever where it is not :attr:`valid`."""
        levels = picture.astype(np.float32)
        return cv2.remap(levels, *self._map, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _flow(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(H, W, 2) float32: where each pixel of `here` is in `there`, x before y."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the search is cut into as many stripes as there are threads: nothing may depend on that
    try:
        search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return search.calc(np.ascontiguousarray(here), np.ascontiguousarray(there), None)
    finally:
        cv2.setNumThreads(threads)


def score_step(
    methods: Sequence[str], set_name: str, previous: Pair, current: Pair, predictions: Path
) -> list[dict[str, str | float | None]]:
    """One row a method: method, set, stem of the current frame, :data:`COLUMNS` (None where no flow is valid).

    Raises:
        InputError: a picture cannot be read.
    """
    before, now = read_sources(previous), read_sources(current)
    warp = Warp(before.luma, now.luma)

    def change(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.abs(new.astype(np.float32) - warp(old))[warp.valid].astype(np.float64)

    anyway = np.maximum(change(before.infrared, now.infrared), change(before.luma, now.luma))
    left_out = 1 - float(warp.valid.mean())
    rows = []
    for method in methods:
        old, new = (
            read_thermal(prediction_path(predictions, method, set_name, pair.stem)) for pair in (previous, current)
        )
        fused = change(old, new)
        row = {"method": method, "set": set_name, "stem": current.stem, "flicker": None, "change": None}
        if fused.size:
            row |= {"flicker": float(np.maximum(fused - anyway, 0).mean()), "change": float(fused.mean())}
        rows.append(row | {"left_out": left_out})
    return rows


def summarize(
    rows: Sequence[dict], pair_set: PairSet, methods: Sequence[str], references: Sequence[str]
) -> FlickerSummary | None:
    """Sums up the rows of :func:`score_step` of one set; None where it has none."""
    mine = [row for row in rows if row["set"] == pair_set.name]
    if not mine:
        return None
    measured = [row for row in mine if row["flicker"] is not None]  # the same steps for every method
    by_method = {method: [row for row in measured if row["method"] == method] for method in methods}
    found = {}
    for method, its in by_method.items() if measured else ():
        worst = max(its, key=lambda row: row["flicker"])
        found[method] = MethodFlicker(
            flicker=float(np.mean([row["flicker"] for row in its])),
            worst=worst["flicker"],
            worst_stem=worst["stem"],
            change=float(np.mean([row["change"] for row in its])),
            lower_than={
                reference: sum(a["flicker"] < b["flicker"] for a, b in zip(its, by_method[reference]))
                for reference in references
                if reference != method
            },
        )
    return FlickerSummary(
        steps=len(measured) // len(methods),
        total=pair_set.total - 1,
        left_out=float(np.mean([row["left_out"] for row in mine])),
        methods=found,
    )
