"""A fusion node that runs for long: sustained, overloaded, and taken through its life again and again.

``python -m isfl_ros.benchmarks.soak --out FOLDER``

The node, its cameras and its listener are processes of their own on a DDS graph of their own. Every part writes its
document as soon as it is done; an interrupt ends a part early, and what it has is written as incomplete.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from isfl_ros.benchmarks import soak_figures
from isfl_ros.benchmarks.environment import describe_environment
from isfl_ros.benchmarks.processes import ProcessState, busy_seconds, dds_environment, process_state, require_proc, stop
from isfl_ros.benchmarks.report import check_target, write_document
from isfl_ros.benchmarks.soak_figures import Cycle, Finding, Picture, Recording
from isfl_ros.device import DEVICES
from isfl_ros.errors import InputError
from isfl_ros.io.sequences import parse_size
from isfl_ros.pipeline import PipelineConfig

FORMAT = "isfl_ros-soak"
FORMAT_VERSION = 1
BENCHMARK = "benchmark.json"
LOGS = "logs"
_SAMPLE_S = 2.0
_SAMPLES = 100
"""At least so many, also in a short run."""
_PROGRESS_S = 30.0
_START_S = 120.0
_REST_S = 30.0
_AFTERMATH_S = 3.0
"""After cleanup a thread may take a moment to end."""
# What the pipeline alone runs at is measured with the gate; the node computes none here, since nobody listens to it.
_BENCHMARK = "isfl_ros.cli.main benchmark --section frame"


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """What to run.

    Raises:
        InputError: on construction, when a value is out of range or unknown.
    """

    out: Path
    """Folder for the documents."""
    minutes: float = 20.0
    """Of the sustained and the overloaded part, each."""
    cycles: int = 200
    """Of the lifecycle part."""
    size: str = "640x480"
    """Width and height of the pictures."""
    parts: tuple[str, ...] = ("sustained", "overloaded", "lifecycle")
    """Some of :data:`PARTS`."""
    model: str = PipelineConfig().model
    """A model folder, or the name of a shipped model."""
    device: str = PipelineConfig().device
    """``auto``, ``cpu`` or ``cuda``."""
    share: float = 0.7
    """Input of the sustained part, as a fraction of the rate that the pipeline alone runs at."""
    overload_hz: float = 15.0
    """Input of the overloaded part."""
    alone_hz: float | None = None
    """The rate that the pipeline alone runs at; None measures it, with ``isfl benchmark``."""
    overwrite: bool = False
    """Replace the documents of an earlier run."""
    node: tuple[str, ...] = (sys.executable, "-m", "isfl_ros.ros.fusion_node")
    """Command of the node."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Of the node, besides model and device."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of all processes, besides those of a graph of their own."""

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise InputError("unknown part", expected=f"one of {', '.join(PARTS)}", got=repr(part))
        parse_size(self.size)
        for name in ("minutes", "share", "overload_hz"):
            if not getattr(self, name) > 0.0:
                raise InputError(f"{name} out of range", expected="above 0", got=str(getattr(self, name)))
        if self.cycles < 2:
            raise InputError("cycles out of range", expected="2 or more", got=str(self.cycles))


class PartFailed(RuntimeError):
    """A process of a part did not do what the part needs, in words."""


class _Graph:
    """The processes of one part; they end with it."""

    def __init__(self, config: SoakConfig, part: str, stack: contextlib.ExitStack):
        self.config = config
        self.logs = config.out / LOGS
        self.logs.mkdir(parents=True, exist_ok=True)
        self._part = part
        self._stack = stack
        self._environment = dds_environment() | {"PYTHONUNBUFFERED": "1"} | dict(config.environment)
        self._running: dict[str, subprocess.Popen] = {}

    def path(self, name: str) -> Path:
        """A file of this part beside the logs."""
        return self.logs / f"{self._part}.{name}"

    def node(self, **parameters: object) -> subprocess.Popen:
        """Start the node."""
        values = {"model": self.config.model, "device": self.config.device} | dict(self.config.parameters) | parameters
        arguments = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
        return self.start("node", *self.config.node, "--ros-args", *arguments)

    def peer(self, name: str, *arguments: str, **streams) -> subprocess.Popen:
        """Start one of the processes in `isfl_ros.ros.soak`."""
        return self.start(name, sys.executable, "-m", f"isfl_ros.ros.soak.{name}", *arguments, **streams)

    def start(self, name: str, *command: str, **streams) -> subprocess.Popen:
        """Start a process whose output goes into a log, unless `streams` say otherwise."""
        log = self._stack.enter_context(self.path(f"{name}.log").open("w"))
        process = subprocess.Popen(
            command,
            env=self._environment,
            **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | streams,
            start_new_session=True,  # Ctrl-C is for this process: the others are stopped one by one
        )
        self._stack.callback(self._end, process)
        self._running[name] = process
        return process

    def check(self) -> None:
        """Refuse to go on without one of the processes.

        Raises:
            PartFailed: it has ended.
        """
        for name, process in self._running.items():
            if process.poll() not in (None, 0) or (process.poll() == 0 and name != "player"):
                raise PartFailed(
                    f"the {name} ended with status {process.returncode}: see {LOGS}/{self._part}.{name}.log"
                )

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        if process.poll() is None:
            stop(process)  # in good order: a killed participant leaves its shared memory behind


class _Tail:
    """Reads along what the listener writes."""

    def __init__(self, path: Path, run: Recording):
        self._path = path
        self._run = run
        self._offset = 0
        self.ready = False

    def read(self) -> None:
        """Take in the whole lines that are new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, line: list) -> None:
        run = self._run
        kind, heard_ns = line[:2]
        if kind == "status":
            run.pictures.append(Picture(stamp_ns=line[2], mode=line[3], age_ms=line[4]))
        elif kind == "picture":
            run.heard_pictures += 1
        elif kind == "input":
            run.input_ms[line[2]] = (heard_ns - line[2]) * 1e-6
        elif kind == "report":
            run.reports.append((heard_ns, line[2]))
        elif kind == "ready":
            self.ready = True


