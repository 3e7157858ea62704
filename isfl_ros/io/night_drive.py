"""The built-in synthetic night drive: registered thermal and RGB pictures of one made-up street, for demo and tests.

One scene is drawn once per frame into a G-buffer (colour, temperature, emitted light, normal, depth) and seen by both
cameras from there, so that the modalities agree to the pixel. It is a stand-in for cameras, not a measurement: nothing
about fusion quality on real pictures follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.io import _night_models as models
from isfl_ros.io import _night_raster as raster
from isfl_ros.io import _night_textures as textures
from isfl_ros.io import _night_world as world
from isfl_ros.io._night_light import Glare, PointLight, Shading
from isfl_ros.io._night_people import draw_person

# Streams of the random generators that belong to a picture, beside those of the street in _night_world.py.
_SENSOR_STREAM, _RGB_STREAM, _THERMAL_STREAM = 1, 2, 3
_FOCAL_PER_WIDTH = 0.88
_HORIZON = 0.47
_REACH_M = 140.0
_PEOPLE_REACH_M = 86.0
_SOLID_REACH_M = 110.0
_LIT_REACH_M = 65.0
_GRAIN_LEVELS, _GRAIN_PER_TEXEL = 5, 6.0
_MIN_PERSON_PX = 12
_MIN_VISIBLE = 0.35
_RANGES = {
    "width": (64, 4096), "height": (64, 4096), "seed": (0, 2 ** 31 - 1), "rate_hz": (0.1, 1000.0), "fog": (0.0, 0.2),
    "fog_peak": (0.0, 0.2), "fog_period_s": (1.0, 3600.0), "speed_mps": (1.0, 30.0), "pedestrians": (0.0, 4.0),
    "noise": (0.0, 10.0),
}


@dataclass(frozen=True, kw_only=True)
class NightDriveConfig:
    """What to render.

    Raises:
        InputError: a value of the wrong kind or out of its range.
    """

    width: int = 640
    """Picture width in pixels, 64 to 4096."""
    height: int = 480
    """Picture height in pixels, 64 to 4096."""
    seed: int = 0
    """Which street, traffic and noise."""
    rate_hz: float = 10.0
    """Pictures per second of the drive: picture i shows the time i / rate_hz."""
    fog: float = 0.004
    """Extinction of visible light by fog at the start, per metre (0.004: one sees 700 m; thermal sees further)."""
    fog_peak: float = 0.022
    """Extinction per metre where the fog is thickest, half a period later."""
    fog_period_s: float = 60.0
    """Seconds from clear to thick fog and back."""
    speed_mps: float = 8.0
    """Speed of the ego vehicle in metres per second, 1 to 30."""
    pedestrians: float = 1.0
    """Multiplies the number of pedestrians; 0 is an empty pavement."""
    noise: float = 1.0
    """Multiplies the noise of the RGB camera."""

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            whole = item.type in (int, "int")
            low, high = _RANGES[item.name]
            kind = (int, np.integer) if whole else (int, float, np.integer, np.floating)
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                raise InputError(f"night drive: {item.name} is out of range", got=repr(value),
                                 expected=f"{'a whole number' if whole else 'a number'} from {low} to {high}")


@dataclass(frozen=True, eq=False)
class NightDriveFrame:
    """One moment, seen by both cameras from the same place."""

    thermal: np.ndarray
    """uint16 (H, W): counts, 0.01 kelvin each."""
    rgb: np.ndarray
    """uint8 (H, W, 3), RGB."""
    people: list[tuple[int, int, int, int]]
    """Boxes (x0, y0, x1, y1) in pixels, end exclusive, of pedestrians in view that are at least 12 pixels tall."""


class NightDrive:
    """Renders the drive; the same config and index give the same bytes, in any order.

    Args:
        config: what to render.
    """

    def __init__(self, config: NightDriveConfig):
        self.config = config
        focal = _FOCAL_PER_WIDTH * config.width
        self.camera_matrix = np.array([[focal, 0.0, (config.width - 1) / 2],
                                       [0.0, focal, _HORIZON * (config.height - 1)], [0.0, 0.0, 1.0]])
        """3x3 float64 intrinsics of both cameras (no distortion), pixel centres at integer coordinates."""
        self._street = world.Street(config.seed, config.speed_mps, config.pedestrians)
        self._shading = Shading(config.height, config.width, self.camera_matrix,
                                np.random.default_rng([config.seed, _SENSOR_STREAM]))

    def frame(self, index: int) -> NightDriveFrame:
        """Picture `index` (0, 1, ...).

        Raises:
            InputError: a negative index.
        """
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or index < 0:
            raise InputError("night drive: there is no such picture", expected="an index from 0", got=repr(index))
        cfg = self.config
        t = index / cfg.rate_hz
        fog = cfg.fog + (cfg.fog_peak - cfg.fog) * 0.5 * (1 - np.cos(2 * np.pi * t / cfg.fog_period_s))
        scene = _Scene(self._street, self._shading, self.camera_matrix, t)
        people = scene.draw()
        rgb = self._shading.rgb(scene.canvas, scene.rays, scene.wetness, scene.lights, scene.glares, float(fog),
                                np.random.default_rng([cfg.seed, index, _RGB_STREAM]), cfg.noise)
        thermal = self._shading.thermal(scene.canvas, scene.rays, float(fog),
                                        np.random.default_rng([cfg.seed, index, _THERMAL_STREAM]))
        return NightDriveFrame(thermal=thermal, rgb=rgb, people=people)


class _Scene:
    """Draws one moment of a street into a canvas, and gathers its lights on the way."""

    def __init__(self, street: world.Street, shading: Shading, matrix: np.ndarray, t: float):
        self.street, self.shading, self.t = street, shading, t
        position, pitch, yaw, roll = street.ego(t)
        camera = raster.Camera(matrix, position, pitch, yaw, roll)
        self.canvas = raster.Canvas(shading.height, shading.width, camera)
        self.x, self.y, self.z = position
        self.blocks = street.blocks(self.z, _REACH_M)
        self.wetness = np.zeros((shading.height, shading.width), np.float32)
        self.lights = [PointLight((self.x + dx, 0.66, self.z + 0.6), (0.97, 0.98, 1.0), 800.0, 1)
                       for dx in (-0.62, 0.62)]
        self.glares: list[Glare] = []

    def draw(self) -> list[tuple[int, int, int, int]]:
        """Draws everything, far to near, and returns the boxes of the people in view."""
        self._sky()
        self._ground()
        self._on_the_ground()
        self._buildings()
        todo = []  # (depth, draw)
        for block in self.blocks:
            todo += [(item[1], lambda a=item: self._tree(*a)) for item in block.trees]
            todo += [(lamp.z, lambda a=lamp: self._lamp(a)) for lamp in block.lamps]
            todo += [(item[2], lambda a=item: self._car(*a[:3], True, a[3], 0.0, 0.0)) for item in block.parked]
            todo += [(item[1], lambda a=item: self._sign(*a)) for item in block.signs]
            todo.append((block.z - 5.0, lambda a=block: self._signal(a)))
            for walker in block.walkers:
                todo.append((walker.place(self.t)[1], lambda a=walker: self._person(a)))
        for look, car_z in self.street.oncoming(self.t, self.z + 1, _REACH_M):
            todo.append((car_z, lambda a=look, b=car_z: self._car(a, world.ONCOMING_X_M, b, False, 1.0, 9.0, 0.0)))
        look, gap, brakes = self.street.lead(self.t)
        todo.append((self.z + gap, lambda: self._car(look, world.LEAD_X_M, self.z + gap, True, 1.0, 0.0,
                                                     1.6 if brakes else 0.55)))
        found = []
        for depth, action in sorted(((d, a) for d, a in todo if self.z < d < self.z + _REACH_M), key=lambda p: -p[0]):
            seen = action()
            if seen is not None:
                found.append(seen)
        return self._boxes(found)

    def _sky(self) -> None:
        c, s = self.canvas, self.shading
        rays = s.world_rays(c.camera)
        forward = np.maximum(rays[2], 0.1)
        (h, w), (low, high) = textures.SKY_SIZE, textures.SKY_ELEVATION
        map_x = (rays[0] / forward / textures.SKY_AZIMUTH + 1) * np.float32((w - 1) / 2)
        map_y = (high - rays[1] / forward) * np.float32((h - 1) / (high - low))
        emission, celsius = self.street.sky
        rows = int(np.clip(np.count_nonzero((map_y < h - 1).any(axis=1)), 1, s.height))
        light = cv2.remap(emission, map_x[:rows], map_y[:rows], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        for i, plane in enumerate(cv2.split(light)):
            c.planes[4 + i, :rows] = plane
        c.planes[raster.TEMPERATURE, :rows] = cv2.remap(celsius, map_x[:rows], map_y[:rows], cv2.INTER_LINEAR,
                                                        borderMode=cv2.BORDER_REFLECT_101)
        self.rays = rays

    def _ground(self) -> None:
        """Row bands of the street's texture, each from the level whose texels are as large as the pixels there."""
        s, c, n, ppm = self.street, self.canvas, textures.GROUND_TILE, textures.GROUND_PIXELS_PER_M
        down = -self.rays[1]
        far = np.float32(self.y / 400.0)
        depth = np.float32(self.y) / np.maximum(down, far)
        hit = (down > far)
        map_x = (np.float32(self.x) + self.rays[0] * depth) * ppm + n / 2
        map_z = (np.float32(self.z % (n / ppm)) + self.rays[2] * depth) * ppm
        texel_z = depth * depth * np.float32(ppm / (c.camera.matrix[0, 0] * self.y))
        middle = texel_z[:, texel_z.shape[1] // 2]
        level = np.clip(np.floor(2 * np.log2(np.maximum(middle * 0.8, 1.0))), 0, 13).astype(int)
        level[~hit.any(axis=1)] = -1
        edges = np.flatnonzero(np.diff(level)) + 1
        for start, stop in zip([0, *edges], [*edges, len(level)]):
            if level[start] < 0:
                continue
            surface, wet, scale_x, scale_z = self._ground_level(int(level[start]))
            rows = slice(start, stop)
            mx = np.clip((map_x[rows] + 0.5) * scale_x - 0.5, 0, surface.shape[1] - 1)
            mz = (map_z[rows] + 0.5) * np.float32(scale_z) - 0.5
            mz -= np.floor(mz / (surface.shape[0] - 1)) * (surface.shape[0] - 1)
            inside = True if hit[rows].all() else hit[rows]
            planes = list(cv2.split(cv2.remap(surface, mx, mz, cv2.INTER_LINEAR)))
            if level[start] < _GRAIN_LEVELS:
                fine_x, fine_z = (m[rows] * np.float32(_GRAIN_PER_TEXEL) for m in (map_x, map_z))
                grain = cv2.remap(s.grain, fine_x, fine_z, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
                grain *= np.float32(0.5 ** level[start])
                grain += 1.0
                planes[:3] = [plane * grain for plane in planes[:3]]
            for i, plane in enumerate(planes):
                np.copyto(c.planes[i, rows], plane, where=inside)
            np.copyto(self.wetness[rows], cv2.remap(wet, mx, mz, cv2.INTER_LINEAR), where=inside)
            c.planes[raster.EMISSION, rows] *= 0.0 if inside is True else 1.0 - inside
            np.copyto(c.planes[raster.COVERAGE, rows], np.float32(1), where=inside)
            np.copyto(c.planes[raster.NORMAL][1, rows], np.float32(1), where=inside)
            np.copyto(c.planes[raster.INVERSE_DEPTH, rows], 1.0 / depth[rows], where=inside)

    def _ground_level(self, level: int):
        cache = self.street.ground_levels
        if level not in cache:
            n = textures.GROUND_TILE
            size = (max(64, round(n * 2 ** (-max(0, level - 4) / 4))), max(8, round(n * 2 ** (-level / 2))))
            surface = cv2.resize(self.street.ground, size, interpolation=cv2.INTER_AREA)
            wet = cv2.resize(self.street.wetness, size, interpolation=cv2.INTER_AREA)
            # One row more than a period, so that interpolation runs over the seam.
            surface, wet = (np.concatenate([a, a[:1]]) for a in (surface, wet))
            cache[level] = (surface, wet, size[0] / n, size[1] / n)
        return cache[level]

    def _on_the_ground(self) -> None:
        s, c = self.street, self.canvas

        def flat(action, texture, x, z, width, length, *more):
            # v runs towards the camera, so that the first texture row is the far edge.
            if z + length / 2 > self.z + 2 and z - length / 2 < self.z + (60 if max(width, length) > 2 else 32):
                near = max(z - length / 2, self.z + raster.NEAR_M + 0.6)
                action(texture, (x - width / 2, 0, z + length / 2), (width, 0, 0), (0, 0, near - z - length / 2), *more)

        for block in self.blocks:
            flat(c.decal, s.zebra, 1.0, block.z - 3.0, 9.2, 3.0)
            for x, z in block.manholes:
                flat(c.decal, s.manhole, x, z, 0.72, 0.72)
            for x, z, width, length in block.puddles:
                flat(c.shade, s.spot, x, z, width, length, 0.55, -1.2)
            for look, x, z, heat in block.parked:
                flat(c.shade, s.slab, x, z, 2.5, look.length + 1.0, 0.8, 0.7 + 3.0 * heat)
            for x, z, *_ in block.trees:
                flat(c.shade, s.spot, x, z, 3.6, 3.6, 0.5, 0.5)
            for walker in block.walkers:
                flat(c.shade, s.spot, *walker.place(self.t), 0.9, 0.8, 0.7, 0.25)
        for look, z in s.oncoming(self.t, self.z + 1, _REACH_M):
            flat(c.shade, s.slab, world.ONCOMING_X_M, z, 2.4, look.length + 1.0, 0.9, 4.5)
        look, gap, _ = s.lead(self.t)
        flat(c.shade, s.slab, world.LEAD_X_M, self.z + gap, 2.4, look.length + 1.0, 0.9, 4.5)

    def _buildings(self) -> None:
        c, s = self.canvas, self.street
        everything = [b for block in self.blocks for b in block.buildings
                      if self.z + 1.0 < b.z1 and b.z0 < self.z + _REACH_M]
        for b in sorted(everything, key=lambda b: -b.z0):
            front = s.facade(b.front, False)
            height = front.surface.shape[0] / textures.PIXELS_PER_M
            full = front.surface.shape[1] / textures.PIXELS_PER_M
            side = np.sign(b.x)
            if b.z0 > self.z + 2.0 and b.bare:
                gable = s.facade(b.gable, True)
                gable_w = gable.surface.shape[1] / textures.PIXELS_PER_M
                left = b.x if side > 0 else b.x - gable_w
                c.quad(gable, (left, height, b.z0), (gable_w, 0, 0), (0, -height, 0), (0, 0, -1))
            # Cut along the street, so that each piece takes the texture level of its distance.
            cuts = [b.z0, *(self.z + d for d in (3.0, 5.5, 9.0, 15.0, 25.0, 45.0) if b.z0 < self.z + d < b.z1), b.z1]
            cuts = [z for z in cuts if z >= self.z + 1.0] or [b.z1]
            if cuts[0] > b.z0:
                cuts.insert(0, self.z + 1.0)
            for z0, z1 in reversed(list(zip(cuts[:-1], cuts[1:]))):
                lo, hi = (z0 - b.z0) / full, min(1.0, (z1 - b.z0) / full)
                if side > 0:  # the left edge of the picture is the far one
                    origin, along, span = (b.x, height, b.z0 + full), (0, 0, -full), (1 - hi, 1 - lo)
                else:
                    origin, along, span = (b.x, height, b.z0), (0, 0, full), (lo, hi)
                c.quad(front, origin, along, (0, -height, 0), (-side, 0, 0), span)

    def _tree(self, x: float, z: float, kind: int, scale: float) -> None:
        texture, width, height = self.street.trees[kind]
        width, height = width * scale, height * scale
        self.canvas.quad(texture, (x - width / 2, height, z), (width, 0, 0), (0, -height, 0), (0.0, 0.35, -0.94))

    def _lamp(self, lamp: world.Lamp) -> None:
        if lamp.z < self.z + _SOLID_REACH_M:
            solid = models.street_lamp(world.LAMP_HEIGHT_M, lamp.reach, lamp.colour, lamp.lit)
            solid.draw(self.canvas, (lamp.x, 0.0, lamp.z))
        if lamp.lit:
            head = (lamp.x + lamp.reach, world.LAMP_HEIGHT_M - 0.08, lamp.z)
            if lamp.z < self.z + _LIT_REACH_M:
                self.lights.append(PointLight(head, lamp.colour, 36.0 * lamp.power))
            self.glares.append(Glare(head, lamp.colour, 1.3 * lamp.power, 90.0, 0.16))

    def _signal(self, block: world.Block) -> None:
        state = self.street.signal(round(block.z / world.BLOCK_M), self.t)
        x, z = 6.1, block.z - 5.0
        models.traffic_light(state).draw(self.canvas, (x, 0.0, z))
        colour = ((1.0, 0.06, 0.03), (1.0, 0.5, 0.05), (0.08, 1.0, 0.5))[state]
        self.glares.append(Glare((x, 3.17 - 0.31 * state, z - 0.2), colour, 0.9, 46.0, 0.22))

    def _sign(self, x: float, z: float, kind: int) -> None:
        models.road_sign(kind).draw(self.canvas, (x, 0.0, z))

    def _car(self, look: models.CarLook, x: float, z: float, away: bool, heat: float, head: float, tail: float) -> None:
        if z < self.z + _SOLID_REACH_M:
            models.car(look, away=away, heat=heat, head=head, tail=tail).draw(self.canvas, (x, 0.0, z))
        for s in (-1, 1):
            if head:
                lamp = (x + s * look.half_width * 0.70, look.belt * 0.57, z - look.length / 2 - 0.05)
                distance = lamp[2] - self.z
                self.glares.append(Glare(lamp, (1.0, 0.95, 0.86), 4.2 / (1 + (distance / 60) ** 2),
                                         230.0 / (1 + distance / 45), 0.42, 0.016 if distance < 45 else 0.0))
                if 4 < distance < 55 and s > 0:  # one beam for the pair
                    self.lights.append(PointLight((x, *lamp[1:]), (1.0, 0.95, 0.86), 60.0, -1))
            if tail:
                lamp = (x + s * look.half_width * 0.71, look.belt * 0.74, z - look.length / 2 - 0.05)
                self.glares.append(Glare(lamp, (1.0, 0.05, 0.03), 0.35 * tail, 60.0, 0.35 * tail))

    def _person(self, walker: world.Walker):
        x, z = walker.place(self.t)
        if z > self.z + _PEOPLE_REACH_M:
            return None
        if walker.vx and walker.walking(self.t):
            heading = (float(np.sign(walker.vx)), 0.0)
        elif walker.vz:
            heading = (0.0, float(np.sign(walker.vz)))
        else:
            heading = (-float(np.sign(x)) * 0.8, -0.6)
        pace = abs(walker.vx) + abs(walker.vz)
        phase = walker.phase + 2 * np.pi * 0.72 * pace * (self.t - walker.t0)
        return draw_person(self.canvas, walker.look, (x, z), heading, phase, walker.walking(self.t))

    def _boxes(self, found) -> list[tuple[int, int, int, int]]:
        """Boxes of the drawn people that are tall enough and not hidden behind what was drawn after them."""
        boxes = []
        inverse = self.canvas.planes[raster.INVERSE_DEPTH]
        for (x0, y0, x1, y1), alpha, depth in found:
            solid = alpha > 0.5
            if not solid.any():
                continue
            ys, xs = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
            ahead = inverse[y0:y1, x0:x1] * depth > 1.0 + 1.0 / depth
            if np.mean(~ahead[solid]) < _MIN_VISIBLE or ys[-1] + 1 - ys[0] < _MIN_PERSON_PX:
                continue
            if (xs[-1] + 1 - xs[0]) * 6 < ys[-1] + 1 - ys[0]:  # a sliver at the edge of the picture
                continue
            boxes.append((int(x0 + xs[0]), int(y0 + ys[0]), int(x0 + xs[-1] + 1), int(y0 + ys[-1] + 1)))
        return boxes
