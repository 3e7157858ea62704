"""Registration: the picture of the other camera, warped into the frame of the reference camera. No ROS in here.

Conventions, everywhere in this file:

- A pixel's coordinates (x right, y down) are whole numbers at its centre, as in OpenCV and sensor_msgs/CameraInfo: the
  picture reaches from -0.5 to width - 0.5. A picture scaled by s therefore has x' = s (x + 0.5) - 0.5.
- ``size`` is (width, height), as in files and messages; ``shape`` is (H, W), as in numpy.
- Camera frames are optical frames: z forward, x right, y down, metres.
- The output has the raw geometry of the reference camera, its lens distortion included: its camera_info stays true.

A pixel of the output is valid only where every pixel it is interpolated from lies in the picture, is valid itself
and, for float32, is finite. Invalid pixels are exactly 0.
"""

from __future__ import annotations

import functools

import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.registration.cameras import DISTORTION_MODELS, CalibratedPlane, Calibration, Transform, calibrated_map
from isfl_ros.registration.grid import (
    INTERPOLATIONS,
    Geometry,
    Grid,
    GridTensors,
    check_picture,
    make_grid,
    warp_tensor,
)
from isfl_ros.registration.homography import Homography, parse_homography, read_homography, write_homography
from isfl_ros.registration.sizes import MAX_PIXELS, MAX_SIDE, checked_size

__all__ = [
    "DISTORTION_MODELS",
    "INTERPOLATIONS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MODES",
    "CalibratedPlane",
    "Calibration",
    "Grid",
    "GridTensors",
    "Homography",
    "Registration",
    "Transform",
    "calibrated_map",
    "parse_homography",
    "read_homography",
    "warp_tensor",
    "write_homography",
]

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
        self.overlap: float = 1.0
        """Part of the reference frame, 0 to 1, that the other camera's picture covers at the sizes calibrated for."""
        self.concerns: tuple[str, ...] = ()
        """What looks wrong but need not be, in words for the log."""
        if geometry is not None:
            self.overlap = self._grids(geometry.from_size, geometry.to_size, "linear").overlap
            if self.overlap == 0.0:
                raise geometry.nothing_seen()
            self.concerns = tuple(geometry.concerns(self.overlap))

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
