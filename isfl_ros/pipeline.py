"""The seam of the package: numpy pictures in, numpy pictures and gates out. Node, command line and evaluation use it."""

from __future__ import annotations

import functools
import gc
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
from isfl_ros.images import GainControl, GainControlConfig, join_chroma, to_uint8
from isfl_ros.network.checkpoint import load_model
from isfl_ros.network.config import MINIMUM_SIZE
from isfl_ros.registration import REFERENCES, Alignment, Grid, Registration
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
    """One fused picture and what a consumer needs to trust it. All is in the reference frame: H and W are those of the
    reference camera's picture, of both inputs where no registration is set.
    """

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
    entropy: np.ndarray | None = None
    """(H, W) float32 in [0, 1] of a model without gates that has prototypes of scenes (BAFFM): entropy of its weights
    over them, 1 where none stands out; None when the gate was not asked for, or with any other model."""

    @functools.cached_property
    def thermal8(self) -> np.ndarray:
        """(H, W) uint8 thermal picture after gain control, as the network saw it; made when first asked for."""
        return to_uint8(self.frame.infrared)

    @functools.cached_property
    def visible8(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB visible picture that was fused, black where there is none; made when first asked for."""
        visible = self.frame.visible
        if visible is None:
            return np.zeros((*self.frame.size, 3), np.uint8)
        return visible if visible.ndim == 3 else join_chroma(visible, None)


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
        self._alignment = Alignment()
        self._shows: str | None = network.shows
        self.has_gates: bool = network.has_gates
        self._backend: Backend | None = make_backend(plan, network)
        self._about = {
            "model": self.info.name,
            "architecture": self.info.architecture,
            "recipe": self.info.recipe,
            "gates": "yes" if self.has_gates else "no",
            **({"in_place_of_the_gate": "entropy of the weights of the scenes"} if self._shows == "entropy" else {}),
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

    def set_registration(self, registration: Registration | None, *, reference: str = REFERENCES[0]) -> None:
        """From the next picture on, the other camera's picture is warped into the frame of the reference camera.

        A map for new sizes (up to 0.1 s, and a capture on CUDA) is made by the first picture that needs it, or by
        :meth:`warm_up`. A modality that is missing has the size that it had last, else the one calibrated for.

        Args:
            registration: None, or of mode ``none``: pictures must have one size.
            reference: ``rgb`` or ``thermal``.

        Raises:
            InputError: ``reference`` is unknown.
        """
        self._alignment = Alignment(registration, reference=reference)

    def warm_up(self, height: int, width: int, *, other: tuple[int, int] | None = None) -> None:
        """Runs two frames, with and without gates, so that the first real one finds memory, maps and primitives ready.

        Args:
            height, width: of the reference camera's pictures (of both, where no registration is set).
            other: (H, W) of the other camera's pictures; None: those that the registration is for.

        Raises:
            InputError: the sizes do not fit the registration, or as :meth:`fuse`.
        """
        self._run_blank(height, width, 1, gate=False, other=other)
        self._run_blank(height, width, 1, gate=True, other=other)

    def measure(self, height: int, width: int, frames: int = 5) -> float:
        """Median seconds of a frame of a size, gates included, after one that does not count; sizes as :meth:`warm_up`."""
        return statistics.median(self._run_blank(height, width, frames + 1, gate=True)[1:])

    def close(self) -> None:
        """Frees the network and, on CUDA, its memory. The pipeline cannot be used afterwards."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None
            gc.collect()  # what libraries tie into reference cycles is large, and the collector counts objects, not bytes

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
        """Fuses one pair.

        Gain control counts the valid thermal pixels, where thermal is warped only those that the reference frame shows.

        Args:
            thermal: (H, W) uint8, uint16 or float32 (NaN, infinity and above 1e30: missing pixels); None when the
                modality is missing.
            rgb: (H, W, 3) uint8 RGB or (H, W) uint8 grey; None when the modality is missing.
            thermal_valid, rgb_valid: (H, W) bool, True where a pixel can be used; None: everywhere.
                Each picture has a size of its own where a registration is set; else there is one size.
            gate: whether the gate is wanted, or what a model without gates shows in its place. When it is not, it costs
                nothing in torch on the CPU; in OpenVINO and on CUDA it is part of the graph, and only its transfer is
                saved.
            stamp_s: time of the picture in seconds, for smoothed gain control.

        Raises:
            InputError: both are missing, sizes differ, do not fit the registration or are below 32 pixels (only the
                reference camera's count, where a registration is set), or a kind is unsupported.
        """
        return self._fuse(self._alignment, thermal, rgb, thermal_valid, rgb_valid, gate=gate, stamp_s=stamp_s)

    def _fuse(
        self,
        alignment: Alignment,
        thermal: np.ndarray | None,
        rgb: np.ndarray | None,
        thermal_valid: np.ndarray | None = None,
        rgb_valid: np.ndarray | None = None,
        *,
        gate: bool,
        stamp_s: float | None = None,
    ) -> FusionResult:
        if self._backend is None:
            raise InputError("the pipeline is closed", do="make a new one")
        start = time.perf_counter()
        grid = check_pair(thermal, rgb, thermal_valid, rgb_valid, alignment=alignment)
        black, white = 0.0, 255.0
        if thermal is not None:
            # What the reference camera does not see must not take contrast from what it does: an exhaust, the sky.
            counted = grid.used if grid is not None and alignment.other == "thermal" else None
            black, white, thermal_valid = self._gain.limits(
                thermal, valid=thermal_valid, counted=counted, stamp_s=stamp_s
            )
        frame = RawFrame(
            thermal=thermal,
            black=black,
            white=white,
            thermal_valid=None if thermal is None else thermal_valid,
            rgb=rgb,
            rgb_valid=None if rgb is None else rgb_valid,
            warped=None if grid is None else alignment.other,
            grid=grid,
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
            gate=fused.gate if self.has_gates else None,
            valid=frame.valid,
            valid_fraction={modality: frame.valid_fraction(modality) for modality in ("thermal", "rgb")},
            stages_ms=stages,
            device=fused.device,
            frame=frame,
            entropy=fused.gate if self._shows == "entropy" else None,
        )

    def _run_blank(
        self, height: int, width: int, frames: int, *, gate: bool, other: tuple[int, int] | None = None
    ) -> list[float]:
        # An alignment of its own: these are no sizes to remember. Its maps are those of the registration.
        current = self._alignment
        alignment = Alignment(current.registration, reference=current.reference)
        shapes = {
            alignment.reference: (height, width),
            alignment.other: other or alignment.registration.from_shape or (height, width),
        }
        thermal = np.full(shapes["thermal"], 90, np.uint8)
        rgb = np.full((*shapes["rgb"], 3), 60, np.uint8)
        seconds = []
        for _ in range(frames):
            start = time.perf_counter()
            self._fuse(alignment, thermal, rgb, gate=gate)
            seconds.append(time.perf_counter() - start)
        return seconds


def check_pair(
    thermal: np.ndarray | None,
    rgb: np.ndarray | None,
    thermal_valid: np.ndarray | None = None,
    rgb_valid: np.ndarray | None = None,
    *,
    alignment: Alignment,
) -> Grid | None:
    """The map for what :meth:`FusionPipeline.fuse` is given, None where nothing is warped; ``alignment`` remembers it.

    Raises:
        InputError: as :meth:`FusionPipeline.fuse`; then nothing is remembered.
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
    shapes = {name: picture.shape[:2] for name, picture in given.items()}
    for name in ("thermal", "rgb"):
        mask = f"{name}_valid"
        if name in shapes and shapes.get(mask, shapes[name]) != shapes[name]:
            raise InputError(
                "sizes differ",
                expected="a mask of its picture's size",
                got=", ".join(f"{key} {shapes[key][1]}x{shapes[key][0]}" for key in (name, mask)),
            )
    grid = alignment.grid(thermal=shapes.get("thermal"), rgb=shapes.get("rgb"))
    height, width = grid.shape if grid is not None else shapes["rgb" if thermal is None else "thermal"]
    if min(height, width) < MINIMUM_SIZE:
        raise InputError("picture too small", expected=f"width and height >= {MINIMUM_SIZE}", got=f"{width}x{height}")
    alignment.keep(grid)
    return grid
