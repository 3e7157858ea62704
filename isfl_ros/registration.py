"""Registration: the picture of the other camera, warped into the frame of the reference camera. No ROS in here.

Conventions, everywhere in this file:

- A pixel's coordinates (x right, y down) are whole numbers at its centre, as in OpenCV and sensor_msgs/CameraInfo: the
  picture reaches from -0.5 to width - 0.5. A picture scaled by s therefore has x' = s (x + 0.5) - 0.5.
- ``size`` is (width, height), as in files and messages; ``shape`` is (H, W), as in numpy.
- Camera frames are optical frames: z forward, x right, y down, metres.
- The output has the raw geometry of the reference camera, its lens distortion included: its camera_info stays true.

A pixel of the output is valid only where every pixel it is interpolated from lies in the picture, is valid itself and, for
float32, is finite. Invalid pixels are exactly 0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.polynomial import Polynomial
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.io.staging import write_bytes

INTERPOLATIONS = ("linear", "nearest")
DISTORTION_MODELS = ("plumb_bob", "rational_polynomial", "equidistant")
"""Names of sensor_msgs/distortion_models."""
MAX_SIDE = 32766
"""Largest width and height in pixels: ``cv2.remap`` counts in 16 bits."""
MAX_PIXELS = 1 << 26
"""Largest picture: a size in a file must not cost any memory it likes."""
_SUBPIXELS = 32  # bilinear weights in steps of 1/32 pixel, as cv2.remap has them
_GRIDS_KEPT = 4
_STRIP = 1 << 15  # pixels that are mapped at a time: float64 arrays that stay in a CPU's cache
_LARGEST_FILE = 1 << 16  # bytes; a homography needs a few hundred
_LARGEST_ANGLE = np.radians(89.9)  # of a ray and the optical axis: beyond, a plane in front of the camera is not met


# Sizes


def _size(value: Any, what: str) -> tuple[int, int]:
    """(width, height), checked."""
    try:
        width, height = value
        whole = all(side == int(side) and not isinstance(side, bool) for side in (width, height))
    except (TypeError, ValueError):
        whole = False
    if not whole or not all(1 <= side <= MAX_SIDE for side in (width, height)) or width * height > MAX_PIXELS:
        raise InputError(
            f"{what} unusable",
            expected=f"(width, height), whole numbers from 1 to {MAX_SIDE}, at most {MAX_PIXELS} pixels",
            got=repr(value)[:80],
        )
    return int(width), int(height)


def _same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other scaled by one factor, up to the rounding to whole pixels of the smaller."""
    (w, h), (ow, oh) = size, other
    return abs(h * ow / w - oh) <= max(1.0, ow / w) or abs(w * oh / h - ow) <= max(1.0, oh / h)


def _scaling(declared: tuple[int, int], actual: tuple[int, int], what: str) -> np.ndarray:
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


def _pixels(size: tuple[int, int], rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel of some rows, (rows, W) float64."""
    width, height = size
    return np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[rows])


def _frozen(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A read-only float64 copy, checked for shape and finiteness."""
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError):
        array = np.full((), np.nan)
    if array.size == np.prod(shape) and array.ndim in (1, len(shape)):
        array = array.reshape(shape)
    if array.shape != shape or not np.isfinite(array).all():
        text = "x".join(str(side) for side in shape)
        raise InputError(f"{what} unusable", expected=f"{text} finite numbers", got=" ".join(repr(values).split())[:200])
    array.setflags(write=False)
    return array


# Homography


