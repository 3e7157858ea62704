"""Fusion for free: what a learned model has to beat.

The average is hard to beat in PSNR and CC, the Laplacian pyramid in AG, SF, Qabf and PSNR at once; `infrared` and
`visible` say what a source alone scores. Every function takes infrared and visible luma, uint8 of one shape (H, W),
and gives the fused luma, uint8 (H, W).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

_DETAIL_LEVELS = 4


def average(infrared: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """(infrared + luma + 1) // 2: the mean, halves rounded up."""
    return ((infrared.astype(np.uint16) + luma + 1) // 2).astype(np.uint8)


def maximum(infrared: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """The brighter of the two, pixel by pixel."""
    return np.maximum(infrared, luma)


def _pyramid(image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Details, fine to coarse, and the base of a Laplacian pyramid (Burt and Adelson, 1983), float32."""
    base, details = image.astype(np.float32), []
    for _ in range(_DETAIL_LEVELS):
        smaller = cv2.pyrDown(base)
        details.append(base - cv2.pyrUp(smaller, dstsize=base.shape[::-1]))
        base = smaller
    return details, base


def laplacian(infrared: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """Laplacian pyramid of 4 details: per pixel the detail of larger local energy, the mean of the two bases.

    The energy is the absolute detail under a 5x5 Gaussian of sigma 1.
    """

    def energy(detail: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(np.abs(detail), (5, 5), 1)

    details_ir, base_ir = _pyramid(infrared)
    details_vi, base_vi = _pyramid(luma)
    fused = (base_ir + base_vi) / 2
    for detail_ir, detail_vi in zip(reversed(details_ir), reversed(details_vi)):
        energy_ir, energy_vi = energy(detail_ir), energy(detail_vi)
        take_visible = energy_vi / (energy_vi + energy_ir + np.float32(1e-6)) > 0.5
        fused = cv2.pyrUp(fused, dstsize=detail_ir.shape[::-1]) + np.where(take_visible, detail_vi, detail_ir)
    return np.clip(np.rint(fused), 0, 255).astype(np.uint8)


def infrared_only(infrared: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """The infrared picture itself."""
    return infrared.copy()


def visible_only(infrared: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """The visible luma itself."""
    return luma.copy()


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "average": average,
    "maximum": maximum,
    "laplacian": laplacian,
    "infrared": infrared_only,
    "visible": visible_only,
}

SOURCES = ("infrared", "visible")
"""Baselines that are a source itself: shown in the tables, never the best of them."""
