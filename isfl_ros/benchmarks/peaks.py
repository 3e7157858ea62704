"""What the device does at best, measured in the same run: a copy and a matrix product."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from isfl_ros.backends.cuda import float32_arithmetic
from isfl_ros.benchmarks.cost import BYTES, Cost, floor_ms
from isfl_ros.benchmarks.timing import clock_of

STORAGE = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The torch dtype of a precision."""
_COPIED_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # several times what any cache holds
_MATRIX_SIDE = {"cpu": 1536, "cuda": 8192}
_PIXELS_SIDE, _CHANNELS = 64, (256, 512)  # of 1x1 convolutions, which are matrix products too
_LEAST_RUNS, _MOST_RUNS, _ENOUGH_S = 3, 20, 0.5


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Measured rates of one device."""

    copy_bytes_per_s: float
    """Bytes read plus bytes written by a large copy within the device's memory."""
    flops_per_s: dict[str, float]
    """Of matrix products, by precision: the best of those that were tried."""

    def roofline(self, cost: Cost, precision: str, median_ms: float) -> dict:
        """Where a measured time stands: the least time at these rates, what decides it, its part of the measured."""
        least, bound = floor_ms(cost, bytes_per_s=self.copy_bytes_per_s, flops_per_s=self.flops_per_s[precision])
        return {
            "flops": cost.flops,
            "bytes": cost.bytes,
            "floor_ms": least,
            "bound": bound,
            "fraction": least / median_ms,
            "bytes_per_s": 1e3 * cost.bytes / median_ms,
            "copy_fraction": 1e3 * cost.bytes / median_ms / self.copy_bytes_per_s,
            "flops_per_s": 1e3 * cost.flops / median_ms,
        }


def measure_peaks(device: str, precisions: Iterable[str]) -> Peaks:
    """Best of a few runs each; a peak is what the device can do, not what it does on average.

    Args:
        device: ``cpu`` or ``cuda``.
        precisions: those whose matrix products are wanted.
    """
    flops = {precision: _product(device, precision) for precision in dict.fromkeys(precisions)}
    return Peaks(copy_bytes_per_s=_copy(device), flops_per_s=flops)


def _copy(device: str) -> float:
    size = _COPIED_BYTES[device]
    if device == "cuda":
        size = min(size, torch.cuda.mem_get_info()[0] // 8)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _best_s(device, lambda: target.copy_(source))


def _product(device: str, precision: str) -> float:
    if device == "cuda":
        return _square_product(device, precision)
    # Torch has two libraries for products on a CPU, and which is faster depends on the chip by a factor of three.
    return max(_square_product(device, precision), *(_pixel_product(precision, channels) for channels in _CHANNELS))


def _pixel_product(precision: str, channels: int) -> float:
    pixels = torch.randn(1, channels, _PIXELS_SIDE, _PIXELS_SIDE).to(
        dtype=STORAGE[precision], memory_format=torch.channels_last
    )
    weights = torch.randn(channels, channels, 1, 1).to(STORAGE[precision])
    return 2 * channels**2 * _PIXELS_SIDE**2 / _best_s("cpu", lambda: F.conv2d(pixels, weights))


def _square_product(device: str, precision: str) -> float:
    side = _MATRIX_SIDE[device]
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 32 * side**2 * BYTES[precision]:
        side //= 2
    left, right = (torch.randn(side, side, device=device).to(STORAGE[precision]) for _ in range(2))
    out = torch.empty_like(left)
    with float32_arithmetic(precision) if device == "cuda" else contextlib.nullcontext():
        return 2 * side**3 / _best_s(device, lambda: torch.mm(left, right, out=out))


def _best_s(device: str, work: Callable[[], object]) -> float:
    clock = clock_of(device)
    seconds: list[float] = []
    start = time.perf_counter()
    with torch.inference_mode():
        work()  # memory is found, libraries choose
        while len(seconds) < _LEAST_RUNS or (len(seconds) < _MOST_RUNS and time.perf_counter() - start < _ENOUGH_S):
            seconds.append(1e-3 * clock(work))
    return min(seconds)
