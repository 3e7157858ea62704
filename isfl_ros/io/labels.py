"""Labels: class-index pictures, and the persons in them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.io.folders import read_rgb

PERSON_CLASS = 2
"""Index of a person in the class-index label pictures (MSRS)."""
PERSON_RING_PX = 10
"""Width of the ring around a person against which its contrast is taken."""
PERSON_CONTRAST = 10.0
"""Grey levels; a person that neither source shows any better than this says nothing about a fused picture."""
MOST_PERSONS = 32767
"""Persons of one picture that can be numbered; training holds the numbers in 16 bits with a sign."""


def read_label(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Reads a class-index picture, (H, W) uint8.

    Raises:
        InputError: unreadable, in colour (then it holds no indices), or not of the given shape.
    """
    picture = read_rgb(path)
    label = picture[:, :, 0]
    if (picture != label[:, :, None]).any():
        raise InputError(f"{path} is a colour picture", expected="class indices in one 8-bit channel")
    if label.shape != shape:
        raise InputError(f"{path} has another size than its pair", expected=f"{shape}", got=f"{label.shape}")
    return label


def number_persons(label: np.ndarray, what: str) -> np.ndarray:
    """Numbers the 8-connected components of class :data:`PERSON_CLASS`.

    Args:
        label: (H, W) uint8 class indices.
        what: the label's name, for the message.

    Returns:
        (H, W) uint16: 0 where nobody is, else 1, 2, ...

    Raises:
        InputError: more than :data:`MOST_PERSONS` components.
    """
    count, components = cv2.connectedComponents((label == PERSON_CLASS).astype(np.uint8), connectivity=8)
    if count - 1 > MOST_PERSONS:  # the background is counted
        most = f"at most {MOST_PERSONS} in a picture"
        raise InputError(f"{what} is no label of persons", expected=most, got=str(count - 1))
    return components.astype(np.uint16)
