"""The seam of the package: numpy pictures in, numpy pictures and gates out. Node, command line and evaluation use it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from isfl_ros import __version__
from isfl_ros.device import DEVICES, choose_device
from isfl_ros.errors import InputError
from isfl_ros.images import GainControl, GainControlConfig, join_chroma, split_luma, to_uint8
from isfl_ros.network.checkpoint import load_model
from isfl_ros.network.config import MINIMUM_SIZE
from isfl_ros.network.model import for_inference, mean_gate
from isfl_ros.ops.pooled_cross_attention import IMPLEMENTATIONS, choose_implementation
from isfl_ros.resources import resolve_model

ATTENTION_CHOICES = ("auto", *IMPLEMENTATIONS)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What runs where. Defaults of the node's parameters are taken from here."""

    model: str = "isfl"
    """A model folder, or the name of a shipped model."""
    device: str = DEVICES[0]
    """``auto``, ``cpu`` or ``cuda``."""
    attention: str = ATTENTION_CHOICES[0]
    """Implementation of the pooled cross-attention: ``auto`` or one by name."""
    threads: int = 0
    """CPU threads of torch, for the whole process; 0 leaves torch's choice."""
    gain: GainControlConfig = field(default_factory=GainControlConfig)
    """Gain control of thermal pictures deeper than 8 bits."""


@dataclass(frozen=True)
class FusionResult:
    """One fused picture and what a consumer needs to trust it. H and W are those of the inputs."""

    luma: np.ndarray
    """(H, W) uint8 fused luma; 0 where neither modality is valid."""
    rgb: np.ndarray
    """(H, W, 3) uint8 RGB: fused luma with the visible picture's chroma."""
    gate: np.ndarray | None
    """(H, W) float32 in [0, 1], mean gate of the scales; None when not asked for or the model has none."""
    valid: np.ndarray | None
    """(H, W) bool, where at least one modality is valid; None: everywhere."""
    thermal8: np.ndarray
    """(H, W) uint8 thermal picture after gain control, as the network saw it."""
    visible8: np.ndarray
    """(H, W, 3) uint8 RGB visible picture as it came in; black when the modality is missing."""
    valid_fraction: dict[str, float]
    """Part of valid pixels, 0 to 1, of ``thermal`` and ``rgb``."""
    stages_ms: dict[str, float]
    """Milliseconds of ``preprocess``, ``network`` and ``postprocess``."""