@dataclass(frozen=True, kw_only=True, eq=False)
class Homography:
    """Where pixels of the other camera lie in the reference camera's picture.

    Raises:
        InputError: on construction, when the matrix is not finite, singular, mirrors the picture or sends a part of it
            through infinity; or when a size is none.
    """

    matrix: np.ndarray
    """3x3 (row major, 9 numbers will do): (x, y, 1) of the other camera to (x w, y w, w) of the reference camera."""
    from_size: tuple[int, int]
    """(width, height) of the other camera's pictures that the matrix is for."""
    to_size: tuple[int, int]
    """(width, height) of the reference camera's pictures that the matrix is for."""
    residual_px: float | None = None
    """How far off it is, in pixels of the reference camera; None: unknown."""
    frames: int | None = None
    """From how many pairs it was estimated; None: unknown."""
    created: str | None = None
    """When, ISO 8601; None: unknown."""

    mode = "homography"

    def __post_init__(self) -> None:
        set_field = functools.partial(object.__setattr__, self)
        set_field("matrix", _frozen(self.matrix, (3, 3), "homography: matrix"))
        set_field("from_size", _size(self.from_size, "homography: from_size"))
        set_field("to_size", _size(self.to_size, "homography: to_size"))
        if self.residual_px is not None and not 0.0 <= self.residual_px < np.inf:
            raise InputError("homography: residual_px unusable", expected=">= 0 px", got=repr(self.residual_px))
        if self.frames is not None and self.frames < 1:
            raise InputError("homography: frames unusable", expected="a whole number >= 1", got=repr(self.frames))
        _check_matrix(self.matrix, self.from_size, self.to_size)

    def inverse(self) -> Homography:
        """The same for the cameras with their roles exchanged; ``residual_px`` is in other pixels then and is left out."""
        inverse = np.linalg.inv(self.matrix)
        return replace(self, matrix=inverse, from_size=self.to_size, to_size=self.from_size, residual_px=None)

    def scaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> np.ndarray:
        """The matrix for pictures of these sizes, 3x3 float64.

        Raises:
            InputError: a size is not ``from_size`` or ``to_size`` times one factor.
        """
        source = _scaling(self.from_size, from_size, "homography: from_size")
        return _scaling(self.to_size, to_size, "homography: to_size") @ self.matrix @ np.linalg.inv(source)

    def sample(
        self, from_size: tuple[int, int], to_size: tuple[int, int], rows: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See :func:`calibrated_map`; pixels of the reference behind the horizon of the other picture have no place in it."""
        matrix = self.scaled(from_size, to_size)
        inverse = np.linalg.inv(matrix * _side(matrix, from_size))
        x, y = _pixels(to_size, rows)
        u, v, w = (row[0] * x + row[1] * y + row[2] for row in inverse)
        ok = w > 0.0
        w = np.where(ok, w, 1.0)
        return u / w, v / w, ok

    def concerns(self, overlap: float) -> list[str]:
        """What looks wrong but need not be, in words."""
        backwards = self._backwards()
        if backwards >= 0.5 and overlap < 0.5 * backwards:
            return [
                f"homography: the other camera's picture covers {overlap:.0%} of the reference frame, with the inverse matrix"
                f" it would be {backwards:.0%}; matrix must map the other camera's pixels to the reference camera"
            ]
        return []

    def nothing_seen(self) -> InputError:
        """The error for a matrix that leaves no overlap."""
        return InputError(
            "homography: nothing of the other camera's picture lands in the reference frame",
            expected="matrix maps pixels of the other camera to the reference camera",
            got=" ".join(str(self.matrix.tolist()).split()),
            do="it seems to map the other way: invert it"
            if self._backwards() > 0.0
            else "check matrix, from_size and to_size (width, height)",
        )

    def _backwards(self) -> float:
        """The overlap, if the matrix mapped the other way."""
        try:
            turned = replace(self, matrix=np.linalg.inv(self.matrix))
        except InputError:
            return 0.0
        return _make_grid(turned, self.from_size, self.to_size, "nearest").overlap


def _outer_corners(size: tuple[int, int]) -> np.ndarray:
    """(4, 3) homogeneous corners of a picture."""
    w, h = size
    return np.array([(x, y, 1.0) for x in (-0.5, w - 0.5) for y in (-0.5, h - 0.5)])


def _side(matrix: np.ndarray, size: tuple[int, int]) -> float:
    """+1 or -1, with which the matrix has w > 0 at the centre of a picture of this size: a homography has no sign."""
    return 1.0 if matrix[2] @ _outer_corners(size).mean(axis=0) > 0.0 else -1.0


def _check_matrix(matrix: np.ndarray, from_size: tuple[int, int], to_size: tuple[int, int]) -> None:
    text = " ".join(str(matrix.tolist()).split())

    def to_unit(size: tuple[int, int]) -> np.ndarray:  # pictures become [-1, 1] squares, so that no unit decides
        w, h = size
        return np.array([[2.0 / w, 0.0, (1.0 - w) / w], [0.0, 2.0 / h, (1.0 - h) / h], [0.0, 0.0, 1.0]])

    stretch = np.linalg.svd(to_unit(to_size) @ matrix @ np.linalg.inv(to_unit(from_size)), compute_uv=False)
    if stretch[-1] <= 1e-6 * stretch[0]:
        raise InputError("homography: matrix is singular", expected="an invertible matrix", got=text, do="estimate it again")
    side = _side(matrix, from_size)
    depths = side * (_outer_corners(from_size) @ matrix[2])
    if depths.min() <= 1e-6 * depths.max():
        raise InputError(
            "homography: matrix sends a part of the other camera's picture through infinity",
            expected="the third row positive (or negative) all over from_size (width, height)",
            got=text,
            do="check that it is row major, not transposed, and for pixels, not for metres or [0, 1]",
        )
    if side * np.linalg.det(matrix) < 0.0:
        raise InputError(
            "homography: matrix mirrors the picture",
            expected="a positive determinant",
            got=text,
            do="check that x comes before y in the points it was estimated from, and that no driver flips its picture",
        )


def parse_homography(document: Any, where: str) -> Homography:
    """Checks what was read from a file.

    Args:
        document: keys and values, as YAML gives them.
        where: names the source in errors.

    Raises:
        InputError: a key is missing, unknown or of the wrong type, or as :class:`Homography`.
    """
    required, optional = {"matrix", "from_size", "to_size"}, {"residual_px", "frames", "created"}
    if not isinstance(document, dict):
        raise InputError(f"{where} is not a mapping", expected="keys and values", got=type(document).__name__)
    missing, unknown = required - document.keys(), document.keys() - required - optional
    if missing or unknown:
        raise InputError(
            f"{where}: wrong keys",
            expected=f"{', '.join(sorted(required))} and perhaps {', '.join(sorted(optional))}",
            got="; ".join(
                f"{word} {', '.join(sorted(map(str, keys)))}" for word, keys in (("no", missing), ("unknown", unknown)) if keys
            ),
        )
    values = dict(document)
    try:
        values["matrix"] = _numbers(values["matrix"])
        if values.get("residual_px") is not None:
            values["residual_px"] = _number(values["residual_px"])
        frames = values.get("frames")
        if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int)):
            raise InputError("homography: frames unusable", expected="a whole number >= 1", got=repr(frames))
        created = values.get("created")
        if isinstance(created, (date, datetime)):  # what YAML makes of a time without quotation marks
            values["created"] = created.isoformat()
        elif created is not None and not isinstance(created, str):
            raise InputError("homography: created unusable", expected="a time (ISO 8601)", got=repr(created))
        return Homography(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _number(value: Any) -> float:
    """YAML reads ``1e-4`` as text and ``yes`` as a boolean."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError("homography: no number", got=repr(value)[:80]) from None


def _numbers(rows: Any) -> Any:
    if not isinstance(rows, list) or len(rows) not in (3, 9):
        raise InputError("homography: matrix unusable", expected="3 rows of 3 numbers, or 9 numbers", got=repr(rows)[:200])
    if len(rows) == 9:
        return [_number(value) for value in rows]
    if not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise InputError("homography: matrix unusable", expected="3 rows of 3 numbers, or 9 numbers", got=repr(rows)[:200])
    return [[_number(value) for value in row] for row in rows]


def read_homography(path: str | Path) -> Homography:
    """Reads a homography file (YAML with the fields of :class:`Homography`).

    Raises:
        InputError: as :func:`parse_homography`, or the file is missing, too large or no YAML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise InputError(f"{path} is no homography file", expected=f"at most {_LARGEST_FILE} bytes", got="more")
        document = yaml.safe_load(data.decode())
    except OSError as error:
        raise InputError(f"{path} cannot be read", got=error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no YAML", got=" ".join(str(error).split())[:200]) from error
    return parse_homography(document, str(path))


def write_homography(path: str | Path, homography: Homography, *, overwrite: bool = False) -> None:
    """Writes a homography file, every digit kept; the file appears whole or not at all.

    Raises:
        InputError: it exists and ``overwrite`` is false.
    """
    if not overwrite and Path(path).exists():
        raise InputError(f"{path} exists", do="pass --overwrite to replace it")
    h = homography
    document = {
        "matrix": h.matrix.tolist(),
        "from_size": list(h.from_size),
        "to_size": list(h.to_size),
        "residual_px": None if h.residual_px is None else float(h.residual_px),
        "frames": None if h.frames is None else int(h.frames),
        "created": h.created,
    }
    head = "# Pixels (x, y, 1) of the other camera to pixels of the reference camera; sizes are (width, height).\n"
    write_bytes(path, (head + yaml.safe_dump(document, sort_keys=False, default_flow_style=None)).encode())


# Cameras


class _Polynomial:
    """plumb_bob and rational_polynomial: Brown's model on the plane z = 1 (OpenCV, "Camera Calibration", eqs. of distortion)."""

    def __init__(self, coefficients: np.ndarray):
        k1, k2, self._p1, self._p2, k3, k4, k5, k6, *self._s = coefficients
        self._above, self._below = Polynomial([1.0, k1, k2, k3]), Polynomial([1.0, k4, k5, k6])  # of r^2
        square = Polynomial([0.0, 1.0])
        fold = self._above * self._below + 2.0 * square * (
            self._above.deriv() * self._below - self._above * self._below.deriv()
        )
        # A lens model is fitted inside the picture. Outside, its radius may shrink again and fold a far ray back into it.
        self._limit = float(np.sqrt(min(_first_root(fold), _first_root(self._below))))
        radius = np.tan(np.linspace(0.0, min(np.arctan(self._limit) * (1.0 - 1e-9), _LARGEST_ANGLE), 4096))
        self._radii = radius, radius * self._factor(radius * radius)

    def _factor(self, square: np.ndarray) -> np.ndarray:
        return self._above(square) / self._below(square)

    def _evaluate(self, x: np.ndarray, y: np.ndarray):
        """Distorted x and y, and their derivatives dx/dx, dx/dy, dy/dx, dy/dy."""
        p1, p2 = self._p1, self._p2
        s1, s2, s3, s4 = self._s
        r2 = x * x + y * y
        below = self._below(r2)
        factor = self._above(r2) / below
        slope = (self._above.deriv()(r2) - factor * self._below.deriv()(r2)) / below
        prism_x, prism_y = s1 + 2.0 * s2 * r2, s3 + 2.0 * s4 * r2  # half the derivatives by x are x times these
        return (
            x * factor + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x) + (s1 + s2 * r2) * r2,
            y * factor + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y + (s3 + s4 * r2) * r2,
            factor + 2.0 * x * x * slope + 2.0 * p1 * y + 6.0 * p2 * x + 2.0 * x * prism_x,
            2.0 * x * y * slope + 2.0 * p1 * x + 2.0 * p2 * y + 2.0 * y * prism_x,
            2.0 * x * y * slope + 2.0 * p1 * x + 2.0 * p2 * y + 2.0 * x * prism_y,
            factor + 2.0 * y * y * slope + 6.0 * p1 * y + 2.0 * p2 * x + 2.0 * y * prism_y,
        )

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inside = np.hypot(x, y) < self._limit
        x, y = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
        distorted_x, distorted_y, a, b, c, d = self._evaluate(x, y)
        return distorted_x, distorted_y, inside & (a * d - b * c > 0.0)

    def undistort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Newton's method, from the exact answer for the radial part."""
        radius = np.hypot(x, y)
        true, distorted = self._radii
        scale = np.interp(radius, distorted, true) / np.maximum(radius, 1e-12)
        u, v = np.where(radius > 1e-12, x * scale, x), np.where(radius > 1e-12, y * scale, y)
        for _ in range(10):
            at_x, at_y, a, b, c, d = self._evaluate(u, v)
            determinant = a * d - b * c
            determinant = np.where(np.abs(determinant) > 1e-12, determinant, 1e-12)
            step_u, step_v = (d * (x - at_x) - b * (y - at_y)) / determinant, (a * (y - at_y) - c * (x - at_x)) / determinant
            # Where there is no answer the steps would grow without bound.
            u, v = u + np.clip(step_u, -0.1, 0.1), v + np.clip(step_v, -0.1, 0.1)
            if max(np.abs(step_u).max(), np.abs(step_v).max()) < 1e-12:
                break
        back_x, back_y, ok = self.distort(u, v)
        return u, v, ok & (np.hypot(back_x - x, back_y - y) < 1e-9)