def run_soak(config: SoakConfig) -> dict[str, dict]:
    """Runs the parts, writes the document of each, prints the tables.

    Returns:
        Part -> document.

    Raises:
        InputError: a document exists already, or the pipeline cannot run here.
        KeyboardInterrupt: after what there was had been written.
    """
    require_proc()
    documents = {part: config.out / f"{part}.json" for part in config.parts}
    for path in documents.values():
        check_target(path, overwrite=config.overwrite)
    config.out.mkdir(parents=True, exist_ok=True)
    for path in documents.values():
        path.unlink(missing_ok=True)  # of an earlier run: its figures must not pass for this one's
    about = {"environment": describe_environment()}
    alone = None
    if set(config.parts) & {"sustained", "overloaded"}:
        alone = _alone(config)
        about["alone"] = alone
    results = {}
    for part, path in documents.items():
        print(f"{part}: {PARTS[part].__doc__.splitlines()[0]}", flush=True)
        try:
            with contextlib.ExitStack() as stack:
                findings, details = PARTS[part](config, _Graph(config, part, stack), alone)
        except PartFailed as failure:
            findings, details = (
                [Finding(name="all processes do their part", passed=False, figure=str(failure))],
                {"complete": True},
            )
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "part": part,
            "complete": details.pop("complete"),
            "passed": all(finding.passed is not False for finding in findings),
            **about,
            **details,
            "findings": [finding.document() for finding in findings],
        }
        write_document(path, document)
        results[part] = document
        print("\n".join((*soak_figures.table(findings), "")), flush=True)
        if not document["complete"]:
            raise KeyboardInterrupt
    return results


