"""What goes into a backend and what comes out of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from isfl_ros.backends.choice import Plan
from isfl_ros.images import normalise
from isfl_ros.registration import Grid


class Layout(NamedTuple):
    """What a device's program is made for: everything of a frame but what its pictures hold."""

    size: tuple[int, int]
    """(H, W) of the fused picture, at least 32 each."""
    warped: str | None = None
    """The modality whose picture is warped, ``thermal`` or ``rgb``; None: both come in the same frame."""
    grid: Grid | None = None
    """The map by which it is warped, to ``size``."""

    def shape(self, modality: str) -> tuple[int, int]:
        """(h, w) of a modality's picture before it is warped."""
        return self.grid.from_shape if modality == self.warped else self.size


@dataclass(frozen=True, kw_only=True)
class RawFrame:
    """One pair, checked, with the limits that gain control chose for it and the map that brings it into one frame.

    (h, w) are those of a modality's own picture, (H, W) those of the reference frame: the same where nothing is warped.
    What lies in the reference frame is made on the host when first asked for, and kept.
    """

    thermal: np.ndarray | None
    """(h, w) uint8, uint16 or float32; None: the modality is missing."""
    black: float
    """Value of ``thermal`` that becomes 0."""
    white: float
    """Value of ``thermal`` that becomes 1."""
    thermal_valid: np.ndarray | None
    """(h, w) bool; None: valid everywhere (or nowhere, where ``thermal`` is None). False where it is no measurement."""
    rgb: np.ndarray | None
    """(h, w, 3) uint8 RGB or (h, w) uint8 grey; None: the modality is missing."""
    rgb_valid: np.ndarray | None
    """(h, w) bool; None: valid everywhere (or nowhere, where ``rgb`` is None)."""
    warped: str | None = None
    """As in :class:`Layout`."""
    grid: Grid | None = None
    """As in :class:`Layout`."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        if self.grid is not None:
            return self.grid.shape
        return (self.rgb if self.thermal is None else self.thermal).shape[:2]

    @property
    def layout(self) -> Layout:
        """What a device's program must be made for."""
        return Layout(self.size, self.warped, self.grid)

    @functools.cached_property
    def masks(self) -> dict[str, np.ndarray | None]:
        """Of each modality that is there, where it is valid in the reference frame: (H, W) bool; None: everywhere."""
        modalities = {"thermal": (self.thermal, self.thermal_valid), "rgb": (self.rgb, self.rgb_valid)}
        return {
            modality: self.grid.cover(valid) if modality == self.warped else valid
            for modality, (picture, valid) in modalities.items()
            if picture is not None
        }

    def valid_of(self, modality: str) -> np.ndarray | None:
        """(H, W) bool, where ``thermal`` or ``rgb`` is valid in the reference frame, nowhere if it is missing; None:
        everywhere."""
        return self.masks[modality] if modality in self.masks else np.zeros(self.size, bool)

    @functools.cached_property
    def valid(self) -> np.ndarray | None:
        """(H, W) bool, where at least one modality is valid; None: everywhere."""
        masks = list(self.masks.values())
        return None if any(mask is None for mask in masks) else np.logical_or.reduce(masks)

    def valid_fraction(self, modality: str) -> float:
        """Part of the reference frame, 0 to 1, where ``thermal`` or ``rgb`` is valid."""
        if modality not in self.masks:
            return 0.0
        mask = self.masks[modality]
        if self.grid is not None and mask is self.grid.valid:
            return self.grid.overlap
        return 1.0 if mask is None else float(mask.mean())

    @functools.cached_property
    def infrared(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]: thermal picture after gain control, in the reference frame; 0 where invalid."""
        if self.thermal is None:
            return np.zeros(self.size, np.float32)
        # Warped last: gain control has fewer pixels to work on, and no depth is rounded to its counts again.
        picture = normalise(self.thermal, self.black, self.white, valid=self.thermal_valid)
        return self.grid.resample(picture, self.masks["thermal"]) if self.warped == "thermal" else picture

    @functools.cached_property
    def visible(self) -> np.ndarray | None:
        """``rgb`` in the reference frame, 0 where the warp has nothing; None: the modality is missing."""
        if self.rgb is None or self.warped != "rgb":
            return self.rgb
        return self.grid.resample(self.rgb, self.masks["rgb"])


@dataclass(frozen=True, kw_only=True)
class FusedFrame:
    """What a backend makes of it."""

    luma: np.ndarray
    """(H, W) uint8; 0 where neither modality is valid."""
    rgb: np.ndarray
    """(H, W, 3) uint8 RGB."""
    gate: np.ndarray | None
    """(H, W) float32 in [0, 1]: the gate, or what else the network ``shows``; None when not asked for, or with nothing to
    show."""
    stages_ms: dict[str, float]
    """Milliseconds of ``preprocess``, ``network`` and ``postprocess``."""
    device: str
    """``cpu`` or ``cuda``: where it was fused."""


class Backend(Protocol):
    """A network ready to fuse. One caller at a time."""

    plan: Plan
    """What runs now, and why."""
    trouble: str | None
    """Why pictures are not fused where they should be, in words; None while all is well."""

    def fuse(self, frame: RawFrame, *, gate: bool) -> FusedFrame:
        """Fuses a pair, with the map that the network ``shows`` where ``gate`` is set. The arrays belong to the caller:
        the next call does not change them."""

    def close(self) -> None:
        """Frees memory. The backend cannot be used afterwards."""


def opposite_corners_missing(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (H, W) bool for trials of a network: the first misses a ninth at the top left, the second at the bottom right."""
    first, second = (np.ones(size, bool) for _ in range(2))
    height, width = size[0] // 3, size[1] // 3
    first[:height, :width] = second[-height:, -width:] = False
    return first, second
