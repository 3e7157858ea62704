"""One 3x3 matrix between two cameras, and the file that keeps it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isfl_ros.errors import InputError
from isfl_ros.io.staging import write_bytes
from isfl_ros.registration.grid import make_grid
from isfl_ros.registration.sizes import checked_size, frozen, pixels, scaling, shown

_LARGEST_FILE = 1 << 16  # bytes; a homography needs a few hundred
_MOST_ALIASES = 16  # references to anchors; nested, they multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class Homography:
    """Where pixels of the other camera lie in the reference camera's picture.

    Raises:
        InputError: on construction, when the matrix is not finite, singular, mirrors the picture or sends a part of it
            through infinity; or when a size is none.
    """

    matrix: np.ndarray
    """3x3 (row major, 9 numbers will do): (x, y, 1) of the other camera to (x w, y w, w) of the reference camera."""
    from_size: tuple[int, int]
    """(width, height) of the other camera's pictures that the matrix is for."""
    to_size: tuple[int, int]
    """(width, height) of the reference camera's pictures that the matrix is for."""
    residual_px: float | None = None
    """How far off it is, in pixels of the reference camera; None: unknown."""
    frames: int | None = None
    """From how many pairs it was estimated; None: unknown."""
    created: str | None = None
    """When, ISO 8601; None: unknown."""

    mode = "homography"

    def __post_init__(self) -> None:
        set_field = functools.partial(object.__setattr__, self)
        set_field("matrix", frozen(self.matrix, (3, 3), "homography: matrix"))
        set_field("from_size", checked_size(self.from_size, "homography: from_size"))
        set_field("to_size", checked_size(self.to_size, "homography: to_size"))
        if self.residual_px is not None and not 0.0 <= self.residual_px < np.inf:
            raise InputError("homography: residual_px unusable", expected=">= 0 px", got=shown(self.residual_px))
        if self.frames is not None and self.frames < 1:
            raise InputError("homography: frames unusable", expected="a whole number >= 1", got=shown(self.frames))
        _check_matrix(self.matrix, self.from_size, self.to_size)

    def inverse(self) -> Homography:
        """The same with the cameras' roles exchanged; ``residual_px`` would be in other pixels and is left out."""
        inverse = np.linalg.inv(self.matrix)
        return replace(self, matrix=inverse, from_size=self.to_size, to_size=self.from_size, residual_px=None)

    def scaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> np.ndarray:
        """The matrix for pictures of these sizes, 3x3 float64.

        Raises:
            InputError: a size is not ``from_size`` or ``to_size`` times one factor.
        """
        source = scaling(self.from_size, from_size, "homography: from_size")
        return scaling(self.to_size, to_size, "homography: to_size") @ self.matrix @ np.linalg.inv(source)

    def sample(
        self, from_size: tuple[int, int], to_size: tuple[int, int], rows: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See :class:`~isfl_ros.registration.grid.Geometry`; nothing beyond the other picture's horizon is in it."""
        matrix = self.scaled(from_size, to_size)
        inverse = np.linalg.inv(matrix * _side(matrix, from_size))
        x, y = pixels(to_size, rows)
        u, v, w = (row[0] * x + row[1] * y + row[2] for row in inverse)
        ok = w > 0.0
        w = np.where(ok, w, 1.0)
        return u / w, v / w, ok

    def concerns(self, overlap: float) -> list[str]:
        """What looks wrong but need not be, in words."""
        backwards = self._backwards()
        if backwards >= 0.5 and overlap < 0.5 * backwards:
            return [
                f"homography: the other camera's picture covers {overlap:.1%} of the reference frame,"
                f" with the inverse matrix it would be {backwards:.1%};"
                " matrix must map the other camera's pixels to the reference camera"
            ]
        return []

    def nothing_seen(self) -> InputError:
        """The error for a matrix that leaves no overlap."""
        return InputError(
            "homography: nothing of the other camera's picture lands in the reference frame",
            expected="matrix maps pixels of the other camera to the reference camera",
            got=" ".join(str(self.matrix.tolist()).split()),
            do="it seems to map the other way: invert it"
            if self._backwards() > 0.0
            else "check matrix, from_size and to_size (width, height)",
        )

    def _backwards(self) -> float:
        """The overlap, if the matrix mapped the other way."""
        try:
            turned = replace(self, matrix=np.linalg.inv(self.matrix))
        except InputError:
            return 0.0
        return make_grid(turned, self.from_size, self.to_size, "nearest").overlap


def _outer_corners(size: tuple[int, int]) -> np.ndarray:
    """(4, 3) homogeneous corners of a picture."""
    w, h = size
    return np.array([(x, y, 1.0) for x in (-0.5, w - 0.5) for y in (-0.5, h - 0.5)])


def _side(matrix: np.ndarray, size: tuple[int, int]) -> float:
    """+1 or -1, with which the matrix has w > 0 at the centre of a picture of this size: a homography has no sign."""
    return 1.0 if matrix[2] @ _outer_corners(size).mean(axis=0) > 0.0 else -1.0


def _check_matrix(matrix: np.ndarray, from_size: tuple[int, int], to_size: tuple[int, int]) -> None:
    text = " ".join(str(matrix.tolist()).split())

    def to_unit(size: tuple[int, int]) -> np.ndarray:  # pictures become [-1, 1] squares, so that no unit decides
        w, h = size
        return np.array([[2.0 / w, 0.0, (1.0 - w) / w], [0.0, 2.0 / h, (1.0 - h) / h], [0.0, 0.0, 1.0]])

    side = _side(matrix, from_size)
    depths = side * (_outer_corners(from_size) @ matrix[2])
    if depths.min() <= 1e-6 * depths.max() and depths.max() > 0.0:
        raise InputError(
            "homography: matrix sends a part of the other camera's picture through infinity",
            expected="the third row positive (or negative) all over from_size (width, height)",
            got=text,
            do="check that it is row major, not transposed, and for pixels, not for metres or [0, 1]",
        )
    stretch = np.linalg.svd(to_unit(to_size) @ matrix @ np.linalg.inv(to_unit(from_size)), compute_uv=False)
    if stretch[-1] <= 1e-6 * stretch[0]:
        raise InputError(
            "homography: matrix is singular", expected="an invertible matrix", got=text, do="estimate it again"
        )
    if side * np.linalg.det(matrix) < 0.0:
        raise InputError(
            "homography: matrix mirrors the picture",
            expected="a positive determinant",
            got=text,
            do="check that x comes before y in the points it was estimated from, and that no driver flips its picture",
        )


def parse_homography(document: Any, where: str) -> Homography:
    """Checks what was read from a file.

    Args:
        document: keys and values, as YAML gives them.
        where: names the source in errors.

    Raises:
        InputError: a key is missing, unknown or of the wrong type, or as :class:`Homography`.
    """
    required, optional = {"matrix", "from_size", "to_size"}, {"residual_px", "frames", "created"}
    if not isinstance(document, dict):
        raise InputError(f"{where} is not a mapping", expected="keys and values", got=type(document).__name__)
    missing, unknown = required - document.keys(), document.keys() - required - optional
    if missing or unknown:
        raise InputError(
            f"{where}: wrong keys",
            expected=f"{', '.join(sorted(required))} and perhaps {', '.join(sorted(optional))}",
            got="; ".join(
                f"{word} {', '.join(sorted(key if isinstance(key, str) else shown(key) for key in keys))[:200]}"
                for word, keys in (("no", missing), ("unknown", unknown))
                if keys
            ),
        )
    values = dict(document)
    try:
        values["matrix"] = _numbers(values["matrix"])
        if values.get("residual_px") is not None:
            values["residual_px"] = _number(values["residual_px"])
        frames = values.get("frames")
        if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int)):
            raise InputError("homography: frames unusable", expected="a whole number >= 1", got=shown(frames))
        created = values.get("created")
        if isinstance(created, (date, datetime)):  # what YAML makes of a time without quotation marks
            values["created"] = created.isoformat()
        elif created is not None and not isinstance(created, str):
            raise InputError("homography: created unusable", expected="a time (ISO 8601)", got=shown(created))
        return Homography(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _number(value: Any) -> float:
    """YAML reads ``1e-4`` as text and ``yes`` as a boolean."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError("homography: no number", got=shown(value, 80)) from None


def _numbers(rows: Any) -> Any:
    if not isinstance(rows, list) or len(rows) not in (3, 9):
        raise InputError(
            "homography: matrix unusable", expected="3 rows of 3 numbers, or 9 numbers", got=shown(rows)
        )
    if len(rows) == 9:
        return [_number(value) for value in rows]
    if not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise InputError(
            "homography: matrix unusable", expected="3 rows of 3 numbers, or 9 numbers", got=shown(rows)
        )
    return [[_number(value) for value in row] for row in rows]


class _TooManyAliases(yaml.YAMLError):
    pass


class _FewAliases(yaml.SafeLoader):
    """Stops at the alias that is one too many, before anything is made of them."""

    def __init__(self, text: str):
        super().__init__(text)
        self._aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._aliases += self.check_event(yaml.AliasEvent)
        if self._aliases > _MOST_ALIASES:
            raise _TooManyAliases
        return super().compose_node(parent, index)


def read_homography(path: str | Path) -> Homography:
    """Reads a homography file (YAML with the fields of :class:`Homography`).

    Raises:
        InputError: as :func:`parse_homography`, or the file is missing, too large, full of aliases or no YAML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise InputError(f"{path} is no homography file", expected=f"at most {_LARGEST_FILE} bytes", got="more")
        document = yaml.load(data.decode(), _FewAliases)  # a SafeLoader
    except OSError as error:
        raise InputError(f"{path} cannot be read", got=error.strerror or str(error)) from error
    except _TooManyAliases as error:
        raise InputError(
            f"{path} is no homography file", expected=f"at most {_MOST_ALIASES} aliases", got="more"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no YAML", got=" ".join(str(error).split())[:200]) from error
    return parse_homography(document, str(path))


def write_homography(path: str | Path, homography: Homography, *, overwrite: bool = False) -> None:
    """Writes a homography file, every digit kept; the file appears whole or not at all.

    Raises:
        InputError: it exists and ``overwrite`` is false.
    """
    if not overwrite and Path(path).exists():
        raise InputError(f"{path} exists", do="pass --overwrite to replace it")
    h = homography
    document = {
        "matrix": h.matrix.tolist(),
        "from_size": list(h.from_size),
        "to_size": list(h.to_size),
        "residual_px": None if h.residual_px is None else float(h.residual_px),
        "frames": None if h.frames is None else int(h.frames),
        "created": h.created,
    }
    head = "# Pixels (x, y, 1) of the other camera to pixels of the reference camera; sizes are (width, height).\n"
    write_bytes(path, (head + yaml.safe_dump(document, sort_keys=False, default_flow_style=None)).encode())