def _alone(config: SoakConfig) -> dict:
    """The rate of the pipeline by itself, in a process that has the machine for itself."""
    if config.alone_hz is not None:
        return {"rate_hz": config.alone_hz, "measured": False}
    path = config.out / BENCHMARK
    words = [*_BENCHMARK.split(), "--size", config.size, "--model", config.model, "--device", config.device]
    print("measuring the pipeline alone", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", *words, "--json", str(path), "--overwrite"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError("isfl benchmark failed", got=(done.stderr.strip().splitlines() or ["nothing said"])[-1])
    row = json.loads(path.read_text())["frame"][0]
    rate = 1e3 / row["timing"]["median_ms"]
    print(
        f"{row['implementation']} {row['precision']}: {row['timing']['median_ms']:.1f} ms a pair, {rate:.2f} Hz alone",
        flush=True,
    )
    return {"rate_hz": rate, "measured": True} | {
        key: row[key] for key in ("implementation", "precision", "timing", "stages")
    }


# -- parts ------------------------------------------------------------------------------------------------------------


def sustained(config: SoakConfig, graph: _Graph, alone: dict) -> tuple[list[Finding], dict]:
    """Input below what the pipeline alone can do: nothing is dropped, nothing grows."""
    run, end, details = _play(config, graph, rate_hz=config.share * alone["rate_hz"])
    return [*_common(run), soak_figures.drops_after_settling(run), end], details | {"share": config.share}


def overloaded(config: SoakConfig, graph: _Graph, alone: dict) -> tuple[list[Finding], dict]:
    """Cameras at a fixed rate, whether the machine keeps up or not: pictures stay young, nothing grows."""
    run, end, details = _play(config, graph, rate_hz=config.overload_hz)
    keeps_up = Finding(
        name="keeps up",
        passed=None,
        figure=f"{'yes' if alone['rate_hz'] >= config.overload_hz else 'no'}: {alone['rate_hz']:.2f} Hz alone,"
        f" input {config.overload_hz:g} Hz",
    )
    return [keeps_up, *_common(run), soak_figures.age_bound(run), end], details


def lifecycle(config: SoakConfig, graph: _Graph, alone: dict | None) -> tuple[list[Finding], dict]:
    """configure, activate, pairs, deactivate, cleanup, over and over: nothing is left over."""
    node = graph.node(autostart="false")
    cycler = graph.peer("cycler", "--size", config.size, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    cycles: list[Cycle] = []
    complete, error, told = True, None, time.monotonic()
    try:
        while len(cycles) < config.cycles and error is None:
            cycler.stdin.write(b"cycle\n")
            cycler.stdin.flush()
            answer = json.loads(cycler.stdout.readline() or b'{"error": "the cycler ended"}')
            error = answer.get("error")
            if error is None:
                graph.check()
                cycles.append(
                    Cycle(state=_aftermath(node.pid, cycles), seconds=answer["seconds"], fused=answer["fused"])
                )
            if cycles and time.monotonic() - told > _PROGRESS_S:
                told = time.monotonic()
                state = cycles[-1].state
                print(
                    f"  {len(cycles)} of {config.cycles} cycles:"
                    f" resident {state.memory_bytes['resident'] / 1e6:.1f} MB,"
                    f" {state.threads.total()} threads, {state.files.total()} files",
                    flush=True,
                )
    except KeyboardInterrupt:
        complete = False
    findings = soak_figures.lifecycle_findings(cycles, config.cycles)
    if error is not None:
        findings.insert(0, Finding(name="every cycle succeeds", passed=False, figure=error))
    findings.append(_exit(stop(node)))
    return findings, {"complete": complete, "size": config.size}


PARTS = {"sustained": sustained, "overloaded": overloaded, "lifecycle": lifecycle}
"""Name -> what runs it; a part gets the configuration, its processes, and what the pipeline does alone."""


def _common(run: Recording) -> list[Finding]:
    return [
        soak_figures.input_rate(run),
        soak_figures.ages(run),
        soak_figures.processor(run),
        soak_figures.lost_in_transport(run),
        soak_figures.accounting(run),
        soak_figures.memory_growth(run),
        *soak_figures.latency_growth(run),
    ]


def _play(config: SoakConfig, graph: _Graph, *, rate_hz: float) -> tuple[Recording, Finding, dict]:
    """Node, listener and player until the player is done and the node has nothing left to do.

    Returns:
        What was recorded, how the node ended, and what else belongs into the document.
    """
    seconds = 60.0 * config.minutes
    run = Recording(seconds=seconds, rate_hz=rate_hz)
    heard, played = graph.path("heard.jsonl"), graph.path("played.json")
    for path in (heard, played):
        path.unlink(missing_ok=True)
    tail = _Tail(heard, run)
    node = graph.node()
    listener = graph.peer("listener", "--out", str(heard))
    if not _wait(graph, tail, lambda: tail.ready, _START_S):
        raise PartFailed(f"the node is not heard after {_START_S:g} s: see {LOGS}/")
    player = graph.peer(
        "player", "--size", config.size, "--rate", repr(rate_hz), "--seconds", repr(seconds), "--summary", str(played)
    )
    complete = True
    try:
        _watch(graph, run, tail, {"node": node, "player": player, "listener": listener})
    except KeyboardInterrupt:
        complete = False
        if stop(player) != 0:  # else it has written down what it has sent
            raise
    graph.check()
    summary = json.loads(played.read_text())
    run.sent_ns = summary["stamps_ns"]
    if len(run.sent_ns) < 2:
        raise PartFailed(f"{len(run.sent_ns)} pairs were sent")
    reports = len(run.reports)
    # a node that never comes to rest fails the accounting, with its figures
    _wait(graph, tail, lambda: soak_figures.is_settled(run.reports[reports:]), _REST_S)
    if not run.reports[reports:]:
        raise PartFailed("the node no longer publishes diagnostics")
    details = {
        "complete": complete,
        "size": config.size,
        "minutes": config.minutes,
        "windows": vars(run.windows),
        "node": run.reports[-1][1]["fusion: processing"],
        "unheard_topics": summary["unheard_topics"],
    }
    return run, _exit(stop(node)), details


def _wait(graph: _Graph, tail: _Tail, condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` came true within the time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        graph.check()
        time.sleep(0.1)
        tail.read()
    return condition()


def _watch(graph: _Graph, run: Recording, tail: _Tail, processes: Mapping[str, subprocess.Popen]) -> None:
    """Samples the processes until the player is done."""
    begin = told = time.monotonic()
    while processes["player"].poll() is None:
        graph.check()
        tail.read()
        busy_s, at_ns = busy_seconds(), time.time_ns()
        try:
            states = {name: process_state(process.pid) for name, process in processes.items()}
        except ProcessLookupError:  # the player has just ended
            continue
        for name, state in states.items():
            run.states.setdefault(name, []).append((at_ns, state))
        own_s = sum(state.cpu_s for state in states.values()) + time.process_time()
        run.others_s.append((at_ns, busy_s - own_s))
        now = time.monotonic()
        if not run.pictures:
            begin = now
        elif now - told > _PROGRESS_S:
            told = now
            print(f"  {_progress(run, now - begin)}", flush=True)
        time.sleep(min(_SAMPLE_S, run.seconds / _SAMPLES))


def _progress(run: Recording, seconds: float) -> str:
    resident = run.states["node"][-1][1].memory_bytes["resident"]
    age_ms = statistics.median(picture.age_ms for picture in run.pictures[-100:])
    dropped = ""
    if run.reports:
        drops = soak_figures.stream_counts(run.reports[-1][1], "rgb")["dropped"]
        dropped = "".join(f", {reason} {count}" for reason, count in sorted(drops.items()))
    return (
        f"{_clock(seconds)} of {_clock(run.seconds)}: {len(run.pictures)} pictures{dropped},"
        f" age {age_ms:.0f} ms, resident {resident / 1e6:.1f} MB"
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _exit(status: int) -> Finding:
    return Finding(name="exit status after SIGINT", passed=status == 0, figure=str(status), limit="0")


def _aftermath(pid: int, cycles: list[Cycle]) -> ProcessState:
    """State of the node after cleanup, once nothing is left over, or after a moment."""
    deadline = time.monotonic() + _AFTERMATH_S
    while True:
        state = process_state(pid)
        left = cycles and (state.threads - cycles[-1].state.threads or state.files - cycles[-1].state.files)
        if not left or time.monotonic() > deadline:
            return state
        time.sleep(0.05)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when everything was as required, 1 when not, 2 for bad input, 130 for an interrupt."""
    default = SoakConfig(out=Path())
    parser = argparse.ArgumentParser(
        prog="python -m isfl_ros.benchmarks.soak", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the documents, docs/benchmarks/NAME for example"
    )
    parser.add_argument("--parts", nargs="+", default=default.parts, metavar="NAME", help=f"some of {', '.join(PARTS)}")
    parser.add_argument(
        "--minutes", type=float, default=default.minutes, help="of the parts that play (default: %(default)g)"
    )
    parser.add_argument(
        "--cycles", type=int, default=default.cycles, help="of the part lifecycle (default: %(default)s)"
    )
    parser.add_argument("--size", default=default.size, help="of the pictures (default: %(default)s)")
    parser.add_argument("--model", default=default.model, help="model folder or shipped name (default: %(default)s)")
    parser.add_argument("--device", default=default.device, choices=DEVICES, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace the documents of an earlier run in --out")
    args = parser.parse_args(argv)
    # whoever ends this process must end the others with it
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = SoakConfig(**(vars(args) | {"out": args.out.resolve(), "parts": tuple(dict.fromkeys(args.parts))}))
        results = run_soak(config)
    except InputError as error:
        print(f"soak: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("soak: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    wrong = [part for part, document in results.items() if not document["passed"]]
    print(
        f"{len(results) - len(wrong)} of {len(results)} parts passed" + (f"; not: {', '.join(wrong)}" if wrong else "")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
