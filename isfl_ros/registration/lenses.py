"""Lens distortion and its inverse on the plane z = 1, in float64. Both say where they hold."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import Polynomial

_LARGEST_ANGLE = np.radians(89.9)  # of a ray and the optical axis: beyond, a plane in front of the camera is not met


class PolynomialLens:
    """plumb_bob and rational_polynomial: Brown's model, as OpenCV's ``calib3d`` states it.

    Args:
        coefficients: (12,) k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4.
    """

    def __init__(self, coefficients: np.ndarray):
        k1, k2, self._p1, self._p2, k3, k4, k5, k6, *self._s = coefficients
        self._above, self._below = Polynomial([1.0, k1, k2, k3]), Polynomial([1.0, k4, k5, k6])  # of r^2
        self._above_slope, self._below_slope = self._above.deriv(), self._below.deriv()
        square = Polynomial([0.0, 1.0])
        fold = self._above * self._below + 2.0 * square * (
            self._above_slope * self._below - self._above * self._below_slope
        )
        # A lens model is fitted inside the picture. Outside, its radius may shrink again: far rays fold back into it.
        self._limit = float(np.sqrt(min(_first_root(fold), _first_root(self._below))))
        radius = np.tan(np.linspace(0.0, min(np.arctan(self._limit) * (1.0 - 1e-9), _LARGEST_ANGLE), 4096))
        self._radii = radius, radius * self._factor(radius * radius)

    def _factor(self, square: np.ndarray) -> np.ndarray:
        return self._above(square) / self._below(square)

    def _evaluate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        """Distorted x and y, and their derivatives dx/dx, dx/dy, dy/dx, dy/dy."""
        p1, p2 = self._p1, self._p2
        s1, s2, s3, s4 = self._s
        r2 = x * x + y * y
        below = self._below(r2)
        factor = self._above(r2) / below
        slope = (self._above_slope(r2) - factor * self._below_slope(r2)) / below
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
        """Where directions (x, y, 1) appear, and where the model holds."""
        inside = np.hypot(x, y) < self._limit
        x, y = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
        distorted_x, distorted_y, a, b, c, d = self._evaluate(x, y)
        return distorted_x, distorted_y, inside & (a * d - b * c > 0.0)

    def undistort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Directions (x, y, 1) that appear there, and where there is one."""
        # Newton's method, from the exact answer for the radial part.
        radius = np.hypot(x, y)
        true, distorted = self._radii
        scale = np.interp(radius, distorted, true) / np.maximum(radius, 1e-12)
        u, v = np.where(radius > 1e-12, x * scale, x), np.where(radius > 1e-12, y * scale, y)
        for _ in range(10):
            at_x, at_y, a, b, c, d = self._evaluate(u, v)
            determinant = a * d - b * c
            determinant = np.where(np.abs(determinant) > 1e-12, determinant, 1e-12)
            off_x, off_y = x - at_x, y - at_y
            step_u, step_v = (d * off_x - b * off_y) / determinant, (a * off_y - c * off_x) / determinant
            # Where there is no answer the steps would grow without bound.
            u, v = u + np.clip(step_u, -0.1, 0.1), v + np.clip(step_v, -0.1, 0.1)
            if max(np.abs(step_u).max(), np.abs(step_v).max()) < 1e-12:
                break
        back_x, back_y, ok = self.distort(u, v)
        return u, v, ok & (np.hypot(back_x - x, back_y - y) < 1e-9)


class EquidistantLens:
    """Kannala and Brandt's fisheye model, as OpenCV's: theta (1 + k1 theta^2 + ... + k4 theta^8) is the radius.

    Args:
        coefficients: (4,) k1 k2 k3 k4.
    """

    def __init__(self, coefficients: np.ndarray):
        self._radius = Polynomial([0.0, 1.0]) * Polynomial([1.0, *coefficients])(Polynomial([0.0, 0.0, 1.0]))
        # Where it stops growing, as in the polynomial models; roots by theta^2.
        fold = Polynomial(self._radius.deriv().coef[::2])
        self._limit = min(float(np.sqrt(_first_root(fold))) * (1.0 - 1e-9), _LARGEST_ANGLE)
        angle = np.linspace(0.0, self._limit, 4096)
        self._radii = angle, self._radius(angle)

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where directions (x, y, 1) appear, and where the model holds."""
        radius = np.hypot(x, y)
        angle = np.arctan(radius)
        inside = angle < self._limit
        small = radius < 1e-9
        scale = np.where(small, 1.0, self._radius(np.where(inside, angle, 0.0)) / np.where(small, 1.0, radius))
        return x * scale, y * scale, inside

    def undistort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Directions (x, y, 1) that appear there, and where there is one."""
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
    """The smallest positive real root, or infinity; the polynomial is 1 at 0."""
    # Of the inverse: its leading coefficient is the 1, so that tiny coefficients of high degree do no harm.
    roots = Polynomial(polynomial.coef[::-1]).roots()
    real = roots.real[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0.0)]
    return 1.0 / float(real.max(initial=1e-300))
