"""CUDA: pictures go up, are fused and come down on one stream, the work between as one graph a layout."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from isfl_ros.backends.choice import Plan
from isfl_ros.backends.device_frame import DeviceFrame
from isfl_ros.backends.frame import FusedFrame, Layout, RawFrame
from isfl_ros.backends.recently_used import RecentlyUsed

GRAPHS_KEPT = 4
"""Layouts (picture sizes and the map of a registration) whose graphs are kept; the one unused for longest goes first."""
_WARM_UP_RUNS = 3  # before capture: libraries choose their algorithms, kernels are compiled, memory is found


@contextlib.contextmanager
def float32_arithmetic(precision: str, *, search: bool = True) -> Iterator[None]:
    """Whether float32 products, of torch and of the fused kernels, may be rounded to TF32: only for precision ``tf32``.

    With ``search``, cuDNN also tries its algorithms for each new shape and keeps the fastest. The switches are global to the
    process; they are put back afterwards.
    """
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    benchmark = torch.backends.cudnn.benchmark
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cudnn.benchmark = search
        yield
    finally:
        for switch, setting in zip(switches, before):
            switch.fp32_precision = setting
        torch.backends.cudnn.benchmark = benchmark


@dataclass(frozen=True)
class _Captured:
    frame: DeviceFrame
    graph: torch.cuda.CUDAGraph


class CudaBackend:
    """A network on the current CUDA device.

    Args:
        network: of :func:`~isfl_ros.network.model.for_inference`, on CUDA.
        plan: its precision is that of the network.

    Raises:
        RuntimeError: from :meth:`fuse`, of torch or Triton, when the device is full, lost, or cannot run a kernel.
    """

    def __init__(self, network: nn.Module, plan: Plan):
        self.plan = plan
        self.trouble: str | None = None
        self._network: nn.Module | None = network
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self._device)
        # Graphs are replayed one after the other and their results leave them at once: one working set serves them all.
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: RecentlyUsed[Layout, _Captured] = RecentlyUsed(GRAPHS_KEPT, self._capture)

    @torch.inference_mode()  # also where the caller's first picture is in that mode and the second is not
    def fuse(self, frame: RawFrame, *, gate: bool) -> FusedFrame:
        """See :class:`~isfl_ros.backends.frame.Backend`. Warping and colour arithmetic count as ``network``."""
        captured = self._captured[frame.layout]
        start = time.perf_counter()
        captured.frame.stage(frame)
        staged = time.perf_counter()
        with torch.cuda.stream(self._stream):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
            marks[0].record()
            captured.frame.upload()
            marks[1].record()
            captured.graph.replay()
            marks[2].record()
            captured.frame.download(gate=gate)
            marks[3].record()
        self._stream.synchronize()
        fetched = time.perf_counter()
        luma, rgb, mean = captured.frame.result(gate=gate)
        copied = time.perf_counter()
        upload, network, download = (a.elapsed_time(b) for a, b in zip(marks, marks[1:]))
        return FusedFrame(
            luma=luma,
            rgb=rgb,
            gate=mean,
            stages_ms={
                "preprocess": 1e3 * (staged - start) + upload,
                "network": network,
                "postprocess": download + 1e3 * (copied - fetched),
            },
            device="cuda",
        )

    def _capture(self, layout: Layout) -> _Captured:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        # A capture that fails does not put the stream back: this does.
        with torch.cuda.stream(self._stream), float32_arithmetic(self.plan.precision):
            frame = DeviceFrame(self._network, layout, device=self._device)
            for _ in range(_WARM_UP_RUNS):
                frame.compute()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread of the process that frees memory must not break the capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                frame.compute()
        return _Captured(frame, graph)

    def close(self) -> None:
        """See :class:`~isfl_ros.backends.frame.Backend`."""
        self._captured.clear()
        self._network = None
        torch.cuda.empty_cache()
