"""Layout of the synthetic night drive: an endless straight street in blocks, and where everything is at a time.

Each block is drawn from a generator seeded by (seed, stream, block), and every motion is a function of time, so that
any moment can be asked for on its own. Right-hand traffic; X = 0 is the line between the two lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from isfl_ros.io import _night_textures as textures
from isfl_ros.io._night_models import CarLook
from isfl_ros.io._night_people import PersonLook
from isfl_ros.io._night_raster import Texture

BLOCK_M = 78.0
CROSS_STREET_M = 8.5
START_M = 21.0
EGO_X_M = 1.75
CAMERA_HEIGHT_M = 1.40
ONCOMING_X_M, LEAD_X_M, PARKED_X_M = -1.75, 1.8, 4.72
ONCOMING_SPACING_M, ONCOMING_MPS = 62.0, 9.0
RIGHT_FRONT_M, LEFT_FRONT_M = 8.9, -9.3
LAMP_HEIGHT_M = 6.6
_FACADES = 9
# Streams of the random generators; frames use others, see night_drive.py.
TEXTURE_STREAM, BLOCK_STREAM, TRAFFIC_STREAM, MOTION_STREAM = 11, 12, 13, 14


@dataclass(frozen=True)
class Building:
    """A house: the street front runs from z0 to z1 at `x`; `bare` when the house before it does not hide the gable."""

    x: float
    z0: float
    z1: float
    front: int
    gable: int
    bare: bool


@dataclass(frozen=True)
class Lamp:
    """A street lamp whose head hangs `reach` metres beside the mast."""

    x: float
    z: float
    reach: float
    lit: bool
    colour: tuple
    power: float


@dataclass(frozen=True)
class Walker:
    """A pedestrian: at (x, z) when the clock is `t0`, moving with (vx, vz) metres per second."""

    look: PersonLook
    x: float
    z: float
    vx: float
    vz: float
    t0: float
    phase: float
    until: float = np.inf

    def place(self, t: float) -> tuple[float, float]:
        """Where the pedestrian is at time t; a crossing one waits at the kerb before and stops behind the far kerb."""
        moved = t - self.t0
        if self.vx:
            moved = float(np.clip(moved, 0.0, self.until))
        return self.x + self.vx * moved, self.z + self.vz * moved

    def walking(self, t: float) -> bool:
        """Whether the legs move."""
        return bool(self.vz) or bool(self.vx and 0.0 < t - self.t0 < self.until)


@dataclass(frozen=True)
class Block:
    """Everything that stands in one stretch of BLOCK_M metres from z."""

    z: float
    buildings: tuple
    trees: tuple  # (x, z, kind, scale)
    lamps: tuple
    parked: tuple  # (CarLook, x, z, heat)
    signs: tuple  # (x, z, kind)
    walkers: tuple
    manholes: tuple  # (x, z)
    puddles: tuple  # (x, z, width, length)


class Street:
    """The street of one seed.

    Args:
        seed: which street.
        speed_mps: speed of the ego vehicle.
        pedestrians: multiplies the number of pedestrians.
    """

    def __init__(self, seed: int, speed_mps: float, pedestrians: float):
        self.seed, self.speed_mps, self.pedestrians = seed, speed_mps, pedestrians
        rng = self._rng(TEXTURE_STREAM)
        self.sky = textures.sky(rng)
        self.ground, self.wetness = textures.ground(rng)
        self.ground_levels: dict = {}
        self.grain = textures.grain(rng)
        # Shapes first, pictures when first seen: a facade takes a while to paint.
        self._sizes = [(float(rng.uniform(9.0, 15.5)), int(rng.integers(3, 6))) for _ in range(_FACADES)]
        self.trees = [textures.tree(rng) for _ in range(3)]
        self.zebra = textures.zebra(rng, 9.2, 3.0)
        self.manhole = textures.manhole(rng)
        self.spot, self.slab = textures.soft_ellipse(), textures.soft_box()
        warm_street = rng.random() < 0.7
        self.lamp_colour = (1.0, 0.66, 0.33) if warm_street else (0.92, 0.95, 1.0)
        self._motion = self._rng(MOTION_STREAM).uniform(0, 2 * np.pi, 16)
        self.block = lru_cache(maxsize=16)(self._block)
        self.facade = lru_cache(maxsize=None)(self._facade)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def _facade(self, kind: int, gable: bool) -> Texture:
        width, floors = self._sizes[kind]
        return textures.facade(self._rng(TEXTURE_STREAM, 1 + kind, int(gable)), 10.0 if gable else width, floors,
                               blind=gable)

    def ego(self, t: float) -> tuple[tuple[float, float, float], float, float, float]:
        """Camera position and pitch, yaw, roll in radians at time t: lane wander and the shake of the suspension."""
        p = self._motion
        x = EGO_X_M + 0.16 * np.sin(0.37 * t + p[0]) + 0.05 * np.sin(1.1 * t + p[1])
        y = CAMERA_HEIGHT_M + 0.012 * np.sin(8.7 * t + p[2]) + 0.008 * np.sin(14.1 * t + p[3])
        pitch = -0.012 + 0.0022 * np.sin(7.9 * t + p[4]) + 0.0016 * np.sin(13.3 * t + p[5])
        yaw = 0.010 * np.sin(0.37 * t + p[0] + 1.57) + 0.0012 * np.sin(5.3 * t + p[6]) - 0.012
        roll = 0.0035 * np.sin(1.3 * t + p[7]) + 0.0025 * np.sin(6.1 * t + p[8])
        return (float(x), float(y), START_M + self.speed_mps * t), float(pitch), float(yaw), float(roll)

    def arrival_s(self, z: float) -> float:
        """When the ego vehicle is at z."""
        return (z - START_M) / self.speed_mps

    def blocks(self, z: float, reach: float) -> list[Block]:
        """Blocks between z and z + reach, far to near."""
        first, last = int(np.floor((z - 2) / BLOCK_M)), int(np.floor((z + reach) / BLOCK_M))
        return [self.block(k) for k in range(last, first - 1, -1)]

    def oncoming(self, t: float, z: float, reach: float) -> list[tuple[CarLook, float]]:
        """Oncoming cars (look, z) between z and z + reach at time t."""
        shift = ONCOMING_MPS * t
        first = int(np.floor((z + shift) / ONCOMING_SPACING_M)) - 1
        out = []
        for n in range(first, int((z + reach + shift) / ONCOMING_SPACING_M) + 1):
            rng = self._rng(TRAFFIC_STREAM, 1, n % 2 ** 32)
            car_z = (n + rng.uniform(0, 0.7)) * ONCOMING_SPACING_M - shift
            if rng.random() < 0.85 and z < car_z < z + reach:
                out.append((CarLook.draw(rng), float(car_z)))
        return out

    def lead(self, t: float) -> tuple[CarLook, float, bool]:
        """The car ahead in the own lane: look, distance from the camera, whether it brakes."""
        p = self._motion
        gap = 36.0 + 9.0 * np.sin(0.21 * t + p[9])
        return CarLook.draw(self._rng(TRAFFIC_STREAM, 0)), float(gap), bool(np.sin(0.55 * t + p[10]) > 0.55)

    def signal(self, k: int, t: float) -> int:
        """State of the traffic light of block k: green when the ego vehicle comes near, else a slow cycle."""
        wait = self.arrival_s(k * BLOCK_M) - t
        if wait < 4.5:
            return 2
        return 0 if wait < 12 else int((k + wait // 9) % 2) * 2

    def _block(self, k: int) -> Block:
        rng = self._rng(BLOCK_STREAM, k + 2)
        z = k * BLOCK_M
        buildings = []
        for x0 in (RIGHT_FRONT_M, LEFT_FRONT_M):
            at, before = z + CROSS_STREET_M, None  # the house that hides the gable: (end, floors, set back)
            while at < z + BLOCK_M - 3:
                kind = int(rng.integers(_FACADES))
                width = self._sizes[kind][0]
                width = min(width, z + BLOCK_M - 0.5 - at)
                set_back = float(rng.choice([0.0, 0.0, 0.25, 0.6]))
                floors = self._sizes[kind][1]
                bare = before is None or before[0] < at or before[1] < floors or before[2] > set_back
                buildings.append(Building(x0 + np.sign(x0) * set_back, at, at + width, kind, kind, bare))
                before = (at + width, floors, set_back)
                at += width + (float(rng.uniform(1.0, 2.5)) if rng.random() < 0.18 else 0.0)
        trees = [(-4.75 + rng.normal(0, 0.1), z + 14 + 12.5 * i + rng.uniform(-1.5, 1.5), int(rng.integers(3)),
                  float(rng.uniform(0.75, 1.1))) for i in range(5) if rng.random() < 0.8]
        lamps = []
        for i in range(3):
            for x, reach, offset in ((6.35, -1.9, 12.0), (-4.25, 1.9, 25.0)):
                lamps.append(Lamp(x, z + offset + 26.0 * i, reach, bool(rng.random() < 0.72), self.lamp_colour,
                                  float(rng.uniform(0.85, 1.15))))
        parked = []
        slot = z + CROSS_STREET_M + 7
        while slot < z + BLOCK_M - 10:
            if rng.random() < 0.66:
                heat = float(rng.choice([0.0, 0.0, 0.1, 0.3]))
                look = CarLook.draw(rng)
                parked.append((look, PARKED_X_M + rng.normal(0, 0.06), slot + rng.uniform(-0.4, 0.4), heat))
            slot += 6.0
        signs = [(6.25, z - 6.2, 1), (6.3, z + CROSS_STREET_M + 2.5, int(rng.choice([0, 2])))]
        if rng.random() < 0.7:
            signs.append((6.3, z + float(rng.uniform(35, 55)), int(rng.choice([0, 2, 3]))))
        walkers = self._walkers(rng, z)
        # Nobody walks through a parked car.
        parked = [car for car in parked if all(abs(car[2] - w.z) > 3.4 for w in walkers if w.vx)]
        manholes = [(float(rng.uniform(-2.6, 3.0)), z + float(rng.uniform(2, 76))) for _ in range(3)]
        puddles = [(float(rng.choice([-3.2, 0.0, 3.2, 5.2])), z + float(rng.uniform(2, 74)),
                    float(rng.uniform(0.5, 1.3)), float(rng.uniform(1.2, 4))) for _ in range(5)]
        return Block(z, tuple(buildings), tuple(trees), tuple(lamps), tuple(parked), tuple(signs), walkers,
                     tuple(manholes), tuple(puddles))

    def _walkers(self, rng: np.random.Generator, z: float) -> tuple:
        out = []

        def add(x, zz, vx, vz, t0, until=np.inf):
            out.append(Walker(PersonLook.draw(rng), float(x), float(zz), float(vx), float(vz), float(t0),
                              float(rng.uniform(0, 6.28)), float(until)))

        for lo, hi, mean in ((6.75, 8.2, 3.6), (-7.6, -5.9, 2.8)):
            for _ in range(int(rng.poisson(mean * self.pedestrians))):
                zz = z + rng.uniform(0, BLOCK_M)
                vz = rng.choice([-1, 1]) * rng.uniform(1.0, 1.6) if rng.random() < 0.82 else 0.0
                x = rng.uniform(lo, hi)
                # The clock starts when the ego vehicle is 30 m away, so that nobody has wandered out of the block.
                add(x, zz, 0.0, vz, self.arrival_s(zz - 30))
                if rng.random() < 0.3:  # a companion
                    add(np.clip(x + 0.65, lo, hi + 0.3), zz + rng.uniform(-0.2, 0.2), 0.0, vz, out[-1].t0)
        if rng.random() < 0.8 * min(1.0, self.pedestrians):  # waiting at the kerb
            add(6.15, z - 3.0 + rng.uniform(-0.5, 0.5), 0.0, 0.0, 0.0)
        for probability, at in ((0.85, z - 2.9), (0.75, z + rng.uniform(24, 34)), (0.6, z + rng.uniform(50, 62))):
            if rng.random() < min(1.0, probability * self.pedestrians):
                self._crossing(rng, at, add)
        return tuple(out)

    def _crossing(self, rng: np.random.Generator, z: float, add) -> None:
        """Somebody crosses the road ahead of the ego vehicle, where no oncoming car is in the way."""
        speed = rng.uniform(1.25, 1.6)
        direction = float(rng.choice([-1, 1]))
        ahead = rng.uniform(12.0, 17.0)  # metres to the ego vehicle when in the middle of its lane
        start, end = (6.2, -4.1) if direction < 0 else (-4.1, 6.2)
        t0 = self.arrival_s(z) - ahead / self.speed_mps - abs(EGO_X_M - start) / speed
        enter, leave = sorted((abs(-0.5 - start) / speed, abs(-3.0 - start) / speed))
        for t in np.arange(t0 + enter - 0.3, t0 + leave + 0.4, 0.1):
            if any(abs(car_z - z) < 3.2 for _, car_z in self.oncoming(float(t), z - 8, 16)):
                return
        add(start, z, direction * speed, 0.0, t0, abs(end - start) / speed)
