"""What happens when the device fails, with a device made of paper."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from isfl_ros.backends import fallback
from isfl_ros.backends.fallback import RETRY_AFTER_S, FallbackBackend
from isfl_ros.backends.frame import FusedFrame, RawFrame

FRAME = RawFrame(
    thermal=np.zeros((40, 40), np.uint8), black=0, white=255, thermal_valid=None, rgb=None, rgb_valid=None
)


class Paper:
    """A backend that fails when told to."""

    def __init__(self, device, error=None):
        self.device, self.error, self.closed, self.trouble = device, error, 0, None

    def fuse(self, frame, *, gate):
        if self.error is not None:
            raise self.error
        picture = np.zeros(frame.size, np.uint8)
        return FusedFrame(luma=picture, rgb=picture, gate=None, stages_ms={}, device=self.device)

    def close(self):
        self.closed += 1
        if isinstance(self.error, torch.AcceleratorError):
            raise self.error


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(fallback.time, "monotonic", lambda: now[0])
    return now


def lost():
    return torch.AcceleratorError("CUDA error: an illegal memory access\nand more lines")


def test_out_of_memory_finishes_on_the_cpu_and_comes_back(clock, caplog):
    made = []
    backend = FallbackBackend(lambda: made.append(Paper("cuda")) or made[-1], lambda: Paper("cpu"))
    assert backend.fuse(FRAME, gate=False).device == "cuda" and backend.trouble is None
    made[-1].error = torch.OutOfMemoryError("tried to allocate 2 GiB")
    with caplog.at_level(logging.INFO):
        assert backend.fuse(FRAME, gate=False).device == "cpu"
        assert backend.fuse(FRAME, gate=False).device == "cpu"
    assert "out of memory" in backend.trouble and "2 GiB" in backend.trouble
    assert len(caplog.records) == 1 and "on the CPU from now on" in caplog.text
    assert made[-1].closed == 1, "what it held is freed at once"
    clock[0] += RETRY_AFTER_S - 1
    assert backend.fuse(FRAME, gate=False).device == "cpu" and len(made) == 1
    clock[0] += 1
    assert backend.fuse(FRAME, gate=False).device == "cuda" and len(made) == 2
    assert backend.trouble is None and "memory again" in caplog.text


def test_out_of_memory_again_waits_again(clock):
    attempts = []

    def make():
        attempts.append(clock[0])
        raise torch.OutOfMemoryError("full")

    backend = FallbackBackend(make, lambda: Paper("cpu"))
    assert "out of memory" in backend.trouble, "known from the start"
    for _ in range(100):
        assert backend.fuse(FRAME, gate=False).device == "cpu"
        clock[0] += 1.0
    assert len(attempts) == 1 + 3


def test_lost_device_is_not_touched_again(clock):
    device = Paper("cuda")
    made = []
    backend = FallbackBackend(lambda: made.append(1) or device, lambda: Paper("cpu"))
    device.error = lost()
    assert backend.fuse(FRAME, gate=False).device == "cpu"
    clock[0] += 1e6
    assert backend.fuse(FRAME, gate=False).device == "cpu"
    assert len(made) == 1 and "lost" in backend.trouble and "more lines" not in backend.trouble
    backend.close()
    assert device.closed == 0


def test_other_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        FallbackBackend(lambda: Paper("cuda", ZeroDivisionError()), lambda: Paper("cpu")).fuse(FRAME, gate=False)
