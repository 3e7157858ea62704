"""The Causal Feature Integrator and its parts at full scale against the eager reference and its compilation.

All at one precision, on features as the finest scale has them. On CUDA every contender is captured as one graph over
several sets of tensors that together exceed the cache, so that the device's work is timed and not Python; that flatters
the eager reference. On the CPU calls are timed one by one, and the compiled reference does not take part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isfl_ros.backends.cuda import float32_arithmetic
from isfl_ros.benchmarks import cost
from isfl_ros.benchmarks.peaks import STORAGE, Peaks
from isfl_ros.benchmarks.timing import Timing, host_clock, take_turns
from isfl_ros.network.cfi import Cfi
from isfl_ros.network.model import for_inference
from isfl_ros.ops.gated_blend import NEGATIVE_SLOPE, gated_blend
from isfl_ros.ops.pooled_cross_attention import Projections, attend_folded, fold_projections, pooled_cross_attention

KERNELS = {
    "partial_pool_kernel": "pool",
    "finish_tokens_kernel": "pool",
    "attend_kernel": "attend",
    "gated_blend_kernel": "blend",
}
"""Fused kernels of inference and the pass of the byte model that each belongs to."""
_CACHE_TIMES = 4  # the sets of tensors together, and what is written between frames, relative to the device's cache
_FEWEST_SETS, _MOST_SETS = 2, 16
_WARM_UP_RUNS = 3
_PROFILED_RUNS = 10
_LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

_COMPILED = "compiled reference"
_LONGEST_REASON = 500

_log = logging.getLogger(__name__)

Call = Callable[..., object]


@dataclass(frozen=True)
class _Operation:
    name: str
    least: cost.Cost
    inputs: int
    """Feature maps that it takes."""
    reference: Mapping[str, Call]
    """The reference by layout."""
    fused: Mapping[str, Call]
    """Other implementations by name; channels-last, as the network runs them."""


def measure_operations(
    network: nn.Module,
    size: tuple[int, int],
    *,
    implementations: list[str],
    precision: str,
    device: str,
    peaks: Peaks,
    frames: int,
    warm_up: int,
    seed: int,
) -> tuple[list[dict], list[dict]]:
    """Times pool, attention (with its pooling), blend and integrator.

    Returns:
        One row a contender, and what could not be measured, with its reason.
    """
    if not getattr(network.config, "cfi", False):
        return [], [{"kind": "unavailable", "reason": "the network has no Causal Feature Integrator"}]
    if device == "cpu":
        names = ["folded"]  # which is also what OpenVINO compiles, as a part of the whole network
    else:
        names = [name for name in implementations if name in ("folded", "triton")]
    maps = _feature_sets(network.config.width, size, precision, device, seed)
    rows, refused = [], []
    for operation in _operations(network, size, precision, device, names):
        found, missing = _measure(operation, maps, precision, device, peaks, frames, warm_up)
        rows += found
        refused += missing
    if "triton" in names and device == "cuda":
        try:
            rows += _kernels(network, size, maps, precision, device, peaks)
        except (RuntimeError, ImportError) as error:  # a profiler that this driver or container does not let in
            refused.append(
                {"operation": "kernels", "kind": "unavailable", "precision": precision, "reason": f"profiler: {error}"}
            )
    return rows, refused


# -- what is measured ---------------------------------------------------------------------------------------------


def _integrator(network: nn.Module, implementation: str, precision: str, device: str) -> Cfi:
    cfi = for_inference(network, implementation=implementation, precision=precision, device=device).integrators[0]
    cfi.refine = nn.Identity()  # the convolution after it is the network's
    return cfi


def _operations(
    network: nn.Module, size: tuple[int, int], precision: str, device: str, names: list[str]
) -> Iterator[_Operation]:
    config = network.config
    pixels, element, dtype = size[0] * size[1], cost.BYTES[precision], STORAGE[precision]
    grid = config.grid

    def pool(visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        return F.adaptive_avg_pool2d(visible, grid), F.adaptive_avg_pool2d(infrared, grid)

    yield _Operation("pool", cost.pool(config, pixels, element), 2, dict.fromkeys(_LAYOUTS, pool), {})

    cfi = _integrator(network, "reference", precision, device)
    of_visible, of_infrared = cfi.visible.projections(), cfi.infrared.projections()
    for_visible, for_infrared = fold_projections(of_visible, of_infrared), fold_projections(of_infrared, of_visible)
    cast_visible, cast_infrared = (Projections(*(t.to(dtype) for t in p)) for p in (of_visible, of_infrared))

    def attention(visible: Tensor, infrared: Tensor) -> Tensor:
        return pooled_cross_attention(
            visible, infrared, cast_visible, cast_infrared, grid=grid, implementation="reference"
        )

    def fused_attention(name: str) -> Call:
        return lambda visible, infrared: attend_folded(
            visible, infrared, for_visible, for_infrared, grid=grid, implementation=name
        )

    least = cost.pool(config, pixels, element) + cost.fold(config) + cost.attend(config, pixels, element)
    yield _Operation(
        "attention", least, 2, dict.fromkeys(_LAYOUTS, attention), {name: fused_attention(name) for name in names}
    )

    weights = cfi.gate.prepared(dtype)
    if weights is not None:

        def blend(name: str) -> Call:
            return lambda c, visible, infrared: gated_blend(c, visible, infrared, weights, implementation=name)

        yield _Operation(
            "blend",
            cost.blend(config, pixels, element),
            3,
            dict.fromkeys(_LAYOUTS, blend("reference")),
            {name: blend(name) for name in names if name == "triton"},
        )

    yield _Operation(
        "integrator",
        cost.integrator(config, pixels, element),
        2,
        {
            layout: _integrator(network, "reference", precision, device).to(memory_format=memory_format)
            for layout, memory_format in _LAYOUTS.items()
        },
        {name: _integrator(network, name, precision, device) for name in names},
    )


def _feature_sets(channels: int, size: tuple[int, int], precision: str, device: str, seed: int) -> list[list[Tensor]]:
    """Sets of three maps (1, C, H, W), channels-last, distributed as after an activation."""
    bytes_of_set = 3 * channels * size[0] * size[1] * cost.BYTES[precision]
    beyond_cache = _beyond_cache() if device == "cuda" else 0
    count = min(_MOST_SETS, max(_FEWEST_SETS, -(-beyond_cache // bytes_of_set)))
    generator = torch.Generator(device).manual_seed(seed)
    sets = []
    for _ in range(count):
        maps = F.leaky_relu(torch.randn(3, channels, *size, generator=generator, device=device), NEGATIVE_SLOPE)
        sets.append([_laid_out(m[None].to(STORAGE[precision]), "channels_last") for m in maps])
    return sets


def _beyond_cache() -> int:
    """Bytes that leave nothing else in the cache of the CUDA device."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return _CACHE_TIMES * getattr(found, "L2_cache_size", 64 << 20)


