"""Sequences of frames for playing: the built-in night drive, or a folder of pairs, decoded before the first is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.io.folders import find_dataset, read_pair
from isfl_ros.io.night_drive import NightDrive, NightDriveConfig


@dataclass(frozen=True)
class Frame:
    """One registered pair.

    ``thermal`` (H, W) uint8 or uint16 counts; ``rgb`` (H, W, 3) uint8; ``camera_matrix`` (3, 3) float64 in pixels, None
    when the cameras are not calibrated.
    """

    thermal: np.ndarray
    rgb: np.ndarray
    camera_matrix: np.ndarray | None


def night_drive_sequence(count: int, *, width: int, height: int, rate_hz: float, seed: int) -> list[Frame]:
    """Renders ``count`` frames of the night drive as they follow each other at a rate."""
    drive = NightDrive(NightDriveConfig(width=width, height=height, rate_hz=rate_hz, seed=seed))
    frames = []
    for index in tqdm(range(count), desc="rendering", unit="frame"):
        frame = drive.frame(index)
        frames.append(Frame(frame.thermal, frame.rgb, drive.camera_matrix))
    return frames


def folder_sequence(folder: str | Path, count: int) -> list[Frame]:
    """The first ``count`` pairs of a folder; fewer when it holds fewer.

    Raises:
        InputError: the folder is not one of pairs, a picture is unreadable, or the sizes of a pair differ.
    """
    frames = []
    for pair in tqdm(find_dataset(folder)[:count], desc="reading", unit="pair"):
        thermal, rgb = read_pair(pair)
        frames.append(Frame(thermal, rgb, None))
    return frames


def parse_size(text: str) -> tuple[int, int]:
    """``640x480`` to (640, 480).

    Raises:
        InputError: another form.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InputError("size of another form", expected="WIDTHxHEIGHT, such as 640x480", got=repr(text))
    return int(parts[0]), int(parts[1])
