"""Training pairs, decoded once, and the patches cut from them. Everything random is a function of (seed, step, sample)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.images import GainControl, GainControlConfig, split_luma, to_uint8
from isfl_ros.io.folders import Pair, read_pair
from isfl_ros.training.config import DataConfig

# Streams keep the draws of different purposes apart, so that one more draw in one does not shift another.
_STREAM_PATCH = 1
_STREAM_ORDER = 3


@dataclass(frozen=True)
class LoadedPair:
    """Luma and infrared of one pair, (H, W) uint8 each."""

    stem: str
    visible: np.ndarray
    infrared: np.ndarray


def load_pairs(pairs: list[Pair], what: str) -> list[LoadedPair]:
    """Decodes pairs into memory; deep thermal pictures pass the default gain control.

    Raises:
        InputError: a picture is unreadable or the sizes of a pair differ.
    """
    gain = GainControl(GainControlConfig())
    loaded = []
    for pair in tqdm(pairs, desc=what, unit="pair", leave=False):
        thermal, rgb = read_pair(pair)
        infrared = thermal if thermal.dtype == np.uint8 else to_uint8(gain.apply(thermal)[0])
        visible, _ = split_luma(rgb)
        loaded.append(LoadedPair(pair.stem, visible, infrared))
    return loaded


def sample_rng(*key: int) -> np.random.Generator:
    """A generator that depends on its key alone: (seed, step, sample, stream)."""
    return np.random.default_rng(key)


class PatchSampler:
    """Cuts the batch of a step: every pair once an epoch, in a new order each epoch."""

    def __init__(self, pairs: list[LoadedPair], config: DataConfig, seed: int):
        for pair in pairs:
            if min(pair.visible.shape) < config.patch:
                raise InputError(
                    f"pair {pair.stem} is smaller than a patch", expected=f">= {config.patch} px", got=str(pair.visible.shape)
                )
        self.pairs, self.config, self.seed = pairs, config, seed

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Luma and infrared of one step: (batch, 1, patch, patch) float32 in [0, 1] each."""
        size = self.config.patch
        out = np.empty((2, self.config.batch, 1, size, size), np.uint8)
        for slot in range(self.config.batch):
            position = step * self.config.batch + slot
            epoch, index = divmod(position, len(self.pairs))
            pair = self.pairs[self._order(epoch)[index]]
            rng = sample_rng(self.seed, step, slot, _STREAM_PATCH)
            for modality, patch in enumerate(self._patch(pair, rng)):
                out[modality, slot, 0] = patch
        visible, infrared = torch.from_numpy(out).to(torch.float32).mul_(1.0 / 255.0)
        return visible, infrared

    def _order(self, epoch: int) -> np.ndarray:
        return sample_rng(self.seed, epoch, 0, _STREAM_ORDER).permutation(len(self.pairs))

    def _patch(self, pair: LoadedPair, rng: np.random.Generator) -> list[np.ndarray]:
        size = self.config.patch
        scale = rng.uniform(self.config.least_scale, 1.0)
        side = min(round(size / scale), *pair.visible.shape)
        top = rng.integers(0, pair.visible.shape[0] - side + 1)
        left = rng.integers(0, pair.visible.shape[1] - side + 1)
        quarter_turns, mirrored = rng.integers(4), rng.integers(2)
        patches = []
        for picture in (pair.visible, pair.infrared):
            patch = picture[top : top + side, left : left + side]
            if side != size:
                patch = cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA)
            patch = np.rot90(patch, quarter_turns)
            patches.append(patch[:, ::-1] if mirrored else patch)
        return patches
