"""From the G-buffer to the two sensors: lamps, fog, glare and noise for RGB; radiance and detector for thermal."""

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
_EXPOSURE = 2.6
LAMP_REACH_M = 22.0
FOG_LAYER_M = 28.0


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


_BEAM_SLOPES = (1.0, -0.55, 0.25)  # widest to the side, lowest, highest


def _beam_table() -> np.ndarray:
    """Low beam of a head lamp, (rows, columns) over vertical and horizontal slope.

    A flat cut-off that rises towards the kerb, brightest just below it, and a little stray light above.
    """
    wide_limit, low, high = _BEAM_SLOPES
    v, h = np.mgrid[low:high:801j, -wide_limit:wide_limit:401j].astype(np.float32)
    below = -0.012 + 0.16 * np.clip(h - 0.01, 0, 0.14) - v
    edge = 1.0 / (1.0 + np.exp(np.clip(-below / 0.0075, -30, 30)))
    depth = np.maximum(below, 0) + 0.022
    wide = np.exp(-((h / 0.40) ** 2))
    spot = np.exp(-((h / 0.15) ** 2))
    fade = np.clip((wide_limit - np.abs(h)) / 0.2, 0, 1)
    return (fade * (edge * (0.34 * wide + 0.9 * spot) * (0.022 / depth) ** 1.5 + 0.010 * wide)).astype(np.float32)


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
        self.rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))]).astype(np.float32)
        self.slant = np.sqrt((self.rays ** 2).sum(axis=0))
        self.vignette = (1.0 / self.slant ** 3.0).astype(np.float32)
        tile = (height + _NOISE_MARGIN, width + _NOISE_MARGIN)
        grain = rng.standard_normal((3, *tile), dtype=np.float32)
        grain = 0.75 * grain + 0.35 * grain.mean(axis=0)
        self.grain = np.stack([0.8 * g + 0.55 * cv2.GaussianBlur(g, (0, 0), 0.9) for g in grain])
        self.thermal_grain = rng.standard_normal(tile, dtype=np.float32)
        columns = rng.standard_normal((1, width), dtype=np.float32)
        rows = rng.standard_normal((height, 1), dtype=np.float32)
        pixels = rng.standard_normal((height, width), dtype=np.float32)
        self.fixed_pattern = 0.045 * columns + 0.02 * rows + 0.035 * pixels - 0.5 * (self.slant - 1) ** 2
        self.beam = _beam_table()
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
        """Adds a kernel stretched to the given half sizes around `centre` to a float (3, h, w) picture."""
        h, w = target.shape[1:]
        x0, x1 = max(int(centre[0] - half_w), 0), min(int(centre[0] + half_w) + 2, w)
        y0, y1 = max(int(centre[1] - half_h), 0), min(int(centre[1] + half_h) + 2, h)
        if x1 <= x0 or y1 <= y0:
            return
        n = kernel.shape[0]
        sx, sy = (n - 1) / (2 * half_w), (n - 1) / (2 * half_h)
        m = np.array([[sx, 0, (x0 - centre[0] + half_w) * sx], [0, sy, (y0 - centre[1] + half_h) * sy]])
        part = cv2.warpAffine(kernel, m, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        for c in range(3):
            target[c, y0:y1, x0:x1] += part * np.float32(colour[c])

    def world_rays(self, camera: raster.Camera) -> np.ndarray:
        """Rays of all pixels in world axes, (3, H, W) float32, of length 1 along the optical axis."""
        row, column = self.rays[0, :1, :], self.rays[1, :, :1]
        return np.stack([np.float32(a) * row + (np.float32(b) * column + np.float32(c))
                         for a, b, c in camera.rotation.T])

    def rgb(self, canvas: raster.Canvas, rays: np.ndarray, wetness: np.ndarray, lights: list[PointLight],
            glares: list[Glare], fog: float, rng: np.random.Generator, noise: float) -> np.ndarray:
        """The colour picture, uint8 (H, W, 3); `rays` from world_rays."""
        planes, origin = canvas.planes, canvas.camera.position
        depth = 1.0 / np.maximum(planes[raster.INVERSE_DEPTH], np.float32(1.0 / 600.0))
        image = planes[raster.ALBEDO] * self._irradiance(planes, rays, depth, lights, origin)
        image += planes[raster.EMISSION]
        ground = (planes[9] > 0.9) & (rays[1] * depth < np.float32(0.03 - origin[1]))
        self._reflections(image, canvas, wetness * ground, glares)
        # Light scattered into the line of sight: the glow of the town, and the own head lamps near the road.
        path = self._path(rays, depth)
        through = cv2.exp(path * np.float32(-fog))
        slope, turn = self.rays[1], self.rays[0]
        beam = cv2.exp(-np.square((slope[:, :1] - 0.05) * 10)) * cv2.exp(-np.square(turn[:1] * 2.4))
        veil = 1.0 - through
        for c, (town, own) in enumerate(zip((0.026, 0.020, 0.016), (0.030, 0.030, 0.027))):
            image[c] = image[c] * through + veil * (np.float32(town) + np.float32(own) * beam)
        self._glare(image, canvas, glares, fog)
        return self._expose(image, rng, noise)

    def _path(self, rays, depth) -> np.ndarray:
        """Metres of fog before each pixel: the fog is a layer of FOG_LAYER_M, so that the sky looks through it."""
        return np.minimum(depth, np.float32(FOG_LAYER_M) / np.maximum(rays[1], np.float32(0.05))) * self.slant

    def _irradiance(self, planes, rays, depth, lights, origin) -> np.ndarray:
        """Light that falls on every surface, (3, H, W), worked out at half size: albedo carries the detail."""
        half = (slice(None, None, 2), slice(None, None, 2))
        z = depth[half]
        place = [np.ascontiguousarray(r[half]) * z for r in rays]
        normal = [np.ascontiguousarray(n[half]) for n in planes[raster.NORMAL]]
        ambient = (0.016 * 0.75 + 0.016 * 0.35 * normal[1]) * planes[raster.COVERAGE][half]
        lit = [ambient * np.float32(tint) for tint in (1.0, 0.86, 0.84)]
        for light in lights:
            self._illuminate(lit, light, origin, place, normal)
        size = (self.width + self.width % 2, self.height + self.height % 2)
        return np.stack([cv2.resize(a, size, interpolation=cv2.INTER_LINEAR)[:self.height, :self.width] for a in lit])

    def _illuminate(self, lit, light, origin, place, normal) -> None:
        at = [np.float32(a - b) for a, b in zip(light.position, origin)]
        if light.forward:
            forward = np.float32(light.forward)
            used = (place[2] - at[2]) * forward > 0.4
        else:  # a street lamp lights its surroundings only
            used = np.abs(place[2] - at[2]) < LAMP_REACH_M
        rows, columns = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
        if not len(rows):
            return
        part = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        dx, dy, dz = (p[part] - a for p, a in zip(place, at))
        nx, ny, nz = (n[part] for n in normal)
        square = dx * dx + dy * dy + dz * dz + np.float32(0.05)
        inverse = 1.0 / np.sqrt(square)
        cosine = -(nx * dx + ny * dy + nz * dz) * inverse
        if light.forward:
            wide, low, high = _BEAM_SLOPES
            ahead = 1.0 / np.maximum(dz * forward, np.float32(0.3))
            rows_n, columns_n = self.beam.shape
            u = (dx * ahead + np.float32(wide)) * np.float32((columns_n - 1) / (2 * wide))
            v = (dy * ahead - np.float32(low)) * np.float32((rows_n - 1) / (high - low))
            np.clip(v, 0, rows_n - 1, out=v)
            pattern = cv2.remap(self.beam, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
            strength = np.maximum(cosine, 0) * pattern * used[part] / square
        else:
            down = np.maximum(-dy * inverse, 0)
            fade = np.maximum(1.0 - square * np.float32(LAMP_REACH_M ** -2), 0)
            strength = np.maximum(0.85 * cosine + 0.15, 0) * (0.12 + down * np.sqrt(down)) * fade / square
        for c in range(3):
            lit[c][part] += strength * np.float32(light.power * light.colour[c])

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
        layer *= wet * wet
        image += layer

    def _glare(self, image, canvas, glares, fog: float) -> None:
        h, w = self.height // 2 + 1, self.width // 2 + 1
        layer = np.zeros((3, h, w), np.float32)
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
        for target, spill in zip(image, layer):
            hot = np.maximum(cv2.resize(target, (w, h), interpolation=cv2.INTER_AREA) - 0.55, 0)
            spill += 0.10 * cv2.GaussianBlur(hot, (0, 0), max(0.8, w / 150))
            wide = (w // 14 | 1, w // 14 | 1)
            spill += 0.05 * cv2.blur(cv2.blur(hot, wide), wide)
            target += cv2.resize(spill, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def _expose(self, image, rng, noise: float) -> np.ndarray:
        oy, ox = (int(rng.integers(0, _NOISE_MARGIN)) for _ in range(2))
        blur = max(0.3, 0.45 * self.width / 640)
        channels = []
        for channel, grain in zip(image, self.grain):
            channel *= self.vignette
            channel = cv2.GaussianBlur(channel, (0, 0), blur)
            # Shot noise grows with the square root of the light, read noise does not.
            channel += grain[oy:oy + self.height, ox:ox + self.width] * (
                np.float32(noise) * np.sqrt(np.float32(8.0e-6) + np.float32(4.0e-4) * channel))
            np.maximum(channel, 0, out=channel)
            channel *= np.float32(_EXPOSURE)
            # A shoulder that keeps colour in the highlights, then the display curve with a toe.
            channel /= 1.0 + np.float32(0.72) * channel
            toe = np.sqrt(np.sqrt(np.sqrt(channel)))
            channel = np.sqrt(channel * (np.float32(0.06) + np.float32(0.94) * toe))
            channels.append(cv2.convertScaleAbs(channel, alpha=255.0))
        return cv2.merge(channels)

    def thermal(self, canvas: raster.Canvas, rays: np.ndarray, fog: float, rng: np.random.Generator) -> np.ndarray:
        """The thermal picture, uint16 (H, W) counts."""
        planes = canvas.planes
        depth = 1.0 / np.maximum(planes[raster.INVERSE_DEPTH], 1.0 / 600.0)
        through = cv2.exp(np.float32(-fog * THERMAL_FOG_SHARE - 0.0006) * self._path(rays, depth))
        celsius = AIR_C - 1.5 + (planes[raster.TEMPERATURE] - (AIR_C - 1.5)) * through
        celsius = cv2.GaussianBlur(celsius, (0, 0), self.blur)
        celsius = 0.93 * celsius + 0.07 * cv2.GaussianBlur(celsius, (0, 0), 3.2 * self.blur)
        oy, ox = (int(rng.integers(0, _NOISE_MARGIN)) for _ in range(2))
        celsius += 0.075 * self.thermal_grain[oy:oy + self.height, ox:ox + self.width] + self.fixed_pattern
        counts = (celsius + KELVIN_AT_0_C) * COUNTS_PER_KELVIN
        return np.clip(counts + 0.5, 0, 65535).astype(np.uint16)
