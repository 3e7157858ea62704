"""The fusion metrics, in float64.

Legend: F fused luma, A infrared, B visible luma; 8-bit grey levels 0..255, all of one shape (H, W). The metric
functions take them as float64 arrays that hold whole levels; :func:`score` takes the 8-bit pictures, checks them and
computes everything. F is the rounded, clipped 8-bit fused luma, not the luma of a colour picture made from it.

No metric gives NaN. Where a definition divides zero by zero (a constant picture) the value is 0; PSNR is infinite
where F, A and B are identical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from isfl_ros.errors import InputError

Levels = NDArray[np.float64]

MIN_SIZE = 41
"""Smallest height and width in pixels: below it the coarsest scale of VIF has no valid window."""


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0


def _correlation(x: Levels, y: Levels) -> float:
    """Pearson correlation; 0 where either picture is constant."""
    # Asked of the levels, not of the deviations: the mean of a constant need not be exact in floating point.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    dx, dy = x - x.mean(), y - y.mean()
    return float((dx * dy).sum() / np.sqrt((dx * dx).sum() * (dy * dy).sum()))


def average_gradient(f: Levels, a: Levels, b: Levels) -> float:
    """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences inside and one-sided at the borders; no reference."""
    gy, gx = np.gradient(f)
    return float(np.sqrt((gx * gx + gy * gy) / 2).mean())


def spatial_frequency(f: Levels, a: Levels, b: Levels) -> float:
    """SF: root of the summed mean squares of the first differences, times 100 / 255; no reference."""
    dx, dy = np.diff(f, axis=1), np.diff(f, axis=0)
    return float(np.sqrt((dx * dx).mean() + (dy * dy).mean()) * 100 / 255)


def _mean_squared_error(f: Levels, a: Levels, b: Levels) -> float:
    """Mean over the two sources, on pictures scaled to [0, 1]."""
    return float((np.square(f - a).mean() + np.square(f - b).mean()) / 2 / 255**2)


def psnr(f: Levels, a: Levels, b: Levels) -> float:
    """PSNR on the scale of the ISFL paper: peak 255 over the error of pictures in [0, 1], 20 log10(255) dB too high."""
    return psnr_db(f, a, b) + 20 * float(np.log10(255))


def psnr_db(f: Levels, a: Levels, b: Levels) -> float:
    """PSNR in dB on the usual scale, of the mean squared error against the two sources."""
    mse = _mean_squared_error(f, a, b)
    return -10 * float(np.log10(mse)) if mse else float("inf")


def correlation(f: Levels, a: Levels, b: Levels) -> float:
    """CC: mean Pearson correlation with the two sources."""
    return (_correlation(f, a) + _correlation(f, b)) / 2


def _sobel(image: Levels, border: int) -> tuple[Levels, Levels]:
    """Sobel responses, unscaled: right minus left, row above minus row below."""
    right = cv2.Sobel(image, cv2.CV_64F, 1, 0, ksize=3, borderType=border)
    below = cv2.Sobel(image, cv2.CV_64F, 0, 1, ksize=3, borderType=border)
    return right, -below


def _angle(sx: Levels, sy: Levels) -> Levels:
    """atan(sy / sx); pi / 2 where sx is 0."""
    slope = np.full(sx.shape, np.inf)
    return np.arctan(np.divide(sy, sx, out=slope, where=sx != 0), out=slope)


def _inverse_sigmoid(x: Levels, steepness: float, centre: float) -> Levels:
    """1 / sigmoid."""
    return 1 + np.exp(steepness * (centre - x))


def edge_preservation(f: Levels, a: Levels, b: Levels) -> float:
    """Qabf: how much edge strength and angle of the sources arrives in F (Xydeas and Petrovic, 2000)."""

    def edges(image: Levels) -> tuple[Levels, Levels]:
        sx, sy = _sobel(image, cv2.BORDER_CONSTANT)
        return cv2.magnitude(sx, sy), _angle(sx, sy)

    strength_f, angle_f = edges(f)
    kept = total = 0.0
    for source in (a, b):
        strength, angle = edges(source)
        larger = np.maximum(strength, strength_f)
        # Where the strengths are equal the original takes the strength itself, not 1.
        change = np.divide(np.minimum(strength, strength_f), larger, out=strength.copy(), where=strength != strength_f)
        turn = 1 - np.abs(angle - angle_f) / (np.pi / 2)
        inverse = _inverse_sigmoid(change, 15, 0.5) * _inverse_sigmoid(turn, 22, 0.8)
        kept += 0.9994 * 0.9879 * (strength / inverse).sum()
        total += strength.sum()
    return _ratio(kept, total)


def edge_artefacts(f: Levels, a: Levels, b: Levels) -> float:
    """Nabf: edges of F that are in neither source (Shreyamsha Kumar, 2013)."""

    def edges(image: Levels) -> tuple[Levels, Levels, Levels]:
        sx, sy = _sobel(image, cv2.BORDER_REFLECT_101)
        # Not hypot, whose last bit can differ between (x, y) and (y, x): equal strengths have to compare as equal.
        return (cv2.magnitude(sx, sy) / 8).ravel(), sx.ravel(), sy.ravel()

    def angle_there(sx: Levels, sy: Levels) -> Levels:
        x, y = sx[new_edge], sy[new_edge]
        return np.where((x == 0) & (y == 0), 0, _angle(x, y))

    def weigh(strength: Levels) -> Levels:
        return np.where(strength >= 2, strength * np.sqrt(strength), 0)

    strength_f, *slopes_f = edges(f)
    sources = [edges(source) for source in (a, b)]
    # Only these pixels are summed, often a small part of the picture.
    new_edge = np.flatnonzero((strength_f > sources[0][0]) & (strength_f > sources[1][0]))
    new_f, angle_f = strength_f[new_edge], angle_there(*slopes_f)
    lost = total = 0.0
    for strength, *slopes in sources:
        there = strength[new_edge]
        turn = np.abs(np.abs(angle_there(*slopes) - angle_f) - np.pi / 2) / (np.pi / 2)
        inverse = _inverse_sigmoid(there / new_f, 19, 0.5) * _inverse_sigmoid(turn, 22, 0.5)
        lost += ((1 - np.sqrt(0.9999 * 0.9995 / inverse)) * weigh(there)).sum()
        total += weigh(strength).sum()
    return _ratio(lost, total)


def _entropy_of_counts(counts: NDArray[np.int64]) -> float:
    p = counts[counts > 0] / counts.sum()
    # 0 - x rather than -x: a constant picture has entropy 0, not -0.
    return 0.0 - float((p * np.log2(p)).sum())


def entropy(f: Levels, a: Levels, b: Levels) -> float:
    """EN: entropy of the 256-level histogram, bits; no reference."""
    return _entropy_of_counts(np.bincount(f.astype(np.int64).ravel(), minlength=256))


def mutual_information(f: Levels, a: Levels, b: Levels) -> float:
    """MI: I(F; A) + I(F; B) from 256-bin joint histograms, bits."""

    def information(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
        joint = np.bincount((256 * x + y).ravel(), minlength=256 * 256).reshape(256, 256)
        marginals = _entropy_of_counts(joint.sum(axis=0)) + _entropy_of_counts(joint.sum(axis=1))
        return marginals - _entropy_of_counts(joint.ravel())

    f, a, b = (x.astype(np.int64) for x in (f, a, b))
    return information(f, a) + information(f, b)


def standard_deviation(f: Levels, a: Levels, b: Levels) -> float:
    """SD: population standard deviation, levels; no reference."""
    return float(f.std())


def _blur(image: Levels, size: int, sigma: float) -> Levels:
    """Gaussian window means where the whole window is inside: (H, W) -> (H - size + 1, W - size + 1)."""
    window = cv2.getGaussianKernel(size, sigma, cv2.CV_64F)
    margin = size // 2
    return cv2.sepFilter2D(image, cv2.CV_64F, window, window)[margin:-margin, margin:-margin]


def _mean_and_variance(x: Levels, size: int, sigma: float) -> tuple[Levels, Levels]:
    """Windowed mean and variance."""
    mean = _blur(x, size, sigma)
    return mean, _blur(x * x, size, sigma) - mean * mean


_SSIM_CONSTANTS = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
_VANISHING = (1e-4, 1e-4)  # far below what one grey level makes, and above the rounding of a variance (1e-11)


def similarity(f: Levels, source: Levels, constants: tuple[float, float] = _SSIM_CONSTANTS) -> float:
    """SSIM of two pictures: 11x11 Gaussian, sigma 1.5, L = 255, valid windows (Wang et al., 2004)."""
    c1, c2 = constants
    mean_f, var_f = _mean_and_variance(f, 11, 1.5)
    mean_s, var_s = _mean_and_variance(source, 11, 1.5)
    product = mean_s * mean_f
    cov = _blur(source * f, 11, 1.5) - product
    luminance = (2 * product + c1) / (mean_s * mean_s + mean_f * mean_f + c1)
    return float((luminance * (2 * cov + c2) / (var_s + var_f + c2)).mean())


def structural_similarity(f: Levels, a: Levels, b: Levels) -> float:
    """SSIM, summed over the two sources: :func:`similarity` to each."""
    return similarity(f, a) + similarity(f, b)


def structural_similarity_mean0(f: Levels, a: Levels, b: Levels) -> float:
    """SSIM with vanishing constants, mean of the two sources: the scale that the second paper's printed values fit."""
    return 0.5 * (similarity(f, a, _VANISHING) + similarity(f, b, _VANISHING))


