"""What was chosen automatically is tried before it is trusted. The CUDA device is pretended: its backend runs on the host."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch

from isfl_ros.backends import cuda, trial
from isfl_ros.backends.choice import Plan
from isfl_ros.backends.host import HostBackend, TorchNetwork
from isfl_ros.backends.trial import make_backend
from isfl_ros.errors import InputError
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return IsflNet(IsflConfig(width=8, grid=4, gate_width=4)).eval()


def plan(device="cuda", implementation="triton", precision="fp16", automatic=("implementation", "precision")):
    reasons = {f"{key}_reason": "the test" for key in ("device", "implementation", "precision")}
    return Plan(
        device=device, implementation=implementation, precision=precision, automatic=frozenset(automatic), **reasons
    )


@pytest.fixture
def pretended(monkeypatch):
    """Puts the device on the host; `breaks` maps (implementation, precision) to an error, or to a factor on the picture."""

    def pretend(breaks):
        class Device(HostBackend):
            def __init__(self, network, plan):
                super().__init__(TorchNetwork(network.float()), plan)

            def fuse(self, frame, *, gate):
                wrong = breaks.get((self.plan.implementation, self.plan.precision))
                if isinstance(wrong, Exception):
                    raise wrong
                fused = super().fuse(frame, gate=gate)
                if wrong is not None:
                    fused.luma[:] = wrong
                return fused

        monkeypatch.setattr(cuda, "CudaBackend", Device)
        real = trial.for_inference
        monkeypatch.setattr(trial, "for_inference", lambda network, **options: real(network))

    return pretend


def test_what_works_is_kept(pretended, network):
    pretended({})
    backend = make_backend(plan(), network)
    assert (backend.plan.implementation, backend.plan.precision) == ("triton", "fp16") and backend.trouble is None


@pytest.mark.parametrize("error", [PermissionError("cache"), OSError("libcuda.so"), RuntimeError("Triton Error [CUDA]: x")])
def test_kernels_that_do_not_work_are_replaced_with_the_reason(pretended, network, error, caplog):
    pretended({("triton", "fp16"): error})
    backend = make_backend(plan(), network)
    assert (backend.plan.implementation, backend.plan.precision) == ("folded", "fp16")
    assert str(error) in backend.plan.implementation_reason and str(error) in caplog.text


def test_kernels_asked_for_by_name_are_refused(pretended, network):
    pretended({("triton", "fp16"): PermissionError("cache")})
    with pytest.raises(InputError, match="implementation triton does not work here.*cache"):
        make_backend(plan(automatic=("precision",)), network)


def test_precision_that_spoils_the_picture_is_replaced(pretended, network):
    """A half-precision overflow ends as a black picture; nobody must become invisible that way."""
    pretended({("triton", "fp16"): 0})
    backend = make_backend(plan(), network)
    assert (backend.plan.implementation, backend.plan.precision) == ("triton", "fp32")
    assert "grey levels" in backend.plan.precision_reason
    with pytest.raises(InputError, match="does not compute what the CPU computes"):
        make_backend(plan(automatic=()), network)


def test_kernels_that_compute_something_else_are_replaced(pretended, network):
    pretended({("triton", "fp16"): 0, ("triton", "fp32"): 0})
    backend = make_backend(plan(), network)
    assert (backend.plan.implementation, backend.plan.precision) == ("folded", "fp32")
    pretended({("triton", "fp16"): 0, ("triton", "fp32"): 0, ("folded", "fp32"): 0})
    with pytest.raises(InputError, match="folded in fp32 does not compute"):
        make_backend(plan(), network)


def test_a_full_device_is_no_matter_of_the_plan(pretended, network):
    pretended({("triton", "fp16"): torch.OutOfMemoryError("full")})
    backend = make_backend(plan(), network)
    assert "out of memory" in backend.trouble and (backend.plan.device, backend.plan.implementation) == ("cpu", "folded")


def broken_openvino(monkeypatch):
    """Installed, found, and yet not to be imported: a library of its own is missing."""
    monkeypatch.delitem(sys.modules, "isfl_ros.backends.openvino_network", raising=False)
    broken = types.ModuleType("openvino")
    monkeypatch.setitem(sys.modules, "openvino", broken)

    def missing(name):
        raise ImportError("libopenvino.so: cannot open shared object file")

    broken.__getattr__ = missing


def test_openvino_that_does_not_work_is_replaced_by_torch(network, monkeypatch, caplog):
    broken_openvino(monkeypatch)
    backend = make_backend(plan("cpu", "openvino", "fp32"), network)
    assert backend.plan.implementation == "folded"
    assert "libopenvino.so" in backend.plan.implementation_reason and "libopenvino.so" in caplog.text
    for asked in (plan("cpu", "openvino", "fp32", ()), plan("cpu", "openvino", "bf16", ("implementation",))):
        with pytest.raises(InputError, match="OpenVINO does not work here.*libopenvino.so"):
            make_backend(asked, network)


def test_tf32_switches_are_put_back_whatever_they_were():
    """In processes of their own: torch refuses a mixture of its old and new switches for the rest of a process."""
    program = """
import os, sys, torch
from isfl_ros.backends.cuda import float32_arithmetic
backends = torch.backends
settings = {
    "untouched": lambda: None,
    "global": lambda: setattr(backends, "fp32_precision", "tf32"),
    "matmul": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "conv": lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
    "old": lambda: torch.set_float32_matmul_precision("medium"),
}
def switches():
    return [s.fp32_precision for s in (backends, backends.cuda.matmul, backends.cudnn.conv)] + [backends.cudnn.benchmark]
for name, make in settings.items():
    child = os.fork()
    if child == 0:
        make()
        found, legacy = switches(), torch.get_float32_matmul_precision() if name in ("untouched", "old") else None
        for precision, wanted in (("fp32", "ieee"), ("tf32", "tf32")):
            with float32_arithmetic(precision):
                assert switches()[1:] == [wanted, wanted, True], (name, switches())
            assert switches() == found, (name, found, switches())
        if legacy is not None:
            assert torch.get_float32_matmul_precision() == legacy
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{name} failed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
