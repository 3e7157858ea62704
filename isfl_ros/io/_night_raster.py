"""Rasteriser of the synthetic night drive: a pinhole camera and a G-buffer that both modalities are shaded from.

Legend: H, W picture size in pixels; world axes are X right, Y up, Z along the road, in metres; camera axes are x right,
y down, z forward. Everything is drawn far to near with premultiplied coverage, so that edges are anti-aliased.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

# Planes of the G-buffer. Temperature is in degrees Celsius, the normal in world axes, inverse depth in 1/m.
ALBEDO, TEMPERATURE, EMISSION, COVERAGE, NORMAL, INVERSE_DEPTH = slice(0, 3), 3, slice(4, 7), 7, slice(8, 11), 11
PLANES = 12
NEAR_M = 0.5
_FIXED_POINT_BITS = 4
_MAX_COORDINATE = 20000.0
_SUPERSAMPLED_PIXELS = 50_000


class Camera:
    """Pinhole camera at one moment.

    Args:
        matrix: 3x3 float64 intrinsics, pixel centres at integer coordinates.
        position: (X, Y, Z) in metres.
        pitch, yaw, roll: small rotations in radians (pitch up, yaw right, roll clockwise are positive).
    """

    def __init__(self, matrix: np.ndarray, position, pitch: float, yaw: float, roll: float):
        self.matrix = matrix
        self.position = np.asarray(position, np.float64)
        cp, sp, cy, sy, cr, sr = (f(a) for a in (pitch, yaw, roll) for f in (np.cos, np.sin))
        pitch_m = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        yaw_m = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        roll_m = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
        self.rotation = roll_m @ pitch_m @ yaw_m @ np.diag([1.0, -1.0, 1.0])
        self.projection = matrix @ self.rotation

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (N, 3) to pixels (N, 2) and depths (N,); pixels mean nothing where depth <= 0."""
        p = (np.asarray(points, np.float64) - self.position) @ self.projection.T
        depth = p[:, 2]
        safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        return np.clip(p[:, :2] / safe[:, None], -_MAX_COORDINATE, _MAX_COORDINATE), depth


@dataclass(eq=False)
class Texture:
    """A planar surface: premultiplied (albedo RGB, temperature) and (emission RGB, coverage), (h, w, 4) each."""

    surface: np.ndarray
    light: np.ndarray
    _levels: dict = field(default_factory=dict)

    @classmethod
    def build(cls, albedo, temperature, emission=None, alpha=None) -> Texture:
        """From straight (not premultiplied) maps: (h, w, 3), (h, w), (h, w, 3) or None, (h, w) or None for opaque."""
        h, w = temperature.shape
        alpha = np.ones((h, w), np.float32) if alpha is None else alpha.astype(np.float32)
        emission = np.zeros((h, w, 3), np.float32) if emission is None else emission
        surface = np.dstack([albedo, temperature]).astype(np.float32) * alpha[..., None]
        return cls(surface, np.dstack([emission * alpha[..., None], alpha]).astype(np.float32))

    def level(self, shrink_u: float, shrink_v: float) -> tuple[np.ndarray, np.ndarray]:
        """The prefiltered pair for that many texels per pixel along each axis, in half octaves (a rip map)."""
        h, w = self.surface.shape[:2]
        key = tuple(int(np.clip(np.floor(2 * np.log2(max(s, 1.0))), 0, 14)) for s in (shrink_u, shrink_v))
        if key not in self._levels:
            size = (max(2, round(w * 2 ** (-key[0] / 2))), max(2, round(h * 2 ** (-key[1] / 2))))
            self._levels[key] = tuple(
                a if size == (w, h) else cv2.resize(a, size, interpolation=cv2.INTER_AREA)
                for a in (self.surface, self.light)
            )
        return self._levels[key]


