"""``isfl demo``: player, fusion node and recorder as three processes over a real DDS graph."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

from isfl_ros.benchmarks.processes import dds_environment, stop
from isfl_ros.errors import InputError, require_module

HELP = "the main job with no camera: player, node and recorder over a real DDS graph"

# Part of the rate that the pipeline alone sustains: player, recorder, transport and encoding share the same cores.
_SHARE = 0.55
_LEAST_PLAYED = 40
_LEAST_FUSED = 30
_START_SECONDS = 60.0
_DRAIN_SECONDS = 30.0
_SUMMARY = "summary.json"
_LOGS = ("node.log", "recorder.log")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from isfl_ros.device import DEVICES
    from isfl_ros.pipeline import PipelineConfig

    pipeline = PipelineConfig()
    parser.add_argument("--pairs", help="folder of real pairs (ir/ and vi/, or thermal/ and rgb/); default: the night drive")
    parser.add_argument("--model", default=pipeline.model, help="model folder or shipped name (default: %(default)s)")
    parser.add_argument("--device", default=pipeline.device, choices=DEVICES, help="default: %(default)s")
    parser.add_argument("--rate", type=float, help="pairs a second; default: what this machine sustains, measured first")
    parser.add_argument("--seconds", type=float, default=15.0, help=f"length of the drive, at least {_LEAST_PLAYED} pairs unless --rate is given (default: %(default)s)")
    parser.add_argument("--size", default="640x480", help="size of the night drive (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the night drive (default: %(default)s)")
    parser.add_argument("--out", default="demo_out", help="folder to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo's folder")


def run(args: argparse.Namespace) -> int:
    from isfl_ros.io.staging import check_replaceable, staged_folder

    out = Path(args.out).resolve()
    check_replaceable(out, marker=_SUMMARY, overwrite=args.overwrite)  # before a minute is spent on the drive
    for name, value in (("--seconds", args.seconds), ("--rate", args.rate)):
        if value is not None and not 0.0 < value < math.inf:
            raise InputError(f"{name} out of range", expected="above 0", got=str(value))
    require_module("matplotlib", extra="demo")  # before the drive, not after it
    width, height, available = _source(args)
    rate, frames, sustained = _pace(args, width, height)
    with staged_folder(out, marker=_SUMMARY, overwrite=args.overwrite) as folder:
        try:
            summary = _play(args, folder, rate, frames)
        except BaseException:
            # The folder will be gone; what the processes said is the only trace of why.
            for log in _LOGS:
                if (folder / log).exists():
                    print(f"--- {log}\n{(folder / log).read_text()[-3000:]}", file=sys.stderr)
            raise
        summary = {
            "source": args.pairs or f"night drive {width}x{height}, seed {args.seed}",
            "pairs_available": available,
            "sustained_hz_measured": sustained,
            "rate_hz": rate,
            **summary,
        }
        summary["problems"] = problems = check(summary, least_fused=_LEAST_FUSED if args.rate is None else 1)
        summary["latency_ms"] = stage_latencies(summary["diagnostics"])
        (folder / _SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
        latency_plot(folder / "latency.png", summary, json.loads((folder / "record.json").read_text())["age_ms"])
    _print_summary(out, summary)
    return 1 if problems else 0


def _source(args: argparse.Namespace) -> tuple[int, int, int | None]:
    """Width, height and number of the pairs to come, read from the first one; refuses a bad folder before anything starts."""
    if not args.pairs:
        from isfl_ros.io.night_drive import NightDriveConfig
        from isfl_ros.io.sequences import parse_size

        width, height = parse_size(args.size)
        NightDriveConfig(width=width, height=height, seed=args.seed)  # refuses what cannot be rendered
        return width, height, None
    from isfl_ros.io.folders import find_dataset, read_rgb

    pairs = find_dataset(args.pairs)
    height, width = read_rgb(pairs[0].rgb).shape[:2]
    return width, height, len(pairs)


def _pace(args: argparse.Namespace, width: int, height: int) -> tuple[float, int, float]:
    """Rate and number of pairs to play, and the rate that the pipeline alone sustains."""
    from isfl_ros.pipeline import FusionPipeline, PipelineConfig

    pipeline = FusionPipeline(PipelineConfig(model=args.model, device=args.device))
    description = pipeline.description
    seconds = pipeline.measure(height, width)
    pipeline.close()
    sustained = 1.0 / seconds
    print(
        f"model {description['model']} on {description['device']} ({description['device_reason']}),"
        f" {description['implementation']} {description['precision']} ({description['implementation_reason']}):"
        f" {1e3 * seconds:.0f} ms a frame at {width}x{height}, {sustained:.1f} Hz alone"
    )
    if args.rate is None:
        rate = min(30.0, round(_SHARE * sustained, 2))
        print(f"playing at {rate:g} Hz: player, recorder and transport share the machine")
        return rate, max(_LEAST_PLAYED, round(args.seconds * rate)), sustained
    return args.rate, max(1, round(args.seconds * args.rate)), sustained


def _play(args: argparse.Namespace, aside: Path, rate: float, frames: int) -> dict:
    """Runs the three processes and returns what they report."""
    environment = dds_environment()
    node_log, recorder_log = (aside / log for log in _LOGS)
    processes: list[subprocess.Popen] = []

    def start(module: str, *arguments: str, **options) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment, **options)
        processes.append(process)
        return process

    try:
        with node_log.open("w") as log:
            node = start(
                "isfl_ros.ros.fusion_node", "--ros-args", "-p", f"model:={args.model}", "-p", f"device:={args.device}",
                # a slow machine plays slowly, and a folder may hold the same picture twice: neither is a dead camera
                "-p", f"degraded.timeout_ms:={min(60_000.0, max(500.0, 3000.0 / rate))}",
                "-p", f"degraded.identical_bytes:={'false' if args.pairs else 'true'}",
                stdout=log, stderr=subprocess.STDOUT,
            )
        with recorder_log.open("w") as log:
            recorder = start(
                "isfl_ros.ros.recorder", "--out", str(aside), "--rate", str(rate), stdout=log, stderr=subprocess.STDOUT
            )
        source = ["--pairs", args.pairs] if args.pairs else ["--size", args.size, "--seed", str(args.seed)]
        player = start(
            "isfl_ros.ros.pair_player", *source, "--rate", str(rate), "--frames", str(frames), "--wait", str(_START_SECONDS),
            "--listener", "fusion_recorder", "--summary", str(aside / "played.json"),
        )
        while player.poll() is None:
            for name, process in (("fusion node", node), ("recorder", recorder)):
                if process.poll() is not None:
                    raise InputError(f"the {name} ended during the demo", got=f"exit status {process.returncode}", do="see its log above")
            time.sleep(0.2)
        if player.returncode != 0:
            raise InputError("the player failed", got=f"exit status {player.returncode}", do="see its message above")
        _drain(recorder_log)
        node_status = stop(node)
        recorder_status = stop(recorder)
    finally:
        for process in processes:
            if process.poll() is None:
                stop(process)  # in good order: a killed participant leaves its shared memory behind
    played = json.loads((aside / "played.json").read_text())
    (aside / "played.json").unlink()
    record = json.loads((aside / "record.json").read_text())
    return {
        "played": played["played"],
        "unheard_topics": played["unheard_topics"],
        "recorded": record["fused"],
        "exit_status": {"node": node_status, "recorder": recorder_status},
        "modes": record["modes"],
        "stamps_not_of_the_reference": len(record["stamps_not_of_the_reference"]),
        "frame_ids_not_of_the_reference": len(record["frame_ids_not_of_the_reference"]),
        "companions": record["companions"],
        "diagnostics": record["diagnostics"],
        "age_at_recorder_ms": percentiles(record["age_ms"]),
    }


def _drain(log: Path) -> None:
    """Waits until the node has nothing pending any more, as its diagnostics say, twice in a row."""
    deadline = time.monotonic() + _DRAIN_SECONDS
    before = len(_reports(log))  # only what is said from now on counts
    while time.monotonic() < deadline:
        last = [counts(report) for report in _reports(log)[before:][-2:]]
        if len(last) == 2 and last[0] == last[1] and all(stream["pending"] == 0 for stream in last[1].values()):
            return
        time.sleep(0.2)
    print(f"the node still had work {_DRAIN_SECONDS:g} s after the last pair; stopping it", file=sys.stderr)


def _reports(log: Path) -> list[dict]:
    """Diagnostics that the recorder has printed so far; a line that is still being written is left out."""
    text = log.read_text()
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line)["diagnostics"] for line in whole.splitlines() if line.startswith("{")]


def counts(diagnostics: dict[str, dict[str, str]]) -> dict[str, dict]:
    """Accounting of each stream from the node's diagnostics: received, fused, dropped by reason, pending."""
    streams = {}
    for stream in ("thermal", "rgb"):
        values = diagnostics.get(f"fusion: input {stream}", {})
        streams[stream] = {
            "received": int(values.get("received", 0)),
            "fused": int(values.get("fused", 0)),
            "dropped": {key.removeprefix("dropped."): int(n) for key, n in values.items() if key.startswith("dropped.")},
            "pending": int(values.get("pending", 0)),
        }
    return streams


