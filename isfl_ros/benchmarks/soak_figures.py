"""What a soak shows: figures from what was recorded, and whether they are what a vehicle can rely on.

Times are nanoseconds of the system clock, which the stamps of the pictures, their ages and the recording share.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import statistics
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from isfl_ros.benchmarks.processes import ProcessState
from isfl_ros.benchmarks.timing import Timing

STREAMS = ("thermal", "rgb")
MEMORY_LIMIT = 0.02
"""Growth of the resident memory, as a fraction, that is still called flat."""
LATENCY_LIMIT = 0.10
"""Growth of a 95th percentile, as a fraction, that is still the noise of a machine on which other processes run."""
RATE_LIMIT = 0.01
"""Fraction of the pairs of its schedule that the player may miss before the input is not what was asked for."""
SETTLE_CYCLES = 20
_CYCLES_COMPARED = 10
_BURST_SAMPLES = 2
"""Samples over which a burst of others is looked at: one could fall between two ticks of the system's clock."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Parts of a run that are compared, in seconds."""

    settle_s: float
    """Left out at the beginning."""
    latency_s: float
    """Length of the first window after that, and of the last one, for latencies."""
    memory_s: float
    """The same for memory."""

    @classmethod
    def of(cls, seconds: float) -> Windows:
        """For 20 minutes: the first minute, two minutes, one minute; a quarter of the run where that is less."""
        quarter = seconds / 4.0
        return cls(settle_s=min(60.0, quarter), latency_s=min(120.0, quarter), memory_s=min(60.0, quarter))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One message on ~/fused/status."""

    stamp_ns: int
    mode: str
    age_ms: float

    @property
    def done_ns(self) -> int:
        """When the picture was fused, by the node's clock."""
        return self.stamp_ns + round(self.age_ms * 1e6)


@dataclass(kw_only=True)
class Recording:
    """Everything that a run left behind."""

    seconds: float
    """Of the schedule that the player was given."""
    rate_hz: float
    """Of that schedule."""
    sent_ns: list[int] = field(default_factory=list)
    """Stamps of the pairs that were sent, in order."""
    pictures: list[Picture] = field(default_factory=list)
    heard_pictures: int = 0
    """Messages on ~/fused/image that the listener got."""
    input_ms: dict[int, float] = field(default_factory=dict)
    """Stamp of a pair -> how long its last picture took from its stamp to the listener."""
    reports: list[tuple[int, dict[str, dict[str, str]]]] = field(default_factory=list)
    """When heard, and entry -> key -> value of /diagnostics."""
    states: dict[str, list[tuple[int, ProcessState]]] = field(default_factory=dict)
    """``node``, ``player``, ``listener`` -> when sampled, and what was found."""
    others_s: list[tuple[int, float]] = field(default_factory=list)
    """When sampled, and the processor time used by everything that is not the soak."""

    @property
    def start_ns(self) -> int:
        return self.sent_ns[0]

    @property
    def end_ns(self) -> int:
        return self.sent_ns[-1]

    @property
    def windows(self) -> Windows:
        """Of what was really played."""
        return Windows.of((self.end_ns - self.start_ns) * 1e-9)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table."""

    name: str
    passed: bool | None
    """None: told, not judged."""
    figure: str
    limit: str = ""
    values: dict = field(default_factory=dict)
    """The same for JSON, with more beside it."""

    def document(self) -> dict:
        return dataclasses.asdict(self)


def stream_counts(report: dict[str, dict[str, str]], stream: str) -> dict:
    """``received``, ``fused``, ``pending`` and ``dropped`` by reason of one stream, from the node's diagnostics."""
    values = report[f"fusion: input {stream}"]
    dropped = {key.removeprefix("dropped."): int(n) for key, n in values.items() if key.startswith("dropped.")}
    return {key: int(values[key]) for key in ("received", "fused", "pending")} | {"dropped": dropped}


