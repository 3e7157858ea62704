"""First loop of the evaluation: fuse every pair of every set once, with every method, and keep the pictures.

What is kept is the 8-bit fused luma, one PNG a pair: ``<predictions>/<method>/<set>/<stem>.png``.
"""

from __future__ import annotations

import contextlib
import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.evaluation.baselines import BASELINES
from isfl_ros.evaluation.metrics import MIN_SIZE
from isfl_ros.images import GainControl, split_luma, to_uint8
from isfl_ros.io.dataset import select_pairs, set_name
from isfl_ros.io.folders import PICTURE_SUFFIXES, Pair, read_pair, read_rgb, write_png
from isfl_ros.network.checkpoint import load_model
from isfl_ros.pipeline import FusionPipeline, PipelineConfig
from isfl_ros.resources import resolve_model

COMPLEXITY_SIZE = (480, 640)
"""Height and width at which multiply-accumulates and latency are given."""
_LATENCY_FRAMES = 20


def check_name(kind: str, name: str) -> str:
    """A name that can be a folder of its own.

    Raises:
        InputError: it cannot.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise InputError(f"{kind} name {name!r} cannot name a folder", do="put NAME= in front")
    return name


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """A named set of pairs, whole: every table over it is over all of its pairs."""

    name: str
    spec: str
    """How the set was asked for, see :mod:`isfl_ros.io.dataset`."""
    pairs: tuple[Pair, ...]


def read_set(spec: str) -> PairSet:
    """Selects the pairs of a specification.

    Raises:
        InputError: as :func:`~isfl_ros.io.dataset.select_pairs`; or two pairs share a stem.
    """
    pairs = tuple(select_pairs(spec))
    twice = [stem for stem, count in Counter(pair.stem for pair in pairs).items() if count > 1]
    if twice:
        raise InputError(f"{spec} selects two pairs of the stem {twice[0]!r}", do="select one set at a time")
    return PairSet(name=check_name("set", set_name(spec)), spec=spec, pairs=pairs)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """One pair, as recorded and as the metrics see it; all (H, W)."""

    thermal: np.ndarray
    """uint8 or uint16, as stored."""
    rgb: np.ndarray
    """(H, W, 3) uint8."""
    infrared: np.ndarray
    """uint8, after the pipeline's gain control where the record is deeper."""
    luma: np.ndarray
    """uint8."""


def read_sources(pair: Pair) -> Sources:
    """Reads a pair.

    Raises:
        InputError: a file is missing or unreadable, the sizes differ, or they are too small for the metrics.
    """
    thermal, rgb = read_pair(pair)
    if min(thermal.shape) < MIN_SIZE:
        raise InputError(f"{pair.thermal} is too small", expected=f"{MIN_SIZE} pixels a side", got=_size(thermal))
    picture, _ = GainControl(PipelineConfig().gain).apply(thermal)
    return Sources(thermal=thermal, rgb=rgb, infrared=to_uint8(picture), luma=split_luma(rgb)[0])


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


class Method(Protocol):
    """One row of the table."""

    name: str

    def fuse(self, set_name: str, pair: Pair, sources: Sources) -> np.ndarray:
        """Fused luma, (H, W) uint8."""


class Baseline:
    """A method of :mod:`isfl_ros.evaluation.baselines`.

    Raises:
        InputError: on construction, when there is no such baseline.
    """

    def __init__(self, name: str):
        if name not in BASELINES:
            raise InputError("unknown baseline", expected=f"one of {', '.join(BASELINES)}", got=repr(name))
        self.name = name

    def fuse(self, set_name: str, pair: Pair, sources: Sources) -> np.ndarray:
        return BASELINES[self.name](sources.infrared, sources.luma)


def _own_name(name: str) -> str:
    if name in BASELINES:
        raise InputError(f"method name {name!r} belongs to a baseline", do="put another NAME= in front")
    return check_name("method", name)


