"""The seam of the package: numpy pictures in, numpy pictures and gates out. Node, command line and evaluation use it."""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from isfl_ros import __version__
from isfl_ros.backends import make_backend
from isfl_ros.backends.choice import IMPLEMENTATION_CHOICES, PRECISION_CHOICES, choose
from isfl_ros.backends.frame import Backend, RawFrame
from isfl_ros.device import DEVICES
from isfl_ros.errors import InputError
from isfl_ros.images import GainControl, GainControlConfig, join_chroma, normalise, to_uint8
from isfl_ros.network.checkpoint import load_model
from isfl_ros.network.config import MINIMUM_SIZE
from isfl_ros.resources import resolve_model

@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What runs where. Defaults of the node's parameters are taken from here."""

    model: str = "isfl"
    """A model folder, or the name of a shipped model."""
    device: str = DEVICES[0]
    """``auto``, ``cpu`` or ``cuda``."""
    implementation: str = IMPLEMENTATION_CHOICES[0]
    """Who computes the network: ``auto``, or by name ``reference``, ``folded``, ``triton`` (CUDA), ``openvino`` (CPU)."""
    precision: str = PRECISION_CHOICES[0]
    """``auto``, ``fp32``, ``tf32``, ``fp16`` or ``bf16``."""
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
    valid_fraction: dict[str, float]
    """Part of valid pixels, 0 to 1, of ``thermal`` and ``rgb``."""
    stages_ms: dict[str, float]
    """Milliseconds of ``preprocess``, ``network`` and ``postprocess``."""
    device: str
    """``cpu`` or ``cuda``: where this picture was fused."""
    frame: RawFrame = field(repr=False)
    """What was fused."""

    @functools.cached_property
    def thermal8(self) -> np.ndarray:
        """(H, W) uint8 thermal picture after gain control, as the network saw it; made when first asked for."""
        frame = self.frame
        if frame.thermal is None:
            return np.zeros(frame.size, np.uint8)
        return to_uint8(normalise(frame.thermal, frame.black, frame.white, valid=frame.thermal_valid))

    @functools.cached_property
    def visible8(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB visible picture as it came in; black when the modality is missing."""
        rgb = self.frame.rgb
        if rgb is None:
            return np.zeros((*self.frame.size, 3), np.uint8)
        return rgb if rgb.ndim == 3 else join_chroma(rgb, None)


class FusionPipeline:
    """Loads a model once and fuses pairs. Not thread-safe: one caller at a time.

    The thread that makes it, and every one that calls :meth:`fuse` on the CPU, has denormal numbers flushed to zero from
    then on: they add nothing to a picture and cost many times the cycles. Helper threads that torch started before keep
    their own setting.

    When CUDA fails, the CPU finishes the picture and goes on (:class:`~isfl_ros.backends.fallback.FallbackBackend`);
    ``description`` and each result's ``device`` say so.

    Raises:
        InputError: on construction, when model, device, implementation or precision is unknown, unreadable or impossible.
    """

    def __init__(self, config: PipelineConfig):
        self.config = config
        if config.threads < 0:
            raise InputError("threads out of range", expected="0 (torch's choice) or more", got=str(config.threads))
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.set_flush_denormal(True)  # helper threads take it over when they are made
        network, self.info = load_model(resolve_model(config.model))
        plan = choose(config.device, config.implementation, config.precision, network)
        self._gain = GainControl(config.gain)
        self.has_gates: bool = network.has_gates
        self._backend: Backend | None = make_backend(plan, network)
        self._about = {
            "model": self.info.name,
            "architecture": self.info.architecture,
            "recipe": self.info.recipe,
            "gates": "yes" if self.has_gates else "no",
            **self._backend.plan.as_text(),
            "threads": str(torch.get_num_threads()),
            "isfl_ros": __version__,
            "torch": torch.__version__,
            "opencv": cv2.__version__,
        }

    @property
    def description(self) -> dict[str, str]:
        """What runs where and why, for people. It changes when a device fails or comes back."""
        return self._about if self._backend is None else self._about | self._backend.plan.as_text()

    @property
    def trouble(self) -> str | None:
        """Why pictures are not fused where they should be, in words; None while all is well."""
        return None if self._backend is None else self._backend.trouble

    def set_gain(self, gain: GainControlConfig) -> None:
        """Changes the gain control from the next picture on."""
        self._gain = GainControl(gain)

    def warm_up(self, height: int, width: int) -> None:
        """Runs two frames of a size, with and without gates, so that the first real one finds memory and primitives ready."""
        self._run_blank(height, width, 1, gate=False)
        self._run_blank(height, width, 1, gate=True)

    def measure(self, height: int, width: int, frames: int = 5) -> float:
        """Median seconds of a frame of a size, gates included, after one that is not counted."""
        return statistics.median(self._run_blank(height, width, frames + 1, gate=True)[1:])

    def close(self) -> None:
        """Frees the network and, on CUDA, its memory. The pipeline cannot be used afterwards."""
        if self._backend is not None:
            self._backend.close()
        self._backend = None

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
            gate: whether the gate is wanted. When it is not, it costs nothing on the CPU; on CUDA it is part of the graph and
                only its download is saved.
            stamp_s: time of the picture in seconds, for smoothed gain control.

        Raises:
            InputError: both are missing, sizes differ or are below 32 pixels, or a kind is unsupported.
        """
        if self._backend is None:
            raise InputError("the pipeline is closed", do="make a new one")
        start = time.perf_counter()
        check_pair(thermal, rgb, thermal_valid, rgb_valid)
        black, white = 0.0, 255.0
        if thermal is not None:
            black, white, thermal_valid = self._gain.limits(thermal, valid=thermal_valid, stamp_s=stamp_s)
        frame = RawFrame(
            thermal=thermal,
            black=black,
            white=white,
            thermal_valid=None if thermal is None else thermal_valid,
            rgb=rgb,
            rgb_valid=None if rgb is None else rgb_valid,
        )
        gained = time.perf_counter()
        fused = self._backend.fuse(frame, gate=gate)
        stages = dict(fused.stages_ms)
        # What no stage claims (a size that is compiled or captured, a device that is tried again) counts as preparation.
        elapsed = 1e3 * (time.perf_counter() - gained)
        stages["preprocess"] += 1e3 * (gained - start) + max(0.0, elapsed - sum(stages.values()))
        return FusionResult(
            luma=fused.luma,
            rgb=fused.rgb,
            gate=fused.gate,
            valid=_valid_somewhere(frame),
            valid_fraction={
                "thermal": _fraction(frame.thermal, frame.thermal_valid),
                "rgb": _fraction(frame.rgb, frame.rgb_valid),
            },
            stages_ms=stages,
            device=fused.device,
            frame=frame,
        )

    def _run_blank(self, height: int, width: int, frames: int, *, gate: bool) -> list[float]:
        thermal = np.full((height, width), 90, np.uint8)
        rgb = np.full((height, width, 3), 60, np.uint8)
        seconds = []
        for _ in range(frames):
            start = time.perf_counter()
            self.fuse(thermal, rgb, gate=gate)
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
        kinds = {"thermal": (np.uint8, np.uint16, np.float32), "rgb": (np.uint8,)}.get(name, (np.bool_,))
        if picture.dtype not in kinds or (name == "rgb" and picture.ndim == 3 and picture.shape[2] != 3):
            raise InputError(
                f"{name} of unsupported kind",
                expected=" or ".join(np.dtype(kind).name for kind in kinds) + (", 3 channels or none" if name == "rgb" else ""),
                got=f"{picture.shape} {picture.dtype}",
            )
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


def _fraction(picture: np.ndarray | None, valid: np.ndarray | None) -> float:
    if picture is None:
        return 0.0
    return 1.0 if valid is None else float(valid.mean())


def _valid_somewhere(frame: RawFrame) -> np.ndarray | None:
    """(H, W) bool, where at least one modality is valid; None: everywhere."""
    masks = [
        valid
        for picture, valid in ((frame.thermal, frame.thermal_valid), (frame.rgb, frame.rgb_valid))
        if picture is not None
    ]
    if any(mask is None for mask in masks):
        return None
    return np.logical_or.reduce(masks)