class _Equidistant:
    """Kannala and Brandt's fisheye model, as OpenCV's: theta (1 + k1 theta^2 + ... + k4 theta^8) is the radius."""

    def __init__(self, coefficients: np.ndarray):
        self._radius = Polynomial([0.0, 1.0]) * Polynomial([1.0, *coefficients])(Polynomial([0.0, 0.0, 1.0]))
        # Where it stops growing, as in the polynomial models; roots by theta^2.
        fold = Polynomial(self._radius.deriv().coef[::2])
        self._limit = min(float(np.sqrt(_first_root(fold))) * (1.0 - 1e-9), _LARGEST_ANGLE)
        angle = np.linspace(0.0, self._limit, 4096)
        self._radii = angle, self._radius(angle)

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        radius = np.hypot(x, y)
        angle = np.arctan(radius)
        inside = angle < self._limit
        small = radius < 1e-9
        scale = np.where(small, 1.0, self._radius(np.where(inside, angle, 0.0)) / np.where(small, 1.0, radius))
        return x * scale, y * scale, inside

    def undistort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        radius = np.hypot(x, y)
        angles, radii = self._radii
        inside = radius < radii[-1]
        angle = np.interp(radius, radii, angles)
        for _ in range(10):
            slope = self._radius.deriv()(angle)
            step = (radius - self._radius(angle)) / np.where(np.abs(slope) > 1e-9, slope, 1e-9)
            angle = np.clip(angle + step, 0.0, self._limit)
            if np.abs(step[inside]).max(initial=0.0) < 1e-13:
                break
        small = radius < 1e-9
        scale = np.where(small, 1.0, np.tan(angle) / np.where(small, 1.0, radius))
        return x * scale, y * scale, inside & (np.abs(self._radius(angle) - radius) < 1e-9)


