"""Clocks, rounds in which opponents take turns, and the figures of a distribution."""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

# Threads of a CPU library wait actively for a while after their work, on the cores that the next opponent needs.
_SETTLE_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of a frame."""

    count: int
    median_ms: float
    min_ms: float
    p10_ms: float
    p90_ms: float
    p95_ms: float

    @classmethod
    def of(cls, samples_ms: list[float]) -> Timing:
        """Percentiles are interpolated linearly."""
        p10, p90, p95 = (float(p) for p in np.percentile(samples_ms, (10, 90, 95)))
        return cls(
            count=len(samples_ms),
            median_ms=statistics.median(samples_ms),
            min_ms=min(samples_ms),
            p10_ms=p10,
            p90_ms=p90,
            p95_ms=p95,
        )


class Contender(Protocol):
    """Something whose frames are timed."""

    def settings(self) -> contextlib.AbstractContextManager:
        """Entered around every frame, outside the measured time."""

    def run(self, index: int) -> object:
        """One frame; ``index`` counts up, for inputs that rotate."""


Clock = Callable[[Callable[[], object]], float]
"""Runs something to its end and returns milliseconds."""


def host_clock(work: Callable[[], object]) -> float:
    """Wall clock around work that is done when it returns, after a pause in which other threads come to rest."""
    time.sleep(_SETTLE_S)
    return wall_clock(work)


def wall_clock(work: Callable[[], object]) -> float:
    """Wall clock around work that is done when it returns."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def device_clock(work: Callable[[], object]) -> float:
    """Events on the current CUDA stream around the work, started on an idle device: the latency of one frame."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def clock_of(device: str) -> Clock:
    """The clock for work on ``cpu`` or ``cuda``."""
    return device_clock if device == "cuda" else host_clock


def take_turns(
    contenders: Mapping[str, Contender], clock: Clock, *, frames: int, warm_up: int
) -> dict[str, list[float]]:
    """Times a frame of each in turn (A B A B ...), so that a drift of the machine meets all of them alike.

    Args:
        contenders: by name.
        clock: see :data:`Clock`.
        frames: counted frames of each.
        warm_up: frames of each before those.

    Returns:
        Milliseconds of the counted frames.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    with no_garbage_collection():
        for frame in range(warm_up + frames):
            for name, contender in contenders.items():
                with contender.settings():
                    milliseconds = clock(functools.partial(contender.run, frame))
                if frame >= warm_up:
                    samples[name].append(milliseconds)
    return samples


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collects first and not again until the end: a collection in a frame would be counted as the frame's."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
