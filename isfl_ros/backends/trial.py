"""Makes the backend of a plan and tries it: a choice that does not work here is replaced, with its reason, or refused."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch
from torch import nn

from isfl_ros.backends.choice import Plan
from isfl_ros.backends.fallback import FallbackBackend
from isfl_ros.backends.frame import Backend, RawFrame, opposite_corners_missing
from isfl_ros.backends.host import HostBackend, TorchNetwork
from isfl_ros.errors import InputError
from isfl_ros.network.model import for_inference

GREY_LEVELS = {"fp32": 1, "tf32": 2, "fp16": 2, "bf16": 8}
"""By how much the trial's picture may differ from that of torch on the CPU in float32, by precision."""
_TRIAL_SIZE = (61, 75)  # odd: no size that a library has a special case for

_log = logging.getLogger(__name__)


def make_backend(plan: Plan, network: nn.Module) -> Backend:
    """The backend that carries out a plan. Its ``plan`` says what runs, which differs where ``auto`` did not work.

    Args:
        plan: of :func:`~isfl_ros.backends.choice.choose`.
        network: as loaded, on the CPU; it is not changed.

    Raises:
        InputError: what was asked for by name does not work on this machine.
    """
    if plan.device == "cpu":
        return _on_cpu(plan, network)
    if plan.implementation == "reference":
        stand_in = "reference", plan.implementation_reason
    else:
        stand_in = "folded", "stands in for CUDA: it needs nothing but torch"
    cpu = _torch_on_cpu(
        dataclasses.replace(
            plan,
            device="cpu",
            implementation=stand_in[0],
            implementation_reason=stand_in[1],
            precision="fp32",
            precision_reason="stands in for CUDA: exact",
        ),
        network,
    )
    return FallbackBackend(lambda: _tried_on_cuda(plan, network, cpu), cpu)


def _torch_on_cpu(plan: Plan, network: nn.Module) -> HostBackend:
    return HostBackend(TorchNetwork(for_inference(network, implementation=plan.implementation)), plan)


def _on_cpu(plan: Plan, network: nn.Module) -> Backend:
    if plan.implementation != "openvino":
        return _torch_on_cpu(plan, network)
    try:
        from isfl_ros.backends.openvino_network import OpenVinoNetwork

        compiled = OpenVinoNetwork(for_inference(network), precision=plan.precision, threads=torch.get_num_threads())
    except Exception as error:  # of a library that compiles: an import of its own, an instruction that the CPU lacks
        if "implementation" not in plan.automatic or plan.precision != "fp32":
            raise InputError("OpenVINO does not work here", got=_first_line(error), do="choose implementation folded") from error
        reason = f"auto on cpu: OpenVINO does not work here: {_first_line(error)}"
        _log.warning("%s", reason)
        return _torch_on_cpu(dataclasses.replace(plan, implementation="folded", implementation_reason=reason), network)
    return HostBackend(compiled, plan)


def _tried_on_cuda(plan: Plan, network: nn.Module, cpu: Backend) -> Backend:
    """Raises RuntimeError where the device is full or lost: that is no matter of the plan."""
    from isfl_ros.backends.cuda import CudaBackend

    while True:
        on_device = for_inference(
            network, implementation=plan.implementation, precision=plan.precision, device=plan.device
        )
        backend = CudaBackend(on_device, plan)
        try:
            difference = trial_difference(backend, cpu)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # of Triton: no compiler, a cache that cannot be written, a kernel that cannot be loaded
            following = _without_triton(plan, error)
        else:
            if difference <= GREY_LEVELS[plan.precision]:
                return backend
            following = _more_precise(plan, difference)
        backend.close()
        _log.warning("%s", following.implementation_reason if following.precision == plan.precision else following.precision_reason)
        plan = following


def trial_difference(backend: Backend, cpu: Backend) -> int:
    """Largest difference in grey levels of a small random pair, of which each modality misses a corner, to the CPU's; 255
    where a gate is not a number."""
    rng = np.random.default_rng(0)
    thermal_valid, rgb_valid = opposite_corners_missing(_TRIAL_SIZE)
    frame = RawFrame(
        thermal=rng.integers(0, 256, _TRIAL_SIZE, dtype=np.uint8),
        black=0.0,
        white=255.0,
        thermal_valid=thermal_valid,
        rgb=rng.integers(0, 256, (*_TRIAL_SIZE, 3), dtype=np.uint8),
        rgb_valid=rgb_valid,
    )
    got, wanted = (b.fuse(frame, gate=True) for b in (backend, cpu))
    if got.gate is not None and not np.isfinite(got.gate).all():
        return 255
    return int(np.abs(got.luma.astype(int) - wanted.luma).max())


def _without_triton(plan: Plan, error: Exception) -> Plan:
    if plan.implementation != "triton" or "implementation" not in plan.automatic:
        if isinstance(error, RuntimeError):
            raise error
        raise InputError(
            f"implementation {plan.implementation} does not work here", got=_first_line(error), do="choose implementation auto"
        ) from error
    reason = f"auto on cuda: fused kernels do not work here: {_first_line(error)}"
    return dataclasses.replace(plan, implementation="folded", implementation_reason=reason)


def _more_precise(plan: Plan, difference: int) -> Plan:
    said = f"{plan.precision} is off by {difference} grey levels, allowed are {GREY_LEVELS[plan.precision]}"
    if plan.precision == "fp32" or "precision" not in plan.automatic:
        if plan.implementation == "triton" and "implementation" in plan.automatic:
            return dataclasses.replace(
                plan, implementation="folded", implementation_reason=f"auto on cuda: with fused kernels {said}"
            )
        raise InputError(
            f"{plan.implementation} in {plan.precision} does not compute what the CPU computes",
            expected=f"a difference of at most {GREY_LEVELS[plan.precision]} grey levels",
            got=str(difference),
            do="choose precision fp32 or implementation folded, and report it",
        )
    return dataclasses.replace(plan, precision="fp32", precision_reason=f"auto on cuda: {said} with this model")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
