"""Everything that needs a CUDA device, in one command.

``python -m isfl_ros.benchmarks.gpu --out docs/benchmarks/NAME``

Each part runs in a process of its own with a time limit; one that fails is recorded and the others go on. Needs a
source tree, for its tests.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from isfl_ros.benchmarks.environment import describe_environment
from isfl_ros.benchmarks.golden import CHECKPOINT, GOLDEN
from isfl_ros.benchmarks.report import write_document
from isfl_ros.benchmarks.run import BenchmarkConfig
from isfl_ros.device import choose_device
from isfl_ros.errors import InputError
from isfl_ros.io.staging import check_replaceable
from isfl_ros.resources import shared_directory

FORMAT = "isfl_ros-gpu"
FORMAT_VERSION = 1
SUMMARY = "summary.json"
LOG = "log.txt"
_SIZES = {"640x480": 75, "1280x1024": 85}
"""Sizes and how many seconds their benchmark may take."""
_NO_DEVICE_NEEDED = ("--ignore", "test/ops/test_ahead_of_time.py")
_ENDING_S = 5.0
# Output that is there when a part is ended; compiled kernels, whatever the caller's shell says.
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process."""

    name: str
    about: str
    command: tuple[str, ...] = ()
    """Arguments of the Python interpreter."""
    limit_s: float
    """Seconds after which it is ended."""
    result: str | None = None
    """File that it writes into the folder of the run."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables besides this process's."""
    skip: str | None = None
    """Why it cannot run, in words."""


def gpu_parts(out: Path, *, model: str, reference: Path | None) -> list[Part]:
    """What the command runs, in order. Their limits add up to less than ten minutes.

    Args:
        out: folder of the run.
        model: model folder or shipped name.
        reference: folder with the authors' checkpoint and the golden crops, or None.
    """
    root = shared_directory()
    no_tests = None if (root / "test" / "ops").is_dir() else "not a source tree: there are no tests"
    no_reference = None
    if reference is None:
        no_reference = f"no --reference folder with {CHECKPOINT} and {GOLDEN} given"
    elif missing := [name for name in (CHECKPOINT, GOLDEN) if not (reference / name).is_file()]:
        no_reference = f"{missing[0]} is not in the --reference folder"

    parallel = " -n 8" if importlib.util.find_spec("xdist") else ""
    words = f"-m pytest -v --tb=short -p no:cacheprovider{parallel} -m"

    def tests(name: str, about: str, folder: str, limit_s: float, *more: str) -> Part:
        return Part(
            name=name,
            about=about,
            command=(*words.split(), "not slow and not kernels", folder, *more),
            environment={"ISFL_TEST_DEVICE": "cuda"},
            limit_s=limit_s,
            skip=no_tests,
        )

    def module(name: str, about: str, limit_s: float, words: str, *more: str, skip: str | None = None) -> Part:
        result = f"{name}.json"
        command = ("-m", *words.split(), *more, "--device", "cuda", "--json", str(out / result))
        return Part(name=name, about=about, command=command, result=result, limit_s=limit_s, skip=skip)

    parts = [
        tests("kernels", "fused kernels against their references, on the device", "test/ops", 110, *_NO_DEVICE_NEEDED),
        tests("backends", "whole-frame path against numpy and OpenCV, on the device", "test/backends", 40),
        module(
            "golden",
            "accuracy of every precision on the golden crops",
            30,
            "isfl_ros.benchmarks.golden",
            "--reference",
            str(reference),
            skip=no_reference,
        ),
    ]
    # What auto takes comes first: a part that runs out of time keeps what it has.
    benchmark = "isfl_ros.cli.main benchmark --precision fp16 fp32 tf32 bf16 --size"
    for size, limit_s in _SIZES.items():
        words = f"{benchmark} {size} --implementation triton folded reference --section memory network frame --frames 20 --model"
        parts.append(
            module(
                f"benchmark-{size}", "network, whole frame and memory, everything that can run", limit_s, words, model
            )
        )
    for size in _SIZES:
        words = f"{benchmark} {size} --implementation triton folded --section operations --model"
        parts.append(
            module(
                f"operations-{size}", "integrator and its parts against eager and compiled reference", 58, words, model
            )
        )
    step = "a step of the full training schedule, by implementation"
    return [*parts, module("training", step, 65, "isfl_ros.benchmarks.training_step")]


