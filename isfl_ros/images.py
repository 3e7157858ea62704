"""Picture arithmetic that node, training and evaluation share: ranges, colour, gain control, validity.

Numpy pictures are (H, W) or (H, W, 3); colour is RGB. Tensors are (B, 1, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from isfl_ros.errors import InputError

GAIN_MODES = ("percentile", "percentile_smoothed", "fixed")
NEUTRAL_CHROMA = 128  # of 8-bit YCrCb: no colour
LARGEST_VALUE = 1e30
"""Largest magnitude of a float32 sample that is a measurement: no unit needs more, and drivers mark missing pixels with
the largest float32 number (3.4e38) and its negative, as well as with NaN and infinity."""


@dataclass(frozen=True, kw_only=True)
class GainControlConfig:
    """Automatic gain control (AGC) of thermal pictures deeper than 8 bits.

    Raises:
        InputError: on construction, when a value or a combination is out of range.
    """

    mode: str = "percentile"
    """``percentile`` (limits of this picture), ``percentile_smoothed`` (limits follow in time), ``fixed`` (low, high)."""
    low: float = 0.0
    """Black of ``fixed`` mode, in units after scale and offset."""
    high: float = 65535.0
    """White of ``fixed`` mode, in units after scale and offset."""
    low_percentile: float = 1.0
    """Percentile of the valid pixels that becomes black, 0 to 100."""
    high_percentile: float = 99.0
    """Percentile of the valid pixels that becomes white, 0 to 100."""
    time_constant_s: float = 1.0
    """Seconds in which smoothed limits cover 63 % of a step."""
    scale: float = 1.0
    """Units per count (for a radiometric camera: degrees Celsius per count)."""
    offset: float = 0.0
    """Units at count 0."""

    def __post_init__(self) -> None:
        if self.mode not in GAIN_MODES:
            raise InputError("agc.mode unknown", expected=f"one of {', '.join(GAIN_MODES)}", got=repr(self.mode))
        if not self.low < self.high:
            raise InputError("agc range empty", expected="agc.low < agc.high", got=f"{self.low} and {self.high}")
        if not 0.0 <= self.low_percentile < self.high_percentile <= 100.0:
            raise InputError(
                "agc percentiles out of order",
                expected="0 <= agc.low_percentile < agc.high_percentile <= 100",
                got=f"{self.low_percentile} and {self.high_percentile}",
            )
        if not self.time_constant_s > 0.0:
            raise InputError("agc.time_constant_s out of range", expected="> 0 s", got=str(self.time_constant_s))
        if not (np.isfinite(self.scale) and self.scale != 0.0 and np.isfinite(self.offset)):
            raise InputError("agc.scale or agc.offset unusable", expected="finite, scale not 0", got=f"{self.scale}, {self.offset}")


class GainControl:
    """Maps thermal pictures of any depth to [0, 1]. Holds state only in ``percentile_smoothed`` mode.

    8-bit pictures have been through a camera's own gain control and are only divided by 255.
    """

    def __init__(self, config: GainControlConfig):
        self.config = config
        self._limits: tuple[float, float] | None = None
        self._stamp_s: float | None = None

    def reset(self) -> None:
        """Forgets smoothed limits (a time jump, another camera)."""
        self._limits = None
        self._stamp_s = None

    def apply(
        self, raw: np.ndarray, *, valid: np.ndarray | None = None, stamp_s: float | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Normalises one picture.

        Args:
            raw: (H, W) uint8, uint16 (counts) or float32 (any unit; pixels that are not :func:`measured` are missing).
            valid: (H, W) bool, or None when every pixel is valid.
            stamp_s: time of the picture in seconds; ``percentile_smoothed`` needs it.

        Returns:
            Picture (H, W) float32 in [0, 1], exactly 0 at invalid pixels, and the mask (None: all valid).

        Raises:
            InputError: other shape or dtype, or no stamp where one is needed.
        """
        black, white, valid = self.limits(raw, valid=valid, stamp_s=stamp_s)
        return normalise(raw, black, white, valid=valid), valid

    def limits(
        self,
        raw: np.ndarray,
        *,
        valid: np.ndarray | None = None,
        counted: np.ndarray | None = None,
        stamp_s: float | None = None,
    ) -> tuple[float, float, np.ndarray | None]:
        """What :func:`normalise` needs for this picture: the values of ``raw`` that become 0 and 1, and the mask.

        Arguments and errors are those of :meth:`apply`, and

        Args:
            counted: (H, W) bool, where valid pixels have a say in the percentiles; None: everywhere. The mask that
                comes back does not depend on it.
        """
        if raw.ndim != 2 or raw.dtype not in (np.uint8, np.uint16, np.float32):
            raise InputError(
                "thermal picture of unsupported kind",
                expected="(H, W) uint8, uint16 or float32",
                got=f"{raw.shape} {raw.dtype}",
            )
        if raw.dtype == np.float32:
            good = measured(raw)
            if not good.all():
                valid = good if valid is None else good & valid
        if raw.dtype == np.uint8:
            return 0.0, 255.0, valid
        if counted is None:
            counted = valid
        elif valid is not None:
            counted = counted & valid
        low, high = self._limits_for(raw, counted, stamp_s)
        return self._to_counts(low), self._to_counts(high), valid

    def _to_counts(self, value: float) -> float:
        return (value - self.config.offset) / self.config.scale

    def _limits_for(self, raw: np.ndarray, counted: np.ndarray | None, stamp_s: float | None) -> tuple[float, float]:
        config = self.config
        if config.mode == "fixed":
            return config.low, config.high
        counts = raw if counted is None else raw[counted]
        if counts.size == 0:
            return self._limits or (config.offset, config.offset + config.scale)
        low, high = _percentiles(counts, (config.low_percentile, config.high_percentile))
        # A flat picture has no contrast to stretch: one count is the least range.
        high = max(high, low + 1.0) if raw.dtype == np.uint16 else max(high, low + 1e-6 * max(1.0, abs(low)))
        limits = (low * config.scale + config.offset, high * config.scale + config.offset)
        if config.mode == "percentile":
            return limits
        if stamp_s is None:
            raise InputError("percentile_smoothed gain control needs the time of the picture", do="pass stamp_s")
        if self._limits is not None and self._stamp_s is not None and stamp_s >= self._stamp_s:
            weight = float(np.exp(-(stamp_s - self._stamp_s) / config.time_constant_s))
            limits = tuple(weight * old + (1.0 - weight) * new for old, new in zip(self._limits, limits))
        self._limits, self._stamp_s = limits, stamp_s
        return limits


