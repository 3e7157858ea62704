"""Accuracy of every precision on the golden crops of the authors' release.

``python -m isfl_ros.benchmarks.golden --help``
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

from isfl_ros.benchmarks.environment import describe_environment
from isfl_ros.benchmarks.inputs import RandomPair
from isfl_ros.benchmarks.networks import contenders_of, difference
from isfl_ros.benchmarks.report import write_document
from isfl_ros.benchmarks.run import BenchmarkConfig, plans_for
from isfl_ros.errors import InputError
from isfl_ros.network.release import read_release

CHECKPOINT = "isfuse_release.safetensors"
GOLDEN = "isfuse_release_golden.npz"
FORMAT = "isfl_ros-golden"
FORMAT_VERSION = 1
BARS = {"fp32": (1e-4, 1e-4), "fp16": (2 / 255, 0.2 / 255)}
"""Largest and mean absolute difference of the fused luma to the golden float32 that a precision is held to."""
_OUTPUTS = ("fused", "gate_coarse", "gate_middle", "gate_fine")


class _Crop(RandomPair):
    """A golden pair, whose pictures are float32 as they are."""

    visible = property(lambda self: self.rgb)
    infrared = property(lambda self: self.thermal)


def measure_accuracy(reference: Path, *, device: str) -> list[dict]:
    """Runs the release in every implementation and precision that a device has and compares with the golden values.

    Args:
        reference: folder with :data:`CHECKPOINT` and :data:`GOLDEN`.
        device: ``cpu`` or ``cuda``.

    Returns:
        A row for each, with differences of the fused luma and of all gates, in units of [0, 1]; ``within`` says whether
        :data:`BARS` are kept (None where there is none). What cannot run has a ``reason`` instead.

    Raises:
        InputError: a file is missing or unreadable.
    """
    network, _ = read_release(reference / CHECKPOINT)
    crops, wanted = _read_golden(reference / GOLDEN)
    config = BenchmarkConfig(device=device, implementations=("all",), precisions=("all",))
    plans, refused = plans_for(config, network)
    rows = []
    for plan in plans:
        fused, gates = [], []
        for crop, outputs in zip(crops, wanted, strict=True):
            contender = list(contenders_of(network, [crop], plan).values())[-1]
            ours = contender.outputs(0)
            fused.append(difference(ours[:1], outputs[:1]))
            gates.append(difference(ours[1:], outputs[1:]))
        row = {"implementation": plan.implementation, "precision": plan.precision}
        for name, apart in (("fused", fused), ("gates", gates)):
            row[f"{name}_max_abs_diff"] = max(largest for largest, _, _ in apart)
            row[f"{name}_mean_abs_diff"] = sum(total for _, total, _ in apart) / sum(count for _, _, count in apart)
        bars = BARS.get(plan.precision)
        row["within"] = (
            None if bars is None else (row["fused_max_abs_diff"] <= bars[0] and row["fused_mean_abs_diff"] <= bars[1])
        )
        rows.append(row)
    return rows + [{key: entry[key] for key in ("implementation", "precision", "reason")} for entry in refused]


def _read_golden(path: Path) -> tuple[list[RandomPair], list[list[torch.Tensor]]]:
    if not path.is_file():
        raise InputError(f"{path} not found", expected="the golden crops of the release")
    with np.load(path) as file:
        golden = dict(file)
    crops, wanted = [], []
    for index in itertools.count():
        if f"{index}_fused" not in golden:
            break
        crops.append(_Crop(golden[f"{index}_infrared"], golden[f"{index}_visible_luma"]))
        wanted.append([torch.from_numpy(golden[f"{index}_{name}"])[None, None] for name in _OUTPUTS])
    if not crops:
        raise InputError(f"{path} holds no golden crop", expected="arrays 0_fused and so on")
    return crops, wanted


def format_accuracy(rows: list[dict]) -> str:
    """A line for each; differences in grey levels of 255."""
    lines = []
    for row in rows:
        about = f"{row['implementation']} {row['precision']}"
        if "reason" in row:
            lines.append(f"{about}: not measured: {row['reason']}")
            continue
        figures = "; ".join(
            f"{name} max {255 * row[f'{name}_max_abs_diff']:.4f} mean {255 * row[f'{name}_mean_abs_diff']:.4f}"
            for name in ("fused", "gates")
        )
        verdict = {None: "no bar", True: "within the bar", False: "OUTSIDE THE BAR"}[row["within"]]
        lines.append(f"{about}: {figures} grey levels of 255; {verdict}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when every bar is kept, 1 when one is not, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m isfl_ros.benchmarks.golden", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--reference", type=Path, required=True, help=f"folder with {CHECKPOINT} and {GOLDEN}")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        rows = measure_accuracy(args.reference, device=args.device)
    except InputError as error:
        print(f"golden: error: {error}", file=sys.stderr)
        return 2
    write_document(
        args.json,
        {"format": FORMAT, "format_version": FORMAT_VERSION, "environment": describe_environment(), "rows": rows},
    )
    print(format_accuracy(rows))
    return 1 if any(row.get("within") is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