def is_settled(reports: list[tuple[int, dict]]) -> bool:
    """Whether the last two reports agree, and nothing is pending."""
    last = [[stream_counts(report, stream) for stream in STREAMS] for _, report in reports[-2:]]
    return len(last) == 2 and last[0] == last[1] and all(counts["pending"] == 0 for counts in last[1])


# -- findings ---------------------------------------------------------------------------------------------------------


def input_rate(run: Recording) -> Finding:
    """Whether the player kept its schedule: on a machine that it shares with the node it may not be able to."""
    due = max(1, round((run.end_ns - run.start_ns) * 1e-9 * run.rate_hz) + 1)
    missed = max(0, due - len(run.sent_ns))
    gaps = np.diff(np.array(run.sent_ns, np.int64)) * 1e-6
    held = len(run.sent_ns) / due * run.rate_hz
    return Finding(
        name="input rate held",
        passed=missed <= RATE_LIMIT * due,
        figure=f"{held:.2f} of {run.rate_hz:.2f} Hz, {missed} of {due} slots missed",
        limit=f"at most {RATE_LIMIT:.0%} missed",
        values={"asked_hz": run.rate_hz, "held_hz": held, "slots": due, "missed": missed, "period_ms": _spread(gaps)},
    )


def processor(run: Recording) -> Finding:
    """Processor time after the first minute, in cores: of the processes, and of everything else on the machine.

    Others in bursts are what makes a sustained run drop pairs: the network waits for its slowest thread.
    """
    begin = run.start_ns + round(run.windows.settle_s * 1e9)

    def settled(samples: list[tuple[int, float]]) -> list[tuple[int, float]]:
        return [sample for sample in samples if begin <= sample[0] <= run.end_ns]

    used = {name: _share(settled([(at, state.cpu_s) for at, state in states])) for name, states in run.states.items()}
    others = settled(run.others_s)
    used["others"] = _share(others)
    ends = zip(others[::_BURST_SAMPLES], others[_BURST_SAMPLES::_BURST_SAMPLES])
    most = max((_share(list(pair)) for pair in ends), default=used["others"])
    return Finding(
        name="cores used",
        passed=None,
        figure=", ".join(f"{name} {share:.2f}" for name, share in used.items()) + f", in bursts up to {most:.2f}",
        values={"cores": used, "others_most": most},
    )


def lost_in_transport(run: Recording) -> Finding:
    """What DDS lost: before the node's callbacks, and behind the node."""
    final = run.reports[-1][1]
    before = {stream: len(run.sent_ns) - stream_counts(final, stream)["received"] for stream in STREAMS}
    fused = stream_counts(final, "rgb")["fused"]
    behind = {"image": fused - run.heard_pictures, "status": fused - len(run.pictures)}
    return Finding(
        name="lost by DDS (sent - received)",
        passed=None,
        figure=f"thermal {before['thermal']}, rgb {before['rgb']} of {len(run.sent_ns)};"
        f" behind the node {behind['image']}",
        values={"sent": len(run.sent_ns), "before_the_node": before, "behind_the_node": behind},
    )


def accounting(run: Recording) -> Finding:
    """received = fused + dropped by reason + pending, in every report; and nothing is pending in the last."""
    wrong = 0
    for _, report in run.reports:
        for counts in (stream_counts(report, stream) for stream in STREAMS):
            wrong += counts["received"] != counts["fused"] + sum(counts["dropped"].values()) + counts["pending"]
    final = {stream: stream_counts(run.reports[-1][1], stream) for stream in STREAMS}
    pending = sum(counts["pending"] for counts in final.values())
    impossible = [stream for stream, counts in final.items() if counts["received"] > len(run.sent_ns)]
    rgb = final["rgb"]
    drops = ", ".join(f"{reason} {count}" for reason, count in sorted(rgb["dropped"].items())) or "nothing"
    return Finding(
        name="received = fused + dropped + pending",
        passed=not wrong and not pending and not impossible,
        figure=f"rgb {rgb['received']} = {rgb['fused']} fused + {drops}; {len(run.reports)} reports, {wrong} wrong",
        limit="exact in every report, pending 0 at the end",
        values={"streams": final, "reports": len(run.reports), "wrong": wrong},
    )


