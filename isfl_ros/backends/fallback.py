"""A CUDA device that fails, and the CPU that goes on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch

from isfl_ros.backends.frame import Backend, FusedFrame, RawFrame

RETRY_AFTER_S = 30.0
"""After the device ran out of memory, the CPU fuses for this long before the device is tried again."""

_log = logging.getLogger(__name__)


class FallbackBackend:
    """Fuses on the device; when that fails, finishes the picture on the CPU and goes on there.

    Out of memory: everything on the device is freed and tried again every :data:`RETRY_AFTER_S` seconds. A lost device
    cannot be used again by this process. Both are logged once and stay in ``trouble`` while they last.

    Args:
        on_device: makes the backend that should do the work; called at once, and again after it ran out of memory.
        on_cpu: makes the one that stands in; called when it is first needed.
    """

    def __init__(self, on_device: Callable[[], Backend], on_cpu: Callable[[], Backend]):
        self._make_on_device, self._make_on_cpu = on_device, on_cpu
        self._device: Backend | None = None
        self._cpu: Backend | None = None
        self._retry_at = 0.0
        self.trouble: str | None = None
        self._attempt(lambda device: None)

    def fuse(self, frame: RawFrame, *, gate: bool) -> FusedFrame:
        """See :class:`~isfl_ros.backends.frame.Backend`."""
        fused = None
        if time.monotonic() >= self._retry_at:
            fused = self._attempt(lambda device: device.fuse(frame, gate=gate))
        if fused is None:
            if self._cpu is None:
                self._cpu = self._make_on_cpu()
            return self._cpu.fuse(frame, gate=gate)
        if self.trouble is not None:
            self.trouble = None
            _log.warning("the CUDA device has memory again: pictures are fused there")
        return fused

    def _attempt(self, use: Callable[[Backend], FusedFrame | None]) -> FusedFrame | None:
        try:
            if self._device is None:
                self._device = self._make_on_device()
            return use(self._device)
        except torch.OutOfMemoryError as error:
            device, self._device = self._device, None
            if device is not None:
                device.close()  # what it held may be what somebody else on the device is short of
            self._retry_at = time.monotonic() + RETRY_AFTER_S
            self._report(f"CUDA out of memory, tried again every {RETRY_AFTER_S:g} s: {_first_line(error)}")
        except torch.AcceleratorError as error:
            self._device = None  # not closed: every call to a lost device raises
            self._retry_at = math.inf
            self._report(f"CUDA device lost, not tried again before a new start: {_first_line(error)}")
        return None

    def _report(self, trouble: str) -> None:
        if self.trouble is None:
            _log.error("pictures are fused on the CPU from now on: %s", trouble)
        self.trouble = trouble

    def close(self) -> None:
        """See :class:`~isfl_ros.backends.frame.Backend`."""
        for backend in (self._device, self._cpu):
            if backend is not None:
                backend.close()
        self._device = self._cpu = None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