class FusionPipeline:
    """Loads a model once and fuses pairs. Not thread-safe: one caller at a time.

    A thread that calls :meth:`fuse` has denormal numbers flushed to zero from then on: they add nothing to a picture and
    cost a CPU many times the cycles.

    Raises:
        InputError: on construction, when model, device or implementation is unknown or unreadable.
    """

    def __init__(self, config: PipelineConfig):
        self.config = config
        if config.threads < 0:
            raise InputError("threads out of range", expected="0 (torch's choice) or more", got=str(config.threads))
        if config.threads:
            torch.set_num_threads(config.threads)
        directory = resolve_model(config.model)
        network, self.info = load_model(directory)
        device = choose_device(config.device)
        attention = choose_implementation(config.attention, device.device)
        self._device = torch.device(device.device)
        self._network = for_inference(network).to(self._device)
        self._network.set_attention(attention.implementation)
        self._gain = GainControl(config.gain)
        self.has_gates: bool = network.has_gates
        self.description: dict[str, str] = {
            "model": self.info.name,
            "architecture": self.info.architecture,
            "recipe": self.info.recipe,
            "gates": "yes" if self.has_gates else "no",
            "device": device.device,
            "device_reason": device.reason,
            "attention": attention.implementation,
            "attention_reason": attention.reason,
            "precision": "fp32",
            "threads": str(torch.get_num_threads()),
            "isfl_ros": __version__,
            "torch": torch.__version__,
            "opencv": cv2.__version__,
        }

    def set_gain(self, gain: GainControlConfig) -> None:
        """Changes the gain control from the next picture on."""
        self._gain = GainControl(gain)

    def warm_up(self, height: int, width: int) -> None:
        """Runs two frames of a size, so that the first real one finds memory and primitives ready."""
        self._run_blank(height, width, 2)

    def measure(self, height: int, width: int, frames: int = 5) -> float:
        """Median seconds of a frame of a size, gates included, after one that is not counted."""
        return statistics.median(self._run_blank(height, width, frames + 1)[1:])

    def close(self) -> None:
        """Frees the network and, on CUDA, its memory. The pipeline cannot be used afterwards."""
        self._network = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def fuse(
        self,
        thermal: np.ndarray | None,
        rgb: np.ndarray | None,
        *,
        thermal_valid: np.ndarray | None = None,
        rgb_valid: np.ndarray | None = None,
        gate: bool = False,
        stamp_s: float | None = None,
    ) -> FusionResult:
        """Fuses one registered pair.

        Args:
            thermal: (H, W) uint8, uint16 or float32; None when the modality is missing.
            rgb: (H, W, 3) uint8 RGB or (H, W) uint8 grey; None when the modality is missing.
            thermal_valid, rgb_valid: (H, W) bool, True where a pixel can be used; None: everywhere.
            gate: whether the gate is wanted; it costs nothing when it is not.
            stamp_s: time of the picture in seconds, for smoothed gain control.

        Raises:
            InputError: both are missing, sizes differ or are below 32 pixels, or a kind is unsupported.
        """
        if self._network is None:
            raise InputError("the pipeline is closed", do="make a new one")
        start = time.perf_counter()
        torch.set_flush_denormal(True)  # a property of the calling thread
        shape = check_pair(thermal, rgb, thermal_valid, rgb_valid)
        if thermal is None:
            infrared, thermal_valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
        else:
            infrared, thermal_valid = self._gain.apply(thermal, valid=thermal_valid, stamp_s=stamp_s)
        if rgb is None:
            luma, chroma, rgb_valid = np.zeros(shape, np.uint8), None, np.zeros(shape, bool)
        else:
            luma, chroma = split_luma(rgb)
        visible = luma.astype(np.float32) * np.float32(1.0 / 255.0)
        prepared = time.perf_counter()

        with torch.inference_mode():
            fused, gates = self._network(
                self._tensor(visible),
                self._tensor(infrared),
                valid_visible=self._tensor(rgb_valid),
                valid_infrared=self._tensor(thermal_valid),
                return_gates=True,
            )
            gate_picture = None
            if gate and gates:
                gate_picture = mean_gate(gates, shape)[0, 0].cpu().numpy()
            fused_picture = fused[0, 0].cpu().numpy()
        computed = time.perf_counter()

        valid = None
        if thermal_valid is not None and rgb_valid is not None:
            valid = thermal_valid | rgb_valid
        fused_luma = to_uint8(fused_picture)
        if valid is not None:
            fused_luma[~valid] = 0
        result_rgb = join_chroma(fused_luma, chroma, valid=rgb_valid)
        thermal8, visible8 = to_uint8(infrared), join_chroma(luma, None) if chroma is None else rgb
        done = time.perf_counter()
        return FusionResult(
            luma=fused_luma,
            rgb=result_rgb,
            gate=gate_picture,
            valid=valid,
            thermal8=thermal8,
            visible8=visible8,
            valid_fraction={"thermal": _fraction(thermal_valid), "rgb": _fraction(rgb_valid)},
            stages_ms={
                "preprocess": 1e3 * (prepared - start),
                "network": 1e3 * (computed - prepared),
                "postprocess": 1e3 * (done - computed),
            },
        )

    def _tensor(self, picture: np.ndarray | None) -> torch.Tensor | None:
        if picture is None:
            return None
        return torch.from_numpy(np.ascontiguousarray(picture))[None, None].to(self._device)

    def _run_blank(self, height: int, width: int, frames: int) -> list[float]:
        thermal = np.full((height, width), 90, np.uint8)
        rgb = np.full((height, width, 3), 60, np.uint8)
        seconds = []
        for _ in range(frames):
            start = time.perf_counter()
            self.fuse(thermal, rgb, gate=True)
            seconds.append(time.perf_counter() - start)
        return seconds


def check_pair(
    thermal: np.ndarray | None,
    rgb: np.ndarray | None,
    thermal_valid: np.ndarray | None = None,
    rgb_valid: np.ndarray | None = None,
) -> tuple[int, int]:
    """Height and width of what :meth:`FusionPipeline.fuse` is given.

    Raises:
        InputError: both pictures are missing, sizes differ or are below 32 pixels, or a mask is of another kind.
    """
    named = {"thermal": thermal, "rgb": rgb, "thermal_valid": thermal_valid, "rgb_valid": rgb_valid}
    given = {name: picture for name, picture in named.items() if picture is not None}
    if thermal is None and rgb is None:
        raise InputError("both modalities are missing", expected="at least one picture")
    for name, picture in given.items():
        if picture.ndim not in ((2, 3) if name == "rgb" else (2,)):
            raise InputError(f"{name} of unsupported kind", expected="(H, W), or (H, W, 3) for rgb", got=str(picture.shape))
        if name.endswith("valid") and picture.dtype != np.bool_:
            raise InputError(f"{name} of unsupported kind", expected="bool", got=str(picture.dtype))
    sizes = {name: picture.shape[:2] for name, picture in given.items()}
    if len(set(sizes.values())) != 1:
        raise InputError(
            "sizes differ",
            expected="one size (registration comes first)",
            got=", ".join(f"{name} {w}x{h}" for name, (h, w) in sizes.items()),
        )
    height, width = next(iter(sizes.values()))
    if min(height, width) < MINIMUM_SIZE:
        raise InputError("picture too small", expected=f"width and height >= {MINIMUM_SIZE}", got=f"{width}x{height}")
    return height, width


def _fraction(valid: np.ndarray | None) -> float:
    return 1.0 if valid is None else float(valid.mean())
