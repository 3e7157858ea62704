"""The whole benchmark: what is measured, in which order, and the document that comes out."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from isfl_ros.backends import Plan, choose
from isfl_ros.backends.choice import IMPLEMENTATION_CHOICES, IMPLEMENTATIONS, PRECISION_CHOICES, PRECISIONS
from isfl_ros.benchmarks import cost
from isfl_ros.benchmarks.environment import describe_environment
from isfl_ros.benchmarks.frames import WholeFrame
from isfl_ros.benchmarks.inputs import RandomPair, random_pairs
from isfl_ros.benchmarks.memory import device_held, device_peak, resident_growth
from isfl_ros.benchmarks.networks import PLAIN_VARIANTS, Eager, Graph, Plain, contenders_of, difference, why_no_plain
from isfl_ros.benchmarks.operations import measure_operations
from isfl_ros.benchmarks.peaks import Peaks, measure_peaks
from isfl_ros.benchmarks.timing import Contender, Timing, clock_of, host_clock, take_turns, wall_clock
from isfl_ros.device import DEVICES
from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import ModelInfo, load_model, weights_sha256
from isfl_ros.network.config import MINIMUM_SIZE
from isfl_ros.pipeline import PipelineConfig
from isfl_ros.resources import resolve_model

FORMAT = "isfl_ros-benchmark"
FORMAT_VERSION = 1
SECTIONS = ("network", "frame", "operations", "memory")
"""``network``: tensors in and out. ``frame``: pictures in and out. ``operations``: the Causal Feature Integrator and
its parts. ``memory``: the most on a CUDA device, the growth on the CPU."""
PLAIN = "plain"
_INPUTS = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What to measure.

    Raises:
        InputError: on construction, when a value is out of range or unknown.
    """

    model: str = "isfl"
    """A model folder, or the name of a shipped model."""
    device: str = DEVICES[0]
    """``auto``, ``cpu`` or ``cuda``."""
    sizes: tuple[tuple[int, int], ...] = ((480, 640),)
    """(H, W) of the pictures; the first is that of the top-level figures."""
    implementations: tuple[str, ...] = (IMPLEMENTATION_CHOICES[0],)
    """Names, ``auto``, or ``all``."""
    precisions: tuple[str, ...] = (PRECISION_CHOICES[0],)
    """Names, ``auto``, or ``all``."""
    against: str = PLAIN
    """``plain``, or a second model, which then runs as it would by itself on the device, and in its plain formulation."""
    frames: int = 30
    """Counted frames of every contender."""
    warm_up: int = 5
    """Frames of every contender before those."""
    seed: int = 0
    """Of the random pictures."""
    threads: int = 0
    """CPU threads of torch and OpenVINO; 0 leaves torch's choice."""
    sections: tuple[str, ...] = SECTIONS
    """Some of :data:`SECTIONS`."""

    def __post_init__(self) -> None:
        for what, names, known in (
            ("implementation", self.implementations, ("all", *IMPLEMENTATION_CHOICES)),
            ("precision", self.precisions, ("all", *PRECISION_CHOICES)),
            ("section", self.sections, SECTIONS),
        ):
            if not names:
                raise InputError(f"no {what} named", expected=f"some of {', '.join(known)}")
            for name in names:
                if name not in known:
                    raise InputError(f"unknown {what}", expected=f"one of {', '.join(known)}", got=repr(name))
        if not self.sizes:
            raise InputError("no size named", expected="at least one")
        for height, width in self.sizes:
            if min(height, width) < MINIMUM_SIZE:
                raise InputError(
                    "picture too small", expected=f"width and height >= {MINIMUM_SIZE}", got=f"{width}x{height}"
                )
        for key, least in (("frames", 1), ("warm_up", 0), ("seed", 0), ("threads", 0)):
            if getattr(self, key) < least:
                raise InputError(
                    f"{key.replace('_', '-')} out of range", expected=f"{least} or more", got=str(getattr(self, key))
                )