class FusedPictures:
    """Pictures that another program fused, found by stem.

    They lie in ``DIR/<set>/<stem>.*``, with a single set also in ``DIR/<stem>.*``.
    Of colour pictures the luma is taken, which differs a little from the fused luma they were made from.

    Raises:
        InputError: on construction, when the folder or the picture of any pair is missing, or a stem has two.
    """

    def __init__(self, name: str, folder: str | Path, sets: Sequence[PairSet]):
        self.name = _own_name(name)
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder", expected="a folder of fused pictures")
        self._paths: dict[tuple[str, str], Path] = {}
        for pair_set in sets:
            within = folder / pair_set.name
            if len(sets) == 1 and not within.is_dir():
                within = folder
            for pair in pair_set.pairs:
                found = sorted(within.glob(f"{glob.escape(pair.stem)}.*"))
                found = [path for path in found if path.suffix.lower() in PICTURE_SUFFIXES]
                if len(found) != 1:
                    raise InputError(
                        f"{name} needs one fused picture of {pair_set.name}/{pair.stem}",
                        expected=f"{within / pair.stem} with one of {', '.join(PICTURE_SUFFIXES)}",
                        got=", ".join(path.name for path in found) or "none",
                    )
                self._paths[pair_set.name, pair.stem] = found[0]

    def fuse(self, set_name: str, pair: Pair, sources: Sources) -> np.ndarray:
        path = self._paths[set_name, pair.stem]
        luma = split_luma(read_rgb(path))[0]
        if luma.shape != sources.luma.shape:
            raise InputError(f"{path} has another size than its pair", expected=_size(sources.luma), got=_size(luma))
        return luma


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """What a model costs, at :data:`COMPLEXITY_SIZE`."""

    parameters: int
    macs: int
    """Multiply-accumulates of convolutions and matrix products, with the algebra of the implementation that ran."""
    latency_ms: float
    """Median time a frame, numpy in to numpy out with gates, measured in the same run as the pictures."""


class Model:
    """A network, through the same pipeline that the node runs. Close it after use.

    Raises:
        InputError: on construction, when there is no such model.
    """

    def __init__(self, name: str, model: str):
        self.name = _own_name(name)
        self._directory = resolve_model(model)
        self._pipeline = FusionPipeline(PipelineConfig(model=model))
        self.description = dict(self._pipeline.description)

    def fuse(self, set_name: str, pair: Pair, sources: Sources) -> np.ndarray:
        return self._pipeline.fuse(sources.thermal, sources.rgb).luma

    def complexity(self) -> Complexity:
        """Counts and measures."""
        # Counted on the network as trained: norms folded for inference would hide parameters.
        network, _ = load_model(self._directory)
        implementation = self.description["implementation"]
        network.set_implementation("reference" if implementation == "reference" else "folded")  # what the others compute
        blank = torch.zeros(1, 1, *COMPLEXITY_SIZE)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(blank, blank)
        self._pipeline.warm_up(*COMPLEXITY_SIZE)
        return Complexity(
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            macs=counter.get_total_flops() // 2,
            latency_ms=1000 * self._pipeline.measure(*COMPLEXITY_SIZE, frames=_LATENCY_FRAMES),
        )

    def close(self) -> None:
        self._pipeline.close()


def prediction_path(predictions: Path, method: str, set_name: str, stem: str) -> Path:
    """Where the fused luma of one pair is kept."""
    return predictions / method / set_name / f"{stem}.png"


def predict(methods: Sequence[Method], sets: Sequence[PairSet], predictions: Path) -> None:
    """Fuses everything and keeps it.

    Raises:
        InputError: a pair cannot be read or fused; pictures written so far stay.
    """
    total = sum(len(pair_set.pairs) for pair_set in sets)
    with contextlib.closing(tqdm(total=total, desc="fuse", unit="pair")) as progress:
        for pair_set in sets:
            for pair in pair_set.pairs:
                sources = read_sources(pair)
                for method in methods:
                    luma = method.fuse(pair_set.name, pair, sources)
                    write_png(prediction_path(predictions, method.name, pair_set.name, pair.stem), luma)
                progress.update()
