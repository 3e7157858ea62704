"""Time and memory of a step of the full training schedule, by implementation.

``python -m isfl_ros.benchmarks.training_step --help``

The step is that of the trainer itself (five passes with batch statistics of their own, objective, backward, optimiser),
on synthetic pairs, so that no data is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import sys
import tempfile
import time
from pathlib import Path

import torch

from isfl_ros.backends.cuda import float32_arithmetic
from isfl_ros.benchmarks.environment import describe_environment
from isfl_ros.benchmarks.inputs import random_pairs
from isfl_ros.benchmarks.report import write_document
from isfl_ros.benchmarks.timing import Timing, clock_of, take_turns
from isfl_ros.errors import InputError
from isfl_ros.io.folders import write_png
from isfl_ros.resources import shared_directory
from isfl_ros.training.config import TrainingConfig, read_config
from isfl_ros.training.loop import Trainer

FORMAT = "isfl_ros-training-step"
FORMAT_VERSION = 1
RECIPE = "vehicle"
PATCH, BATCH = 256, 16
OPPONENT = "reference"
_AUTOCAST = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16"}
"""The trainer's precision for each of ours; tf32 is float32 with torch's switches on."""
_PAIRS = 16
_HOTTEST = 12

_log = logging.getLogger(__name__)


class _Step:
    """The next step of a trainer, and what was seen of it."""

    def __init__(self, trainer: Trainer, precision: str):
        self.trainer, self.precision = trainer, precision
        self.losses: list[float] = []
        self.peak_bytes = 0
        self._on_cuda = trainer.device.type == "cuda"

    @contextlib.contextmanager
    def settings(self):
        if not self._on_cuda:
            yield
            return
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with float32_arithmetic(self.precision):
            yield
        self.peak_bytes = (
            torch.cuda.max_memory_allocated() - before
        )  # of the last step: the first ones search algorithms

    def run(self, index: int) -> None:
        self.losses.append(self.trainer.train_step()["loss"])


def profile_training_step(
    *,
    device: str,
    implementations: tuple[str, ...],
    precisions: tuple[str, ...],
    patch: int = PATCH,
    batch: int = BATCH,
    steps: int = 10,
    warm_up: int = 3,
    seed: int = 0,
) -> list[dict]:
    """Times steps of every implementation in turn, from the same weights on the same batches.

    Returns:
        A row for each implementation and precision: ``timing``; ``data_ms``, the median part of it in which the CPU
        cuts the batch; ``peak_bytes`` on a CUDA device above what was held before the step; ``speedup`` against
        :data:`OPPONENT`; ``first_loss``, which must agree between implementations; ``hottest``, the operations with the
        most time of their own in one step. What failed has a ``reason`` instead.

    Raises:
        InputError: a precision is unknown.
    """
    for precision in precisions:
        if precision not in _AUTOCAST:
            raise InputError(
                "unknown training precision", expected=f"one of {', '.join(_AUTOCAST)}", got=repr(precision)
            )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for index, pair in enumerate(random_pairs(patch + 32, patch + 64, _PAIRS, seed)):
            write_png(root / "synthetic" / "ir" / f"{index}.png", pair.thermal)
            write_png(root / "synthetic" / "vi" / f"{index}.png", pair.rgb)
        for precision in precisions:
            config = _config(precision, patch, batch, seed)
            contenders = {}
            for name in implementations:
                out = root / f"{name}-{precision}"
                trainer = Trainer(config, data_root=root, out=out, device=device, implementation=name)
                step = _Step(trainer, precision)
                try:
                    with step.settings():
                        step.run(0)
                except (
                    Exception
                ) as error:  # of one that breaks (memory, a compiler): the others' figures must not be lost
                    _log.exception("%s %s failed", name, precision)
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    rows.append({"implementation": name, "precision": precision, "reason": reason})
                else:
                    contenders[name] = step
            samples = take_turns(contenders, clock_of(device), frames=steps, warm_up=warm_up)
            data_ms = _cutting_ms(trainer, steps)
            for name, contender in contenders.items():
                rows.append(
                    {
                        "implementation": name,
                        "precision": precision,
                        "patch": patch,
                        "batch": batch,
                        "variants": 1 + len(config.interventions.active()),
                        "schedule_steps": config.steps,
                        "timing": dataclasses.asdict(Timing.of(samples[name])),
                        "data_ms": data_ms,
                        "peak_bytes": contender.peak_bytes if device == "cuda" else None,
                        "first_loss": contender.losses[0],
                        "hottest": _hottest(contender, device),
                    }
                )
            _compare([row for row in rows if row["precision"] == precision and "reason" not in row])
            del contenders, trainer, step
    return rows


def _config(precision: str, patch: int, batch: int, seed: int) -> TrainingConfig:
    recipe = read_config(shared_directory() / "config" / "train" / f"{RECIPE}.yaml")
    data = dataclasses.replace(recipe.data, sets=("synthetic",), validation=(), patch=patch, batch=batch)
    return dataclasses.replace(recipe, data=data, precision=_AUTOCAST[precision], seed=seed)


def _cutting_ms(trainer: Trainer, steps: int) -> float:
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        trainer.sampler.batch(step, range(trainer.config.data.batch))
        seconds.append(time.perf_counter() - start)
    return Timing.of([1e3 * s for s in seconds]).median_ms


def _compare(rows: list[dict]) -> None:
    """Adds ``speedup`` (and the ratio of peaks) against the opponent of the same precision, where it took part."""
    opponents = [row for row in rows if row["implementation"] == OPPONENT]
    for row in rows:
        opponent = opponents[0] if opponents else None
        row["speedup"] = opponent["timing"]["median_ms"] / row["timing"]["median_ms"] if opponent else None
        row["peak_ratio"] = row["peak_bytes"] / opponent["peak_bytes"] if opponent and row["peak_bytes"] else None


def _hottest(contender: _Step, device: str) -> list[dict]:
    """Operations by their own time in one more step; empty where this device lets no profiler in."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    with contender.settings(), profile(activities=activities) as profiler:
        contender.run(0)
        if device == "cuda":
            torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: getattr(event, own), reverse=True)[:_HOTTEST]
    return [
        {"name": event.key, "ms": getattr(event, own) / 1e3, "calls": event.count}
        for event in events
        if getattr(event, own) > 0
    ]


