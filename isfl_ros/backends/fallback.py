"""A CUDA device that fails, and the CPU that goes on."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable

import torch

from isfl_ros.backends.choice import Plan
from isfl_ros.backends.frame import Backend, FusedFrame, RawFrame

RETRY_AFTER_S = 30.0
"""After the device failed, the CPU fuses for this long before the device is tried again; twice as long each further time."""
LONGEST_RETRY_S = 600.0

_OUT_OF_MEMORY = ("out of memory", "alloc_failed", "unable to find an engine")
_CUDA_ERROR_MEMORY_ALLOCATION = 2
_LOST: list[object] = []
"""What a lost device held, kept for the life of the process: freeing its pinned memory would end the process."""

_log = logging.getLogger(__name__)


def device_was_lost() -> bool:
    """Whether this process has lost a CUDA device. An orderly end of the interpreter would then abort."""
    return bool(_LOST)


class FallbackBackend:
    """Fuses on the device; when that fails, finishes the picture on the CPU and goes on there.

    Out of memory, and any other failure that leaves the device usable: everything on it is freed, and it is tried again
    after :data:`RETRY_AFTER_S` seconds, then after twice as long. A lost device cannot be used again by this process. Each
    trouble is logged once and stays in ``trouble`` while it lasts.

    Args:
        on_device: makes the backend that should do the work; called at once, and again after a failure.
        on_cpu: the backend that stands in.
        probe: raises where the device is lost.

    Raises:
        InputError: passed on from ``on_device`` at construction.
    """

    def __init__(
        self, on_device: Callable[[], Backend], on_cpu: Backend, *, probe: Callable[[], None] = torch.cuda.synchronize
    ):
        self._make, self._cpu, self._probe = on_device, on_cpu, probe
        self._device: Backend | None = None
        self._retry_at, self._wait_s = 0.0, RETRY_AFTER_S
        self.trouble: str | None = None
        self._attempt(lambda device: None)

    @property
    def plan(self) -> Plan:
        """What runs now."""
        if self.trouble is None:
            return self._device.plan
        return dataclasses.replace(self._cpu.plan, device_reason=self.trouble)

    def fuse(self, frame: RawFrame, *, gate: bool) -> FusedFrame:
        """See :class:`~isfl_ros.backends.frame.Backend`."""
        if time.monotonic() >= self._retry_at:
            fused = self._attempt(lambda device: device.fuse(frame, gate=gate))
            if fused is not None:
                if self.trouble is not None:
                    self.trouble, self._wait_s = None, RETRY_AFTER_S
                    _log.warning("the CUDA device works again: pictures are fused there")
                return fused
        return self._cpu.fuse(frame, gate=gate)

    def _attempt(self, use: Callable[[Backend], FusedFrame | None]) -> FusedFrame | None:
        try:
            if self._device is None:
                self._device = self._make()
            return use(self._device)
        except RuntimeError as error:  # torch's and Triton's own; what is wrong with the input is no RuntimeError
            lost, trouble = self._diagnose(error)
            if lost:
                _LOST.append(error)  # its traceback holds what was being made
        # Out here the traceback is gone, and with it what its frames held on the device.
        device, self._device = self._device, None
        if lost:
            _LOST.append(device)
            self._retry_at = math.inf
        else:
            if device is not None:
                device.close()
            del device
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self._retry_at = time.monotonic() + self._wait_s
            trouble = f"{trouble} (tried again in {self._wait_s:g} s)"
            self._wait_s = min(2 * self._wait_s, LONGEST_RETRY_S)
        if self.trouble is None or lost:
            _log.error("pictures are fused on the CPU from now on: %s", trouble)
        self.trouble = trouble
        return None

    def _diagnose(self, error: RuntimeError) -> tuple[bool, str]:
        """Whether the device is lost, and what happened in words."""
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        code = getattr(error, "error_code", None)
        full = isinstance(error, torch.OutOfMemoryError) or code == _CUDA_ERROR_MEMORY_ALLOCATION
        if full or any(text in said.lower() for text in _OUT_OF_MEMORY):
            return False, f"CUDA out of memory: {said}"
        try:
            self._probe()
        except RuntimeError:
            return True, f"CUDA device lost, not tried again before a new start: {said}"
        return False, f"CUDA failed: {said}"

    def close(self) -> None:
        """See :class:`~isfl_ros.backends.frame.Backend`."""
        for backend in (self._device, self._cpu):
            if backend is not None:
                backend.close()
        self._device = None