def drops_after_settling(run: Recording) -> Finding:
    """Messages dropped after the first minute."""
    settle_s = run.windows.settle_s
    since = run.start_ns + round(settle_s * 1e9)
    before = next((report for heard_ns, report in run.reports if heard_ns >= since), None)
    name, limit = f"no pair dropped after {settle_s:.0f} s", "0"
    if before is None:
        return Finding(name=name, passed=False, figure=f"no report after {settle_s:.0f} s", limit=limit)
    drops = {}
    for stream in STREAMS:
        first, last = (stream_counts(report, stream)["dropped"] for report in (before, run.reports[-1][1]))
        drops[stream] = {
            reason: count - first.get(reason, 0) for reason, count in last.items() if count != first.get(reason, 0)
        }
    worst = max(sum(counts.values()) for counts in drops.values())
    return Finding(
        name=name,
        passed=worst == 0,
        figure=str(worst) + "".join(f"; {s} {c}" for s, c in drops.items() if c),
        limit=limit,
        values={"after_s": settle_s, "dropped": drops},
    )


def memory_growth(run: Recording) -> Finding:
    """Median resident memory of the node in a window after the first minute, and in the last window."""
    windows = run.windows
    settled = run.start_ns + round(windows.settle_s * 1e9)
    length = round(windows.memory_s * 1e9)
    first = _memory(run, settled, settled + length)
    last = _memory(run, run.end_ns - length, run.end_ns)
    name, limit = "resident memory grows", f"less than {MEMORY_LIMIT:.0%}"
    if not first or not last:
        return Finding(name=name, passed=False, figure="too few samples", limit=limit)
    growth = last["resident"] / first["resident"] - 1.0
    return Finding(
        name=name,
        passed=growth < MEMORY_LIMIT,
        figure=f"{growth:+.2%} ({first['resident'] / 1e6:.1f} to {last['resident'] / 1e6:.1f} MB)",
        limit=limit,
        values={
            "growth": growth,
            "window_s": windows.memory_s,
            "first_bytes": first,
            "last_bytes": last,
            "resident_bytes_by_minute": [
                _memory(run, begin, end).get("resident") for begin, end in _minutes(run.start_ns, run.end_ns)
            ],
        },
    )


