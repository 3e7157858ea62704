"""The document of a benchmark as a short table, and on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from isfl_ros.benchmarks.environment import UNKNOWN
from isfl_ros.errors import InputError
from isfl_ros.io.staging import write_bytes


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses before anything is measured what could not be written afterwards.

    Raises:
        InputError: the file exists and ``overwrite`` is false, or it is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder", expected="the name of a file to write")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists", do="choose another file or pass --overwrite")


def write_document(path: Path, document: dict) -> None:
    """Writes JSON aside and moves it into place; NaN is an error, not a number."""
    write_bytes(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def format_report(document: dict) -> str:
    """The table; the last two lines are the figures at the top of the document."""
    environment, peaks = document["environment"], document["peaks"]
    gpu = environment["gpu"]
    on_cuda = document["plans"][0]["device"] == "cuda"
    hardware = gpu["name"] if on_cuda else f"{environment['cpu']['name']}, {environment['threads']} threads"
    commit = str(environment["commit"])[:12] + (" with changes" if environment["dirty"] is True else "")
    products = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in peaks["flops_per_s"].items())
    lines = [
        f"{document['model']['name']} on {document['plans'][0]['device']} ({hardware}), commit {commit}",
        f"at best here: copy {peaks['copy_bytes_per_s'] / 1e9:.1f} GB/s read and written, matrix product {products}",
    ]
    for section, table in (("network", _network), ("frame", _frame), ("operations", _operations), ("memory", _memory)):
        rows = list(table(document.get(section, [])))
        if len(rows) > 1:
            lines += ["", *_aligned(rows)]
    if document["cannot_run"]:
        lines.append("")
        for entry in document["cannot_run"]:
            about = [str(value) for key, value in entry.items() if key not in ("reason", "kind")]
            lines.append(
                f"{'failed' if entry['kind'] == 'failed' else 'not measured'}: {' '.join(about)}: {entry['reason']}"
            )
    return "\n".join([*lines, "", *_headline(document)])


def _headline(document: dict) -> list[str]:
    if document["speedup_vs_eager"] is None:
        return [
            f"speedup_vs_eager: not measured: {document['headline']}",
            f"max_abs_diff: not measured: {document['headline']}",
        ]
    about = document["headline"]
    plan = f"{about['implementation']} {about['precision']} {about['mode']}, {about['size']}, {about['plan']}"
    speedups = ", ".join(f"{name} {speedup:.2f}" for name, speedup in about["speedups"].items())
    return [
        f"speedup_vs_eager: {document['speedup_vs_eager']:.2f} ({plan}; against {speedups})",
        f"max_abs_diff: {document['max_abs_diff']:.2e}"
        f" (mean_abs_diff: {document['mean_abs_diff']:.2e}, fused luma and gates)",
    ]


def _network(rows: list[dict]) -> Iterator[list[str]]:
    yield [
        "network only",
        "size",
        "median ms",
        "min",
        "p10",
        "p90",
        "p95",
        "frames",
        "floor ms",
        "of floor",
        "max diff",
        "opponents",
    ]
    for row in rows:
        opponents = "; ".join(
            f"{name} {other['timing']['median_ms']:.2f} ms, {other['speedup']:.2f}x"
            for name, other in row["opponents"].items()
        )
        yield [
            f"{row['implementation']} {row['precision']} {row['mode']}",
            row["size"],
            *_times(row["timing"]),
            *_floor(row),
            f"{row['max_abs_diff']:.1e}" if "max_abs_diff" in row else "",
            opponents,
        ]


def _frame(rows: list[dict]) -> Iterator[list[str]]:
    yield ["whole frame", "size", "median ms", "min", "p10", "p90", "p95", "frames", "stages", "opponents"]
    for row in rows:
        stages = ", ".join(f"{name} {timing['median_ms']:.2f}" for name, timing in row["stages"].items())
        opponents = "; ".join(
            f"{name} {other['timing']['median_ms']:.2f} ms, {other['speedup']:.2f}x"
            for name, other in row["opponents"].items()
        )
        yield [f"{row['implementation']} {row['precision']}", row["size"], *_times(row["timing"]), stages, opponents]


def _operations(rows: list[dict]) -> Iterator[list[str]]:
    yield [
        "operation",
        "size",
        "precision",
        "by",
        "median ms",
        "min",
        "GB/s",
        "of copy",
        "of floor",
        "vs reference",
        "vs compiled",
    ]
    for row in rows:
        roofline = row.get("roofline")
        yield [
            row["operation"],
            row["size"],
            row["precision"],
            row["contender"],
            f"{row['timing']['median_ms']:.4f}",
            f"{row['timing']['min_ms']:.4f}",
            *(
                (
                    f"{roofline['bytes_per_s'] / 1e9:.1f}",
                    f"{roofline['copy_fraction']:.0%}",
                    f"{roofline['fraction']:.0%}",
                )
                if roofline
                else ("", "", "")
            ),
            *(f"{row[key]:.2f}x" if row.get(key) else "" for key in ("speedup_vs_reference", "speedup_vs_compiled")),
        ]


def _memory(rows: list[dict]) -> Iterator[list[str]]:
    yield ["memory", "size", "peak MB", "held MB", "growth MB", "over frames"]
    for row in rows:
        plan = " ".join(str(row[key]) for key in ("implementation", "precision", "mode") if key in row)
        yield [
            plan or row["contender"],
            row["size"],
            *(_megabytes(row[key]) if key in row else "" for key in ("peak_bytes", "held_bytes", "growth_bytes")),
            str(row.get("frames", "")),
        ]


def _megabytes(size: int | None) -> str:
    return UNKNOWN if size is None else f"{size / 1e6:.1f}"


def _times(timing: dict) -> list[str]:
    return [
        *(f"{timing[key]:.3f}" for key in ("median_ms", "min_ms", "p10_ms", "p90_ms", "p95_ms")),
        str(timing["count"]),
    ]


def _floor(row: dict) -> list[str]:
    return [f"{row['roofline']['floor_ms']:.3f}", f"{row['roofline']['fraction']:.0%}"]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