def _percentiles(counts: np.ndarray, percents: tuple[float, ...]) -> list[float]:
    """Linear percentiles, as ``numpy.percentile``; 16-bit counts by histogram, which is several times as fast."""
    if counts.dtype != np.uint16:
        return [float(value) for value in np.percentile(counts, percents)]
    below = np.cumsum(np.bincount(counts.ravel(), minlength=1))

    def of_rank(rank: int) -> float:
        return float(np.searchsorted(below, rank, side="right"))

    values = []
    for percent in percents:
        position = percent / 100.0 * (counts.size - 1)
        rank = int(position)
        low = of_rank(rank)
        values.append(low + (position - rank) * (of_rank(min(rank + 1, counts.size - 1)) - low))
    return values


Samples = TypeVar("Samples", np.ndarray, Tensor)


def measured(raw: Samples) -> Samples:
    """Where float32 samples are measurements: neither NaN nor infinite nor above :data:`LARGEST_VALUE` in magnitude.

    Args:
        raw: float32, an array or a tensor of any shape.

    Returns:
        bool, of its kind and shape.
    """
    return abs(raw) <= LARGEST_VALUE  # false for NaN


def per_unit(black: float, white: float) -> np.float32:
    """The factor of :func:`normalise`, 1 / (white - black) in float32; where they are equal, the largest there is.

    Neither infinite nor so small that a CPU flushes it to 0: the one times 0, or 0 times a difference that overflows,
    would be NaN.
    """
    span = white - black
    float32 = np.finfo(np.float32)
    size = min(max(float(float32.tiny), 1.0 / abs(span) if span else np.inf), float(float32.max))
    return np.float32(-size if span < 0.0 else size)


def normalise(raw: np.ndarray, black: float, white: float, *, valid: np.ndarray | None = None) -> np.ndarray:
    """Maps ``black`` to 0 and ``white`` to 1, clipped; exactly 0 where invalid, whatever was there (NaN too).

    No finite value becomes NaN, whatever the limits. Where these are equal, what is above them becomes 1, the rest 0.

    Args:
        raw: (H, W) uint8, uint16 or float32.
        black, white: values of ``raw``; computed in float64, applied in float32.
        valid: (H, W) bool, or None when every pixel is valid.

    Returns:
        (H, W) float32 in [0, 1].
    """
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is clipped, what is invalid is overwritten
        picture = (raw.astype(np.float32) - np.float32(black)) * per_unit(black, white)
    np.clip(picture, 0.0, 1.0, out=picture)
    if valid is not None:
        picture[~valid] = 0.0
    return picture


