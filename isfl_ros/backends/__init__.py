"""Who runs a network, on which device, in which precision: the choice with its reasons, and one class for each way.

``choice`` decides. ``host``: numpy pictures, the network in torch or OpenVINO on the CPU. ``cuda``: pictures uploaded,
fused and downloaded on a stream, as one CUDA graph a size. ``fallback``: what goes on when a CUDA device fails.
"""

from __future__ import annotations

import torch
from torch import nn

from isfl_ros.backends.choice import Plan, choose
from isfl_ros.backends.frame import Backend
from isfl_ros.backends.host import HostBackend, TorchNetwork
from isfl_ros.network.model import for_inference


def make_backend(plan: Plan, network: nn.Module) -> Backend:
    """The backend that carries out a plan.

    Args:
        plan: of :func:`~isfl_ros.backends.choice.choose`.
        network: as loaded, on the CPU; it is not changed.

    Raises:
        InputError: the plan turns out to be impossible on this machine.
    """
    if plan.device == "cpu":
        ready = for_inference(
            network, implementation="folded" if plan.implementation == "openvino" else plan.implementation
        )
        if plan.implementation != "openvino":
            return HostBackend(TorchNetwork(ready))
        from isfl_ros.backends.openvino_network import OpenVinoNetwork

        return HostBackend(OpenVinoNetwork(ready, precision=plan.precision, threads=torch.get_num_threads()))

    from isfl_ros.backends.cuda import CudaBackend
    from isfl_ros.backends.fallback import FallbackBackend

    def on_device() -> Backend:
        ready = for_inference(network, implementation=plan.implementation, precision=plan.precision, device=plan.device)
        return CudaBackend(ready, precision=plan.precision)

    def on_cpu() -> Backend:
        named = plan.implementation if plan.implementation == "reference" else "auto"
        return make_backend(choose("cpu", named, "auto", network), network)

    return FallbackBackend(on_device, on_cpu)


__all__ = ["Backend", "Plan", "choose", "make_backend"]