def visual_information_fidelity(f: Levels, a: Levels, b: Levels) -> float:
    """VIF, pixel domain, four scales, summed over the two sources (Sheikh and Bovik, 2006); 0 for a constant source."""
    in_fused, in_source = np.zeros(2), np.zeros(2)
    sources = [a, b]
    for scale, size in enumerate((17, 9, 5, 3)):
        sigma = size / 5
        if scale:
            f, *sources = (np.ascontiguousarray(_blur(image, size, sigma)[::2, ::2]) for image in (f, *sources))
        mean_f, var_f = _mean_and_variance(f, size, sigma)
        var_f = np.maximum(var_f, 0)
        for k, source in enumerate(sources):
            mean_s, var_s = _mean_and_variance(source, size, sigma)
            cov = _blur(source * f, size, sigma) - mean_s * mean_f
            of_fused, of_source = _information(np.maximum(var_s, 0), var_f, cov)
            in_fused[k] += of_fused
            in_source[k] += of_source
    return sum(_ratio(kept, total) for kept, total in zip(in_fused, in_source))


def _information(var_s: Levels, var_f: Levels, cov: Levels) -> tuple[float, float]:
    """Information about the source in the fused picture, and in the source, at one scale (in an unimportant unit)."""
    tiny, noise = 1e-10, 2.0  # the thresholds and the sigma_n^2 of the authors' vifp_mscale
    # fused = gain * source + residual, window by window
    gain = cov / (var_s + tiny)
    residual = var_f - gain * cov
    flat_s, flat_f, against = var_s < tiny, var_f < tiny, gain < 0
    np.copyto(residual, var_f, where=flat_s | against)
    residual[flat_f] = 0
    gain[flat_s | flat_f | against] = 0
    var_s = np.where(flat_s, 0, var_s)
    in_fused = np.log1p(gain * gain * var_s / (np.maximum(residual, tiny) + noise)).sum()
    return in_fused, np.log1p(var_s / noise).sum()