def format_rows(rows: list[dict]) -> str:
    """A line for each implementation and precision."""
    lines = []
    for row in rows:
        if "reason" in row:
            lines.append(f"{row['implementation']} {row['precision']}: failed: {row['reason']}")
            continue
        timing = row["timing"]
        parts = [
            f"{row['implementation']} {row['precision']}: median {timing['median_ms']:.2f} ms"
            f" (p10 {timing['p10_ms']:.2f}, p90 {timing['p90_ms']:.2f}, {timing['count']} steps;"
            f" data {row['data_ms']:.2f})",
            f"schedule {row['schedule_steps'] * timing['median_ms'] / 60e3:.1f} min",
        ]
        if row["peak_bytes"] is not None:
            parts.append(f"peak {row['peak_bytes'] / 1e6:.0f} MB")
        if row["speedup"] is not None:
            parts.append(f"{row['speedup']:.2f}x {OPPONENT}")
        lines.append(", ".join([*parts, f"first loss {row['first_loss']:.6f}"]))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, 1 when an implementation failed, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m isfl_ros.benchmarks.training_step", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--implementation", nargs="+", default=["triton", "folded", OPPONENT])
    parser.add_argument("--precision", nargs="+", default=list(_AUTOCAST))
    parser.add_argument("--patch", type=int, default=PATCH)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        rows = profile_training_step(
            device=args.device,
            implementations=tuple(args.implementation),
            precisions=tuple(args.precision),
            patch=args.patch,
            batch=args.batch,
            steps=args.steps,
            warm_up=args.warm_up,
        )
    except InputError as error:
        print(f"training_step: error: {error}", file=sys.stderr)
        return 2
    write_document(
        args.json,
        {"format": FORMAT, "format_version": FORMAT_VERSION, "environment": describe_environment(), "rows": rows},
    )
    print(format_rows(rows))
    return 1 if any("reason" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