def normalise_tensor(raw: Tensor, black: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    """:func:`normalise` on a device, to the bit.

    Args:
        raw: (H, W) float32, which holds uint8 and uint16 counts exactly.
        black, factor: float32 scalars, the latter of :func:`per_unit`.
        valid: (H, W) bool.

    Returns:
        (H, W) float32 in [0, 1].
    """
    return mask_invalid(((raw - black) * factor).clamp(0.0, 1.0), valid)


def split_luma(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Luma and chroma of a visible picture (BT.601 full range, as OpenCV's ``COLOR_RGB2YCrCb``).

    Args:
        rgb: (H, W, 3) uint8 RGB, or (H, W) uint8 grey.

    Returns:
        Luma (H, W) uint8 and CrCb (H, W, 2) uint8, which is None for a grey picture.

    Raises:
        InputError: other shape or dtype.
    """
    if rgb.dtype != np.uint8 or not (rgb.ndim == 2 or (rgb.ndim == 3 and rgb.shape[2] == 3)):
        raise InputError(
            "visible picture of unsupported kind", expected="(H, W, 3) or (H, W) uint8", got=f"{rgb.shape} {rgb.dtype}"
        )
    if rgb.ndim == 2:
        return rgb, None
    ycrcb = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
    return np.ascontiguousarray(ycrcb[:, :, 0]), np.ascontiguousarray(ycrcb[:, :, 1:])


def join_chroma(luma: np.ndarray, chroma: np.ndarray | None, *, valid: np.ndarray | None = None) -> np.ndarray:
    """Puts chroma back on a fused luma (ISFL supplement, section 3).

    Args:
        luma: (H, W) uint8.
        chroma: (H, W, 2) uint8 CrCb, or None for a grey result.
        valid: (H, W) bool, where the visible picture is valid; chroma is neutral elsewhere.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if chroma is None:
        return cv2.cvtColor(luma, cv2.COLOR_GRAY2RGB)
    if valid is not None:
        chroma = np.where(valid[:, :, None], chroma, np.uint8(NEUTRAL_CHROMA))
    return cv2.cvtColor(cv2.merge((luma, chroma[:, :, 0], chroma[:, :, 1])), cv2.COLOR_YCrCb2RGB)


# BT.601 in OpenCV's 14-bit fixed point, so that a device gives the bytes that the CPU gives.
_SHIFT, _HALF = 14, 1 << 13
_LUMA = (4899, 9617, 1868)  # of R, G, B
_CR, _CB = 11682, 9241  # of R - Y, B - Y
_RED, _GREEN_CR, _GREEN_CB, _BLUE = 22987, -11698, -5636, 29049


def luma_tensor(rgb: Tensor) -> Tensor:
    """Luma of :func:`split_luma` on a device, to the bit: (H, W, 3) uint8 RGB to (H, W) int32, 0 to 255."""
    red, green, blue = rgb.to(torch.int32).unbind(-1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue + _HALF) >> _SHIFT


def recolour_tensor(fused: Tensor, rgb: Tensor, luma: Tensor, valid: Tensor) -> Tensor:
    """:func:`join_chroma` after :func:`split_luma` on a device, to the bit.

    Args:
        fused: (H, W) uint8 fused luma.
        rgb: (H, W, 3) uint8 RGB, the visible picture.
        luma: (H, W) int32, its luma.
        valid: (H, W) bool, where it is valid; chroma is neutral elsewhere.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    red, _, blue = rgb.to(torch.int32).unbind(-1)
    neutral = torch.zeros((), dtype=torch.int32, device=rgb.device)
    cr = torch.where(valid, (((red - luma) * _CR + _HALF) >> _SHIFT).clamp(-NEUTRAL_CHROMA, 255 - NEUTRAL_CHROMA), neutral)
    cb = torch.where(valid, (((blue - luma) * _CB + _HALF) >> _SHIFT).clamp(-NEUTRAL_CHROMA, 255 - NEUTRAL_CHROMA), neutral)
    y = fused.to(torch.int32)
    channels = (
        y + ((_RED * cr + _HALF) >> _SHIFT),
        y + ((_GREEN_CR * cr + _GREEN_CB * cb + _HALF) >> _SHIFT),
        y + ((_BLUE * cb + _HALF) >> _SHIFT),
    )
    return torch.stack(channels, dim=-1).clamp(0, 255).to(torch.uint8)


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Rounds a picture in [0, 1] to 8 bits, clipped; shape kept."""
    return np.clip(np.rint(picture * 255.0), 0, 255).astype(np.uint8)


def to_uint8_tensor(picture: Tensor) -> Tensor:
    """:func:`to_uint8` on a device, to the bit."""
    return (picture * 255.0).round().clamp(0, 255).to(torch.uint8)


def mask_invalid(picture: Tensor, valid: Tensor | None) -> Tensor:
    """Sets invalid pixels to exactly 0, whatever they held (NaN too): how ISFL equations 2 to 4 represent missing data.

    Args:
        picture: (B, 1, H, W) floating.
        valid: bool of a shape that broadcasts to the picture, or None when every pixel is valid.
    """
    if valid is None:
        return picture
    return torch.where(valid, picture, torch.zeros((), dtype=picture.dtype, device=picture.device))