def check(summary: dict, *, least_fused: int = 1) -> list[str]:
    """What does not add up, one sentence each; adds the accounting to the summary."""
    problems = []
    played = summary["played"]
    problems += [f"the player found no subscription to {topic}" for topic in summary["unheard_topics"]]
    summary["streams"] = streams = counts(summary["diagnostics"])
    for name, stream in streams.items():
        accounted = stream["fused"] + sum(stream["dropped"].values()) + stream["pending"]
        stream["lost_in_transport"] = played - stream["received"]
        if stream["received"] != accounted:
            problems.append(f"{name}: received {stream['received']}, but fused + dropped + pending = {accounted}")
        if stream["pending"]:
            problems.append(f"{name}: {stream['pending']} still pending at the end")
        if stream["lost_in_transport"] < 0:
            problems.append(f"{name}: received {stream['received']} of {played} played")
    if streams["rgb"]["fused"] < least_fused:
        problems.append(f"{streams['rgb']['fused']} pairs were fused, expected at least {least_fused}: see node.log")
    # What the node published and the recorder did not get was lost behind the node: told, and no fault of the node's.
    summary["lost_before_the_recorder"] = streams["rgb"]["fused"] - summary["recorded"]
    if summary["lost_before_the_recorder"] < 0:
        problems.append(f"recorded {summary['recorded']} pictures, {streams['rgb']['fused']} were fused")
    gateless = summary["diagnostics"].get("fusion: processing", {}).get("gates") == "no"
    for topic, found in summary["companions"].items():
        if gateless and topic.startswith("gate/"):
            continue  # the model has none, and the node no such topic
        if found["other_frame_id"]:
            problems.append(f"{found['other_frame_id']} messages on {topic} with another frame_id than their picture")
        if found["received"] == 0 and summary["recorded"]:
            problems.append(f"nothing on {topic}")
    for key in ("stamps_not_of_the_reference", "frame_ids_not_of_the_reference"):
        if summary[key]:
            problems.append(f"{summary[key]} fused pictures with {key.replace('_', ' ')}")
    for name, status in summary["exit_status"].items():
        if status != 0:
            problems.append(f"the {name} ended with status {status}")
    return problems


