"""The network compiled for the CPU by OpenVINO. The only file that imports it."""

from __future__ import annotations

import functools
import hashlib
import sys
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from isfl_ros.backends.frame import opposite_corners_missing
from isfl_ros.backends.host import Masks
from isfl_ros.backends.recently_used import RecentlyUsed
from isfl_ros.errors import InputError
from isfl_ros.network.model import mean_gate
from isfl_ros.ops.pooled_cross_attention.folded import whole_frame

# From its import on, OpenVINO reports its use over the network and keeps a number for the user in the home folder, unless
# its reporting package is missing: nothing that a vehicle should do unasked.
sys.modules.setdefault("openvino_telemetry", None)
import openvino  # noqa: E402

SIZES_KEPT = 2
"""Picture sizes whose compiled networks are kept; the one not used for longest goes first. Each holds the memory of its
feature maps: about 220 MB at 640x480, in proportion to the pixels.
"""
_TRACED = (101, 147)  # odd, so that a size written into the graph as a constant cannot pass the check at another one
_CHECKED = (75, 62)
_TOLERANCE = {"fp32": 1e-4, "bf16": 8 / 255}
"""Largest difference to torch in float32 at which a compiled network is trusted."""
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoNetwork:
    """Converts once, compiles once a picture size (about 0.1 s), runs.

    Args:
        network: of :func:`~isfl_ros.network.model.for_inference`, folded, float32, on the CPU.
        precision: ``fp32`` or ``bf16``.
        threads: CPU threads.

    Raises:
        InputError: this CPU has no bfloat16, or the compiled network does not compute what torch computes.
    """

    def __init__(self, network: nn.Module, *, precision: str, threads: int):
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise InputError("this CPU has no bfloat16 arithmetic", do="choose precision auto or fp32")
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        # It holds nothing of `self`: else hundreds of megabytes would wait for the garbage collector.
        compile_for = functools.partial(_compile, core, _converted(network), options)
        self._requests: RecentlyUsed[tuple[int, int], openvino.InferRequest] = RecentlyUsed(SIZES_KEPT, compile_for)
        self._check(network, _TOLERANCE[precision])

    def __call__(
        self, visible: np.ndarray, infrared: np.ndarray, valid: Masks, gate: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See :data:`~isfl_ros.backends.host.Network`."""
        fused, *gates = self.run(visible, infrared, valid)
        mean = None
        if gate and gates:
            mean = mean_gate([torch.from_numpy(g) for g in gates], visible.shape)[0, 0].numpy()
        return fused[0, 0].copy(), mean

    def run(self, visible: np.ndarray, infrared: np.ndarray, valid: Masks = (None, None)) -> list[np.ndarray]:
        """Fused luma and gates, coarsest first, (1, 1, h, w) each, in OpenVINO's own memory: the next run changes them."""
        masks = (np.ones(visible.shape, bool) if mask is None else mask for mask in valid)
        inputs = [np.ascontiguousarray(plane)[None, None] for plane in (visible, infrared, *masks)]
        result = self._requests[visible.shape].infer(inputs, share_inputs=True, share_outputs=True)
        return [result[k] for k in range(len(result))]

    def _check(self, network: nn.Module, tolerance: float) -> None:
        rng = np.random.default_rng(0)
        visible, infrared = (rng.random(_CHECKED, dtype=np.float32) for _ in range(2))
        # At the edge of a hole bfloat16 is off by more, rightly: 16 levels in the release.
        valid = opposite_corners_missing(_CHECKED) if tolerance == _TOLERANCE["fp32"] else 2 * (np.ones(_CHECKED, bool),)
        with torch.inference_mode():
            wanted = _WithGates(network)(*(torch.from_numpy(x)[None, None] for x in (visible, infrared, *valid)))
        got = self.run(visible, infrared, valid)
        difference = max(
            float(np.abs(g - w.numpy()).max()) if g.shape == w.shape else np.inf for g, w in zip(got, wanted, strict=True)
        )
        self._requests.clear()
        if not difference <= tolerance:  # NaN too
            raise InputError(
                "the network that OpenVINO compiled does not compute what torch computes",
                expected=f"a difference of at most {tolerance:.1e}",
                got=f"{difference:.1e} with OpenVINO {openvino.__version__}",
                do="choose implementation folded, and report it",
            )


def _compile(
    core: openvino.Core, graph: openvino.Model, options: dict[str, object], size: tuple[int, int]
) -> openvino.InferRequest:
    graph = graph.clone()
    graph.reshape({k: [1, 1, *size] for k in range(4)})
    return core.compile_model(graph, "CPU", options).create_infer_request()


_graphs: dict[str, openvino.Model] = {}


def _converted(network: nn.Module) -> openvino.Model:
    """The graph of a network, converted once a process: tracing leaves about 20 MB behind for good each time."""
    key = hashlib.sha256(f"{network} {getattr(network, 'config', '')}".encode())  # grid and reduction are in no module's text
    for name, values in network.state_dict().items():
        key.update(name.encode())
        key.update(values.contiguous().numpy().data)
    graph = _graphs.get(key.hexdigest())
    if graph is None:
        random = torch.Generator().manual_seed(0)
        pictures = [torch.rand(1, 1, *_TRACED, generator=random) for _ in range(2)]
        masks = [torch.rand(1, 1, *_TRACED, generator=random) < 0.8 for _ in range(2)]
        with whole_frame(), warnings.catch_warnings(), torch.inference_mode():
            # Shapes read as Python numbers are traced as constants: harmless where _check finds no difference.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            graph = openvino.convert_model(_WithGates(network).eval(), example_input=(*pictures, *masks))
        _graphs.clear()  # one is enough: a node loads one model
        _graphs[key.hexdigest()] = graph
    return graph


class _WithGates(nn.Module):
    """A network whose outputs are one flat tuple, as tracing wants it: fused luma, then the gates, coarsest first."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(
        self, visible: Tensor, infrared: Tensor, valid_visible: Tensor, valid_infrared: Tensor
    ) -> tuple[Tensor, ...]:
        masks = {"valid_visible": valid_visible, "valid_infrared": valid_infrared}
        fused, gates = self.network(visible, infrared, return_gates=True, **masks)
        return fused, *gates