def _laid_out(features: Tensor, layout: str) -> Tensor:
    return features.contiguous(memory_format=_LAYOUTS[layout])


# -- measuring ----------------------------------------------------------------------------------------------------


class _Calls:
    """A contender on the CPU: one call a frame."""

    def __init__(self, call: Call, sets: list[list[Tensor]], precision: str):
        self.call, self.sets, self.precision = call, sets, precision
        self.calls_in_a_frame = 1

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        with torch.no_grad():
            yield

    def run(self, index: int) -> None:
        self.call(*self.sets[index % len(self.sets)])


class _Captured(_Calls):
    """A contender on CUDA: a graph with one call for every set of tensors."""

    def __init__(self, call: Call, sets: list[list[Tensor]], precision: str):
        super().__init__(call, sets, precision)
        self.calls_in_a_frame = len(sets)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with self.settings():
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_RUNS):
                    call(*sets[0])
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self.outputs = [call(*features) for features in sets]  # kept: every call has memory of its own

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        with torch.no_grad(), float32_arithmetic(self.precision):
            # torch.compile reads the older switch, and torch refuses to read it where only the newer one was set.
            torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision("highest")

    def run(self, index: int) -> None:
        self.graph.replay()


def _clock_after_flush(cache: Tensor) -> Callable[[Callable[[], object]], float]:
    """Events on the stream after the cache was filled with something else, which also hides the launch behind it."""

    def clock(work: Callable[[], object]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        cache.zero_()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    return clock


def _measure(
    operation: _Operation,
    maps: list[list[Tensor]],
    precision: str,
    device: str,
    peaks: Peaks,
    frames: int,
    warm_up: int,
) -> tuple[list[dict], list[dict]]:
    refused: list[dict] = []
    sets = {
        layout: [[_laid_out(m, layout) for m in features[: operation.inputs]] for features in maps]
        for layout in _LAYOUTS
    }
    cache = torch.zeros(_beyond_cache(), dtype=torch.uint8, device=device) if device == "cuda" else None

    def contender(call: Call, layout: str) -> _Calls:
        if cache is None:
            return _Calls(call, sets[layout], precision)
        return _Captured(call, sets[layout], precision)

    clock = host_clock if cache is None else _clock_after_flush(cache)
    calls = {f"reference {layout}": (call, layout) for layout, call in operation.reference.items()}
    calls |= {name: (call, "channels_last") for name, call in operation.fused.items()}
    contenders: dict[str, _Calls] = {}

    def add(name: str, call: Call, layout: str) -> None:
        try:
            made = contender(call, layout)
            with made.settings():
                made.run(0)
        except Exception as error:  # compilers raise what they like; it is listed, and the others are measured
            _log.exception("%s by %s failed", operation.name, name)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
            about = {"operation": operation.name, "contender": name, "precision": precision}
            refused.append(about | {"kind": "failed", "reason": reason})
        else:
            contenders[name] = made

    for name, (call, layout) in calls.items():
        add(name, call, layout)
    references = {name: made for name, made in contenders.items() if name.startswith("reference")}
    if device == "cuda" and references:
        # Compiled is the layout in which the eager reference is the faster one.
        trial = take_turns(references, clock, frames=3, warm_up=1)
        call, layout = calls[min(trial, key=lambda name: min(trial[name]))]
        torch.compiler.reset()
        add(_COMPILED, torch.compile(call, dynamic=False), layout)
    samples = take_turns(contenders, clock, frames=frames, warm_up=warm_up)
    rows = []
    for name, values in samples.items():
        timing = Timing.of([value / contenders[name].calls_in_a_frame for value in values])
        rows.append(
            {
                "operation": operation.name,
                "contender": name,
                "precision": precision,
                "timing": dataclasses.asdict(timing),
                "roofline": peaks.roofline(operation.least, precision, timing.median_ms),
            }
        )
    medians = {row["contender"]: row["timing"]["median_ms"] for row in rows}
    eager = min((medians[name] for name in references), default=None)
    compiled = medians.get(_COMPILED)
    for row in rows:
        for key, opponent in (("speedup_vs_reference", eager), ("speedup_vs_compiled", compiled)):
            row[key] = None if opponent is None else opponent / row["timing"]["median_ms"]
    contenders.clear()
    references.clear()
    gc.collect()
    return rows, refused


def _kernels(
    network: nn.Module, size: tuple[int, int], maps: list[list[Tensor]], precision: str, device: str, peaks: Peaks
) -> list[dict]:
    """Times of the fused kernels themselves, as the device reports them, in the order in which a frame runs them."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    cfi = _integrator(network, "triton", precision, device)
    pixels, element = size[0] * size[1], cost.BYTES[precision]
    with torch.no_grad(), float32_arithmetic(precision):
        for _ in range(_WARM_UP_RUNS):
            cfi(*maps[0][:2])
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for index in range(max(_PROFILED_RUNS, len(maps))):
                cfi(*maps[index % len(maps)][:2])
            torch.cuda.synchronize()
    milliseconds: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and event.name in KERNELS:
            milliseconds.setdefault(event.name, []).append(1e-3 * event.time_range.elapsed_us())
    if not milliseconds:
        raise RuntimeError("it reported none of the fused kernels")
    least = {"pool": cost.pool, "attend": cost.attend, "blend": cost.blend}
    rows = []
    for kernel, values in milliseconds.items():
        timing = Timing.of(values)
        row = {
            "operation": f"kernel {kernel}",
            "contender": "triton",
            "precision": precision,
            "timing": dataclasses.asdict(timing),
        }
        if kernel != "finish_tokens_kernel":  # it touches next to no memory: there is no floor to compare with
            row["roofline"] = peaks.roofline(
                least[KERNELS[kernel]](network.config, pixels, element), precision, timing.median_ms
            )
        rows.append(row)
    return rows