def run_parts(parts: list[Part], out: Path, *, root: Path) -> list[dict]:
    """Runs the parts one after the other; summary and log are complete after each of them.

    Args:
        parts: of :func:`gpu_parts`, or like them.
        out: existing folder for ``summary.json``, ``log.txt`` and the parts' results.
        root: folder that they start in.

    Returns:
        For each part ``name``, ``about``, ``status`` (``passed``, ``failed``, ``timed out``, ``skipped``), ``seconds``,
        what was wrong (``reason``), and its last line of output.
    """
    about_machine = describe_environment()
    records: list[dict] = []
    for part in parts:
        print(f"{part.name}: {part.about}", flush=True)
        record = {"name": part.name, "about": part.about, "limit_s": part.limit_s} | _run_part(part, out, root)
        records.append(record)
        print(
            f"  {record['status']} in {record['seconds']:.0f} s: {record['reason'] or record['last_line']}", flush=True
        )
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, "environment": about_machine, "parts": records}
        write_document(out / SUMMARY, document)
    return records


def _run_part(part: Part, out: Path, root: Path) -> dict:
    if part.skip is not None:
        _append_log(out, part, f"skipped: {part.skip}\n", root)
        return {"status": "skipped", "seconds": 0.0, "reason": part.skip, "last_line": None, "result": None}
    raw = out / f".{part.name}.log"
    start = time.monotonic()
    with raw.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=root,
            env=os.environ | _ENVIRONMENT | part.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts ends with it
        )
        try:
            status = process.wait(part.limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    seconds = time.monotonic() - start
    output = raw.read_text(errors="replace")
    raw.unlink()
    _append_log(out, part, output, root)
    lines = [line for line in output.splitlines() if line.strip()]
    record = {
        "seconds": seconds,
        "last_line": _anonymous(lines[-1], root) if lines else None,
        "result": part.result if part.result and (out / part.result).exists() else None,
    }
    if status is None:
        return record | {"status": "timed out", "reason": f"ended after its limit of {part.limit_s:g} s"}
    if status:
        return record | {"status": "failed", "reason": f"exit status {status}, see {LOG}"}
    return record | {"status": "passed", "reason": None}


def _end(process: subprocess.Popen) -> None:
    """Ends the process and its children; nothing may hold the device when the next part starts."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # pytest sums up and a benchmark writes what it has; its children need not know
        _wait(process)
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        _wait(process)
    process.wait()


def _wait(process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _ENDING_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def _append_log(out: Path, part: Part, output: str, root: Path) -> None:
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(f"==== {part.name}: {part.about}\n{_anonymous(output, root)}\n")


def _anonymous(text: str, root: Path) -> str:
    """Paths as they mean something elsewhere: relative to the source tree, the interpreter's and the home by name."""
    for path, name in (
        (root, "."),
        (Path(sys.prefix), "PREFIX"),
        (Path(sys.base_prefix), "PREFIX"),
        (Path.home(), "~"),
    ):
        if path != Path(path.anchor):
            text = text.replace(str(path), name)
    return text


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when every part passed or was skipped, 1 when one did not, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m isfl_ros.benchmarks.gpu", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--out", type=Path, help="folder to make, docs/benchmarks/NAME for example")
    parser.add_argument(
        "--model", default=BenchmarkConfig().model, help="model folder or shipped name (default: %(default)s)"
    )
    parser.add_argument(
        "--reference", type=Path, help=f"folder with {CHECKPOINT} and {GOLDEN}; without, golden is skipped"
    )
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these parts (default: all)")
    parser.add_argument("--list", action="store_true", help="print the parts and their time limits, run nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")
    args = parser.parse_args(argv)
    try:
        return _main(args)
    except InputError as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    out = (args.out or Path("unnamed")).resolve()
    reference = None if args.reference is None else args.reference.resolve()
    parts = gpu_parts(out, model=args.model, reference=reference)
    if args.parts:
        known = [part.name for part in parts]
        for name in args.parts:
            if name not in known:
                raise InputError("unknown part", expected=f"one of {', '.join(known)}", got=repr(name))
        parts = [part for part in parts if part.name in args.parts]
    if args.list:
        for part in parts:
            print(
                f"{part.name:22}{part.limit_s:4.0f} s  {part.about}" + (f" (skipped: {part.skip})" if part.skip else "")
            )
        return 0
    choose_device("cuda")
    if args.out is None:
        raise InputError("--out is missing", do="name a folder, docs/benchmarks/NAME for example")
    check_replaceable(out, marker=SUMMARY, overwrite=args.overwrite)
    out.mkdir(parents=True, exist_ok=True)
    for name in (
        SUMMARY,
        LOG,
        *(part.result for part in gpu_parts(out, model=args.model, reference=reference) if part.result),
    ):
        (out / name).unlink(missing_ok=True)  # of an earlier run: its figures must not pass for this one's
    records = run_parts(parts, out, root=shared_directory())
    wrong = [record["name"] for record in records if record["status"] not in ("passed", "skipped")]
    print(
        f"{len(records) - len(wrong)} of {len(records)} parts passed or skipped"
        + (f"; not: {', '.join(wrong)}" if wrong else "")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
