"""What makes the rows of the table: free baselines, models, and other programs, whose pictures are only read."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from isfl_ros.errors import InputError
from isfl_ros.evaluation import baselines
from isfl_ros.evaluation.baselines import BASELINES
from isfl_ros.evaluation.sets import PairSet, Problem, Sources, check_name, digest, size_text
from isfl_ros.images import split_luma
from isfl_ros.io.folders import PICTURE_SUFFIXES, Pair, read_rgb
from isfl_ros.network.checkpoint import WEIGHTS, load_model
from isfl_ros.pipeline import FusionPipeline, PipelineConfig
from isfl_ros.resources import resolve_model

COMPLEXITY_SIZE = (480, 640)
"""Height and width at which multiply-accumulates and latency are given."""
LATENCY_FRAMES, LATENCY_WARM_UP = 20, 3
"""Frames of each that are timed, and frames before those."""
MODEL = "model"
"""Kind of the methods that run a network, in their identity."""


class Method(Protocol):
    """One row of the table that can make its pictures."""

    name: str
    description: Mapping[str, str]
    """What made the pictures, for people."""
    has_gates: bool

    def identity(self) -> dict[str, str]:
        """What a picture depends on besides its pair: kept pictures of another identity are not this method's."""

    def picture_key(self, set_name: str, pair: Pair) -> str:
        """The same for what belongs to one picture only; empty where there is nothing."""

    def problem(self, set_name: str, pair: Pair, source_key: str, shape: tuple[int, int]) -> Problem | None:
        """Why there can be no picture of this pair (a :data:`~isfl_ros.evaluation.sets.Check`)."""

    def fuse(self, set_name: str, pair: Pair, sources: Sources) -> np.ndarray:
        """Fused luma, (H, W) uint8."""

    def gates(self, sources: Sources) -> list[np.ndarray]:
        """Gate of every scale, finest first, (h, w) float32 in [0, 1]; empty where the method has none."""


def _own_name(name: str) -> str:
    if name in BASELINES:
        raise InputError(f"method name {name!r} belongs to a baseline", do="put another NAME= in front")
    return check_name("method", name)


class Baseline:
    """A method of :mod:`isfl_ros.evaluation.baselines`.

    Raises:
        InputError: on construction, when there is no such baseline.
    """

    description: Mapping[str, str] = {}
    has_gates = False

    def __init__(self, name: str):
        if name not in BASELINES:
            raise InputError("unknown baseline", expected=f"one of {', '.join(BASELINES)}", got=repr(name))
        self.name = name

    def identity(self) -> dict[str, str]:
        source = hashlib.sha256(inspect.getsource(baselines).encode()).hexdigest()
        return {"kind": "baseline", "source": source}

    def picture_key(self, set_name: str, pair: Pair) -> str:
        return ""

    def problem(self, set_name: str, pair: Pair, source_key: str, shape: tuple[int, int]) -> Problem | None:
        return None

    def fuse(self, set_name: str, pair: Pair, sources: Sources) -> np.ndarray:
        return BASELINES[self.name](sources.infrared, sources.luma)

    def gates(self, sources: Sources) -> list[np.ndarray]:
        return []


class FusedPictures:
    """Pictures that another program fused, found by stem.

    They lie in ``DIR/<set>/<stem>.*``, with a single set also in ``DIR/<stem>.*``.
    Of colour pictures the luma is taken, which differs a little from the fused luma they were made from.

    Raises:
        InputError: on construction, when the folder is missing.
    """

    has_gates = False

    def __init__(self, name: str, folder: str | Path, sets: Sequence[PairSet]):
        self.name = _own_name(name)
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder", expected="a folder of fused pictures")
        self.description = {"pictures": str(folder)}
        self._within = {pair_set.name: folder / pair_set.name for pair_set in sets}
        if len(sets) == 1 and not self._within[sets[0].name].is_dir():
            self._within[sets[0].name] = folder

    def identity(self) -> dict[str, str]:
        return {"kind": "images"}

    def picture_key(self, set_name: str, pair: Pair) -> str:
        return digest(self._path(set_name, pair))

    def problem(self, set_name: str, pair: Pair, source_key: str, shape: tuple[int, int]) -> Problem | None:
        try:
            path = self._path(set_name, pair)
        except InputError as error:
            return Problem("fused picture missing", str(error))
        try:
            luma = split_luma(read_rgb(path))[0]
        except InputError as error:
            return Problem("fused picture unusable", str(error))
        if luma.shape != shape:
            expected = f"{shape[1]}x{shape[0]}"
            why = f"{path} has another size than its pair; expected {expected}; got {size_text(luma)}"
            return Problem("fused picture of another size", why)
        return None

    def fuse(self, set_name: str, pair: Pair, sources: Sources) -> np.ndarray:
        return split_luma(read_rgb(self._path(set_name, pair)))[0]

    def gates(self, sources: Sources) -> list[np.ndarray]:
        return []

    def _path(self, set_name: str, pair: Pair) -> Path:
        within = self._within[set_name]
        found = sorted(within.glob(f"{glob.escape(pair.stem)}.*"))
        found = [path for path in found if path.stem == pair.stem and path.suffix.lower() in PICTURE_SUFFIXES]
        if len(found) != 1:
            raise InputError(
                f"{self.name} needs one fused picture of {set_name}/{pair.stem}",
                expected=f"{within / pair.stem} with one of {', '.join(PICTURE_SUFFIXES)}",
                got=", ".join(path.name for path in found) or "none",
            )
        return found[0]


