"""Which of two pictures is warped, and by which map, whatever arrives."""

from __future__ import annotations

from isfl_ros.errors import InputError
from isfl_ros.registration.grid import Grid
from isfl_ros.registration.registration import Registration

REFERENCES = ("rgb", "thermal")
"""Modalities into whose frame the other may be warped; the first is the default."""


class SizeMismatch(InputError):
    """Pictures whose sizes do not fit each other, or the registration."""


class Alignment:
    """A registration between a thermal and an RGB camera. Remembers sizes: one camera alone is fused as the pair was.

    Args:
        registration: None, or of mode ``none``: pictures must have one size.
        reference: the modality into whose frame the other is warped.

    Raises:
        InputError: on construction, when ``reference`` is unknown.
    """

    def __init__(self, registration: Registration | None = None, *, reference: str = REFERENCES[0]):
        if reference not in REFERENCES:
            raise InputError("unknown reference", expected=f"one of {', '.join(REFERENCES)}", got=repr(reference))
        self.registration = Registration() if registration is None else registration
        self.reference = reference
        self.other = REFERENCES[1 - REFERENCES.index(reference)]
        """The modality that is not the reference."""
        self._shapes = self.registration.from_shape, self.registration.to_shape  # of a modality that is missing

    @property
    def warps(self) -> bool:
        """Whether anything is warped at all."""
        return self.registration.mode != "none"

    def grid(self, *, thermal: tuple[int, int] | None, rgb: tuple[int, int] | None) -> Grid | None:
        """The map for pictures of these (H, W); None where none is needed.

        A modality that is missing (None, at most one) has the size that was kept last, else the one calibrated for.

        Raises:
            SizeMismatch: the sizes do not fit each other, or the registration.
        """
        shapes = {"thermal": thermal, "rgb": rgb}
        if not self.warps:
            if thermal is not None and rgb is not None and thermal != rgb:
                raise SizeMismatch(
                    "sizes differ",
                    expected="one size, where no registration is set",
                    got=", ".join(f"{name} {_size(shape)}" for name, shape in shapes.items()),
                    do="register the cameras (registration.mode homography or calibrated; isfl fuse --homography)",
                )
            return None
        from_shape, to_shape = shapes[self.other] or self._shapes[0], shapes[self.reference] or self._shapes[1]
        try:
            return self.registration.grid(from_shape, to_shape)
        except InputError as error:
            if shapes[self.other] is None:
                return None  # alone, the reference needs no map: a misfit is named when there is something to warp
            sizes = f"{self.other} {_size(from_shape)} into {self.reference} {_size(to_shape)}"
            raise SizeMismatch(f"{sizes}: {error}") from error

    def keep(self, grid: Grid | None) -> None:
        """Remembers the sizes of a map that was used, for when a camera is missing."""
        if grid is not None:
            self._shapes = grid.from_shape, grid.shape


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"
