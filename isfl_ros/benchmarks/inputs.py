"""Pictures to measure on: random, different from each other, with structure at every size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from isfl_ros.images import normalise, split_luma

_GRAINS = (1, 4, 16, 64)
"""Sizes in pixels of the noise that a picture is the sum of."""


@dataclass(frozen=True)
class RandomPair:
    """One registered pair."""

    thermal: np.ndarray
    """(H, W) uint8."""
    rgb: np.ndarray
    """(H, W, 3) uint8."""

    @property
    def visible(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]: luma, as the network gets it."""
        return normalise(split_luma(self.rgb)[0], 0.0, 255.0)

    @property
    def infrared(self) -> np.ndarray:
        """(H, W) float32 in [0, 1], as the network gets it."""
        return normalise(self.thermal, 0.0, 255.0)


def random_pairs(height: int, width: int, count: int, seed: int) -> list[RandomPair]:
    """Pairs that depend on their arguments alone. Constant pictures would flatter: branches, even matrix units."""
    rng = np.random.default_rng((seed, height, width))
    return [RandomPair(_picture(rng, height, width, 1)[:, :, 0], _picture(rng, height, width, 3)) for _ in range(count)]


def _picture(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    total = np.zeros((height, width, channels), np.float32)
    for grain in _GRAINS:
        noise = rng.random((-(-height // grain) + 1, -(-width // grain) + 1, channels), dtype=np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR).reshape(total.shape)
    return np.rint(total * (255.0 / len(_GRAINS))).astype(np.uint8)
