"""CUDA: pictures go up, are fused and come down on one stream, the work between as one graph a size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from isfl_ros.backends.device_frame import DeviceFrame
from isfl_ros.backends.frame import FusedFrame, RawFrame
from isfl_ros.backends.recently_used import RecentlyUsed

GRAPHS_KEPT = 4
"""Kinds of pictures (size, thermal depth, gate or not) whose graphs are kept; the one not used for longest goes first."""
_WARM_UP_RUNS = 3  # before capture: libraries choose their algorithms, kernels are compiled, memory is found


@contextlib.contextmanager
def float32_arithmetic(precision: str) -> Iterator[None]:
    """Whether float32 products, of torch and of the fused kernels, may be rounded to TF32: only for precision ``tf32``.

    The switches are global to the process; they are put back afterwards.
    """
    allow = precision == "tf32"
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    matmul.allow_tf32 = allow
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=allow):
            yield
    finally:
        matmul.allow_tf32 = before


@dataclass(frozen=True)
class _Captured:
    frame: DeviceFrame
    graph: torch.cuda.CUDAGraph


class CudaBackend:
    """A network on the current CUDA device.

    Args:
        network: of :func:`~isfl_ros.network.model.for_inference`, on CUDA.
        precision: ``fp32``, ``tf32``, ``fp16`` or ``bf16``, that of the network.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError: from :meth:`fuse`, when the device is full or lost.
    """

    def __init__(self, network: nn.Module, *, precision: str):
        self.trouble: str | None = None
        self._network: nn.Module | None = network
        self._precision = precision
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self._device)
        self._captured: RecentlyUsed[tuple[tuple[int, int], np.dtype, bool], _Captured] = RecentlyUsed(
            GRAPHS_KEPT, self._capture
        )

    def fuse(self, frame: RawFrame, *, gate: bool) -> FusedFrame:
        """See :class:`~isfl_ros.backends.frame.Backend`. Colour arithmetic on the device counts as ``network``."""
        bits = np.dtype(np.uint8) if frame.thermal is None else frame.thermal.dtype
        gate = gate and self._network.has_gates
        captured = self._captured[frame.size, bits, gate]
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
            captured.frame.download()
            marks[3].record()
        self._stream.synchronize()
        fetched = time.perf_counter()
        luma, rgb, mean = captured.frame.result()
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

    def _capture(self, key: tuple[tuple[int, int], np.dtype, bool]) -> _Captured:
        size, bits, gate = key
        frame = DeviceFrame(self._network, size, bits, gate=gate, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), float32_arithmetic(self._precision):
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UP_RUNS):
                    frame.compute()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                frame.compute()
        return _Captured(frame, graph)

    def close(self) -> None:
        """See :class:`~isfl_ros.backends.frame.Backend`."""
        self._captured.clear()
        self._network = None
        torch.cuda.empty_cache()
