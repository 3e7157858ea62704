"""Where a modality is taken away for the figures on missing data: fixed by a pair's stem and size, by nothing else.

A region is (H, W) bool, True where the modality is missing. Distances are in pixels from the region's edge, the line
between its pixels and the others: the first pixels on either side of it are half a pixel away. The border of the
picture is no edge of a region.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

MODALITIES = ("infrared", "visible")
"""What can be missing."""
WHOLE = "whole"
"""The region that is the whole picture."""
PARTS: dict[str, float] = {"band5": 0.05, "band25": 0.25, "half": 0.5, "holes": 0.25}
"""Name to the part of the picture that is missing: bands along one border, half a frame, irregular holes."""
REGIONS = (WHOLE, *PARTS)

_COARSE, _FINE = 5, 15
"""Cells a side of the noise that makes holes: their size, and how ragged they are."""
_RAGGED = 0.35
"""Amplitude of the fine noise, the coarse being 1."""


def make_region(name: str, shape: tuple[int, int], stem: str) -> np.ndarray:
    """One of :data:`REGIONS`.

    The side of a band or half, and the holes, are drawn by the stem: over a set all sides occur.

    Args:
        name: of the region.
        shape: (H, W).
        stem: name of the pair.

    Returns:
        (H, W) bool; at least one pixel is missing, and with parts at least one is not.
    """
    if name == WHOLE:
        return np.ones(shape, bool)
    seed = hashlib.sha256(f"{name}/{stem}".encode()).digest()  # hash() differs between processes
    random = np.random.default_rng(list(seed))
    if name == "holes":
        noise = sum(
            amplitude * cv2.resize(random.random((cells, cells)), shape[::-1], interpolation=cv2.INTER_CUBIC)
            for cells, amplitude in ((_COARSE, 1.0), (_FINE, _RAGGED))
        )
        return noise < np.quantile(noise, PARTS[name])
    axis, at_end = int(random.integers(2)), bool(random.integers(2))
    depth = max(1, round(PARTS[name] * shape[axis]))
    region = np.zeros(shape, bool)
    lines = slice(-depth, None) if at_end else slice(0, depth)
    region[(lines, slice(None)) if axis == 0 else (slice(None), lines)] = True
    return region


def region_digest(region: np.ndarray) -> str:
    """SHA-256 of a region, by which a kept picture is known to be made with it."""
    return hashlib.sha256(repr(region.shape).encode() + np.packbits(region).tobytes()).hexdigest()


def signed_distance(region: np.ndarray) -> np.ndarray:
    """(H, W) float32 distance from the edge, positive inside; infinite where the region is everything or nothing."""
    if region.all() or not region.any():
        return np.full(region.shape, np.inf if region.all() else -np.inf, np.float32)
    inside, outside = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for part in (region, ~region)
    )
    return np.where(region, inside - 0.5, 0.5 - outside).astype(np.float32)


def nearest_inside(region: np.ndarray) -> np.ndarray:
    """(H, W) intp: the flat index of the pixel of the region next to the part of the edge that is nearest.

    Both sides of one place of the edge get the same index. Needs an edge: a region that is neither all nor nothing.
    """
    of_inside = _nearest(region)  # the nearest pixel outside
    of_outside = _nearest(~region)  # the nearest pixel inside
    return np.where(region, of_outside.ravel()[of_inside], of_outside)


def _nearest(away: np.ndarray) -> np.ndarray:
    """(H, W) flat index of the nearest pixel that is False; their own where they are False."""
    _, labels = cv2.distanceTransformWithLabels(away.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    targets = np.flatnonzero(~away)
    index_of = np.zeros(labels.max() + 1, np.intp)
    index_of[labels.ravel()[targets]] = targets
    return index_of[labels]
