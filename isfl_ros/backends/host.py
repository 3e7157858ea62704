"""The CPU: numpy pictures around a network that runs in torch or in OpenVINO."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from isfl_ros.backends.choice import Plan
from isfl_ros.backends.frame import FusedFrame, RawFrame
from isfl_ros.images import join_chroma, normalise, split_luma, to_uint8
from isfl_ros.network.model import mean_gate


Masks = tuple[np.ndarray | None, np.ndarray | None]
"""Where the visible and the thermal picture are valid: (H, W) bool each, or None for everywhere."""

Network = Callable[[np.ndarray, np.ndarray, Masks, bool], tuple[np.ndarray, np.ndarray | None]]
"""(visible, infrared, valid, gate): float32 (H, W) in [0, 1], exactly 0 where invalid; gives fused luma and the mean of the
maps that the network ``shows``, float32 (H, W).
"""


class HostBackend:
    """Pictures in numpy, colour in OpenCV.

    A thread that calls :meth:`fuse` has denormal numbers flushed to zero from then on: they add nothing to a picture and
    cost a CPU many times the cycles.
    """

    def __init__(self, network: Network, plan: Plan):
        self.plan = plan
        self.trouble: str | None = None
        self._network: Network | None = network

    def fuse(self, frame: RawFrame, *, gate: bool) -> FusedFrame:
        """See :class:`~isfl_ros.backends.frame.Backend`."""
        start = time.perf_counter()
        torch.set_flush_denormal(True)  # a property of the calling thread
        infrared = frame.infrared
        if frame.visible is None:
            luma, chroma = np.zeros(frame.size, np.uint8), None
        else:
            luma, chroma = split_luma(frame.visible)
        # A warped picture is 0 where it is invalid: it has neither luma nor chroma there.
        rgb_valid = None if frame.warped == "rgb" else frame.rgb_valid
        visible = normalise(luma, 0.0, 255.0, valid=rgb_valid)
        prepared = time.perf_counter()
        valid = frame.valid_of("rgb"), frame.valid_of("thermal")
        fused, mean = self._network(visible, infrared, valid, gate)
        computed = time.perf_counter()
        fused_luma = to_uint8(fused)
        if frame.valid is not None:
            fused_luma[~frame.valid] = 0
        rgb = join_chroma(fused_luma, chroma, valid=rgb_valid)
        done = time.perf_counter()
        return FusedFrame(
            luma=fused_luma,
            rgb=rgb,
            gate=mean,
            stages_ms={
                "preprocess": 1e3 * (prepared - start),
                "network": 1e3 * (computed - prepared),
                "postprocess": 1e3 * (done - computed),
            },
            device="cpu",
        )

    def close(self) -> None:
        """See :class:`~isfl_ros.backends.frame.Backend`."""
        self._network = None


class TorchNetwork:
    """A network of :func:`~isfl_ros.network.model.for_inference`, on the CPU in float32."""

    def __init__(self, network: nn.Module):
        self._network = network

    def __call__(
        self, visible: np.ndarray, infrared: np.ndarray, valid: Masks, gate: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See :data:`Network`."""
        seen, sensed = (None if mask is None else _tensor(mask) for mask in valid)
        masks = {"valid_visible": seen, "valid_infrared": sensed}
        with torch.inference_mode():
            if gate:
                fused, maps = self._network(_tensor(visible), _tensor(infrared), return_gates=True, **masks)
            else:
                fused, maps = self._network(_tensor(visible), _tensor(infrared), **masks), []
            mean = mean_gate(maps, visible.shape)[0, 0].numpy() if maps else None
        return fused[0, 0].numpy(), mean


def _tensor(picture: np.ndarray) -> torch.Tensor:
    # A registration's masks are to be read only, which torch cannot promise: such an array is copied.
    return torch.from_numpy(np.require(picture, requirements=("C", "W")))[None, None]