def run_benchmark(config: BenchmarkConfig) -> dict:
    """Measures; the document is ready for JSON, see ``docs/benchmarks/README.md``.

    What cannot run here is listed with its reason under ``cannot_run``; a contender that breaks is listed there as
    ``failed`` and does not keep the others from being measured. An interrupt ends the measurement: the document then
    has what there is, and ``complete`` is false.

    Raises:
        InputError: the model cannot be read, or nothing of what was asked for can run here.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    gc.freeze()  # what was imported stays: a collection between two measurements looks at their leavings alone
    try:
        return _Run(config).document()
    finally:
        gc.unfreeze()


def plans_for(config: BenchmarkConfig, network: nn.Module) -> tuple[list[Plan], list[dict]]:
    """What of the request can run here, each plan once, and what cannot, with the reason."""
    implementations = _expand(config.implementations, IMPLEMENTATIONS)
    precisions = _expand(config.precisions, PRECISIONS)
    plans: dict[tuple[str, str], Plan] = {}
    refused = []
    for implementation, precision in itertools.product(implementations, precisions):
        try:
            plan = choose(config.device, implementation, precision, network)
        except InputError as error:
            refused.append(
                {"implementation": implementation, "precision": precision, "kind": "unavailable", "reason": str(error)}
            )
        else:
            plans.setdefault((plan.implementation, plan.precision), plan)
    return list(plans.values()), refused


def _expand(names: tuple[str, ...], every: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(every if name == "all" else (name,) for name in names)))


class _Run:
    """One benchmark; its methods fill the lists that become the document."""

    def __init__(self, config: BenchmarkConfig):
        self.config = config
        self.directory = resolve_model(config.model)
        self.network, self.info = load_model(self.directory)
        self.plans, self.cannot_run = plans_for(config, self.network)
        if not self.plans:
            raise InputError("nothing of what was asked for can run here", got=self.cannot_run[0]["reason"])
        self.device = self.plans[0].device
        self.rival: tuple[nn.Module, Plan] | None = None
        if config.against != PLAIN:
            rival, _ = load_model(resolve_model(config.against))
            self.rival = rival, choose(self.device, "auto", "auto", rival)
        self.no_plain = why_no_plain(self.network)
        self.rows: dict[str, list[dict]] = {section: [] for section in SECTIONS}
        self.peaks: Peaks | None = None

    def document(self) -> dict:
        _log.info("measuring what the device can do at best")
        self.peaks = measure_peaks(self.device, ["fp32", *(plan.precision for plan in self.plans)])
        complete = True
        try:
            self._measure()
        except KeyboardInterrupt:  # time is up: what was measured until then is worth having
            complete = False
        torch.set_flush_denormal(False)  # the pipeline leaves it on
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "complete": complete,
            **self._headline(),
            "environment": describe_environment(),
            "model": _describe_model(self.directory, self.info, self.network),
            "request": dataclasses.asdict(self.config) | {"model": self.info.name, "against": self._against_name()},
            "plans": [plan.as_text() for plan in self.plans],
            "cannot_run": self.cannot_run,
            "peaks": dataclasses.asdict(self.peaks),
            **{section: self.rows[section] for section in SECTIONS if section in self.config.sections},
        }

    def _measure(self) -> None:
        for size in self.config.sizes:
            pairs = random_pairs(*size, _INPUTS, self.config.seed)
            if "memory" in self.config.sections:
                self._memory(size, pairs)
            if "network" in self.config.sections:
                truth = None
                with self._listed("plain formulation", size, None):
                    truth = self._truth(pairs)
                for plan in self.plans:
                    with self._listed("network", size, plan):
                        self._network(size, pairs, plan, truth)
            if "frame" in self.config.sections:
                for plan in self.plans:
                    with self._listed("frame", size, plan):
                        self._frame(size, pairs, plan)
            if "operations" in self.config.sections:
                self._operations(size)

    # -- sections ---------------------------------------------------------------------------------------------------

    def _truth(self, pairs: list[RandomPair]) -> list[list[Tensor]] | None:
        """What the plain formulation makes of every pair, in true float32."""
        if self.no_plain:
            return None
        plain = self._plain(pairs, PLAIN_VARIANTS[self.device][0])
        return [plain.outputs(index) for index in range(len(pairs))]

    def _plain(self, pairs: list[RandomPair], variant: str) -> Plain:
        return Plain(self.network, pairs, device=self.device, variant=variant)

    def _network(
        self, size: tuple[int, int], pairs: list[RandomPair], plan: Plan, truth: list[list[Tensor]] | None
    ) -> None:
        modes = contenders_of(self.network, pairs, plan)
        opponents: dict[str, Contender] = {}
        if truth is not None:
            opponents |= {variant: self._plain(pairs, variant) for variant in PLAIN_VARIANTS[self.device]}
        rival = None
        if self.rival is not None:
            rival = list(contenders_of(self.rival[0], pairs, self.rival[1]).values())[-1]
            opponents[self._against_name()] = rival
            obstacle = why_no_plain(self.rival[0])
            if obstacle:
                about = self._row(size, plan) | {"contender": f"plain of {self._against_name()}"}
                self.cannot_run.append({"section": "network"} | about | {"kind": "unavailable", "reason": obstacle})
            else:
                variant = PLAIN_VARIANTS[self.device][0]
                written_down = Plain(self.rival[0], pairs, device=self.device, variant=variant)
                opponents[f"{variant} of {self._against_name()}"] = written_down
        samples = take_turns(
            modes | opponents, clock_of(self.device), frames=self.config.frames, warm_up=self.config.warm_up
        )
        timings = {name: Timing.of(values) for name, values in samples.items()}
        least = cost.network(self.network.config, *size, cost.BYTES[plan.precision])
        for mode, contender in modes.items():
            row = self._row(size, plan) | {
                "mode": mode,
                "timing": dataclasses.asdict(timings[mode]),
                "opponents": {
                    name: {
                        "timing": dataclasses.asdict(timings[name]),
                        "speedup": timings[name].median_ms / timings[mode].median_ms,
                    }
                    for name in opponents
                },
                "roofline": self.peaks.roofline(least, plan.precision, timings[mode].median_ms),
            }
            if truth is not None:
                apart = [difference(contender.outputs(index), wanted) for index, wanted in enumerate(truth)]
                row |= _differences(apart)
            if rival is not None:
                pictures = [
                    difference(contender.outputs(index)[:1], rival.outputs(index)[:1]) for index in range(len(pairs))
                ]
                row["picture_apart_from_opponent"] = _differences(pictures)
            self.rows["network"].append(row)

    def _frame(self, size: tuple[int, int], pairs: list[RandomPair], plan: Plan) -> None:
        with contextlib.ExitStack() as stack:

            def whole_frame(model: str, plan: Plan) -> WholeFrame:
                config = PipelineConfig(
                    model=model,
                    device=plan.device,
                    implementation=plan.implementation,
                    precision=plan.precision,
                    threads=self.config.threads,
                )
                contender = WholeFrame(config, pairs)
                stack.callback(contender.close)
                return contender

            contenders = {"ours": whole_frame(self.config.model, plan)}
            if self.rival is not None:
                contenders[self._against_name()] = whole_frame(self.config.against, self.rival[1])
            clock = host_clock if self.device == "cpu" else wall_clock
            samples = take_turns(contenders, clock, frames=self.config.frames, warm_up=self.config.warm_up)
            timings = {name: Timing.of(values) for name, values in samples.items()}
            row = self._row(size, plan) | {
                "timing": dataclasses.asdict(timings["ours"]),
                "stages": {
                    name: dataclasses.asdict(timing)
                    for name, timing in contenders["ours"].stages(self.config.frames).items()
                },
                "opponents": {
                    name: {
                        "timing": dataclasses.asdict(timings[name]),
                        "speedup": timings[name].median_ms / timings["ours"].median_ms,
                    }
                    for name in contenders
                    if name != "ours"
                },
            }
        self.rows["frame"].append(row)

    def _operations(self, size: tuple[int, int]) -> None:
        # On the CPU torch runs the parts, and it runs them in float32.
        precisions = list(dict.fromkeys(plan.precision for plan in self.plans if self.device == "cuda")) or ["fp32"]
        implementations = list(dict.fromkeys(plan.implementation for plan in self.plans))
        for precision in precisions:
            with self._listed("operations", size, None, precision=precision):
                rows, refused = measure_operations(
                    self.network,
                    size,
                    implementations=implementations,
                    precision=precision,
                    device=self.device,
                    peaks=self.peaks,
                    frames=self.config.frames,
                    warm_up=self.config.warm_up,
                    seed=self.config.seed,
                )
                self.rows["operations"] += [self._size(size) | row for row in rows]
                self.cannot_run += [self._size(size) | {"section": "operations"} | entry for entry in refused]

    def _memory(self, size: tuple[int, int], pairs: list[RandomPair]) -> None:
        plain_name = PLAIN_VARIANTS[self.device][0]
        if self.device == "cuda":
            one = pairs[:1]
            if not self.no_plain:
                with self._listed("memory", size, None):
                    figures = device_peak(lambda: self._plain(one, plain_name))
                    self.rows["memory"].append(self._size(size) | {"contender": plain_name} | figures)
            for plan in self.plans:
                with self._listed("memory", size, plan):
                    eager = device_peak(lambda: Eager(self.network, one, plan))
                    graph = device_held(lambda: Graph(self.network, one, plan))
                    for mode, figures in (("eager", eager), ("graph", graph)):
                        self.rows["memory"].append(
                            self._row(size, plan) | {"contender": "ours", "mode": mode} | figures
                        )
            return
        for plan in self.plans:
            with self._listed("memory", size, plan), contextlib.ExitStack() as stack:
                config = PipelineConfig(
                    model=self.config.model,
                    device=plan.device,
                    implementation=plan.implementation,
                    precision=plan.precision,
                    threads=self.config.threads,
                )
                contender = WholeFrame(config, pairs)
                stack.callback(contender.close)
                figures = resident_growth(contender, frames=self.config.frames, warm_up=self.config.warm_up)
                self.rows["memory"].append(self._row(size, plan) | {"contender": "ours", "mode": "frame"} | figures)

    # -- the document -------------------------------------------------------------------------------------------------

    def _headline(self) -> dict:
        """The figures of the plan that ``auto`` chooses, at the first size, network only, as the pipeline runs it."""
        none = {"speedup_vs_eager": None, "max_abs_diff": None, "mean_abs_diff": None}
        if "network" not in self.config.sections:
            return none | {"headline": "the network was not measured"}
        if self.no_plain:
            return none | {"headline": self.no_plain}
        auto = choose(self.device, "auto", "auto", self.network)
        key = (auto.implementation, auto.precision)
        measured = {(plan.implementation, plan.precision) for plan in self.plans}
        why = "what auto chooses"
        if key not in measured:
            key = (self.plans[0].implementation, self.plans[0].precision)
            why = f"the first asked for; auto would choose {auto.implementation} {auto.precision}"
        rows = [
            row
            for row in self.rows["network"]
            if (row["implementation"], row["precision"]) == key and row["size"] == _name(self.config.sizes[0])
        ]
        if not rows:
            return none | {"headline": f"{key[0]} {key[1]} was not measured"}
        row = rows[-1]  # the mode that the pipeline runs
        opponent = PLAIN_VARIANTS[self.device][0]
        about = {name: row[name] for name in ("size", "implementation", "precision", "mode")}
        return {
            "speedup_vs_eager": row["opponents"][opponent]["speedup"],
            "max_abs_diff": row["max_abs_diff"],
            "mean_abs_diff": row["mean_abs_diff"],
            "headline": about
            | {
                "opponent": opponent,
                "plan": why,
                "speedups": {name: other["speedup"] for name, other in row["opponents"].items()},
            },
        }

    def _against_name(self) -> str:
        return PLAIN if self.config.against == PLAIN else f"model {Path(self.config.against).name}"

    def _size(self, size: tuple[int, int]) -> dict:
        return {"size": _name(size)}

    def _row(self, size: tuple[int, int], plan: Plan) -> dict:
        return self._size(size) | {"implementation": plan.implementation, "precision": plan.precision}

    @contextlib.contextmanager
    def _listed(self, section: str, size: tuple[int, int], plan: Plan | None, **more: str) -> Iterator[None]:
        """Lists what cannot be measured with its reason, and goes on; memory is free again afterwards."""
        about = self._size(size) if plan is None else self._row(size, plan)
        _log.info("%s: %s", section, " ".join((about | more).values()))
        try:
            yield
        except InputError as error:
            self.cannot_run.append({"section": section} | about | more | {"kind": "unavailable", "reason": str(error)})
        except Exception as error:  # whatever breaks one contender: the others' figures must not be lost with it
            _log.exception("%s failed", section)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.cannot_run.append({"section": section} | about | more | {"kind": "failed", "reason": reason})
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def _name(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _differences(apart: list[tuple[float, float, int]]) -> dict[str, float]:
    return {
        "max_abs_diff": max(largest for largest, _, _ in apart),
        "mean_abs_diff": sum(total for _, total, _ in apart) / sum(count for _, _, count in apart),
    }


def _describe_model(directory: Path, info: ModelInfo, network: nn.Module) -> dict:
    return {
        "name": info.name,
        "architecture": info.architecture,
        "recipe": info.recipe,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weights_sha256": weights_sha256(directory),
    }
