"""Training pairs, decoded once, and the patches cut from them. Everything random is a function of (seed, step, slot).

A slot is a sample's place in the global batch, counted over all processes: who cuts it decides nothing.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Iterator, NamedTuple, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.images import GainControl, GainControlConfig, split_luma, to_uint8
from isfl_ros.io.folders import Pair, read_pair
from isfl_ros.io.labels import number_persons, read_label
from isfl_ros.training.config import DataConfig

# Streams keep the draws of different purposes apart, so that one more draw in one does not shift another.
_STREAM_PATCH = 1
_STREAM_ORDER = 3

_MOST_DECODERS = 8


@dataclass(frozen=True)
class LoadedPair:
    """Luma and infrared of one pair, (H, W) uint8 each."""

    stem: str
    visible: np.ndarray
    infrared: np.ndarray
    people: np.ndarray | None = None
    """Numbers of the labelled persons, (H, W) uint16, 0 where nobody is; None without a label."""


class Batch(NamedTuple):
    """Patches of consecutive slots; P is their side."""

    visible: Tensor
    """Luma (B, 1, P, P): float32 in [0, 1], or uint8 as cut."""
    infrared: Tensor
    """The same of the infrared pictures."""
    people: Tensor | None
    """Numbers of the labelled persons (B, 1, P, P) int16: 0 where nobody is, else 1, 2, ... in every sample; 0 all over
    where a pair has no label. None where no training pair has one."""
    people_counts: tuple[int, ...] | None = None
    """Persons of each sample: counted here, so that nobody has to wait for a GPU to tell."""


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_pair(pair: Pair) -> LoadedPair:
    """Decodes a pair and its label; a deep thermal picture passes the default gain control.

    Raises:
        InputError: a picture or the label is unreadable, or the sizes differ.
    """
    thermal, rgb = read_pair(pair)
    infrared = thermal if thermal.dtype == np.uint8 else to_uint8(GainControl(GainControlConfig()).apply(thermal)[0])
    visible, _ = split_luma(rgb)
    people = None
    if pair.label is not None:
        people = number_persons(read_label(pair.label, visible.shape), str(pair.label))
    return LoadedPair(pair.stem, visible, infrared, people)


def decode_pairs(pairs: Sequence[Pair], what: str, *, quiet: bool = False) -> Iterator[LoadedPair]:
    """Decodes pairs in order, several at a time; see :func:`decode_pair`."""
    with ThreadPoolExecutor(min(_MOST_DECODERS, usable_cores())) as threads:
        decoded = threads.map(decode_pair, pairs)
        yield from tqdm(decoded, desc=what, total=len(pairs), unit="pair", leave=False, disable=quiet)


def sample_rng(*key: int) -> np.random.Generator:
    """A generator that depends on its key alone: (seed, step, slot, stream)."""
    return np.random.default_rng(key)


class PatchSampler:
    """Cuts the batch of a step: every pair once an epoch, in a new order each epoch. Several threads may use it."""

    def __init__(self, pairs: list[LoadedPair], config: DataConfig, seed: int):
        for pair in pairs:
            if min(pair.visible.shape) < config.patch:
                raise InputError(
                    f"pair {pair.stem} is smaller than a patch",
                    expected=f">= {config.patch} px",
                    got=str(pair.visible.shape),
                )
        self.pairs, self.config, self.seed = pairs, config, seed
        self.labelled = any(pair.people is not None for pair in pairs)

    def batch(self, step: int, slots: range) -> Batch:
        """Patches of some slots of a step, float32 in [0, 1]."""
        return to_device(self.cut(step, slots), "cpu")

    def cut(self, step: int, slots: range) -> Batch:
        """Patches of some slots of a step, uint8 as in the files: a quarter of the bytes on their way to a GPU."""
        size = self.config.patch
        pictures = np.empty((2, len(slots), 1, size, size), np.uint8)
        people = np.zeros((len(slots), 1, size, size), np.int16) if self.labelled else None
        orders: dict[int, np.ndarray] = {}  # a batch lies in one epoch or two
        for place, slot in enumerate(slots):
            epoch, index = divmod(step * self.config.batch + slot, len(self.pairs))
            if epoch not in orders:
                orders[epoch] = self._order(epoch)
            pair = self.pairs[orders[epoch][index]]
            rng = sample_rng(self.seed, step, slot, _STREAM_PATCH)
            *patches, numbers = self._patch(pair, rng)
            for modality, patch in enumerate(patches):
                pictures[modality, place, 0] = patch
            if numbers is not None:
                people[place, 0] = _renumber(numbers)
        visible, infrared = torch.from_numpy(pictures)
        if people is None:
            return Batch(visible, infrared, None)
        counts = tuple(int(numbers.max()) for numbers in people)
        return Batch(visible, infrared, torch.from_numpy(people), counts)

    def _order(self, epoch: int) -> np.ndarray:
        return sample_rng(self.seed, epoch, 0, _STREAM_ORDER).permutation(len(self.pairs))

    def _patch(self, pair: LoadedPair, rng: np.random.Generator) -> list[np.ndarray | None]:
        """Luma, infrared and numbered persons of one crop, scale and turn."""
        size = self.config.patch
        scale = rng.uniform(self.config.least_scale, 1.0)
        side = min(round(size / scale), *pair.visible.shape)
        top = rng.integers(0, pair.visible.shape[0] - side + 1)
        left = rng.integers(0, pair.visible.shape[1] - side + 1)
        quarter_turns, mirrored = rng.integers(4), rng.integers(2)
        if pair.people is not None and rng.random() < self.config.people_share:
            pixels = np.argwhere(pair.people)
            if len(pixels):  # a window that holds a pixel of a person, wherever in it
                pixel = pixels[rng.integers(len(pixels))]
                corner = pixel - rng.integers(0, side, size=2)
                top, left = np.clip(corner, 0, np.subtract(pair.visible.shape, side))
        curves = (None, None)
        if self.config.tone and rng.random() < 0.5:
            curves = tuple(_tone_curve(rng, self.config.tone) for _ in range(2))
        amounts = np.zeros(2)
        if self.config.sharpen and rng.random() < 0.5:
            amounts = rng.uniform(0.0, self.config.sharpen, size=2)
        patches: list[np.ndarray | None] = []
        for plane, curve, amount in zip((pair.visible, pair.infrared, pair.people), (*curves, None), (*amounts, 0.0)):
            if plane is None:
                patches.append(None)
                continue
            patch = plane[top : top + side, left : left + side]
            if side != size:  # a mean of two numbers would be a third person
                how = cv2.INTER_NEAREST_EXACT if plane is pair.people else cv2.INTER_AREA
                patch = cv2.resize(patch, (size, size), interpolation=how)
            if curve is not None:
                patch = cv2.LUT(patch, curve)
            if amount:
                patch = _sharpened(patch, amount)
            patch = np.rot90(patch, quarter_turns)
            patches.append(patch[:, ::-1] if mirrored else patch)
        return patches


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """A batch as cut, on a device and as float32 in [0, 1]. Pinned memory is copied while the host goes on."""
    visible, infrared = (
        x.to(device, non_blocking=True).to(torch.float32).mul_(1.0 / 255.0) for x in (batch.visible, batch.infrared)
    )
    people = None if batch.people is None else batch.people.to(device, non_blocking=True)
    return Batch(visible, infrared, people, batch.people_counts)


def _tone_curve(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A random exposure and gain control, (256,) uint8, see :attr:`DataConfig.tone`."""
    power = np.exp(rng.uniform(-strength, strength))
    contrast = np.exp(-rng.uniform(0.0, 2.0 * strength))
    black = rng.uniform(0.0, 1.0 - contrast)
    return np.rint(255.0 * (black + contrast * np.linspace(0.0, 1.0, 256) ** power)).astype(np.uint8)


def _sharpened(picture: np.ndarray, amount: float) -> np.ndarray:
    """What is lost by a Gaussian of 1 px, added ``amount`` times: (H, W) uint8 to the same."""
    return cv2.addWeighted(picture, 1.0 + amount, cv2.GaussianBlur(picture, (0, 0), 1.0), -amount, 0.0)


def _renumber(numbers: np.ndarray) -> np.ndarray:
    """The numbers that occur become 1, 2, ... in their order; 0 stays."""
    occurs = np.bincount(numbers.ravel()) > 0
    occurs[0] = False
    return (np.cumsum(occurs) * occurs)[numbers]
