"""Folders of picture pairs: finding, reading, writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.io.staging import write_bytes

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
THERMAL_FOLDERS = ("thermal", "ir", "infrared")
RGB_FOLDERS = ("rgb", "vi", "vis", "visible")


@dataclass(frozen=True)
class Pair:
    """One registered pair on disk."""

    stem: str
    thermal: Path
    rgb: Path
    label: Path | None = None
    """Class-index picture, where the set has one."""


def find_pairs(thermal_dir: str | Path, rgb_dir: str | Path) -> list[Pair]:
    """Pairs the pictures of two folders by file stem, sorted by stem.

    Raises:
        InputError: a folder is missing, has no pictures or two of one stem, or a stem has no partner.
    """
    thermal, rgb = _by_stem(Path(thermal_dir)), _by_stem(Path(rgb_dir))
    for here, there, missing_in in ((thermal, rgb, rgb_dir), (rgb, thermal, thermal_dir)):
        lonely = sorted(set(here) - set(there))
        if lonely:
            raise InputError(
                f"{here[lonely[0]]} has no partner",
                expected=f"a picture of the stem {lonely[0]!r} in {missing_in}",
                got=f"{len(lonely)} without partner",
            )
    return [Pair(stem=stem, thermal=thermal[stem], rgb=rgb[stem]) for stem in sorted(thermal)]


def find_dataset(root: str | Path) -> list[Pair]:
    """Pairs of a folder that holds one folder a modality (``ir`` or ``thermal``, ``vi`` or ``rgb``).

    A third folder ``labels`` with class-index PNGs is taken along.

    Raises:
        InputError: the folder or one of the two is missing, or as :func:`find_pairs`.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", expected=f"a folder with {THERMAL_FOLDERS[0]}/ and {RGB_FOLDERS[0]}/")

    def pick(names: tuple[str, ...]) -> Path:
        for name in names:
            if (root / name).is_dir():
                return root / name
        raise InputError(f"{root} lacks a folder of one modality", expected=f"one of {', '.join(names)}")

    pairs = find_pairs(pick(THERMAL_FOLDERS), pick(RGB_FOLDERS))
    labels = root / "labels"
    return [
        Pair(pair.stem, pair.thermal, pair.rgb, label if (label := labels / f"{pair.stem}.png").is_file() else None)
        for pair in pairs
    ]


def read_thermal(path: str | Path) -> np.ndarray:
    """Reads a thermal picture as (H, W) uint8 or uint16; a colour picture becomes luma.

    Raises:
        InputError: unreadable, or of another depth.
    """
    picture = _read(path, cv2.IMREAD_UNCHANGED)
    if picture.ndim == 3:
        if picture.dtype != np.uint8:
            raise InputError(f"{path}: colour thermal picture", expected="one channel, or 8-bit colour", got=str(picture.dtype))
        picture = cv2.cvtColor(picture[:, :, :3], cv2.COLOR_BGR2GRAY)
    if picture.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: unsupported depth", expected="8 or 16 bit", got=str(picture.dtype))
    return picture


def read_rgb(path: str | Path) -> np.ndarray:
    """Reads a visible picture as (H, W, 3) uint8 RGB.

    Raises:
        InputError: unreadable, or not 8-bit.
    """
    picture = _read(path, cv2.IMREAD_UNCHANGED)
    if picture.dtype != np.uint8:
        raise InputError(f"{path}: unsupported depth of a visible picture", expected="8 bit", got=str(picture.dtype))
    if picture.ndim == 2:
        return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB if picture.shape[2] == 3 else cv2.COLOR_BGRA2RGB)


def read_pair(pair: Pair, *, registered: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Reads both pictures of a pair; see :func:`read_thermal` and :func:`read_rgb`.

    Args:
        registered: whether the pictures must have one size.

    Raises:
        InputError: as those, or the sizes differ where they must not.
    """
    thermal, rgb = read_thermal(pair.thermal), read_rgb(pair.rgb)
    if registered and thermal.shape != rgb.shape[:2]:
        raise InputError(
            f"{pair.thermal} and {pair.rgb} differ in size",
            got=f"{thermal.shape[1]}x{thermal.shape[0]} and {rgb.shape[1]}x{rgb.shape[0]}",
            do="register the pair first (isfl fuse: --homography)",
        )
    return thermal, rgb


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes (H, W) uint8/uint16 or (H, W, 3) uint8 RGB; the file appears whole or not at all."""
    path = Path(path)
    encodable = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    ok, data = cv2.imencode(".png", encodable)
    if not ok:
        raise InputError(f"{path}: cannot be encoded as PNG", got=f"{picture.shape} {picture.dtype}")
    write_bytes(path, data.tobytes())


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", expected="a folder of pictures")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise InputError(f"{folder} has two pictures of the stem {path.stem!r}", got=f"{found[path.stem].name}, {path.name}")
        found[path.stem] = path
    if not found:
        raise InputError(f"{folder} holds no pictures", expected=f"files ending in {', '.join(PICTURE_SUFFIXES)}")
    return found


def _read(path: str | Path, flags: int) -> np.ndarray:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read", got=error.strerror or str(error)) from error
    picture = cv2.imdecode(data, flags) if data.size else None
    if picture is None:
        raise InputError(f"{path} is no readable picture", got=f"{data.size} bytes", do="replace or remove the file")
    return picture
