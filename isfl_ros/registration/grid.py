"""Warping by a map that is made once: on the host with OpenCV, on a device with torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.images import measured

INTERPOLATIONS = ("linear", "nearest")
_SUBPIXELS = 32  # bilinear weights in steps of 1/32 pixel, as cv2.remap has them
_STRONG = 1.5  # shrinking from which on bilinear interpolation skips too much
_PROBES = 64  # a side: places at which the scale of a map is measured
_STRIP = 1 << 15  # pixels that are mapped at a time: float64 arrays that stay in a CPU's cache


class Geometry(Protocol):
    """Where pixels of the reference camera lie in the other camera's picture."""

    mode: str
    """Its name as ``registration.mode``."""
    from_size: tuple[int, int]
    """(width, height) of the other camera's pictures that it is for."""
    to_size: tuple[int, int]
    """(width, height) of the reference camera's pictures that it is for."""

    def sample(
        self, from_size: tuple[int, int], to_size: tuple[int, int], rows: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x and y in the other picture, (rows, W) float64, for rows of the reference, and where they mean something.

        Args:
            from_size, to_size: (width, height) of the pictures at hand.
            rows: of the reference camera's picture.

        Raises:
            InputError: a size is not that of the geometry, scaled.
        """

    def concerns(self, overlap: float) -> list[str]:
        """What looks wrong but need not be, in words."""

    def nothing_seen(self) -> InputError:
        """The error for a geometry that leaves no overlap."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where each pixel of the reference picture is taken from, in steps of 1/32 pixel. Arrays are read-only.

    A map that shrinks would skip pixels between those that it interpolates, and with them whole people. There, pictures
    are first shrunk by a whole factor, each pixel the mean of a square.
    """

    from_shape: tuple[int, int]
    """(H, W) of pictures that are warped."""
    shrink: int
    """Side of that square in pixels; 1: pictures are taken as they are. Below, positions are in the shrunk picture;
    rows and columns that fill no square at its end are left out."""
    corner: np.ndarray
    """(H, W, 2) int16: x and y of the pixel above and left; far outside where invalid."""
    weight: np.ndarray
    """(H, W) uint16: 32 fy + fx, in 1/32 pixel to the right of and below the corner; 0 for ``nearest``."""
    valid: np.ndarray
    """(H, W) bool: every pixel with a weight other than 0 lies in the picture."""
    overlap: float
    """Part of the reference frame that is covered, 0 to 1."""
    interpolation: str
    """One of :data:`INTERPOLATIONS`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of warped pictures."""
        return self.valid.shape

    @functools.cached_property
    def used(self) -> np.ndarray:
        """(h, w) bool, of ``from_shape``, read-only: pixels with a weight other than 0 somewhere in the reference."""
        height, width = (side // self.shrink for side in self.from_shape)
        x, y = (self.corner[self.valid][:, i].astype(np.intp) for i in (0, 1))
        weight = self.weight[self.valid]
        right, below = weight % _SUBPIXELS > 0, weight // _SUBPIXELS > 0
        small = np.zeros((height, width), bool)
        for dy in (0, below):
            for dx in (0, right):
                small[y + dy, x + dx] = True
        used = np.zeros(self.from_shape, bool)
        k = self.shrink
        used[: height * k, : width * k] = small.repeat(k, axis=0).repeat(k, axis=1)
        used.setflags(write=False)
        return used

    def warp(self, picture: np.ndarray, *, valid: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Warps one picture.

        Args:
            picture: (h, w) uint8, uint16 or float32 (not :func:`~isfl_ros.images.measured`: missing), or (h, w, 3) uint8,
                of ``from_shape``.
            valid: (h, w) bool, or None when every pixel is valid.

        Returns:
            The picture, of ``shape`` and the same dtype, 0 where invalid; and its mask, (H, W) bool (None: valid
            everywhere), to be read only: pictures share it.

        Raises:
            InputError: other shape or dtype.
        """
        check_picture(picture, valid, self.from_shape)
        if picture.dtype == np.float32:
            good = measured(picture)
            if not good.all():
                valid = good if valid is None else good & valid
                picture = np.where(good, picture, np.float32(0.0))  # NaN times a weight of 0 would be NaN
        covered = self.cover(valid)
        return self.resample(picture, covered), covered

    def cover(self, valid: np.ndarray | None = None) -> np.ndarray | None:
        """Where a warped picture is valid, (H, W) bool, to be read only; None: everywhere.

        Args:
            valid: (h, w) bool, of the picture; None: everywhere.
        """
        if valid is None or valid.all():
            return None if self.overlap == 1.0 else self.valid
        # In float32, the smallest weight (1/1024, times a pixel's part of a square) of an invalid pixel still shows.
        return self.valid & (self._remap((~valid).astype(np.float32)) == 0.0)

    def resample(self, picture: np.ndarray, covered: np.ndarray | None) -> np.ndarray:
        """The picture of :meth:`warp` alone, of a picture that is known to fit and to be finite.

        Args:
            picture: of ``from_shape``, of a kind that :meth:`warp` takes.
            covered: of :meth:`cover`.
        """
        warped = self._remap(picture)
        if covered is None or covered is self.valid:
            return warped
        return cv2.copyTo(warped, covered.view(np.uint8))  # into new memory, which OpenCV fills with 0

    def _remap(self, picture: np.ndarray) -> np.ndarray:
        linear = self.interpolation == "linear"
        if self.shrink > 1:
            height, width = (side // self.shrink for side in self.from_shape)
            whole = picture[: height * self.shrink, : width * self.shrink]
            picture = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        return cv2.remap(
            picture,
            self.corner,
            self.weight if linear else None,
            cv2.INTER_LINEAR if linear else cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )

    def tensors(self, device: torch.device | str) -> GridTensors:
        """The same on a device, for :func:`warp_tensor`."""
        inside = self.valid
        x, y = (np.where(inside, self.corner[:, :, i], 0).astype(np.int32) for i in (0, 1))
        weight = np.where(inside, self.weight, 0)
        return GridTensors(
            corner=torch.from_numpy(y * (self.from_shape[1] // self.shrink) + x).to(device),
            fraction_x=torch.from_numpy((weight % _SUBPIXELS).astype(np.uint8)).to(device),
            fraction_y=torch.from_numpy((weight // _SUBPIXELS).astype(np.uint8)).to(device),
            valid=torch.from_numpy(inside.copy()).to(device),
            shrink=self.shrink,
        )


def check_picture(picture: np.ndarray, valid: np.ndarray | None, shape: tuple[int, int]) -> None:
    grey = picture.ndim == 2 and picture.dtype in (np.uint8, np.uint16, np.float32)
    if not grey and not (picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8):
        raise InputError(
            "picture of unsupported kind",
            expected="(H, W) uint8, uint16 or float32, or (H, W, 3) uint8",
            got=f"{picture.shape} {picture.dtype}",
        )
    if picture.shape[:2] != shape:
        raise InputError("picture of another size", expected=f"(H, W) {shape}", got=str(picture.shape[:2]))
    if valid is not None and (valid.shape != shape or valid.dtype != np.bool_):
        raise InputError("mask of unsupported kind", expected=f"{shape} bool", got=f"{valid.shape} {valid.dtype}")


@dataclass(frozen=True, eq=False)
class GridTensors:
    """A :class:`Grid` in the memory of a device."""

    corner: Tensor
    """(H, W) int32: index of the pixel above and left in the flattened picture; 0 where invalid."""
    fraction_x: Tensor
    """(H, W) uint8, 0 to 31: 1/32 pixels to the right of it."""
    fraction_y: Tensor
    """(H, W) uint8, 0 to 31: 1/32 pixels below it."""
    valid: Tensor
    """(H, W) bool."""
    shrink: int
    """As in :class:`Grid`."""


def warp_tensor(picture: Tensor, grid: GridTensors, *, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:meth:`Grid.warp` on a device: 8 bits to one grey level (to the byte with OpenCV's own code), 16 bits to one
    count, float32 to rounding, masks exactly. Nothing depends on what the picture holds: a CUDA graph can capture it.

    Args:
        picture: (h, w) uint8, int16 (the bits of uint16) or float32, or (h, w, 3) uint8; contiguous, of ``from_shape``.
        grid: on the device of the picture.
        valid: (h, w) bool, or None when every pixel is valid.

    Returns:
        The picture, (H, W) or (H, W, 3) of the same dtype, 0 where invalid; and its mask, (H, W) bool.
    """
    usable = valid
    if picture.is_floating_point():
        good = measured(picture)
        usable = good if valid is None else good & valid
    if grid.shrink > 1:
        picture, usable = _shrunk(picture, usable, grid.shrink)
    width, shape = picture.shape[1], grid.valid.shape
    # A neighbour without weight is replaced by the pixel itself: it is in the picture, and what it holds does not leak.
    right = (grid.fraction_x > 0).to(torch.int32)
    below = (grid.fraction_y > 0).to(torch.int32) * width
    places = [(grid.corner + shift).reshape(-1) for shift in (0, right, below, right + below)]
    covered = grid.valid
    if usable is not None:
        flat = usable.reshape(-1)
        for place in places:
            covered = covered & flat.index_select(0, place).view(shape)
    fx, fy = grid.fraction_x.to(torch.int32), grid.fraction_y.to(torch.int32)
    weights = ((_SUBPIXELS - fx) * (_SUBPIXELS - fy), fx * (_SUBPIXELS - fy), (_SUBPIXELS - fx) * fy, fx * fy)
    rows = picture.reshape(picture.shape[0] * width, -1)
    total = None
    for place, weight in zip(places, weights):
        values, weight = rows.index_select(0, place), weight.view(-1, 1)
        if picture.dtype == torch.float32:
            term = values * (weight.to(torch.float32) / _SUBPIXELS**2)
        elif picture.dtype == torch.int16:
            term = (values.to(torch.int32) & 0xFFFF) * weight
        else:
            term = values.to(torch.int32) * weight
        total = term if total is None else total + term
    if not picture.is_floating_point():
        total = (total + _SUBPIXELS**2 // 2) >> 10
    warped = total.to(picture.dtype).masked_fill(~covered.view(-1, 1), 0)
    return warped.view(*shape, *picture.shape[2:]), covered


def _shrunk(picture: Tensor, usable: Tensor | None, k: int) -> tuple[Tensor, Tensor | None]:
    """Means of squares of k x k, to a grey level those of ``cv2.INTER_AREA``, and which are usable: all over."""
    height, width = (side // k for side in picture.shape[:2])
    squares = picture[: height * k, : width * k].reshape(height, k, width, k, *picture.shape[2:])
    if picture.is_floating_point():
        mean = squares.mean(dim=(1, 3))
    else:
        counts = squares.to(torch.int32) & 0xFFFF if picture.dtype == torch.int16 else squares
        mean = ((counts.sum(dim=(1, 3), dtype=torch.int64) + k * k // 2) // (k * k)).to(picture.dtype)
    if usable is not None:
        usable = usable[: height * k, : width * k].reshape(height, k, width, k).all(dim=3).all(dim=1)
    return mean, usable


def make_grid(geometry: Geometry, from_size: tuple[int, int], to_size: tuple[int, int], interpolation: str) -> Grid:
    """The map of a geometry for pictures of these (width, height). Labels (``nearest``) have no mean: none is shrunk."""
    grid = _make_grid(geometry, from_size, to_size, interpolation, 1)
    scale = _scale(grid) if interpolation == "linear" else 1.0
    if scale < _STRONG:
        return grid
    # Rounded down: what is left to interpolation stays below _STRONG, and no detail is lost that it could show.
    shrink = min(max(2, int(scale + 0.05)), *from_size)
    shrunk = _make_grid(geometry, from_size, to_size, interpolation, shrink)
    return shrunk if shrunk.overlap else grid  # a picture that becomes a few pixels may have none between their centres


def _scale(grid: Grid) -> float:
    """Pixels of the picture for one of the reference, along a side: the root of the mean area; 1 if nothing tells."""
    for step in (max(1, min(grid.shape) // _PROBES), 1):  # a small overlap may lie between the probes
        valid = grid.valid[::step, ::step]
        place = grid.corner[::step, ::step].astype(np.float64)
        weight = grid.weight[::step, ::step]
        place += np.stack((weight % _SUBPIXELS, weight // _SUBPIXELS), axis=-1) / _SUBPIXELS
        known = valid[:-1, :-1] & valid[:-1, 1:] & valid[1:, :-1]
        if known.any():
            right, below = (place[:-1, 1:] - place[:-1, :-1])[known], (place[1:, :-1] - place[:-1, :-1])[known]
            area = np.abs(right[:, 0] * below[:, 1] - right[:, 1] * below[:, 0]).mean()
            return float(np.sqrt(area)) / step
    return 1.0


def _make_grid(
    geometry: Geometry, from_size: tuple[int, int], to_size: tuple[int, int], interpolation: str, shrink: int
) -> Grid:
    width, height = to_size
    small = tuple(side // shrink for side in from_size)
    corner, weight = np.empty((height, width, 2), np.int16), np.empty((height, width), np.uint16)
    valid = np.empty((height, width), bool)
    steps = _SUBPIXELS if interpolation == "linear" else 1
    strip = max(1, _STRIP // width)
    for start in range(0, height, strip):
        rows = slice(start, start + strip)
        x, y, ok = geometry.sample(from_size, to_size, rows)
        if shrink > 1:
            x, y = ((at + 0.5) / shrink - 0.5 for at in (x, y))
        ok = ok & (x > -1.0) & (x < small[0]) & (y > -1.0) & (y < small[1])  # before whole numbers overflow
        x, y = (np.floor(np.where(ok, at, 0.0) * steps + 0.5).astype(np.int32) for at in (x, y))
        ok &= (x >= 0) & (x <= (small[0] - 1) * steps) & (y >= 0) & (y <= (small[1] - 1) * steps)
        # Outside with all four neighbours: there cv2.remap writes its border value, 0.
        corner[rows, :, 0], corner[rows, :, 1] = (np.where(ok, at // steps, -2) for at in (x, y))
        weight[rows] = np.where(ok, (y % steps) * _SUBPIXELS + x % steps, 0)
        valid[rows] = ok
    for array in (corner, weight, valid):
        array.setflags(write=False)
    return Grid(from_size[::-1], shrink, corner, weight, valid, float(valid.mean()), interpolation)
