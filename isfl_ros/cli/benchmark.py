"""``isfl benchmark``: time, accuracy and memory of a model on this machine, beside its floor and its opponents."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from isfl_ros.errors import InputError

HELP = "measure a model here: time, accuracy and memory against the plain formulation and against the hardware"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    from isfl_ros.backends.choice import IMPLEMENTATION_CHOICES, PRECISION_CHOICES
    from isfl_ros.benchmarks.run import PLAIN, SECTIONS, BenchmarkConfig
    from isfl_ros.device import DEVICES

    config = BenchmarkConfig()
    many = {"action": "extend", "nargs": "+"}
    height, width = config.sizes[0]
    parser.add_argument("--model", default=config.model, help="model folder or shipped name (default: %(default)s)")
    parser.add_argument("--device", default=config.device, choices=DEVICES, help="default: %(default)s")
    parser.add_argument(
        "--size",
        **many,
        metavar="WIDTHxHEIGHT",
        help=f"the top-level figures are those of the first (default: {width}x{height})",
    )
    parser.add_argument(
        "--implementation",
        **many,
        choices=("all", *IMPLEMENTATION_CHOICES),
        metavar="NAME",
        help=f"all, or some of {', '.join(IMPLEMENTATION_CHOICES)} (default: {config.implementations[0]})",
    )
    parser.add_argument(
        "--precision",
        **many,
        choices=("all", *PRECISION_CHOICES),
        metavar="NAME",
        help=f"all, or some of {', '.join(PRECISION_CHOICES)} (default: {config.precisions[0]})",
    )
    parser.add_argument(
        "--against",
        default=config.against,
        metavar="plain|MODEL",
        help=f"{PLAIN}: eager torch, nothing folded or fused; or a second model besides, and that one plain (default: %(default)s)",
    )
    parser.add_argument("--frames", type=int, default=config.frames, help="counted frames (default: %(default)s)")
    parser.add_argument(
        "--warm-up", type=int, default=config.warm_up, help="frames before those (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=config.seed, help="of the random pictures (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=config.threads, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument(
        "--section",
        **many,
        choices=SECTIONS,
        metavar="NAME",
        help=f"some of {', '.join(SECTIONS)} (default: all of them)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --json")


def run(args: argparse.Namespace) -> int:
    """Measures, writes, prints.

    Exit status 1 when a contender failed for another reason than that it cannot run here; an interrupt is passed on
    after what was measured is written.

    Raises:
        InputError: anything named on the command line is unknown, unreadable or cannot run here.
    """
    from isfl_ros.benchmarks.report import check_target, format_report, write_document
    from isfl_ros.benchmarks.run import BenchmarkConfig, run_benchmark

    default = BenchmarkConfig()
    config = BenchmarkConfig(
        model=args.model,
        device=args.device,
        sizes=tuple(dict.fromkeys(_size(text) for text in args.size)) if args.size else default.sizes,
        implementations=tuple(args.implementation or default.implementations),
        precisions=tuple(args.precision or default.precisions),
        against=args.against,
        frames=args.frames,
        warm_up=args.warm_up,
        seed=args.seed,
        threads=args.threads,
        sections=tuple(args.section or default.sections),
    )
    if args.json is not None:
        check_target(args.json, overwrite=args.overwrite)
    document = run_benchmark(config) | {"command": _command(config)}
    if args.json is not None:
        write_document(args.json, document)
    print(format_report(document))
    if not document["complete"]:
        raise KeyboardInterrupt
    failed = [entry for entry in document["cannot_run"] if entry["kind"] == "failed"]
    if failed:
        print(f"isfl benchmark: {len(failed)} failed, see above", file=sys.stderr)
    return 1 if failed else 0


def _size(text: str) -> tuple[int, int]:
    """``640x480`` to (480, 640)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise InputError("size unreadable", expected="WIDTHxHEIGHT, 640x480 for example", got=repr(text))
    return int(height), int(width)


def _command(config) -> str:
    """The command that measures the same again; models by name, since a path means nothing on another machine."""
    words = ["isfl benchmark", f"--model {Path(config.model).name}", f"--device {config.device}"]
    words.append("--size " + " ".join(f"{width}x{height}" for height, width in config.sizes))
    words.append("--implementation " + " ".join(config.implementations))
    words.append("--precision " + " ".join(config.precisions))
    words.append(f"--against {Path(config.against).name}")
    for key in ("frames", "warm_up", "seed", "threads"):
        words.append(f"--{key.replace('_', '-')} {getattr(config, key)}")
    words.append("--section " + " ".join(config.sections))
    return " ".join(words)
