"""Training throughput: patches and network passes a second, and on what."""

from __future__ import annotations

import torch

from isfl_ros.device import cpu_name

_SKIPPED = 10
"""First steps that are left out: caches fill, algorithms are searched, kernels compiled."""


class Throughput:
    """Adds up the time of training steps; validation and checkpoints are not steps.

    Args:
        images: patches of a step over all processes, a pair counted once.
        steps: steps that will be run; of a short run the first half is left out.
    """

    def __init__(self, images: int, steps: int):
        self._images, self._skip = images, min(_SKIPPED, steps // 2)
        self.steps, self.seconds, self.passes = 0, 0.0, 0

    def add(self, seconds: float, passes: int) -> None:
        """A step: its time, and how often the network that is trained ran (original and variants)."""
        if self._skip:
            self._skip -= 1
            return
        self.steps += 1
        self.seconds += seconds
        self.passes += passes * self._images

    def figures(self) -> dict[str, float]:
        """``images_per_second`` and ``passes_per_second``; empty where nothing was measured."""
        if not self.seconds:
            return {}
        return {
            "images_per_second": self.steps * self._images / self.seconds,
            "passes_per_second": self.passes / self.seconds,
        }


def hardware_name(device: torch.device) -> str:
    """Name of the processor that trains."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