def percentiles(values: list[float]) -> dict[str, float] | None:
    """Median and 95th percentile, rounded to a hundredth; None for no values."""
    import numpy as np

    if not values:
        return None
    p50, p95 = np.percentile(values, (50, 95))
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}


def stage_latencies(diagnostics: dict[str, dict[str, str]]) -> dict[str, dict[str, float]]:
    """Milliseconds by stage, p50 and p95, from the node's diagnostics."""
    stages: dict[str, dict[str, float]] = {}
    for key, value in diagnostics.get("fusion: processing", {}).items():
        stage, ms, figure = key.partition("_ms.")
        if ms:
            stages.setdefault(stage, {})[figure] = float(value)
    return stages


def latency_plot(path: Path, summary: dict, age_ms: list[float]) -> None:
    """Age of every fused picture when the recorder had it, and where the time went."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = stage_latencies(summary["diagnostics"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    left.plot(range(1, len(age_ms) + 1), age_ms, marker="o", markersize=3)
    left.axhline(1e3 / summary["rate_hz"], linestyle="--", color="grey", label=f"input period ({summary['rate_hz']:g} Hz)")
    left.set(xlabel="fused picture", ylabel="ms", title="age of the picture at the recorder", ylim=(0, None))
    left.legend()
    names = list(stages)
    right.barh(names, [stages[n].get("p95", 0.0) for n in names], color="lightsteelblue", label="p95")
    right.barh(names, [stages[n].get("p50", 0.0) for n in names], color="steelblue", label="p50", height=0.5)
    right.invert_yaxis()
    right.set(xlabel="ms", title="latency by stage in the node")
    right.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _print_summary(out: Path, summary: dict) -> None:
    streams = summary["streams"]
    print(f"\nplayed {summary['played']} pairs at {summary['rate_hz']:g} Hz, recorded {summary['recorded']} fused pictures")
    for name, stream in streams.items():
        dropped = ", ".join(f"{n} {reason}" for reason, n in stream["dropped"].items() if n) or "none"
        print(
            f"  {name:8s} received {stream['received']} = fused {stream['fused']} + dropped {sum(stream['dropped'].values())}"
            f" ({dropped}) + pending {stream['pending']}; lost in transport {stream['lost_in_transport']}"
        )
    if summary["age_at_recorder_ms"]:
        age = summary["age_at_recorder_ms"]
        print(f"  age at the recorder: p50 {age['p50']:.0f} ms, p95 {age['p95']:.0f} ms")
    for problem in summary["problems"]:
        print(f"  PROBLEM: {problem}", file=sys.stderr)
    for name in ("fused.mp4", "sheet.png", "latency.png", "summary.json"):
        print(f"  {out / name}")
