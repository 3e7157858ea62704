"""Pictures for people: gate in colour, panels side by side. Numpy uint8 RGB in and out."""

from __future__ import annotations

import cv2
import numpy as np

_GATE_OPACITY = 0.5


def colour_gate(gate: np.ndarray) -> np.ndarray:
    """Gate (H, W) float32 in [0, 1] to (H, W, 3) uint8 RGB: dark blue is 0, dark red is 1 (Turbo)."""
    levels = np.clip(np.rint(gate * 255.0), 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)


def overlay(rgb: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """The gate in colour over a picture: (H, W, 3) uint8 and (H, W) float32 in [0, 1] to (H, W, 3) uint8."""
    return cv2.addWeighted(rgb, 1.0 - _GATE_OPACITY, colour_gate(gate), _GATE_OPACITY, 0.0)


def side_by_side(thermal8: np.ndarray, rgb: np.ndarray, fused_rgb: np.ndarray, gate: np.ndarray | None) -> np.ndarray:
    """Thermal, RGB, fused and gate in one picture.

    Args:
        thermal8: (H, W) uint8.
        rgb, fused_rgb: (H, W, 3) uint8.
        gate: (H, W) float32 in [0, 1], or what a model without gates shows in its place; None leaves that black.

    Returns:
        (2H, 2W, 3) uint8: thermal and RGB above, fused and gate below.
    """
    thermal = cv2.cvtColor(thermal8, cv2.COLOR_GRAY2RGB)
    fourth = np.zeros_like(fused_rgb) if gate is None else colour_gate(gate)
    return np.vstack((np.hstack((thermal, rgb)), np.hstack((fused_rgb, fourth))))


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A copy of (H, W) or (H, W, 3) uint8 as RGB with a caption at the upper left."""
    out = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture.copy()
    size = max(0.4, out.shape[0] / 900.0)
    for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):  # white on a black rim reads on any ground
        cv2.putText(out, text, (8, round(12 + 16 * size)), cv2.FONT_HERSHEY_SIMPLEX, size, colour, width, cv2.LINE_AA)
    return out
