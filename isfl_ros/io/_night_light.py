"""From the G-buffer to the two sensors: lamps, fog, glare and camera noise for RGB; radiance and detector for thermal."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from isfl_ros.io import _night_raster as raster
from isfl_ros.io._night_textures import AIR_C

# Counts of the thermal camera: linear in temperature, 0.01 K per count (a radiometric camera's high-resolution mode).
COUNTS_PER_KELVIN = 100.0
KELVIN_AT_0_C = 273.15
# Long-wave infrared passes light fog much better than visible light does.
THERMAL_FOG_SHARE = 0.28
_NOISE_MARGIN = 256


@dataclass(frozen=True)
class PointLight:
    """A light that shines on the scene.

    `forward` is 0 for a street lamp (shines down), 1 for a head lamp of the ego vehicle and -1 for one that comes
    towards it; `power` is linear radiance times square metres.
    """

    position: tuple
    colour: tuple
    power: float
    forward: int = 0


@dataclass(frozen=True)
class Glare:
    """A light that looks into the camera: halo of `size` pixels, and its mirror image on the wet road."""

    position: tuple
    colour: tuple
    power: float
    size: float
    wet: float
    flare: float = 0.0


def _beam(dx, dy, dz):
    """Low beam of a head lamp over slopes: a flat cut-off that rises towards the kerb, brightest just below it."""
    inverse = 1.0 / np.maximum(dz, 0.3)
    h, v = dx * inverse, dy * inverse
    cut = -0.012 + 0.16 * np.clip(h - 0.01, 0, 0.14)
    below = cut - v
    edge = 1.0 / (1.0 + np.exp(np.clip(-below / 0.0075, -30, 30)))
    depth = np.maximum(below, 0) + 0.022
    wide = np.exp(-((h / 0.42) ** 2))
    spot = np.exp(-((h / 0.16) ** 2))
    return edge * (0.30 * wide + 0.9 * spot) * (0.022 / depth) ** 1.05 + 0.010 * wide


class Shading:
    """Everything that depends on the picture size and the seed alone, and the two sensors.

    Args:
        height, width: picture size.
        matrix: 3x3 intrinsics.
        rng: generator for the fixed patterns and the noise tiles.
    """

    def __init__(self, height: int, width: int, matrix: np.ndarray, rng: np.random.Generator):
        self.height, self.width, self.matrix = height, width, matrix
        x = (np.arange(width) - matrix[0, 2]) / matrix[0, 0]
        y = (np.arange(height) - matrix[1, 2]) / matrix[1, 1]
        self.rays = np.stack([np.broadcast_to(x[None, :], (height, width)), np.broadcast_to(y[:, None], (height, width)),
                              np.ones((height, width))]).astype(np.float32)
        self.slant = np.sqrt((self.rays ** 2).sum(axis=0))
        self.vignette = (1.0 / self.slant ** 3.2)[..., None].astype(np.float32)
        tile = (height + _NOISE_MARGIN, width + _NOISE_MARGIN)
        self.grain = rng.standard_normal((*tile, 3), dtype=np.float32)
        self.grain = 0.8 * self.grain + 0.55 * cv2.GaussianBlur(self.grain, (0, 0), 0.9)
        self.thermal_grain = rng.standard_normal(tile, dtype=np.float32)
        columns = rng.standard_normal((1, width), dtype=np.float32)
        rows = rng.standard_normal((height, 1), dtype=np.float32)
        pixels = rng.standard_normal((height, width), dtype=np.float32)
        self.fixed_pattern = 0.045 * columns + 0.02 * rows + 0.035 * pixels - 0.5 * (self.slant - 1) ** 2
        self.blur = max(0.55, 0.85 * width / 640)
        n = 257
        yy, xx = np.mgrid[-1:1:n * 1j, -1:1:n * 1j].astype(np.float32)
        r = np.sqrt(xx * xx + yy * yy) + 1e-4
        angle = np.arctan2(yy, xx)
        window = np.clip(1 - r, 0, 1) ** 1.5
        halo = window * (0.0011 / (r * r + 0.0013) + 0.05 * np.exp(-r / 0.22))
        spikes = window * np.exp(-r / 0.20) * 0.20 * sum(
            np.exp(-((np.sin(angle - a) * r / 0.009) ** 2)) * s for a, s in ((0.12, 1), (0.12 + np.pi / 3, 0.55),
                                                                          (0.12 + 2 * np.pi / 3, 0.55)))
        self.halo = (halo + spikes).astype(np.float32)
        self.streak = (np.clip(1 - np.abs(yy), 0, 1) ** 2 * np.exp(-((xx / 0.30) ** 2)) * np.exp(-((yy / 0.55) ** 2))
                       ).astype(np.float32)
        ring = np.clip(1 - np.abs(r - 0.78) / 0.2, 0, 1) * 0.8 + 0.5 * (r < 0.85)
        self.ghost = cv2.GaussianBlur(ring.astype(np.float32) * (r < 0.97), (0, 0), 4)

    def _stamp(self, target: np.ndarray, kernel: np.ndarray, centre, half_w: float, half_h: float, colour) -> None:
        """Adds a kernel stretched to the given half sizes around `centre` to a float (h, w, 3) picture."""
        h, w = target.shape[:2]
        x0, x1 = max(int(centre[0] - half_w), 0), min(int(centre[0] + half_w) + 2, w)
        y0, y1 = max(int(centre[1] - half_h), 0), min(int(centre[1] + half_h) + 2, h)
        if x1 <= x0 or y1 <= y0:
            return
        n = kernel.shape[0]
        sx, sy = (n - 1) / (2 * half_w), (n - 1) / (2 * half_h)
        m = np.array([[sx, 0, (x0 - centre[0] + half_w) * sx], [0, sy, (y0 - centre[1] + half_h) * sy]])
        part = cv2.warpAffine(kernel, m, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        region = target[y0:y1, x0:x1]
        for c in range(3):
            region[..., c] += part * np.float32(colour[c])

    def rgb(self, canvas: raster.Canvas, wetness: np.ndarray, lights: list[PointLight], glares: list[Glare],
            fog: float, rng: np.random.Generator, noise: float) -> np.ndarray:
        """The colour picture, uint8 (H, W, 3)."""
        planes, camera = canvas.planes, canvas.camera
        h, w = self.height, self.width
        world = (camera.rotation.T @ self.rays.reshape(3, -1)).astype(np.float32).reshape(3, h, w)
        depth = 1.0 / np.maximum(planes[raster.INVERSE_DEPTH], 1.0 / 600.0)
        origin = camera.position
        px, py, pz = world[0] * depth, world[1] * depth, world[2] * depth  # relative to the camera
        nx, ny, nz = planes[raster.NORMAL]
        lit = np.empty((3, h, w), np.float32)
        ambient = 0.0085 * (0.75 + 0.35 * ny) * planes[raster.COVERAGE]
        for c, tint in enumerate((1.0, 0.84, 0.80)):
            np.multiply(ambient, np.float32(tint), out=lit[c])
        for light in lights:
            self._illuminate(lit, light, origin, px, py, pz, nx, ny, nz)
        radiance = planes[raster.ALBEDO] * lit
        radiance += planes[raster.EMISSION]
        image = cv2.merge([radiance[0], radiance[1], radiance[2]])

        ground = (ny > 0.9) & (py < 0.03 - np.float32(origin[1]))
        self._reflections(image, canvas, wetness * ground, glares)
        path = depth * self.slant
        through = np.exp(np.float32(-fog) * path)
        # Light scattered into the line of sight: the glow of the town, the lamps, and the own head lamps near the road.
        slope = world[1] / np.maximum(world[2], 0.1)
        beam = np.exp(-((slope + 0.05) / 0.10) ** 2) * np.exp(-((world[0] / np.maximum(world[2], 0.1)) / 0.42) ** 2)
        veil = (1.0 - through)
        image *= through[..., None]
        for c, (town, own) in enumerate(zip((0.050, 0.038, 0.028), (0.030, 0.030, 0.027))):
            image[..., c] += veil * (np.float32(town) + np.float32(own) * beam)
        self._glare(image, canvas, glares, fog)
        return self._expose(image, rng, noise)

    @staticmethod
    def _illuminate(lit, light, origin, px, py, pz, nx, ny, nz) -> None:
        lx, ly, lz = (np.float32(a - b) for a, b in zip(light.position, origin))
        if light.forward:
            rows = slice(None)
        else:  # a street lamp lights its surroundings only: skip the rows that are all too far away
            near = np.abs(pz - lz) < 24
            used = np.flatnonzero(near.any(axis=1))
            if not len(used):
                return
            rows = slice(int(used[0]), int(used[-1]) + 1)
        dx, dy, dz = px[rows] - lx, py[rows] - ly, pz[rows] - lz
        square = dx * dx + dy * dy + dz * dz + np.float32(0.05)
        inverse = 1.0 / np.sqrt(square)
        cosine = -(nx[rows] * dx + ny[rows] * dy + nz[rows] * dz) * inverse
        if light.forward:
            forward = np.float32(light.forward)
            strength = np.maximum(cosine, 0) * _beam(dx * forward, dy, dz * forward) * (dz * forward > 0.3) / square
        else:
            down = np.maximum(-dy * inverse, 0)
            fade = np.clip(1.0 - square * np.float32(1 / 24.0 ** 2), 0, 1)
            strength = np.maximum(0.85 * cosine + 0.15, 0) * (0.06 + down ** 1.5) * fade / square
        for c in range(3):
            lit[c, rows] += strength * np.float32(light.power * light.colour[c])

    def _reflections(self, image, canvas, wet, glares) -> None:
        """Mirror images of the lights on the wet road, drawn out towards the camera by its roughness."""
        layer = np.zeros_like(image)
        for glare in glares:
            if glare.wet <= 0:
                continue
            x, y, z = glare.position
            pixels, depth = canvas.camera.project(np.array([(x, -y, z), (x, 0.0, z)]))
            if depth[0] < 1.0:
                continue
            scale = self.matrix[0, 0] / depth[0]
            half_h = np.clip(1.9 * abs(pixels[0, 1] - pixels[1, 1]) + 0.02 * self.width, 3, self.height)
            half_w = np.clip(0.75 * scale, 1.5, 0.06 * self.width)
            strength = glare.wet * glare.power * min(1.0, depth[0] / 25.0)
            self._stamp(layer, self.streak, pixels[0], half_w, half_h, [strength * c for c in glare.colour])
        rough = wet * wet
        image += layer * rough[..., None]

    def _glare(self, image, canvas, glares, fog: float) -> None:
        h, w = self.height // 2 + 1, self.width // 2 + 1
        layer = np.zeros((h, w, 3), np.float32)
        inverse = canvas.planes[raster.INVERSE_DEPTH]
        for glare in glares:
            pixels, depth = canvas.camera.project(np.array([glare.position]))
            if depth[0] < 1.0:
                continue
            (x, y), z = pixels[0], depth[0]
            xi, yi = int(round(x)), int(round(y))
            r = max(1, int(0.12 * self.matrix[0, 0] / z))
            patch = inverse[max(yi - r, 0):max(yi + r + 1, 0), max(xi - r, 0):max(xi + r + 1, 0)]
            seen = float((patch < 1.0 / max(z - 1.2, 0.3)).mean()) if patch.size else 0.0
            if seen <= 0:
                continue
            reach = np.exp(-fog * z)
            half = glare.size * (0.8 + 22.0 * fog) * self.width / 640 / 2
            power = glare.power * seen * reach * (1.0 + 10.0 * fog)
            colour = [power * c for c in glare.colour]
            self._stamp(layer, self.halo, (x / 2, y / 2), half, half, colour)
            if glare.flare > 0:
                centre = np.array([w, h]) / 2
                axis = centre - np.array([x, y]) / 2
                for along, size, tint in ((0.55, 0.018, (0.5, 0.8, 1.0)), (1.25, 0.032, (0.9, 0.5, 1.0)),
                                          (1.55, 0.014, (0.5, 1.0, 0.6)), (1.9, 0.055, (0.6, 0.75, 1.0))):
                    position = np.array([x, y]) / 2 + axis * along
                    self._stamp(layer, self.ghost, position, size * w, size * w,
                                [glare.flare * seen * reach * t for t in tint])
        # Bloom: what is brighter than the sensor takes spills over.
        small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
        hot = np.maximum(small - 0.55, 0)
        layer += 0.10 * cv2.GaussianBlur(hot, (0, 0), max(0.8, w / 150)) + 0.05 * cv2.blur(
            cv2.blur(hot, (w // 14 | 1, w // 14 | 1)), (w // 14 | 1, w // 14 | 1))
        image += cv2.resize(layer, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def _expose(self, image, rng, noise: float) -> np.ndarray:
        image *= self.vignette
        oy, ox = (int(rng.integers(0, _NOISE_MARGIN)) for _ in range(2))
        grain = self.grain[oy:oy + self.height, ox:ox + self.width]
        cv2.GaussianBlur(image, (0, 0), max(0.3, 0.45 * self.width / 640), dst=image)
        # Shot noise grows with the square root of the light, read noise does not.
        image += grain * (np.float32(noise) * np.sqrt(4.0e-5 + 1.1e-3 * np.maximum(image, 0)))
        np.maximum(image, 0, out=image)
        image *= np.float32(2.3)
        # A shoulder that keeps colour in the highlights, then the display curve.
        image = image / (1.0 + 0.72 * image)
        image = np.sqrt(image * (0.055 + 0.945 * image ** 0.12))
        return np.clip(image * 255.0 + 0.5, 0, 255).astype(np.uint8)

    def thermal(self, canvas: raster.Canvas, fog: float, rng: np.random.Generator) -> np.ndarray:
        """The thermal picture, uint16 (H, W) counts."""
        planes = canvas.planes
        depth = 1.0 / np.maximum(planes[raster.INVERSE_DEPTH], 1.0 / 600.0)
        through = np.exp(np.float32(-fog * THERMAL_FOG_SHARE - 0.0006) * depth * self.slant)
        celsius = AIR_C - 1.5 + (planes[raster.TEMPERATURE] - (AIR_C - 1.5)) * through
        celsius = cv2.GaussianBlur(celsius, (0, 0), self.blur)
        celsius = 0.93 * celsius + 0.07 * cv2.GaussianBlur(celsius, (0, 0), 3.2 * self.blur)
        oy, ox = (int(rng.integers(0, _NOISE_MARGIN)) for _ in range(2))
        celsius += 0.075 * self.thermal_grain[oy:oy + self.height, ox:ox + self.width] + self.fixed_pattern
        counts = (celsius + KELVIN_AT_0_C) * COUNTS_PER_KELVIN
        return np.clip(counts + 0.5, 0, 65535).astype(np.uint16)
