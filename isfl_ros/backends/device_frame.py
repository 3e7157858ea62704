"""Preprocessing, network and postprocessing of one layout as torch operations over fixed memory.

Everything a picture needs goes to the device in one copy and comes back in one. Nothing is allocated by the caller and no
operation depends on the content of a picture, so the whole of :meth:`DeviceFrame.compute` can be captured as a CUDA graph.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from isfl_ros.backends.frame import Layout, RawFrame
from isfl_ros.images import luma_tensor, normalise_tensor, per_unit, recolour_tensor, to_uint8_tensor
from isfl_ros.network.model import mean_gate
from isfl_ros.registration import warp_tensor

_ALIGNMENT = 256  # bytes, of every array in the shared memory: wide loads want it

class _Arena:
    """Several arrays in one piece of host memory and one of device memory, so that one copy moves them all."""

    def __init__(self, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device):
        spans, end = {}, 0
        for name, (shape, dtype) in shapes.items():
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + int(np.prod(shape)) * dtype.itemsize
            spans[name] = (start, end, shape, dtype)
        # Pinned memory is what a device can read while the CPU goes on.
        self.host = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.device = torch.zeros(end, dtype=torch.uint8, device=device)
        self._spans = spans

    def on_host(self, name: str) -> np.ndarray:
        start, end, shape, dtype = self._spans[name]
        return self.host[start:end].view(dtype).reshape(shape).numpy()

    def on_device(self, name: str) -> Tensor:
        start, end, shape, dtype = self._spans[name]
        return self.device[start:end].view(dtype).reshape(shape)

    def upload(self) -> None:
        self.device.copy_(self.host, non_blocking=True)

    def download(self) -> None:
        self.host.copy_(self.device, non_blocking=True)


class DeviceFrame:
    """Memory and program of one layout: a picture size and, where one picture is warped, its map.

    Args:
        network: of :func:`~isfl_ros.network.model.for_inference`, on ``device``.
        layout: of the frames that it is for.
        device: where it runs.

    One program serves thermal pictures of every depth, with and without the gate: a camera that dies, or a viewer that
    joins, must not cost a capture. The mean gate is always computed, and comes down only when it is asked for.

    Order of use: :meth:`stage`, :meth:`upload`, :meth:`compute`, :meth:`download`, and after the device is done
    :meth:`result`.
    """

    def __init__(self, network: nn.Module, layout: Layout, *, device: torch.device):
        self._network = network
        self._layout = layout
        self._grid = None if layout.grid is None else layout.grid.tensors(device)
        size, rgb, thermal = layout.size, layout.shape("rgb"), layout.shape("thermal")
        self._inputs = _Arena(
            {
                "rgb": ((*rgb, 3), torch.uint8),
                "thermal": (thermal, torch.float32),
                "range": ((2,), torch.float32),  # black, factor of normalise
            },
            device,
        )
        self._masks = _Arena({"rgb_valid": (rgb, torch.bool), "thermal_valid": (thermal, torch.bool)}, device)
        self._masks_on_device: tuple[bool, bool] | None = None  # whole values of both masks; None: pixel by pixel, or unknown
        self._masks_changed = True
        self._outputs = _Arena({"rgb": ((*size, 3), torch.uint8), "luma": (size, torch.uint8)}, device)
        self._gate = _Arena({"gate": (size, torch.float32)}, device) if network.shows else None

    def stage(self, frame: RawFrame) -> None:
        """Copies a pair into the memory from which it is uploaded. The device must be done with the pair before."""
        rgb, thermal, limits = (self._inputs.on_host(name) for name in ("rgb", "thermal", "range"))
        if frame.rgb is None:
            rgb[:] = 0
        else:  # grey becomes R = G = B, whose luma is the grey value and whose chroma is neutral
            np.copyto(rgb, frame.rgb if frame.rgb.ndim == 3 else frame.rgb[:, :, None], casting="no")
        if frame.thermal is None:
            thermal[:] = 0
            limits[:] = 0.0, 1.0
        else:
            np.copyto(thermal, frame.thermal, casting="safe")
            limits[:] = frame.black, per_unit(frame.black, frame.white)
        self._stage_masks(frame)

    def _stage_masks(self, frame: RawFrame) -> None:
        pairs = (("rgb_valid", frame.rgb, frame.rgb_valid), ("thermal_valid", frame.thermal, frame.thermal_valid))
        whole = tuple(picture is not None for _, picture, _ in pairs)
        if all(valid is None or picture is None for _, picture, valid in pairs):
            self._masks_changed = self._masks_on_device != whole
            self._masks_on_device = whole
            if not self._masks_changed:
                return
        else:
            self._masks_changed, self._masks_on_device = True, None
        for name, picture, valid in pairs:
            self._masks.on_host(name)[:] = False if picture is None else True if valid is None else valid

    def upload(self) -> None:
        """Queues the copies to the device; masks only where they differ from what is there."""
        self._inputs.upload()
        if self._masks_changed:
            self._masks.upload()

    def compute(self) -> None:
        """Queues the work, from the device's inputs to the device's outputs."""
        rgb, thermal, limits = (self._inputs.on_device(name) for name in ("rgb", "thermal", "range"))
        rgb_valid, thermal_valid = (self._masks.on_device(name) for name in ("rgb_valid", "thermal_valid"))
        infrared = normalise_tensor(thermal, limits[0], limits[1], thermal_valid)
        if self._layout.warped == "thermal":
            infrared, thermal_valid = warp_tensor(infrared, self._grid, valid=thermal_valid)
        elif self._layout.warped == "rgb":
            rgb, rgb_valid = warp_tensor(rgb, self._grid, valid=rgb_valid)
        luma = luma_tensor(rgb)
        visible = luma.to(torch.float32) * (1.0 / 255.0)
        masks = {"valid_visible": rgb_valid[None, None], "valid_infrared": thermal_valid[None, None]}
        fused, gates = self._network(visible[None, None], infrared[None, None], return_gates=True, **masks)
        fused_luma = to_uint8_tensor(fused[0, 0].float())
        fused_luma = torch.where(rgb_valid | thermal_valid, fused_luma, torch.zeros_like(fused_luma))
        self._outputs.on_device("luma").copy_(fused_luma)
        self._outputs.on_device("rgb").copy_(recolour_tensor(fused_luma, rgb, luma, rgb_valid))
        if self._gate is not None:
            self._gate.on_device("gate").copy_(mean_gate(gates, self._layout.size)[0, 0])

    def download(self, *, gate: bool) -> None:
        """Queues the copy back, with the mean gate where it is asked for and there is one."""
        self._outputs.download()
        if gate and self._gate is not None:
            self._gate.download()

    def result(self, *, gate: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Luma (H, W) uint8, RGB (H, W, 3) uint8 and gate (H, W) float32: copies, which the next pair leaves alone."""
        luma, rgb = (self._outputs.on_host(name).copy() for name in ("luma", "rgb"))
        return luma, rgb, self._gate.on_host("gate").copy() if gate and self._gate is not None else None
