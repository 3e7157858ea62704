"""The contenders of the network measurement: tensors in, fused luma and every gate out.

Each holds the rotating inputs on its device. ``outputs(index)`` is what it makes of one of them: fused luma and the
gates, coarsest first, float32 on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from isfl_ros.backends import Plan
from isfl_ros.backends.cuda import float32_arithmetic
from isfl_ros.benchmarks.inputs import RandomPair
from isfl_ros.errors import InputError
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import for_inference
from isfl_ros.network.plain import plain_forward, shape_of

_WARM_UP_RUNS = 3  # before a CUDA graph is captured: libraries choose, kernels are compiled, memory is found

PLAIN_VARIANTS = {"cpu": ("plain",), "cuda": ("plain_tf32_off", "plain_tf32_on", "plain_torch_default")}
"""Names of the plain formulation's variants, the one that top-level figures compare with first."""


def why_no_plain(network: nn.Module) -> str | None:
    """Why the plain formulation has no such network, in words; None if it has."""
    config = getattr(network, "config", None)
    if not isinstance(config, IsflConfig):
        return "the plain formulation is of the ISFL network"
    for key, wanted in (("siamese", False), ("cfi", True), ("refine", True), ("head_kernel", 3)):
        if getattr(config, key) != wanted:
            return f"the plain formulation has {key} {wanted}, the model {getattr(config, key)}"
    if config.decoder_order != "add_then_conv":
        return f"the plain formulation has decoder_order add_then_conv, the model {config.decoder_order}"
    return None if config.gate_width else "the plain formulation has a gate with hidden channels (gate_width above 0)"


class Plain:
    """The network as one would write the paper down in torch: eager, NCHW, float32, evaluation mode, nothing folded.

    Args:
        variant: of :data:`PLAIN_VARIANTS`. On CUDA ``plain_tf32_off`` and ``plain_tf32_on`` set both of torch's
            switches (cuDNN and matrix products); ``plain`` and ``plain_torch_default`` touch none.

    Raises:
        InputError: the plain formulation has no such network.
    """

    def __init__(self, network: nn.Module, pairs: list[RandomPair], *, device: str, variant: str):
        obstacle = why_no_plain(network)
        if obstacle:
            raise InputError("no plain formulation", got=obstacle)
        self._variant = variant
        self._weights = {name: tensor.to(device) for name, tensor in network.state_dict().items()}
        self._shape = shape_of(network.config)
        self._inputs = _upload(pairs, device)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        with torch.inference_mode(), contextlib.ExitStack() as stack:
            if self._variant.startswith("plain_tf32"):
                allow = self._variant == "plain_tf32_on"
                # To search is not torch's default.
                stack.enter_context(float32_arithmetic("tf32" if allow else "fp32", search=False))
            yield

    def run(self, index: int) -> tuple[Tensor, list[Tensor]]:
        return plain_forward(self._weights, *self._inputs[index % len(self._inputs)], **self._shape)

    def outputs(self, index: int) -> list[Tensor]:
        with self.settings():
            fused, gates = self.run(index)
            return _fetch([fused, *gates])


class Eager:
    """The network in its inference form, called from Python."""

    def __init__(self, network: nn.Module, pairs: list[RandomPair], plan: Plan):
        self._plan = plan
        self._network = for_inference(
            network, implementation=plan.implementation, precision=plan.precision, device=plan.device
        )
        self._inputs = _upload(pairs, plan.device)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        if self._plan.device == "cuda":
            with torch.inference_mode(), float32_arithmetic(self._plan.precision):
                yield
            return
        torch.set_flush_denormal(True)  # as the pipeline does
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_flush_denormal(False)  # torch's default, which the opponent has

    def run(self, index: int) -> tuple[Tensor, list[Tensor]]:
        return self._network(*self._inputs[index % len(self._inputs)], return_gates=True)

    def outputs(self, index: int) -> list[Tensor]:
        with self.settings():
            fused, gates = self.run(index)
            return _fetch([fused, *gates])


class Graph:
    """The same as one CUDA graph for every input: as the pipeline runs it, but for the masks, which are none here."""

    def __init__(self, network: nn.Module, pairs: list[RandomPair], plan: Plan):
        self._eager = Eager(network, pairs, plan)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._outputs: list[list[Tensor]] = []
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # One pool: the graphs never run at once, and each one's outputs stay its own.
        pool = torch.cuda.graph_pool_handle()
        with self._eager.settings():
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_RUNS):
                    self._eager.run(0)
            stream.synchronize()
            for index in range(len(pairs)):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    fused, gates = self._eager.run(index)
                self._graphs.append(graph)
                self._outputs.append([fused, *gates])

    def settings(self) -> contextlib.AbstractContextManager:
        return torch.inference_mode()

    def run(self, index: int) -> None:
        self._graphs[index % len(self._graphs)].replay()

    def outputs(self, index: int) -> list[Tensor]:
        with self.settings():
            self.run(index)
            return _fetch(self._outputs[index % len(self._outputs)])


class OpenVino:
    """The network compiled by OpenVINO."""

    def __init__(self, network: nn.Module, pairs: list[RandomPair], plan: Plan):
        from isfl_ros.backends.openvino_network import OpenVinoNetwork

        self._network = OpenVinoNetwork(
            for_inference(network, implementation="folded"), precision=plan.precision, threads=torch.get_num_threads()
        )
        self._inputs = [(pair.visible, pair.infrared) for pair in pairs]

    def settings(self) -> contextlib.AbstractContextManager:
        return torch.inference_mode()

    def run(self, index: int) -> list:
        return self._network.run(*self._inputs[index % len(self._inputs)])

    def outputs(self, index: int) -> list[Tensor]:
        return [torch.from_numpy(output.copy()).float() for output in self.run(index)]


def contenders_of(network: nn.Module, pairs: list[RandomPair], plan: Plan) -> dict[str, Eager | Graph | OpenVino]:
    """How a plan runs a network: ``compiled`` (OpenVINO), ``eager``, and on CUDA ``graph``; the pipeline's way last."""
    if plan.implementation == "openvino":
        return {"compiled": OpenVino(network, pairs, plan)}
    modes: dict[str, Eager | Graph | OpenVino] = {"eager": Eager(network, pairs, plan)}
    if plan.device == "cuda":
        modes["graph"] = Graph(network, pairs, plan)
    return modes


def difference(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float, int]:
    """Largest absolute difference, sum of the absolute differences and number of values, over all outputs.

    Raises:
        ValueError: they are not of the same shapes, or a value is NaN or infinite.
    """
    largest, total, count = 0.0, 0.0, 0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"outputs {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
        apart = (a.double() - b.double()).abs()
        if not bool(apart.isfinite().all()):
            raise ValueError("an output holds NaN or infinity")
        largest = max(largest, float(apart.max()))
        total += float(apart.sum())
        count += apart.numel()
    return largest, total, count


def _upload(pairs: list[RandomPair], device: str) -> list[tuple[Tensor, Tensor]]:
    """(visible, infrared), (1, 1, H, W) float32 contiguous each."""
    return [
        tuple(torch.from_numpy(picture)[None, None].to(device) for picture in (pair.visible, pair.infrared))
        for pair in pairs
    ]


def _fetch(outputs: list[Tensor]) -> list[Tensor]:
    return [output.float().cpu().clone() for output in outputs]