def _first_root(polynomial: Polynomial) -> float:
    """The smallest positive real root, or infinity."""
    roots = polynomial.trim().roots()
    real = roots.real[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0.0)]
    return float(real.min(initial=np.inf))


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """One camera, as sensor_msgs/CameraInfo describes it (raw picture: K and D; R and P are for rectified pictures).

    Raises:
        InputError: on construction, when a value is unusable: an uncalibrated camera (K all zero), a K of another
            resolution (principal point outside the picture), an unknown model, coefficients that do not fit it.
    """

    size: tuple[int, int]
    """(width, height) of the pictures that ``matrix`` is for."""
    matrix: np.ndarray
    """K, 3x3 (row major, 9 numbers will do): fx 0 cx, 0 fy cy, 0 0 1, in pixels."""
    model: str = "plumb_bob"
    """``plumb_bob`` (k1 k2 p1 p2 k3), ``rational_polynomial`` (k1 k2 p1 p2 k3 k4 k5 k6, s1 s2 s3 s4) or ``equidistant``
    (k1 k2 k3 k4); may be empty where there is no distortion."""
    distortion: tuple[float, ...] = ()
    """D; empty: no distortion. Zeros at its end may be left out or added."""
    name: str = "camera"
    """What errors call it."""
    _lens: _Polynomial | _Equidistant = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_field = functools.partial(object.__setattr__, self)
        set_field("size", _size(self.size, f"{self.name}: size of the calibration"))
        set_field("matrix", _frozen(self.matrix, (3, 3), f"{self.name}: K"))
        self._check_matrix()
        coefficients = self._coefficients()
        set_field("distortion", tuple(float(value) for value in self.distortion))
        set_field("_lens", (_Equidistant if self.model == "equidistant" else _Polynomial)(coefficients))

    def _check_matrix(self) -> None:
        k, (width, height) = self.matrix, self.size
        if not k.any():
            raise InputError(
                f"{self.name}: not calibrated",
                expected="a focal length in K",
                got="K of zeros",
                do="calibrate it, or use registration.mode homography or none",
            )
        form = np.array([[k[0, 0], 0.0, k[0, 2]], [0.0, k[1, 1], k[1, 2]], [0.0, 0.0, 1.0]])
        if not (k == form).all() or not (k[0, 0] > 0.0 and k[1, 1] > 0.0):
            raise InputError(
                f"{self.name}: K unusable",
                expected="fx 0 cx, 0 fy cy, 0 0 1 (row major) with fx, fy > 0",
                got=str(k.ravel().tolist()),
            )
        cx, cy = k[0, 2], k[1, 2]
        if not (-0.5 <= cx <= width - 0.5 and -0.5 <= cy <= height - 0.5):
            fits = -0.5 <= cx <= height - 0.5 and -0.5 <= cy <= width - 0.5
            raise InputError(
                f"{self.name}: the principal point of K lies outside the picture",
                expected=f"cx, cy within {width}x{height} (width x height)",
                got=f"{cx:g}, {cy:g}",
                do="sizes are (width, height), these look swapped" if fits else "K is for pictures of another resolution",
            )

    def _coefficients(self) -> np.ndarray:
        """Of the lens: 12 for the polynomial models, 4 for equidistant."""
        try:
            given = np.array(self.distortion, np.float64).reshape(-1)
        except (TypeError, ValueError):
            given = np.array([np.nan])
        known = self.model in DISTORTION_MODELS or (self.model == "" and not given.any())
        if not known:
            raise InputError(
                f"{self.name}: unknown distortion model", expected=f"one of {', '.join(DISTORTION_MODELS)}", got=repr(self.model)
            )
        most = {"equidistant": 4, "rational_polynomial": 12}.get(self.model, 5)
        if not np.isfinite(given).all() or given[most:].any():
            raise InputError(
                f"{self.name}: distortion coefficients do not fit the model {self.model}",
                expected=f"at most {most} finite numbers"
                + (" (a tilted sensor, tau, is not supported)" if self.model == "rational_polynomial" else ""),
                got=str(given.tolist()),
            )
        coefficients = np.zeros(4 if self.model == "equidistant" else 12)
        coefficients[: min(most, given.size)] = given[:most]
        return coefficients

    def scaled(self, size: tuple[int, int]) -> Calibration:
        """The same camera, its pictures scaled to another (width, height).

        Raises:
            InputError: the factors of width and height differ: the picture was cropped or stretched, or sizes are swapped.
        """
        if tuple(size) == self.size:
            return self
        return replace(self, size=size, matrix=_scaling(self.size, size, f"{self.name}: size of the calibration") @ self.matrix)

    def rays(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Directions (X, Y, 1) that are seen at pixels, and where there is one in front of the camera. Float64; any shape."""
        k = self.matrix
        u, v, ok = self._lens.undistort((x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1])
        return np.where(ok, u, 0.0), np.where(ok, v, 0.0), ok

    def project(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels at which directions (X, Y, 1) are seen, and where the lens model holds. Float64; any shape."""
        k = self.matrix
        u, v, ok = self._lens.distort(x, y)
        return u * k[0, 0] + k[0, 2], v * k[1, 1] + k[1, 2], ok

    def concerns(self) -> list[str]:
        """What looks wrong but need not be, in words."""
        (width, height), cx, cy = self.size, self.matrix[0, 2], self.matrix[1, 2]
        if abs(cx - (width - 1) / 2) > 0.2 * width or abs(cy - (height - 1) / 2) > 0.2 * height:
            return [
                f"{self.name}: the principal point {cx:g}, {cy:g} is far from the centre of {width}x{height} (width x height);"
                " is K for pictures of another resolution?"
            ]
        return []


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """Where the reference camera stands, seen from the other camera: p_other = rotation p_reference + translation.

    Both frames are optical frames. In TF this is ``lookup_transform(target_frame=other, source_frame=reference)``.

    Raises:
        InputError: on construction, when ``rotation`` is none.
    """

    rotation: np.ndarray
    """3x3, orthonormal to 1e-3, determinant +1."""
    translation: np.ndarray
    """3 numbers, metres: the origin of the reference camera in the other camera's frame."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation", _frozen(self.rotation, (3, 3), "transform: rotation"))
        object.__setattr__(self, "translation", _frozen(self.translation, (3,), "transform: translation"))
        r = self.rotation
        if np.abs(r @ r.T - np.eye(3)).max() > 1e-3 or np.linalg.det(r) < 0.0:
            raise InputError(
                "transform: rotation is none", expected="orthonormal rows, determinant +1", got=" ".join(str(r.tolist()).split())
            )

    @classmethod
    def from_quaternion(cls, quaternion: Any, translation: Any) -> Transform:
        """From (x, y, z, w), as in geometry_msgs, of length 1 to 1 %; normalised here.

        Raises:
            InputError: the length is not 1.
        """
        q = _frozen(quaternion, (4,), "transform: quaternion")
        length = np.linalg.norm(q)
        if abs(length - 1.0) > 0.01:
            raise InputError("transform: no unit quaternion", expected="(x, y, z, w) of length 1", got=str(q.tolist()))
        x, y, z, w = q / length
        rotation = [
            [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - z * w), 2.0 * (x * z + y * w)],
            [2.0 * (x * y + z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - x * w)],
            [2.0 * (x * z - y * w), 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y)],
        ]
        return cls(rotation=rotation, translation=translation)

    def inverse(self) -> Transform:
        """The same with the cameras' roles exchanged."""
        return Transform(rotation=self.rotation.T, translation=-self.rotation.T @ self.translation)


def calibrated_map(
    reference: Calibration,
    other: Calibration,
    transform: Transform,
    plane_depth_m: float,
    *,
    rows: slice = slice(None),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel of the reference camera, the pixel at which the other camera sees the same point of a plane.

    The plane is z = ``plane_depth_m`` in the reference camera's frame. A point at depth Z is off by f b |1/Z - 1/plane| pixels
    (focal length f of the other camera in pixels, baseline b across the view in metres).

    Args:
        reference, other: for the sizes of the pictures at hand.
        transform: from the reference camera's frame to the other's.
        plane_depth_m: metres, > 0; infinity: the baseline does not matter.
        rows: of the reference camera's picture, if not all are wanted.

    Returns:
        x and y in the other camera's picture, (H, W) float64, and where they mean something, (H, W) bool: the reference's
        lens model gives a ray, its point lies in front of the other camera, and the other's lens model holds there. Whether
        x and y lie in the picture is not looked at.

    Raises:
        InputError: the plane is not in front of the reference camera.
    """
    if not plane_depth_m > 0.0:
        raise InputError("plane depth out of range", expected="> 0 m", got=repr(plane_depth_m))
    ray_x, ray_y, seen = reference.rays(*_pixels(reference.size, rows))
    offset = transform.translation / plane_depth_m
    # In units of the plane's depth, so that a plane at infinity needs no case of its own.
    x, y, z = (row[0] * ray_x + row[1] * ray_y + row[2] + shift for row, shift in zip(transform.rotation, offset))
    front = seen & (z > 1e-6)
    z = np.where(front, z, 1.0)
    u, v, ok = other.project(np.where(front, x / z, 0.0), np.where(front, y / z, 0.0))
    return u, v, front & ok


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedPlane:
    """Two calibrated cameras that look at a plane: what ``registration.mode: calibrated`` needs."""

    reference: Calibration
    """The camera into whose frame is warped."""
    other: Calibration
    """The camera whose picture is warped."""
    transform: Transform
    """From the reference camera's optical frame to the other's."""
    plane_depth_m: float
    """Distance along the reference camera's optical axis at which pictures coincide, metres, > 0; infinity will do."""

    mode = "calibrated"

    def __post_init__(self) -> None:
        if isinstance(self.plane_depth_m, bool) or not self.plane_depth_m > 0.0:
            raise InputError("plane depth out of range", expected="> 0 m", got=repr(self.plane_depth_m))

    @property
    def from_size(self) -> tuple[int, int]:
        """(width, height) of the other camera's calibration."""
        return self.other.size

    @property
    def to_size(self) -> tuple[int, int]:
        """(width, height) of the reference camera's calibration."""
        return self.reference.size

    def sample(
        self, from_size: tuple[int, int], to_size: tuple[int, int], rows: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:func:`calibrated_map` for pictures of these sizes."""
        return calibrated_map(
            self.reference.scaled(to_size), self.other.scaled(from_size), self.transform, self.plane_depth_m, rows=rows
        )

    def concerns(self, overlap: float) -> list[str]:
        """What looks wrong but need not be, in words."""
        return self.reference.concerns() + self.other.concerns()

    def nothing_seen(self) -> InputError:
        """The error for cameras that have nothing in common."""
        angle = np.degrees(np.arccos(np.clip(self.transform.rotation[2, 2], -1.0, 1.0)))
        baseline = np.linalg.norm(self.transform.translation)
        return InputError(
            "calibrated registration: nothing that the reference camera sees is seen by the other",
            expected="a transform from the reference camera's optical frame (z forward) to the other's, in metres",
            got=f"optical axes {angle:.0f} degrees apart, {baseline:g} m between the cameras, plane at {self.plane_depth_m:g} m",
            do="check optical frames, the direction of the transform, metres, and the quaternion's order (x, y, z, w)",
        )


# Warping


@dataclass(frozen=True, eq=False)
class Grid:
    """Where each pixel of the reference picture is taken from, in steps of 1/32 pixel. Arrays are read-only."""

    from_shape: tuple[int, int]
    """(H, W) of pictures that are warped."""
    corner: np.ndarray
    """(H, W, 2) int16: x and y of the pixel above and left; far outside where invalid."""
    weight: np.ndarray
    """(H, W) uint16: 32 fy + fx, with fx and fy in 1/32 pixel to the right of and below the corner; 0 for ``nearest``."""
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

    def warp(self, picture: np.ndarray, *, valid: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Warps one picture.

        Args:
            picture: (h, w) uint8, uint16 or float32 (not finite: missing), or (h, w, 3) uint8, of ``from_shape``.
            valid: (h, w) bool, or None when every pixel is valid.

        Returns:
            The picture, of ``shape`` and the same dtype, 0 where invalid; and its mask, (H, W) bool (None: valid everywhere;
            to be read only, pictures share it).

        Raises:
            InputError: other shape or dtype.
        """
        _check_picture(picture, valid, self.from_shape)
        if picture.dtype == np.float32:
            finite = np.isfinite(picture)
            if not finite.all():
                valid = finite if valid is None else finite & valid
                picture = np.where(finite, picture, np.float32(0.0))  # NaN times a weight of 0 would be NaN
        warped = self._remap(picture)
        if valid is None or valid.all():
            return warped, None if self.overlap == 1.0 else self.valid
        # In float32, the smallest weight (1/1024) of an invalid pixel still shows.
        covered = self.valid & (self._remap((~valid).astype(np.float32)) == 0.0)
        return cv2.copyTo(warped, covered.view(np.uint8)), covered  # into new memory, which OpenCV fills with 0

    def _remap(self, picture: np.ndarray) -> np.ndarray:
        linear = self.interpolation == "linear"
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
            corner=torch.from_numpy(y * self.from_shape[1] + x).to(device),
            fraction_x=torch.from_numpy((weight % _SUBPIXELS).astype(np.uint8)).to(device),
            fraction_y=torch.from_numpy((weight // _SUBPIXELS).astype(np.uint8)).to(device),
            valid=torch.from_numpy(inside.copy()).to(device),
        )


def _check_picture(picture: np.ndarray, valid: np.ndarray | None, shape: tuple[int, int]) -> None:
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


def warp_tensor(picture: Tensor, grid: GridTensors, *, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:meth:`Grid.warp` on a device: 8 bits to one grey level (the byte with OpenCV's own code for x86), 16 bits to one count,
    float32 to rounding, masks exactly. Nothing depends on the content of the picture: a CUDA graph can capture it.

    Args:
        picture: (h, w) uint8, int16 (the bits of uint16) or float32, or (h, w, 3) uint8; contiguous, of ``from_shape``.
        grid: on the device of the picture.
        valid: (h, w) bool, or None when every pixel is valid.

    Returns:
        The picture, (H, W) or (H, W, 3) of the same dtype, 0 where invalid; and its mask, (H, W) bool.
    """
    width, shape = picture.shape[1], grid.valid.shape
    # A neighbour without weight is replaced by the pixel itself: it is in the picture, and what it holds does not leak.
    right = (grid.fraction_x > 0).to(torch.int32)
    below = (grid.fraction_y > 0).to(torch.int32) * width
    places = [(grid.corner + shift).reshape(-1) for shift in (0, right, below, right + below)]
    usable = valid
    if picture.is_floating_point():
        finite = picture.isfinite()
        usable = finite if valid is None else finite & valid
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


def _make_grid(
    geometry: Homography | CalibratedPlane, from_size: tuple[int, int], to_size: tuple[int, int], interpolation: str
) -> Grid:
    width, height = to_size
    corner, weight = np.empty((height, width, 2), np.int16), np.empty((height, width), np.uint16)
    valid = np.empty((height, width), bool)
    steps = _SUBPIXELS if interpolation == "linear" else 1
    strip = max(1, _STRIP // width)
    for start in range(0, height, strip):
        rows = slice(start, start + strip)
        x, y, ok = geometry.sample(from_size, to_size, rows)
        ok = ok & (x > -1.0) & (x < from_size[0]) & (y > -1.0) & (y < from_size[1])  # before whole numbers overflow
        x, y = (np.floor(np.where(ok, at, 0.0) * steps + 0.5).astype(np.int32) for at in (x, y))
        ok &= (x >= 0) & (x <= (from_size[0] - 1) * steps) & (y >= 0) & (y <= (from_size[1] - 1) * steps)
        # Outside with all four neighbours: there cv2.remap writes its border value, 0.
        corner[rows, :, 0], corner[rows, :, 1] = (np.where(ok, at // steps, -2) for at in (x, y))
        weight[rows] = np.where(ok, (y % steps) * _SUBPIXELS + x % steps, 0)
        valid[rows] = ok
    for array in (corner, weight, valid):
        array.setflags(write=False)
    return Grid(from_size[::-1], corner, weight, valid, float(valid.mean()), interpolation)


class Registration:
    """How the other camera's pictures come into the reference camera's frame. Never changes; safe to share.

    Args:
        geometry: None when the cameras are aligned already (mode ``none``).

    Raises:
        InputError: on construction, when nothing of the other camera's picture would land in the reference frame.
    """

    def __init__(self, geometry: Homography | CalibratedPlane | None = None):
        self._geometry = geometry
        self.mode: str = "none" if geometry is None else geometry.mode
        """``none``, ``homography`` or ``calibrated``."""
        self._grids = functools.lru_cache(maxsize=_GRIDS_KEPT)(functools.partial(_make_grid, geometry))
        self.overlap: float = 1.0
        """Part of the reference frame, 0 to 1, that the other camera's picture covers at the sizes calibrated for."""
        self.concerns: tuple[str, ...] = ()
        """What looks wrong but need not be, in words for the log."""
        if geometry is not None:
            self.overlap = self._grids(geometry.from_size, geometry.to_size, "linear").overlap
            if self.overlap == 0.0:
                raise geometry.nothing_seen()
            self.concerns = tuple(geometry.concerns(self.overlap))

    def grid(self, from_shape: tuple[int, int], to_shape: tuple[int, int], interpolation: str = "linear") -> Grid | None:
        """The map for pictures of these (H, W), None in mode ``none``. The last few are kept; a new one takes a while.

        Raises:
            InputError: unknown interpolation, or sizes that are not those calibrated for, scaled.
        """
        if interpolation not in INTERPOLATIONS:
            raise InputError("unknown interpolation", expected=f"one of {', '.join(INTERPOLATIONS)}", got=repr(interpolation))
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
        from_size = _size(from_size, "size of the other camera's picture")
        to_size = _size(to_size, "size of the reference camera's picture")
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
            _check_picture(picture, valid, from_shape)
            return picture, valid
        return grid.warp(picture, valid=valid)
