"""Memory of a contender: the most that a frame takes on a CUDA device, what a process keeps from frame to frame."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch

from isfl_ros.benchmarks.timing import Contender

_FRAMES = 3


def device_peak(make: Callable[[], Contender]) -> dict[str, int]:
    """``peak_bytes``: most memory of the current CUDA device that is allocated in a frame, above what was before.

    Args:
        make: makes the contender; what it holds (weights, inputs) is counted.
    """
    _clear_device()
    before = torch.cuda.memory_allocated()
    contender = make()
    _run(contender, _FRAMES)  # libraries try algorithms in the first frames, with memory that later ones do not need
    torch.cuda.reset_peak_memory_stats()
    _run(contender, _FRAMES)
    peak = torch.cuda.max_memory_allocated() - before
    del contender
    _clear_device()
    return {"peak_bytes": peak}


def device_held(make: Callable[[], Contender]) -> dict[str, int]:
    """``held_bytes``: memory of the current CUDA device that one keeps which allocates nothing in a frame."""
    _clear_device()
    before = torch.cuda.memory_reserved()
    contender = make()
    _run(contender, _FRAMES)
    _clear_device()
    held = torch.cuda.memory_reserved() - before
    del contender
    _clear_device()
    return {"held_bytes": held}


def _run(contender: Contender, frames: int) -> None:
    for frame in range(frames):
        with contender.settings():
            contender.run(frame)
    torch.cuda.synchronize()


def _clear_device() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def resident_growth(contender: Contender, *, frames: int, warm_up: int) -> dict[str, int | None]:
    """Resident memory of this process before and after so many frames; None where the system does not tell.

    Returns:
        ``frames``, ``before_bytes``, ``after_bytes``, ``growth_bytes`` and ``process_peak_bytes``, the most
        that the process had at any time.
    """
    for frame in range(warm_up):
        with contender.settings():
            contender.run(frame)
    before = resident_bytes()
    for frame in range(frames):
        with contender.settings():
            contender.run(frame)
    after = resident_bytes()
    return {
        "frames": frames,
        "before_bytes": before,
        "after_bytes": after,
        "growth_bytes": None if before is None or after is None else after - before,
        "process_peak_bytes": _most_resident_bytes(),
    }


def resident_bytes() -> int | None:
    """Resident set of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not a Linux
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _most_resident_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
