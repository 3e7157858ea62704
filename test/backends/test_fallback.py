"""What happens when the device fails, with a device made of paper."""

from __future__ import annotations

import copy
import logging
import weakref

import numpy as np
import pytest
import torch

from isfl_ros.backends import fallback
from isfl_ros.backends.choice import Plan
from isfl_ros.backends.fallback import LONGEST_RETRY_S, RETRY_AFTER_S, FallbackBackend
from isfl_ros.backends.frame import FusedFrame, RawFrame

FRAME = RawFrame(
    thermal=np.zeros((40, 40), np.uint8), black=0, white=255, thermal_valid=None, rgb=None, rgb_valid=None
)


def plan(device):
    implementation = {"cuda": "triton", "cpu": "folded"}[device]
    reasons = {f"{key}_reason": "paper" for key in ("device", "implementation", "precision")}
    return Plan(device=device, implementation=implementation, precision="fp32", **reasons)


class Memory:
    """Stands for what is held on the device while a picture is fused there."""


class Paper:
    """A backend that fails when told to."""

    def __init__(self, device, error=None):
        self.device, self.error, self.closed, self.trouble, self.plan = device, error, 0, None, plan(device)
        self.held = None

    def fuse(self, frame, *, gate):
        memory = Memory()
        self.held = weakref.ref(memory)
        if self.error is not None:
            raise copy.copy(self.error)  # one that is kept would keep its traceback
        picture = np.zeros(frame.size, np.uint8)
        return FusedFrame(luma=picture, rgb=picture, gate=None, stages_ms={}, device=self.device)

    def close(self):
        self.closed += 1
        assert self.held is None or self.held() is None, "a traceback still holds what the picture took"


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(fallback.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fallback, "_LOST", [])
    return now


def works():
    pass


def is_lost():
    raise torch.AcceleratorError("CUDA error: an illegal memory access")


def device_of(backend):
    return backend.fuse(FRAME, gate=False).device


def cuda_error(text, code=None):
    error = torch.AcceleratorError(text)
    if code is not None:
        error.error_code = code
    return error


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    cuda_error("CUDA error: out of memory"),
    cuda_error("CUDA error: whatever it is called", code=2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_out_of_memory_finishes_on_the_cpu_and_comes_back(clock, caplog, error):
    made = []
    backend = FallbackBackend(lambda: made.append(Paper("cuda")) or made[-1], Paper("cpu"), probe=is_lost)
    assert device_of(backend) == "cuda" and backend.trouble is None and backend.plan.implementation == "triton"
    made[-1].error = error
    with caplog.at_level(logging.INFO):
        assert device_of(backend) == "cpu" and device_of(backend) == "cpu"
    assert "out of memory" in backend.trouble and str(error) in backend.trouble
    assert (backend.plan.device, backend.plan.implementation) == ("cpu", "folded"), "what runs now, not what was chosen"
    assert backend.plan.device_reason == backend.trouble
    assert len(caplog.records) == 1 and "on the CPU from now on" in caplog.text
    assert made[-1].closed == 1, "what it held is freed at once"
    clock[0] += RETRY_AFTER_S - 1
    assert device_of(backend) == "cpu" and len(made) == 1
    clock[0] += 1
    assert device_of(backend) == "cuda" and len(made) == 2
    assert backend.trouble is None and "works again" in caplog.text and backend.plan.device == "cuda"


def test_every_further_failure_waits_longer(clock):
    attempts = []

    def make():
        attempts.append(clock[0])
        raise torch.OutOfMemoryError("full")

    backend = FallbackBackend(make, Paper("cpu"), probe=works)
    assert "out of memory" in backend.trouble, "known from the start"
    for _ in range(4000):
        assert device_of(backend) == "cpu"
        clock[0] += 1.0
    waits = [b - a for a, b in zip(attempts, attempts[1:])]
    assert waits[:5] == [30, 60, 120, 240, 480] and set(waits[5:]) == {LONGEST_RETRY_S}


def test_lost_device_is_not_touched_again(clock, caplog):
    device = Paper("cuda")
    made = []
    backend = FallbackBackend(lambda: made.append(1) or device, Paper("cpu"), probe=is_lost)
    device.error = cuda_error("CUDA error: an illegal memory access\nand more lines")
    assert device_of(backend) == "cpu"
    clock[0] += 1e6
    assert device_of(backend) == "cpu"
    assert len(made) == 1 and "lost" in backend.trouble and "more lines" not in backend.trouble
    assert fallback.device_was_lost() and device in fallback._LOST, "freeing it would end the process"
    backend.close()
    assert device.closed == 0


def test_loss_after_shortage_is_logged_as_well(clock, caplog):
    device = Paper("cuda", torch.OutOfMemoryError("full"))
    backend = FallbackBackend(lambda: device, Paper("cpu"), probe=is_lost)
    device_of(backend)
    device.error = cuda_error("CUDA error: unspecified launch failure")
    clock[0] += RETRY_AFTER_S
    device_of(backend)
    assert [record.getMessage().split(": ")[1].split(",")[0] for record in caplog.records] == [
        "CUDA out of memory",
        "CUDA device lost",
    ]


def test_a_failure_that_leaves_the_device_usable_is_tried_again(clock):
    device = Paper("cuda", RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
    backend = FallbackBackend(lambda: device, Paper("cpu"), probe=works)
    assert device_of(backend) == "cpu" and "CUDA failed: cuDNN error" in backend.trouble
    device.error = None
    clock[0] += RETRY_AFTER_S
    assert device_of(backend) == "cuda"


def test_errors_of_the_program_are_not_swallowed(clock):
    with pytest.raises(ZeroDivisionError):
        device_of(FallbackBackend(lambda: Paper("cuda", ZeroDivisionError()), Paper("cpu"), probe=works))
