"""What goes into a backend and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from isfl_ros.backends.choice import Plan


@dataclass(frozen=True, kw_only=True)
class RawFrame:
    """One registered pair, checked, with the limits that gain control chose for it. H and W are at least 32."""

    thermal: np.ndarray | None
    """(H, W) uint8, uint16 or float32; None: the modality is missing."""
    black: float
    """Value of ``thermal`` that becomes 0."""
    white: float
    """Value of ``thermal`` that becomes 1."""
    thermal_valid: np.ndarray | None
    """(H, W) bool; None: valid everywhere (or nowhere, where ``thermal`` is None)."""
    rgb: np.ndarray | None
    """(H, W, 3) uint8 RGB or (H, W) uint8 grey; None: the modality is missing."""
    rgb_valid: np.ndarray | None
    """(H, W) bool; None: valid everywhere (or nowhere, where ``rgb`` is None)."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.rgb if self.thermal is None else self.thermal).shape[:2]


@dataclass(frozen=True, kw_only=True)
class FusedFrame:
    """What a backend makes of it."""

    luma: np.ndarray
    """(H, W) uint8; 0 where neither modality is valid."""
    rgb: np.ndarray
    """(H, W, 3) uint8 RGB."""
    gate: np.ndarray | None
    """(H, W) float32 in [0, 1]; None when not asked for or the network has none."""
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
        """Fuses a pair. The arrays belong to the caller: the next call does not change them."""

    def close(self) -> None:
        """Frees memory. The backend cannot be used afterwards."""