def latency_growth(run: Recording) -> list[Finding]:
    """95th percentile of the age of the pictures and of the node's ``total``, first window against last."""
    windows = run.windows
    length = round(windows.latency_s * 1e9)
    spans = [
        (begin := run.start_ns + round(windows.settle_s * 1e9), begin + length),
        (run.end_ns - length, run.end_ns),
    ]
    ages = [[p.age_ms for p in run.pictures if begin <= p.stamp_ns <= end] for begin, end in spans]
    # The node sums up its last 200 pictures: only the later reports of a window are about the window.
    totals = [_total_p95(run, (begin + end) // 2, end) for begin, end in spans]
    p95 = [float(np.percentile(values, 95)) if values else None for values in ages]
    by_minute = [
        _percentile95([p.age_ms for p in run.pictures if begin <= p.stamp_ns < end])
        for begin, end in _minutes(run.start_ns, run.end_ns)
    ]
    limit = (
        f"less than {LATENCY_LIMIT:.0%}, first {windows.latency_s:.0f} s after {windows.settle_s:.0f} s against last"
    )
    return [
        _growth("p95 of the age grows", p95, limit, {"age_p95_ms_by_minute": by_minute}),
        _growth("p95 of total (arrival to published) grows", totals, limit, {}),
    ]


def age_bound(run: Recording) -> Finding:
    """Age of every published picture <= one input period + its processing time + transport.

    For the k-th published picture, with s its stamp, age its age when it was fused (~/fused/status), d = s + age:

    - input period: from s to the stamp of the pair that was sent next;
    - processing time: d(k) - d(k-1). One worker makes one picture after the other, so this is no less than what the
      picture took; in an overload, where the worker never waits, it is more only by the publishing of the one before;
    - transport: what the pair that was sent next took from its stamp to the worker. The listener measures it on the
      same topic and at the same time, for the last picture of the pair.

    So ``age - period - processing`` is how long the next pair had been stamped when the worker became free and took
    this one: in a node with room for one waiting pair, the newest, that is never longer than the next pair travelled.
    A queue of two makes it a whole period longer for every picture.

    The travel is the longest of the run, not that of the very pair: listener and node are different processes, and the
    one may be held up where the other is not.
    """
    begin = run.start_ns + round(run.windows.settle_s * 1e9)
    late, lags = [], []
    for before, picture in zip(run.pictures, run.pictures[1:]):
        following = bisect.bisect_right(run.sent_ns, picture.stamp_ns)
        if picture.stamp_ns < begin or following == len(run.sent_ns) or {before.mode, picture.mode} != {"pair"}:
            continue
        late.append((before.done_ns - run.sent_ns[following]) * 1e-6)
        lags.append(picture.age_ms - (picture.done_ns - before.done_ns) * 1e-6)
    name = "age <= one period + processing"
    travels = [ms for stamp_ns, ms in run.input_ms.items() if stamp_ns >= begin]
    if not late or not travels:
        return Finding(name=name, passed=False, figure="no pictures to judge")
    allowance = max(travels)
    beyond, bare = sum(ms > allowance for ms in late), sum(ms > 0.0 for ms in late)
    return Finding(
        name=name,
        passed=beyond == 0,
        figure=f"{beyond} of {len(late)} beyond it with transport, {bare} without; worst {max(late):+.1f} ms",
        limit=f"0 beyond, transport {allowance:.1f} ms (p95 {np.percentile(travels, 95):.1f})",
        values={
            "judged": len(late),
            "beyond": beyond,
            "beyond_without_transport": bare,
            "excess_ms": _spread(late),
            "stamp_to_worker_ms": _spread(lags),
            "transport_ms": _spread(travels),
            "transport_allowance_ms": allowance,
        },
    )


def ages(run: Recording) -> Finding:
    """Ages of the pictures after the first minute, and how many there were a second."""
    windows = run.windows
    begin = run.start_ns + round(windows.settle_s * 1e9)
    values = [p.age_ms for p in run.pictures if p.stamp_ns >= begin]
    seconds = (run.end_ns - begin) * 1e-9
    modes = Counter(p.mode for p in run.pictures)
    if not values or seconds <= 0.0:
        return Finding(name="age at publish", passed=False, figure="no pictures", limit="some")
    spread = _spread(values)
    return Finding(
        name="age at publish",
        passed=None,
        figure=f"p50 {spread['median_ms']:.1f}, p95 {spread['p95_ms']:.1f}, max {spread['max_ms']:.1f} ms;"
        f" {len(values) / seconds:.2f} pictures/s",
        values={"age_ms": spread, "pictures_hz": len(values) / seconds, "modes": dict(modes)},
    )


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """One life of the node, from configure to cleanup, and what was left of it afterwards."""

    state: ProcessState
    seconds: dict[str, float]
    """Of each step."""
    fused: int


def settled_cycle(cycles: int) -> int:
    """Index of the first cycle that counts, of so many."""
    return min(SETTLE_CYCLES, cycles // 2)


def lifecycle_findings(cycles: list[Cycle], wanted: int) -> list[Finding]:
    """Memory, threads and files after cleanup, of the first cycle that counts and of the last."""
    done = Finding(
        name="cycles completed", passed=len(cycles) >= wanted, figure=f"{len(cycles)} of {wanted}", limit="all of them"
    )
    if len(cycles) < 2:
        return [done]
    settled = settled_cycle(len(cycles))
    count = max(1, min(_CYCLES_COMPARED, (len(cycles) - settled) // 2))
    resident = [cycle.state.memory_bytes["resident"] for cycle in cycles]
    first, last = statistics.median(resident[settled : settled + count]), statistics.median(resident[-count:])
    growth = last / first - 1.0
    memory = Finding(
        name="resident memory grows",
        passed=growth < MEMORY_LIMIT,
        figure=f"{growth:+.2%} ({first / 1e6:.1f} to {last / 1e6:.1f} MB)",
        limit=f"less than {MEMORY_LIMIT:.0%} after {settled} cycles, medians of {count}",
        values={"growth": growth, "resident_bytes": resident},
    )
    leftovers = []
    for what in ("threads", "files"):
        before, after = (getattr(cycles[index].state, what) for index in (settled, -1))
        left = after - before
        leftovers.append(
            Finding(
                name=f"no {what.removesuffix('s')} left over",
                passed=not left,
                figure=f"{before.total()} to {after.total()}" + "".join(f"; {n} x {name}" for name, n in left.items()),
                limit=f"none after cycle {settled + 1}",
                values={
                    "by_cycle": [getattr(cycle.state, what).total() for cycle in cycles],
                    "left": {name.rpartition("/")[2]: n for name, n in left.items()},
                },
            )
        )
    steps = {name: statistics.median(c.seconds[name] for c in cycles) for name in cycles[-1].seconds}
    told = Finding(
        name="a cycle takes",
        passed=None,
        figure=", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.items()),
        values={"median_s": steps, "fused": sum(cycle.fused for cycle in cycles)},
    )
    return [done, memory, *leftovers, told]


# -- parts ------------------------------------------------------------------------------------------------------------


def _share(samples: list[tuple[int, float]]) -> float:
    """Cores: processor seconds a second, from the first sample to the last."""
    if len(samples) < 2:
        return 0.0
    (first_ns, first_s), (last_ns, last_s) = samples[0], samples[-1]
    return (last_s - first_s) / ((last_ns - first_ns) * 1e-9)


def _minutes(start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    edges = range(start_ns, end_ns, 60 * 10**9)
    return [(edge, min(edge + 60 * 10**9, end_ns)) for edge in edges]


def _memory(run: Recording, begin_ns: int, end_ns: int) -> dict[str, float]:
    states = [state.memory_bytes for at_ns, state in run.states.get("node", ()) if begin_ns <= at_ns <= end_ns]
    return {kind: statistics.median(state[kind] for state in states) for kind in (states[0] if states else ())}


def _total_p95(run: Recording, begin_ns: int, end_ns: int) -> float | None:
    values = [
        report["fusion: processing"].get("total_ms.p95") for at_ns, report in run.reports if begin_ns <= at_ns <= end_ns
    ]
    known = [float(value) for value in values if value is not None]
    return statistics.median(known) if known else None


def _growth(name: str, pair: list[float | None], limit: str, more: dict) -> Finding:
    first, last = pair
    if first is None or last is None:
        return Finding(name=name, passed=False, figure="too few pictures", limit=limit)
    growth = last / first - 1.0
    return Finding(
        name=name,
        passed=growth < LATENCY_LIMIT,
        figure=f"{growth:+.1%} ({first:.1f} to {last:.1f} ms)",
        limit=limit,
        values={"growth": growth, "first_p95_ms": first, "last_p95_ms": last} | more,
    )


def _percentile95(values: list[float]) -> float | None:
    return float(np.percentile(values, 95)) if values else None


def _spread(values) -> dict[str, float] | None:
    values = [float(value) for value in values]
    return dataclasses.asdict(Timing.of(values)) | {"max_ms": max(values)} if values else None


def table(findings: list[Finding]) -> list[str]:
    """Aligned lines: verdict, name, figure, limit."""
    words = {True: "pass", False: "FAIL", None: "    "}
    rows = [(words[f.passed], f.name, f.figure, f.limit) for f in findings]
    widths = [max(map(len, column)) for column in itertools.islice(zip(*rows), 3)]
    return ["  ".join((*map(str.ljust, row, widths), row[3])).rstrip() for row in rows]
