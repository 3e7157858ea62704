"""Two calibrated cameras that look at a plane."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.registration.lenses import EquidistantLens, PolynomialLens
from isfl_ros.registration.sizes import checked_size, frozen, pixels, scaling

DISTORTION_MODELS = ("plumb_bob", "rational_polynomial", "equidistant")
"""Names of sensor_msgs/distortion_models."""

_LARGEST_COEFFICIENT = 1e12
"""Of a lens, whichever: multiplied with the sixth power of a radius, it moves a ray half a degree (0.01) off the axis
as far again. The products of such coefficients are far from where float64 ends."""


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
    _lens: PolynomialLens | EquidistantLens = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_field = functools.partial(object.__setattr__, self)
        set_field("size", checked_size(self.size, f"{self.name}: size of the calibration"))
        set_field("matrix", frozen(self.matrix, (3, 3), f"{self.name}: K"))
        self._check_matrix()
        coefficients = self._coefficients()
        set_field("distortion", tuple(float(value) for value in self.distortion))
        try:
            lens = (EquidistantLens if self.model == "equidistant" else PolynomialLens)(coefficients)
        except (ArithmeticError, ValueError) as error:  # numpy's LinAlgError is a ValueError
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.name}: distortion coefficients make no lens ({reason})",
                expected=f"those of the model {self.model}",
                got=_shown(coefficients),
            ) from error
        set_field("_lens", lens)

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
                do="sizes are (width, height), these look swapped"
                if fits
                else "K is for pictures of another resolution",
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
                f"{self.name}: unknown distortion model",
                expected=f"one of {', '.join(DISTORTION_MODELS)}",
                got=repr(self.model[:80]),
            )
        most = {"equidistant": 4, "rational_polynomial": 12}.get(self.model, 5)
        if not np.isfinite(given).all() or given[most:].any():
            raise InputError(
                f"{self.name}: distortion coefficients do not fit the model {self.model}",
                expected=f"at most {most} finite numbers"
                + (" (a tilted sensor, tau, is not supported)" if self.model == "rational_polynomial" else ""),
                got=_shown(given),
            )
        if np.abs(given[:most]).max(initial=0.0) > _LARGEST_COEFFICIENT:
            raise InputError(
                f"{self.name}: distortion coefficients unusable",
                expected=f"numbers from {-_LARGEST_COEFFICIENT:g} to {_LARGEST_COEFFICIENT:g}",
                got=_shown(given),
            )
        coefficients = np.zeros(4 if self.model == "equidistant" else 12)
        coefficients[: min(most, given.size)] = given[:most]
        return coefficients

    def scaled(self, size: tuple[int, int]) -> Calibration:
        """The same camera, its pictures scaled to another (width, height).

        Raises:
            InputError: the factors of width and height differ: the picture was cropped or stretched, or sizes are
                swapped.
        """
        if tuple(size) == self.size:
            return self
        return replace(
            self, size=size, matrix=scaling(self.size, size, f"{self.name}: size of the calibration") @ self.matrix
        )

    def rays(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Directions (X, Y, 1) seen at pixels, and where there is one in front of the camera. Float64; any shape."""
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
                f"{self.name}: the principal point {cx:g}, {cy:g} is far from the centre of {width}x{height}"
                " (width x height); is K for pictures of another resolution?"
            ]
        return []


def _shown(numbers: np.ndarray) -> str:
    """Numbers of a message, for an error: there may be any number of them."""
    return str(numbers[:16].tolist()) + (f" and {numbers.size - 16} more" if numbers.size > 16 else "")


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
        object.__setattr__(self, "rotation", frozen(self.rotation, (3, 3), "transform: rotation"))
        object.__setattr__(self, "translation", frozen(self.translation, (3,), "transform: translation"))
        r = self.rotation
        if np.abs(r @ r.T - np.eye(3)).max() > 1e-3 or np.linalg.det(r) < 0.0:
            raise InputError(
                "transform: rotation is none",
                expected="orthonormal rows, determinant +1",
                got=" ".join(str(r.tolist()).split()),
            )

    @classmethod
    def from_quaternion(cls, quaternion: Any, translation: Any) -> Transform:
        """From (x, y, z, w), as in geometry_msgs, of length 1 to 1 %; normalised here.

        Raises:
            InputError: the length is not 1.
        """
        q = frozen(quaternion, (4,), "transform: quaternion")
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

    The plane is z = ``plane_depth_m`` in the reference camera's frame. A point at depth Z is off by f b |1/Z - 1/plane|
    pixels (focal length f of the other camera in pixels, baseline b across the view in metres).

    Args:
        reference, other: for the sizes of the pictures at hand.
        transform: from the reference camera's frame to the other's.
        plane_depth_m: metres, > 0; infinity: the baseline does not matter.
        rows: of the reference camera's picture, if not all are wanted.

    Returns:
        x and y in the other camera's picture, (H, W) float64, and where they mean something, (H, W) bool: the
        reference's lens model gives a ray, its point lies in front of the other camera, and the other's lens model
        holds there. Whether x and y lie in the picture is not looked at.

    Raises:
        InputError: the plane is not in front of the reference camera.
    """
    if not plane_depth_m > 0.0:
        raise InputError("plane depth out of range", expected="> 0 m", got=repr(plane_depth_m))
    ray_x, ray_y, seen = reference.rays(*pixels(reference.size, rows))
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
            got=f"optical axes {angle:.0f} degrees apart, {baseline:g} m between the cameras,"
            f" plane at {self.plane_depth_m:g} m",
            do="check optical frames, the direction of the transform, metres, and the quaternion's order (x, y, z, w)",
        )