class Model:
    """A network, through the same pipeline that the node runs. Close it after use.

    Raises:
        InputError: on construction, when there is no such model.
    """

    def __init__(self, name: str, model: str):
        self.name = _own_name(name)
        self._directory = resolve_model(model)
        self._pipeline = FusionPipeline(PipelineConfig(model=model))
        # As trained: norms folded for inference would hide parameters.
        self._network, _ = load_model(self._directory)
        self.has_gates = self._pipeline.has_gates
        self._weights = weights_digest(self._directory)
        implementation = self.description["implementation"]
        # What is not the reference computes the folded algebra.
        self._network.set_implementation("reference" if implementation == "reference" else "folded")

    @property
    def description(self) -> Mapping[str, str]:
        """As the pipeline describes itself; it changes when a device fails."""
        return dict(self._pipeline.description)

    def identity(self) -> dict[str, str]:
        ran = {key: self.description[key] for key in ("device", "implementation", "precision")}
        return {"kind": MODEL, "weights": self._weights, **ran}

    def picture_key(self, set_name: str, pair: Pair) -> str:
        return ""

    def problem(self, set_name: str, pair: Pair, source_key: str, shape: tuple[int, int]) -> Problem | None:
        return None

    def fuse(self, set_name: str, pair: Pair, sources: Sources) -> np.ndarray:
        return self._pipeline.fuse(sources.thermal, sources.rgb).luma

    def fuse_without(self, sources: Sources, modality: str, region: np.ndarray) -> np.ndarray:
        """What the node makes of a pair of which one modality is missing in a region.

        Args:
            modality: ``infrared`` or ``visible``.
            region: (H, W) bool, True where it is missing; where it is everywhere, the modality is not there at all.

        Returns:
            Fused luma, (H, W) uint8.
        """
        gone = bool(region.all())
        valid = None if gone else ~region
        if modality == "infrared":
            return self._pipeline.fuse(None if gone else sources.thermal, sources.rgb, thermal_valid=valid).luma
        return self._pipeline.fuse(sources.thermal, None if gone else sources.rgb, rgb_valid=valid).luma

    def gates(self, sources: Sources) -> list[np.ndarray]:
        if not self.has_gates:
            return []
        visible, infrared = (torch.from_numpy(x)[None, None].float() / 255 for x in (sources.luma, sources.infrared))
        with torch.inference_mode():
            _, gates = self._network(visible, infrared, return_gates=True)
        return [gate[0, 0].numpy() for gate in reversed(gates)]

    def parameters_and_macs(self) -> tuple[int, int]:
        """Learned parameters, and multiply-accumulates of convolutions and matrix products at :data:`COMPLEXITY_SIZE`.

        Counted while the network runs once, with the algebra of the implementation that made the pictures.
        """
        blank = torch.zeros(1, 1, *COMPLEXITY_SIZE)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self._network(blank, blank)
        return sum(parameter.numel() for parameter in self._network.parameters()), counter.get_total_flops() // 2

    def fuse_frame(self, thermal: np.ndarray, rgb: np.ndarray) -> None:
        """One frame as the node has it, gate included."""
        self._pipeline.fuse(thermal, rgb, gate=True)

    def close(self) -> None:
        self._pipeline.close()


def weights_digest(model: str | Path) -> str:
    """SHA-256 of what decides a model's output: its weights and its configuration, not what its description says else.

    Raises:
        InputError: there is no such model.
    """
    directory = resolve_model(str(model))
    _, info = load_model(directory)
    config = json.dumps([info.model, dataclasses.asdict(info.config)], sort_keys=True)
    return hashlib.sha256((digest(directory / WEIGHTS) + config).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Complexity:
    """What a method costs, at :data:`COMPLEXITY_SIZE`."""

    parameters: int
    macs: int | None
    """Multiply-accumulates of convolutions and matrix products; None where nobody counts them (a baseline)."""
    latency_ms: float
    """Median time of a frame, numpy in to numpy out, a model's gates included."""
    latency_p10_ms: float
    latency_p90_ms: float
    run: str
    """When and with whom it was timed: latencies of one run can be compared, those of different runs hardly."""


class _Timed:
    """Frames of one method, for :func:`isfl_ros.benchmarks.timing.take_turns`."""

    def __init__(self, method: Model | Baseline):
        height, width = COMPLEXITY_SIZE
        random = np.random.default_rng(0)
        self._thermal = random.integers(0, 256, (height, width), np.uint8)
        self._rgb = random.integers(0, 256, (height, width, 3), np.uint8)
        self._luma = split_luma(self._rgb)[0]
        self._method = method

    def settings(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def run(self, index: int) -> object:
        if isinstance(self._method, Model):
            return self._method.fuse_frame(self._thermal, self._rgb)
        return BASELINES[self._method.name](self._thermal, self._luma)


def timed(methods: Sequence[Method]) -> dict[str, _Timed]:
    """What of every method that computes something can be timed, by name; others' pictures and the sources do not."""
    computing = [m for m in methods if isinstance(m, (Model, Baseline)) and m.name not in baselines.SOURCES]
    return {method.name: _Timed(method) for method in computing}


def complexity(
    methods: Sequence[Method], samples_ms: Mapping[str, Sequence[float]], *, run: str
) -> dict[str, Complexity]:
    """Counts, and sums up what was timed.

    Args:
        methods: all rows.
        samples_ms: milliseconds of the frames of each of :func:`timed`.
        run: what :attr:`Complexity.run` shall say.

    Returns:
        By name of the method.
    """
    costs = {}
    for method in methods:
        if method.name not in samples_ms:
            continue
        p10, median, p90 = (float(p) for p in np.percentile(samples_ms[method.name], (10, 50, 90)))
        parameters, macs = method.parameters_and_macs() if isinstance(method, Model) else (0, None)
        costs[method.name] = Complexity(
            parameters=parameters, macs=macs, latency_ms=median, latency_p10_ms=p10, latency_p90_ms=p90, run=run
        )
    return costs
