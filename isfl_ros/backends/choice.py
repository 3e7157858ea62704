"""Device, implementation and precision: what was asked for, what runs, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from isfl_ros.device import choose_device
from isfl_ros.errors import InputError
from isfl_ros.ops.triton_support import check_triton

IMPLEMENTATIONS = ("reference", "folded", "triton", "openvino")
"""``reference``: the equations term by term in torch. ``folded``: exact algebra in torch. ``triton``: fused kernels, CUDA.
``openvino``: the folded network compiled as a whole, CPU."""
IMPLEMENTATION_CHOICES = ("auto", *IMPLEMENTATIONS)
TRAINING_CHOICES = ("auto", "reference", "folded", "triton")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
PRECISION_CHOICES = ("auto", *PRECISIONS)
OPENVINO_REMEDY = "pip install openvino"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run, each part with its reason; both are shown to the user (diagnostics, summaries)."""

    device: str
    device_reason: str
    implementation: str
    implementation_reason: str
    precision: str
    precision_reason: str
    automatic: frozenset[str] = frozenset()
    """Which of ``implementation`` and ``precision`` were left to this package, and may be replaced when they do not work."""

    def as_text(self) -> dict[str, str]:
        """The choice and its reasons, for people."""
        return {key: value for key, value in vars(self).items() if key != "automatic"}


def choose(device: str, implementation: str, precision: str, network: torch.nn.Module) -> Plan:
    """Turns a request into what will run. What was asked for by name is never replaced by something else.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        implementation: one of :data:`IMPLEMENTATION_CHOICES`.
        precision: one of :data:`PRECISION_CHOICES`.
        network: it says which implementations it has (``why_not``).

    Raises:
        InputError: an unknown name, or something asked for by name that cannot run here or not together.
    """
    _check_name("implementation", implementation, IMPLEMENTATION_CHOICES)
    _check_name("precision", precision, PRECISION_CHOICES)
    where = choose_device(device)
    on_cuda = where.device == "cuda"
    chosen, reason = (_for_cuda if on_cuda else _for_cpu)(implementation, precision, network)
    taken, why = (_cuda_precision if on_cuda else _cpu_precision)(precision, chosen)
    return Plan(
        device=where.device,
        device_reason=where.reason,
        implementation=chosen,
        implementation_reason=reason,
        precision=taken,
        precision_reason=why,
        automatic=frozenset(
            name for name, asked in (("implementation", implementation), ("precision", precision)) if asked == "auto"
        ),
    )


def choose_for_training(device: str, implementation: str, network: torch.nn.Module) -> tuple[str, str]:
    """Who computes the Causal Feature Integrator in training, and why. All give the same gradients, to rounding.

    Args:
        device: ``cpu`` or ``cuda``, chosen before.
        implementation: one of :data:`TRAINING_CHOICES`.
        network: the network to train.

    Raises:
        InputError: an unknown name, or one asked for by name that cannot run here.
    """
    _check_name("implementation", implementation, TRAINING_CHOICES)
    if device == "cuda":
        return _for_cuda(implementation, "auto", network)
    if implementation == "triton":
        raise _triton_needs_cuda()
    if implementation != "auto":
        return implementation, "asked for by name"
    return "folded", "auto on cpu: exact, with the least arithmetic"


def _triton_needs_cuda() -> InputError:
    return InputError(
        "implementation triton needs a CUDA device", got="device cpu", do="choose implementation auto, or device cuda"
    )


def _check_name(what: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise InputError(f"unknown {what}", expected=f"one of {', '.join(choices)}", got=repr(got))


def openvino_is_installed() -> bool:
    """Whether OpenVINO can be imported; it is not imported."""
    try:
        return importlib.util.find_spec("openvino") is not None
    except ImportError:  # an environment that forbids it
        return False


def _for_cpu(asked: str, precision: str, network: torch.nn.Module) -> tuple[str, str]:
    if asked == "triton":
        raise _triton_needs_cuda()
    if asked == "openvino" and not openvino_is_installed():
        raise InputError("implementation openvino asked for", got="OpenVINO is not installed", do=OPENVINO_REMEDY)
    if asked != "auto":
        return asked, "asked for by name"
    if openvino_is_installed():
        return "openvino", "auto on cpu: OpenVINO is installed"
    if precision == "bf16":
        raise InputError("precision bf16 on the CPU needs OpenVINO", got="it is not installed", do=OPENVINO_REMEDY)
    return "folded", f"auto on cpu: OpenVINO, which is faster, is not installed ({OPENVINO_REMEDY})"


def _for_cuda(asked: str, precision: str, network: torch.nn.Module) -> tuple[str, str]:
    if asked == "openvino":
        raise InputError(
            "implementation openvino runs on the CPU", got="device cuda", do="choose implementation auto, or device cpu"
        )
    if asked in ("reference", "folded"):
        return asked, "asked for by name"
    obstacle = network.why_not("triton") or check_triton("cuda")
    if asked == "triton":
        if obstacle:
            raise InputError("implementation triton asked for", got=obstacle)
        return "triton", "asked for by name"
    if obstacle:
        return "folded", f"auto on cuda: fused kernels cannot run: {obstacle}"
    return "triton", "auto on cuda: fused kernels move the fewest bytes"


def _cpu_precision(asked: str, implementation: str) -> tuple[str, str]:
    if asked == "auto":
        return "fp32", "auto on cpu: exact"
    if asked == "bf16" and implementation != "openvino":
        raise InputError(
            "precision bf16 on the CPU needs OpenVINO", got=f"implementation {implementation}", do="choose implementation auto"
        )
    if asked not in ("fp32", "bf16"):
        raise InputError(f"precision {asked} needs a CUDA device", expected="auto, fp32 or bf16 on the CPU", got="device cpu")
    return asked, "asked for by name"


def _cuda_precision(asked: str, implementation: str) -> tuple[str, str]:
    capability = torch.cuda.get_device_capability()
    chip = f"compute capability {capability[0]}.{capability[1]}"
    if asked in ("tf32", "bf16") and capability < (8, 0):
        raise InputError(f"precision {asked} needs compute capability 8.0", got=chip, do="choose auto, fp32 or fp16")
    if asked == "fp16" and capability < (5, 3):
        raise InputError("precision fp16 needs compute capability 5.3", got=chip, do="choose auto or fp32")
    if asked != "auto":
        return asked, "asked for by name"
    if capability < (7, 0):
        return "fp32", f"auto on cuda: {chip} has no matrix units for fp16"
    return "fp16", f"auto on cuda: {chip} has matrix units for fp16, and half the bytes move"
