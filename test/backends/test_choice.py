"""What runs, and why: every request either runs as asked or is refused with what to do."""

from __future__ import annotations

import itertools

import pytest
import torch

from isfl_ros import device as device_module
from isfl_ros.backends import choice
from isfl_ros.errors import InputError
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet

NETWORK = IsflNet(IsflConfig())


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be another machine."""

    def pretend(*, cuda=False, capability=(9, 0), openvino=True, triton=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(device_module, "_start_device", lambda: "pretended")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
        monkeypatch.setattr(choice, "openvino_is_installed", lambda: openvino)
        monkeypatch.setattr(choice, "check_triton", lambda device: triton)

    return pretend


def plan(device="auto", implementation="auto", precision="auto", network=NETWORK):
    return choice.choose(device, implementation, precision, network)


def test_automatic_choices_say_why(machine):
    machine(openvino=True)
    assert (plan().device, plan().implementation, plan().precision) == ("cpu", "openvino", "fp32")
    machine(openvino=False)
    assert plan().implementation == "folded" and "pip install openvino" in plan().implementation_reason
    machine(cuda=True)
    assert (plan().device, plan().implementation, plan().precision) == ("cuda", "triton", "fp16")
    assert "9.0" in plan().precision_reason
    machine(cuda=True, capability=(6, 1), triton="compute capability 6.1: kernels need 7.5")
    assert (plan().implementation, plan().precision) == ("folded", "fp32")
    assert "kernels need 7.5" in plan().implementation_reason and "no matrix units" in plan().precision_reason
    for reason in (plan().device_reason, plan().implementation_reason, plan().precision_reason):
        assert "auto" in reason


def test_a_device_that_does_not_start_is_left_alone(machine, monkeypatch):
    machine(cuda=True)

    def busy():
        raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable\nand more")

    monkeypatch.setattr(device_module, "_start_device", busy)
    assert plan().device == "cpu" and "busy or unavailable" in plan().device_reason and "more" not in plan().device_reason
    with pytest.raises(InputError, match="busy or unavailable"):
        plan(device="cuda")


def test_missing_compiler_is_named_and_torch_takes_over_only_for_auto(machine):
    machine(cuda=True, triton="no C compiler: sudo apt install gcc")
    assert plan().implementation == "folded"
    assert "sudo apt install gcc" in plan().implementation_reason
    with pytest.raises(InputError, match="implementation triton asked for.*sudo apt install gcc"):
        plan(implementation="triton")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (IsflConfig(cfi=False), "no Causal Feature Integrator"),
        (IsflConfig(gate_width=0), "single convolution"),
        (IsflConfig(width=96), "width 96"),
        (IsflConfig(grid=24), "grid 24"),
    ],
)
def test_networks_that_the_kernels_do_not_have(machine, config, reason):
    machine(cuda=True)
    network = IsflNet(config)
    assert plan(network=network).implementation == "folded" and reason in plan(network=network).implementation_reason
    with pytest.raises(InputError, match=reason):
        plan(implementation="triton", network=network)


def test_whatever_is_asked_for_by_name_is_what_runs(machine):
    """Over every request on both machines: names are kept, or refused in one line."""
    refused = 0
    for cuda in (False, True):
        machine(cuda=cuda)
        for device, implementation, precision in itertools.product(
            ("auto", "cpu", "cuda"), choice.IMPLEMENTATION_CHOICES, choice.PRECISION_CHOICES
        ):
            try:
                got = plan(device, implementation, precision)
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
                continue
            for asked, taken in ((device, got.device), (implementation, got.implementation), (precision, got.precision)):
                assert asked in ("auto", taken)
            assert (got.implementation == "triton") <= (got.device == "cuda")
            assert (got.implementation == "openvino") <= (got.device == "cpu")
    assert refused > 20


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("cpu", "triton", "auto"), "triton needs a CUDA device"),
        (("cpu", "auto", "fp16"), "fp16 needs a CUDA device"),
        (("cpu", "folded", "bf16"), "bf16 on the CPU needs OpenVINO"),
        (("auto", "fast", "auto"), "unknown implementation.*folded.*'fast'"),
        (("auto", "auto", "int8"), "unknown precision.*bf16.*'int8'"),
    ],
)
def test_impossible_requests(machine, request_, message):
    machine()
    with pytest.raises(InputError, match=message):
        plan(*request_)


def test_openvino_missing(machine):
    machine(openvino=False)
    for asked in ({"implementation": "openvino"}, {"precision": "bf16"}):
        with pytest.raises(InputError, match="pip install openvino"):
            plan(**asked)


def test_training_runs_what_has_gradients(machine):
    machine(openvino=True)
    assert choice.choose_for_training("cpu", "auto", NETWORK)[0] == "folded"
    assert choice.choose_for_training("cpu", "reference", NETWORK) == ("reference", "asked for by name")
    for name in ("triton", "openvino"):
        with pytest.raises(InputError, match="triton needs a CUDA device|unknown implementation"):
            choice.choose_for_training("cpu", name, NETWORK)
    machine(cuda=True)
    assert choice.choose_for_training("cuda", "auto", NETWORK)[0] == "triton"
    machine(cuda=True, triton="no Python.h: sudo apt install python3-dev")
    name, reason = choice.choose_for_training("cuda", "auto", NETWORK)
    assert name == "folded" and "python3-dev" in reason


def test_precision_that_the_chip_lacks(machine):
    machine(cuda=True, capability=(7, 5))
    assert plan().precision == "fp16"
    for precision in ("tf32", "bf16"):
        with pytest.raises(InputError, match="needs compute capability 8.0.*7.5"):
            plan(precision=precision)
