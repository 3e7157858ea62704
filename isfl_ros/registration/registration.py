"""A geometry ready for use: checked, with its maps kept by size. Conventions: see the package."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.registration.cameras import CalibratedPlane
from isfl_ros.registration.grid import INTERPOLATIONS, Geometry, Grid, check_picture, make_grid
from isfl_ros.registration.homography import Homography, read_homography
from isfl_ros.registration.sizes import checked_size

MODES = ("none", Homography.mode, CalibratedPlane.mode)
"""Values of ``registration.mode``."""
_GRIDS_KEPT = 4


class Registration:
    """How the other camera's pictures come into the reference camera's frame. Never changes; safe to share.

    Args:
        geometry: None when the cameras are aligned already (mode ``none``).

    Raises:
        InputError: on construction, when nothing of the other camera's picture would land in the reference frame.
    """

    def __init__(self, geometry: Geometry | None = None):
        self._geometry = geometry
        self.mode: str = "none" if geometry is None else geometry.mode
        """``none``, ``homography`` or ``calibrated``."""
        self._grids = functools.lru_cache(maxsize=_GRIDS_KEPT)(functools.partial(make_grid, geometry))
        self.from_shape: tuple[int, int] | None = None if geometry is None else geometry.from_size[::-1]
        """(H, W) of the other camera's pictures that it is for; None in mode ``none``."""
        self.to_shape: tuple[int, int] | None = None if geometry is None else geometry.to_size[::-1]
        """(H, W) of the reference camera's pictures that it is for; None in mode ``none``."""
        self.overlap: float = 1.0
        """Part of the reference frame, 0 to 1, that the other camera's picture covers at the sizes calibrated for."""
        self.concerns: tuple[str, ...] = ()
        """What looks wrong but need not be, in words for the log."""
        if geometry is not None:
            self.overlap = self._grids(geometry.from_size, geometry.to_size, "linear").overlap
            if self.overlap == 0.0:
                raise geometry.nothing_seen()
            self.concerns = tuple(geometry.concerns(self.overlap))

    @classmethod
    def from_file(cls, path: str | Path) -> Registration:
        """Of a homography file.

        Raises:
            InputError: naming the file, when it cannot be read (:func:`read_homography`) or leaves no overlap.
        """
        homography = read_homography(path)
        try:
            return cls(homography)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def grid(
        self, from_shape: tuple[int, int], to_shape: tuple[int, int], interpolation: str = "linear"
    ) -> Grid | None:
        """The map for pictures of these (H, W), None in mode ``none``. The last few are kept; a new one takes a while.

        Raises:
            InputError: unknown interpolation, or sizes that are not those calibrated for, scaled.
        """
        if interpolation not in INTERPOLATIONS:
            raise InputError(
                "unknown interpolation", expected=f"one of {', '.join(INTERPOLATIONS)}", got=repr(interpolation)
            )
        geometry, from_size, to_size = self._geometry, from_shape[::-1], to_shape[::-1]
        if geometry is None:
            if from_size != to_size:
                raise InputError(
                    "sizes differ",
                    expected="one size, with registration.mode none",
                    got=f"{from_size[0]}x{from_size[1]} and, of the reference camera, {to_size[0]}x{to_size[1]}",
                    do="set registration.mode to homography or calibrated",
                )
            return None
        from_size = checked_size(from_size, "size of the other camera's picture")
        to_size = checked_size(to_size, "size of the reference camera's picture")
        if from_size != to_size and (from_size, to_size) == (geometry.to_size, geometry.from_size):
            raise InputError(
                f"{self.mode} registration: the cameras have changed roles",
                expected=f"the other camera {geometry.from_size[0]}x{geometry.from_size[1]},"
                f" the reference camera {geometry.to_size[0]}x{geometry.to_size[1]} (width x height)",
                got=f"{from_size[0]}x{from_size[1]} and {to_size[0]}x{to_size[1]}",
                do="it was made for the other value of reference: change that, or make it again the other way",
            )
        return self._grids(from_size, to_size, interpolation)

    def warp(
        self,
        picture: np.ndarray,
        *,
        to_shape: tuple[int, int] | None = None,
        valid: np.ndarray | None = None,
        interpolation: str = "linear",
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Warps one picture of the other camera; see :meth:`Grid.warp`. In mode ``none`` it comes back as it is.

        Args:
            picture, valid: as :meth:`Grid.warp`.
            to_shape: (H, W) of the reference camera's picture; None: that calibrated for.
            interpolation: ``linear``, or ``nearest`` where values must not be mixed (labels).

        Raises:
            InputError: as :meth:`Grid.warp` and :meth:`grid`.
        """
        from_shape = picture.shape[:2]
        if to_shape is None:
            to_shape = from_shape if self._geometry is None else self._geometry.to_size[::-1]
        grid = self.grid(from_shape, to_shape, interpolation)
        if grid is None:
            check_picture(picture, valid, from_shape)
            return picture, valid
        return grid.warp(picture, valid=valid)
