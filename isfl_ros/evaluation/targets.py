"""Person contrast: do the people that a source shows stand out of the fused picture as well?

For every labelled person, contrast is |mean inside - mean of a ring outside| in grey levels. The figure is the
contrast in the fused luma over the larger contrast in the two sources: 1 means nothing of the better source was lost.
"""

from __future__ import annotations

import cv2
import numpy as np

from isfl_ros.evaluation.metrics import check_picture
from isfl_ros.io.labels import PERSON_CLASS, PERSON_CONTRAST, PERSON_RING_PX, read_label  # noqa: F401  (read_label for scoring)

MIN_AREA_PX = 80
"""Smaller connected components are too small to measure."""


def person_contrast(
    fused: np.ndarray, infrared: np.ndarray, visible_luma: np.ndarray, label: np.ndarray
) -> list[float]:
    """Contrast kept, one ratio for each person that can be measured.

    A person is an 8-connected component of at least :data:`MIN_AREA_PX` pixels of class :data:`PERSON_CLASS`. The
    pixels of other people (of any area) are left out of its ring; a person whose ring has no pixel is left out, and
    one whose contrast is below :data:`~isfl_ros.io.labels.PERSON_CONTRAST` in both sources.

    Args:
        fused: (H, W) uint8 fused luma.
        infrared: (H, W) uint8.
        visible_luma: (H, W) uint8.
        label: (H, W) uint8 class indices.

    Returns:
        Ratios >= 0; empty where the picture has no such person.

    Raises:
        InputError: a picture is not 8-bit grey, or the sizes differ.
    """
    check_picture("fused", fused)
    for name, picture in (("infrared", infrared), ("visible", visible_luma), ("label", label)):
        check_picture(name, picture, fused.shape)
    people = (label == PERSON_CLASS).astype(np.uint8)
    count, components, stats, _ = cv2.connectedComponentsWithStats(people, connectivity=8)
    # The ring is what dilation with a disk adds.
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * PERSON_RING_PX + 1, 2 * PERSON_RING_PX + 1))
    ratios = []
    for index in range(1, count):  # 0 is the background
        left, top, width, height, area = stats[index]
        if area < MIN_AREA_PX:
            continue
        window = (
            slice(max(top - PERSON_RING_PX, 0), top + height + PERSON_RING_PX),
            slice(max(left - PERSON_RING_PX, 0), left + width + PERSON_RING_PX),
        )
        inside = components[window] == index
        ring = (cv2.dilate(inside.astype(np.uint8), disk) > 0) & (people[window] == 0)
        if not ring.any():
            continue

        def contrast(picture: np.ndarray) -> float:
            return abs(float(picture[window][inside].mean()) - float(picture[window][ring].mean()))

        in_sources = max(contrast(infrared), contrast(visible_luma))
        if in_sources >= PERSON_CONTRAST:
            ratios.append(contrast(fused) / in_sources)
    return ratios


def summarize(ratios: list[float]) -> dict[str, float | int]:
    """`people` (how many), and where there are any `person_median` and `person_p10` (10th percentile) of the ratios."""
    if not ratios:
        return {"people": 0}
    median, low = np.percentile(ratios, (50, 10))
    return {"people": len(ratios), "person_median": float(median), "person_p10": float(low)}