class Canvas:
    """The G-buffer of one frame: `planes` is (12, H, W) float32 in the order of the constants above."""

    def __init__(self, height: int, width: int, camera: Camera):
        self.height, self.width, self.camera = height, width, camera
        self.planes = np.zeros((PLANES, height, width), np.float32)

    def window(self, pixels: np.ndarray) -> tuple[int, int, int, int] | None:
        """Pixel window (x0, y0, x1, y1) around points (N, 2), cut to the picture; None where nothing is left."""
        x0, y0 = np.maximum(np.floor(pixels.min(axis=0)).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(pixels.max(axis=0)).astype(int) + 2, (self.width, self.height))
        return (int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None

    def _plane_inverse_depth(self, window, point, normal) -> np.ndarray:
        """1/z over a window for the plane through `point`: affine in the pixel coordinates."""
        x0, y0, x1, y1 = window
        cam = self.camera
        distance = float(normal @ (point - cam.position))
        distance = distance if abs(distance) > 1e-6 else 1e-6
        a, b, c = (cam.rotation @ normal) @ np.linalg.inv(cam.matrix) / distance
        row = (a * np.arange(x0, x1) + c).astype(np.float32)
        column = (b * np.arange(y0, y1)).astype(np.float32)
        return row[None, :] + column[:, None]

    def _warp(self, texture: Texture, origin, u, v, span=(0.0, 1.0), *, shape_only: bool = False) -> tuple | None:
        origin, u, v = (np.asarray(a, np.float64) for a in (origin, u, v))
        lo, hi = span
        corners = np.array([origin + u * s + v * t for s, t in ((lo, 0), (hi, 0), (hi, 1), (lo, 1))])
        pixels, depth = self.camera.project(corners)
        if depth.min() < NEAR_M:
            return None
        window = self.window(pixels)
        if window is None or np.ptp(pixels, axis=0).min() < 0.7:
            return None
        h, w = texture.surface.shape[:2]
        d1, d2 = pixels[2] - pixels[0], pixels[3] - pixels[1]
        area = max(0.5 * abs(d1[0] * d2[1] - d1[1] * d2[0]), 1e-3)
        along_u = 0.5 * (np.linalg.norm(pixels[1] - pixels[0]) + np.linalg.norm(pixels[2] - pixels[3])) + 1e-3
        along_v = 0.5 * (np.linalg.norm(pixels[3] - pixels[0]) + np.linalg.norm(pixels[2] - pixels[1])) + 1e-3
        surface, light = texture.level(w * (hi - lo) * along_v / area, h * along_u / area)
        lh, lw = light.shape[:2]
        i0, i1 = max(int(np.floor(lo * lw)) - 1, 0), min(int(np.ceil(hi * lw)) + 1, lw)
        local = np.stack([u / lw, v / lh, origin - self.camera.position], axis=1)
        x0, y0, x1, y1 = window
        shift = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1.0]])
        centre = np.array([[1, 0, i0 + 0.5], [0, 1, 0.5], [0, 0, 1.0]])
        m = shift @ self.camera.projection @ local @ centre
        size = (x1 - x0, y1 - y0)
        warped = [cv2.warpPerspective(np.ascontiguousarray(a[:, i0:i1]), m, size, flags=cv2.INTER_LINEAR)
                  for a in ((light,) if shape_only else (surface, light))]
        return window, warped[0], warped[-1], corners[0]

    def quad(self, texture: Texture, origin, u, v, normal, span=(0.0, 1.0)) -> None:
        """Paints a texture on the parallelogram origin + s u + t v, s in `span`, t in [0, 1].

        A parallelogram that comes nearer than NEAR_M is left out: cut it with `span` first.
        """
        warped = self._warp(texture, origin, u, v, span)
        if warped is None:
            return
        window, surface, light, point = warped
        normal = np.asarray(normal, np.float64)
        plane_normal = np.cross(u, v)
        inverse = self._plane_inverse_depth(window, point, plane_normal / np.linalg.norm(plane_normal))
        self._paint(window, (*cv2.split(surface), *cv2.split(light)), normal, inverse)

    def decal(self, texture: Texture, origin, u, v) -> None:
        """Paints albedo and temperature of a flat texture on the ground that is already there."""
        warped = self._warp(texture, origin, u, v)
        if warped is None:
            return
        (x0, y0, x1, y1), surface, light, _ = warped
        keep = 1.0 - light[..., 3]
        for i, source in enumerate(cv2.split(surface)):
            target = self.planes[i, y0:y1, x0:x1]
            target *= keep
            target += source

    def shade(self, texture: Texture, origin, u, v, darkness: float, warmth: float) -> None:
        """Darkens the ground by coverage x darkness and warms it by coverage x warmth degrees (soft shadows)."""
        warped = self._warp(texture, origin, u, v, shape_only=True)
        if warped is None:
            return
        (x0, y0, x1, y1), _, light, _ = warped
        alpha = light[..., 3]
        self.planes[ALBEDO, y0:y1, x0:x1] *= 1.0 - darkness * alpha
        self.planes[TEMPERATURE, y0:y1, x0:x1] += warmth * alpha

    def _paint(self, window, sources, normal, inverse) -> None:
        x0, y0, x1, y1 = window
        target = self.planes[:, y0:y1, x0:x1]
        alpha = sources[COVERAGE]
        target *= 1.0 - alpha
        for i, source in enumerate(sources):
            target[i] += source
        for i, component in enumerate(normal):
            if component:
                target[8 + i] += alpha * np.float32(component)
        target[INVERSE_DEPTH] += alpha * inverse

    def faces(self, polygons: list[np.ndarray], attributes: np.ndarray) -> tuple[tuple, np.ndarray] | None:
        """Paints one object made of at most 255 flat polygons, given far to near.

        Args:
            polygons: pixel outlines, (m, 2) float each.
            attributes: (n, 11): albedo RGB, temperature, emission RGB, normal XYZ, inverse depth of each polygon.

        Returns:
            The window (x0, y0, x1, y1) and the coverage in it, float32 in [0, 1]; None when nothing is in the picture.
        """
        if not polygons:
            return None
        points = np.concatenate(polygons)
        window = self.window(points)
        if window is None:
            return None
        x0, y0, x1, y1 = window
        w, h = x1 - x0, y1 - y0
        scale = int(np.clip(np.sqrt(_SUPERSAMPLED_PIXELS / (w * h)), 2, 4))
        ids = np.zeros((h * scale, w * scale), np.uint8)
        fixed = ((points - (x0 - 0.5, y0 - 0.5)) * scale - 0.5) * (1 << _FIXED_POINT_BITS)
        fixed = np.round(fixed).astype(np.int32)
        start = 0
        for i, polygon in enumerate(polygons[:255]):
            stop = start + len(polygon)
            cv2.fillPoly(ids, [fixed[start:stop]], i + 1, cv2.LINE_8, _FIXED_POINT_BITS)
            start = stop
        table = np.zeros((PLANES, 256), np.float32)
        n = min(len(polygons), 255)
        table[:7, 1:n + 1] = attributes[:n, :7].T
        table[COVERAGE, 1:n + 1] = 1.0
        table[8:, 1:n + 1] = attributes[:n, 7:].T
        target = self.planes[:, y0:y1, x0:x1]
        alpha = None
        for i in (COVERAGE, *range(COVERAGE), *range(COVERAGE + 1, PLANES)):
            if alpha is not None and not table[i].any():
                source = None
            else:
                source = cv2.LUT(ids, table[i])
                if scale > 1:
                    source = cv2.resize(source, (w, h), interpolation=cv2.INTER_AREA)
            if alpha is None:
                alpha, keep = source, 1.0 - source
            target[i] *= keep
            if source is not None:
                target[i] += source
        return window, alpha
