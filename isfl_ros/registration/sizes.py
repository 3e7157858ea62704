"""Sizes of pictures, their scaling, and numbers from files and messages, checked."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

from isfl_ros.errors import InputError

MAX_SIDE = 32766
"""Largest width and height in pixels: ``cv2.remap`` counts in 16 bits."""
MAX_PIXELS = 1 << 26
"""Largest picture: a size in a file must not cost any memory it likes."""


def shown(value: Any, length: int = 200) -> str:
    """A value for a message, one line of at most ``length``: aliases in a small file can make one of 10^9 numbers."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxlist, brief.maxtuple, brief.maxdict = 3, 10, 10, 10
    brief.maxstring = brief.maxlong = brief.maxother = length
    try:
        text = brief.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__} that cannot be shown"
    return " ".join(text.split())[:length]


def checked_size(value: Any, what: str) -> tuple[int, int]:
    """(width, height), checked."""
    try:
        width, height = value
        whole = all(side == int(side) and not isinstance(side, bool) for side in (width, height))
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or not all(1 <= side <= MAX_SIDE for side in (width, height)) or width * height > MAX_PIXELS:
        raise InputError(
            f"{what} unusable",
            expected=f"(width, height), whole numbers from 1 to {MAX_SIDE}, at most {MAX_PIXELS} pixels",
            got=shown(value, 80),
        )
    return int(width), int(height)


def _same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other scaled by one factor, up to the rounding to whole pixels of the smaller."""
    (w, h), (ow, oh) = size, other
    return abs(h * ow / w - oh) <= max(1.0, ow / w) or abs(w * oh / h - ow) <= max(1.0, oh / h)


def scaling(declared: tuple[int, int], actual: tuple[int, int], what: str) -> np.ndarray:
    """Matrix from pixels of a picture of the ``declared`` size to pixels of the same picture in the ``actual`` size."""
    if not _same_aspect(declared, actual):
        swapped = _same_aspect(declared[::-1], actual)
        raise InputError(
            f"{what} does not fit the picture",
            expected=f"{declared[0]}x{declared[1]} (width x height) or the same factor of both",
            got=f"a picture of {actual[0]}x{actual[1]}",
            do="sizes are (width, height), these look swapped"
            if swapped
            else "a picture that was cropped or stretched needs a calibration of its own",
        )
    x, y = actual[0] / declared[0], actual[1] / declared[1]
    return np.array([[x, 0.0, (x - 1.0) / 2.0], [0.0, y, (y - 1.0) / 2.0], [0.0, 0.0, 1.0]])


def pixels(size: tuple[int, int], rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel of some rows, (rows, W) float64."""
    width, height = size
    return np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[rows])


def frozen(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A read-only float64 copy, checked for shape and finiteness."""
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError):
        array = np.full((), np.nan)
    if array.size == np.prod(shape) and array.ndim in (1, len(shape)):
        array = array.reshape(shape)
    if array.shape != shape or not np.isfinite(array).all():
        text = "x".join(str(side) for side in shape)
        raise InputError(
            f"{what} unusable", expected=f"{text} finite numbers", got=shown(values)
        )
    array.setflags(write=False)
    return array