def sum_of_correlations_of_differences(f: Levels, a: Levels, b: Levels) -> float:
    """SCD: corr(F - B, A) + corr(F - A, B) (Aslantas and Bendes, 2015)."""
    return _correlation(f - b, a) + _correlation(f - a, b)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column of the table."""

    name: str
    better: Literal["up", "down", "shown"]
    """Which way is better; "shown" is a description of the picture without a better end."""
    function: Callable[[Levels, Levels, Levels], float]
    """(F, A, B) -> value."""


METRICS: dict[str, Metric] = {
    name: Metric(name=name, better=better, function=function)
    for name, better, function in (
        ("AG", "up", average_gradient),
        ("SF", "up", spatial_frequency),
        ("PSNR", "up", psnr),
        ("PSNR_dB", "up", psnr_db),
        ("CC", "up", correlation),
        ("Qabf", "up", edge_preservation),
        ("MI", "up", mutual_information),
        ("VIF", "up", visual_information_fidelity),
        ("SSIM", "up", structural_similarity),
        ("SSIM_mean0", "up", structural_similarity_mean0),
        ("EN", "shown", entropy),
        ("SD", "shown", standard_deviation),
        ("SCD", "up", sum_of_correlations_of_differences),
        ("Nabf", "down", edge_artefacts),
    )
}


def check_picture(name: str, picture: np.ndarray, shape: tuple[int, int] | None = None) -> None:
    """Refuse anything but an 8-bit grey picture (of the given shape, where one is given).

    Raises:
        InputError: the dtype, the number of dimensions or the shape is another one.
    """
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 2:
        got = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise InputError(f"the {name} picture is not 8-bit grey", expected="uint8 (height, width)", got=got)
    if shape is not None and picture.shape != shape:
        raise InputError(
            f"the {name} picture has another size than the others", expected=f"{shape}", got=f"{picture.shape}"
        )


def score(fused: np.ndarray, infrared: np.ndarray, visible_luma: np.ndarray) -> dict[str, float]:
    """All metrics of one fused picture.

    Args:
        fused: (H, W) uint8 fused luma, both sides at least :data:`MIN_SIZE`.
        infrared: (H, W) uint8.
        visible_luma: (H, W) uint8.

    Returns:
        Name of the metric (the keys of :data:`METRICS`, in that order) to value.

    Raises:
        InputError: a picture is not 8-bit grey, the sizes differ or are below :data:`MIN_SIZE`.
    """
    check_picture("fused", fused)
    check_picture("infrared", infrared, fused.shape)
    check_picture("visible", visible_luma, fused.shape)
    if min(fused.shape) < MIN_SIZE:
        raise InputError(
            "the pictures are too small for the metrics", expected=f"at least {MIN_SIZE} pixels a side",
            got=f"{fused.shape[1]}x{fused.shape[0]}",
        )
    levels = [np.ascontiguousarray(picture, dtype=np.float64) for picture in (fused, infrared, visible_luma)]
    return {name: metric.function(*levels) for name, metric in METRICS.items()}
