"""What /diagnostics says: counts and latencies as key and value, and the cause of a missing picture in words.

Everything here turns plain facts into messages; `node.py` collects the facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from isfl_ros.ros.accounting import StreamCounts
from isfl_ros.ros.compressed import COMPRESSED_CAUSES
from isfl_ros.ros.degraded import Condition
from isfl_ros.ros.messages import CAUSES, NANOSECONDS
from isfl_ros.ros.sync import STREAMS

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE

Verdict = tuple[bytes, str]
"""Level and message."""

CLOCKS_DISAGREE_MS = 10_000.0
"""Stamps further apart than this are not a matter of exposure or transport."""

STUCK_MS = 1000.0
"""A pair that takes longer is an error, be it a device that hangs or a model that is too slow: at the speed of a car,
20 m were driven without a picture."""

OLD_S = 1.0
"""Age above which pictures count as old; `degraded.timeout_ms` where that is longer, for who accepts that of a camera
accepts it of a picture."""

EARLY_S = -0.05
"""Age below which stamps are from the future: clocks of computers that are synchronised at all differ by less."""

ANOTHER_TIME_S = 60.0
"""An age beyond this is none: a bag that is played without its clock has the stamps of the day it was recorded on."""


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """One input at the time of a report. `since` counts what happened in the last second or so."""

    stream: str
    topic: str
    publishers: int
    publisher_names: str
    """Nodes of the publishers, with commas between."""
    elsewhere: str | None
    """Where the pictures are published instead, in words; None if nowhere."""
    reliability: str
    incompatibility: str | None
    counts: StreamCounts
    since: StreamCounts
    malformed: str | None
    """The last malformed message in words; None if there was none."""
    encoding: str
    """Of the last good message; empty before the first."""
    size: str
    """Of the last good message, as 640x480; empty before the first."""
    info_topic: str
    info_received: bool
    info_missed: bool
    """Somebody waits for ~/fused/camera_info, this is the reference camera, and it has sent no camera_info."""
    info_misfit: str | None
    """Somebody waits for ~/fused/camera_info, and the one of this camera is for another size: in words."""
    condition: Condition
    """Whether the camera can be relied on."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything a report is made from."""

    node: str
    """Full name of the node: with several nodes, their entries differ in the hardware id only."""
    state: str
    """Lifecycle state."""
    inputs: tuple[InputFacts, ...]
    """Of `STREAMS`, in that order; empty unless active."""
    counts: Mapping[str, StreamCounts]
    now_ns: int
    """Time of the report; monotonic clock."""
    interval_s: float
    """Time that the `since` counts cover."""
    mode: str
    """What is published now: `pair`, `thermal_only`, `rgb_only`, `held`, `none`."""
    consequence: str | None
    """What dead cameras, or two without pairs, lead to, in words; None while both can be relied on."""
    unpaired: bool
    """Both bring pictures, but no pairs."""
    matching: Mapping[str, str]
    """Which matcher runs and why."""
    slop_ms: float
    thermal_offset_ms: float
    closest_miss_ms: float | None
    registration: Mapping[str, str]
    """How the pictures come into one frame; empty unless configured."""
    unregistered: str | None
    """Why pictures of both cameras cannot be brought into one frame, in words; None where they can."""
    concern: str | None
    """What looks wrong with the registration but need not be, in words."""
    size_mismatch: str | None
    failure: str | None
    internal_error: str | None
    """Type and first line of an exception that ended a callback of the node lately."""
    busy_ms: float | None
    """For how long the pair that is being fused has been; None while there is none."""
    age_s: float | None
    """Age of the last picture when it was published; None before the first."""
    timeout_ms: float
    """`degraded.timeout_ms`."""
    unreachable: str | None
    """Subscribers of the outputs that get nothing because of their QoS, in words."""
    paired_since: int
    """Pairs found in that time."""
    fused_since: int
    """Pairs fused in that time."""
    latency: Mapping[str, tuple[float, float]]
    """Stage -> (median, 95th percentile) in ms."""
    pipeline: Mapping[str, str]
    """What runs where and why; empty unless configured."""
    trouble: str | None
    """Why pictures are not fused on the device where they should be, in words."""


def report(facts: Facts, stamp: Time) -> DiagnosticArray:
    """The four entries of the node: both inputs, pairing, processing."""
    inputs = {input.stream: input for input in facts.inputs}
    entries = []
    for stream in STREAMS:
        if stream in inputs:
            verdict = judge_input(inputs[stream], facts.now_ns)
        else:
            verdict = (STALE, f"the node is {facts.state}")
        values = _input_values(facts, stream, inputs.get(stream))
        entries.append(_entry(facts, f"fusion: input {stream}", verdict, values))
    entries.append(_entry(facts, "fusion: pairing", judge_pairing(facts), _pairing_values(facts)))
    entries.append(_entry(facts, "fusion: processing", judge_processing(facts), _processing_values(facts)))
    return DiagnosticArray(header=Header(stamp=stamp), status=entries)


def judge_input(facts: InputFacts, now_ns: int) -> Verdict:
    """Why a stream brings nothing usable, the most fundamental cause first."""
    since, condition = facts.since, facts.condition
    dead = condition.sentence(now_ns)
    if facts.publishers == 0:
        missing = f"no publisher on {facts.topic}"
        return ERROR, missing if facts.elsewhere is None else f"{missing}, but {facts.elsewhere}"
    if since.received == 0 and facts.incompatibility is not None:
        return ERROR, facts.incompatibility
    if since.received == 0:
        silent = f"no message on {facts.topic}, though it has {facts.publishers} publisher(s)"
        return ERROR, silent if dead is None else f"{dead}; {silent}"
    malformed = sum(since.dropped.get(cause, 0) for cause in {*CAUSES, *COMPRESSED_CAUSES})
    if malformed:
        level = ERROR if malformed == since.received else WARN
        return level, f"{malformed} of {since.received} messages refused: {facts.malformed}"
    if dead is not None:
        return ERROR, dead
    if since.dropped.get("duplicate_stamp", 0) == since.received:
        return ERROR, f"stamps on {facts.topic} do not advance"
    if facts.incompatibility is not None:
        return WARN, facts.incompatibility
    if facts.publishers > 1:
        return WARN, f"{facts.publishers} publishers on {facts.topic}: {facts.publisher_names}"
    if condition.slow:
        return WARN, condition.pace()
    if facts.info_missed:
        return WARN, f"no camera_info on {facts.info_topic}: ~/fused/camera_info is not published"
    if facts.info_misfit is not None:
        return WARN, facts.info_misfit
    return OK, "OK"


def judge_pairing(facts: Facts) -> Verdict:
    """Why messages of two streams do not become pairs."""
    if not facts.inputs:
        return STALE, f"the node is {facts.state}"
    if facts.consequence is not None:
        cause = _why_no_pair(facts) if facts.unpaired else None
        level = ERROR if facts.unpaired or facts.mode == "none" else WARN
        return level, facts.consequence if cause is None else f"{facts.consequence}; {cause[1]}"
    silent = [input.stream for input in facts.inputs if input.since.received == 0]
    if silent:
        return WARN, f"no pair without messages of {' and '.join(silent)}"
    cause = _why_no_pair(facts)
    if cause is not None:
        return cause
    if any(input.since.dropped.get("time_jump", 0) for input in facts.inputs):
        return WARN, "time jumped back: pairing was reset"
    return OK, "OK"


def _why_no_pair(facts: Facts) -> Verdict | None:
    """What is known of messages of two cameras that do not become pairs."""
    if facts.paired_since or facts.closest_miss_ms is None:
        return None
    if facts.closest_miss_ms > CLOCKS_DISAGREE_MS:
        seconds = facts.closest_miss_ms / 1000.0
        return ERROR, f"the clocks of the cameras disagree: closest stamps were {seconds:.1f} s apart"
    return WARN, f"no pair within the slop of {facts.slop_ms:g} ms, closest was {facts.closest_miss_ms:.1f} ms apart"


def judge_processing(facts: Facts) -> Verdict:
    """Why pairs do not become pictures."""
    if facts.internal_error is not None:
        return ERROR, f"internal error: {facts.internal_error}"
    if not facts.inputs:
        return STALE, f"the node is {facts.state}"
    dropped = {
        reason: max(input.since.dropped.get(reason, 0) for input in facts.inputs)
        for reason in ("failed", "size_mismatch", "superseded", "no_subscriber", "rate_limited")
    }
    if facts.busy_ms is not None and facts.busy_ms > STUCK_MS:
        return ERROR, f"no picture for {facts.busy_ms:.0f} ms: the pair being fused has taken that long"
    if facts.size_mismatch is not None and (dropped["size_mismatch"] or facts.fused_since):
        return ERROR, facts.size_mismatch
    if dropped["failed"]:
        return ERROR, f"{dropped['failed']} pairs could not be fused: {facts.failure}"
    if facts.fused_since and facts.age_s is not None and _is_old(facts.age_s, facts.timeout_ms):
        return WARN, (
            f"pictures are {facts.age_s:.2f} s old when they are published: a backlog, or the clock of the cameras"
            " differs from this computer's"
        )
    if facts.unregistered is not None:
        return WARN, f"cameras not registered: {facts.unregistered}"
    if facts.unreachable is not None:
        return WARN, facts.unreachable
    if facts.trouble is not None:
        return WARN, f"pictures are fused on the CPU: {facts.trouble}"
    if facts.concern is not None:
        return WARN, f"the registration looks wrong: {facts.concern}"
    if facts.fused_since == 0 and dropped["no_subscriber"]:
        return OK, "idle: no output has a subscriber"
    if dropped["superseded"]:
        return OK, f"OK, slower than the cameras: {dropped['superseded']} pairs gave way to newer ones"
    if dropped["rate_limited"]:
        return OK, f"OK, rate limited: {dropped['rate_limited']} pairs came too soon"
    return OK, "OK"


def _is_old(age_s: float, timeout_ms: float) -> bool:
    """Also of a picture from the future: whose stamps are ahead of its clock cannot tell old from new."""
    return abs(age_s) <= ANOTHER_TIME_S and not EARLY_S <= age_s <= max(OLD_S, timeout_ms * 1e-3)


def _input_values(facts: Facts, stream: str, input: InputFacts | None) -> dict[str, str]:
    counts = facts.counts[stream]
    values = {
        "received": str(counts.received),
        "fused": str(counts.fused),
        **{f"dropped.{reason}": str(count) for reason, count in sorted(counts.dropped.items())},
        "pending": str(counts.pending),
    }
    if input is not None:
        values.update(
            {
                "rate_hz": _rate(input.since.received, facts.interval_s),
                "topic": input.topic,
                "publishers": str(input.publishers),
                "reliability": input.reliability,
                "encoding": input.encoding,
                "size": input.size,
                "camera_info": "received" if input.info_received else f"none on {input.info_topic}",
                "stream_state": input.condition.state,
                "last_stamp": _seconds(input.condition.last_stamp_ns),
                "period_ms": _milliseconds(input.condition.period_ns),
                "timeout_ms": _milliseconds(input.condition.timeout_ns),
            }
        )
    return values


def _pairing_values(facts: Facts) -> dict[str, str]:
    closest = facts.closest_miss_ms
    return {
        "mode": facts.mode,
        **facts.matching,
        "slop_ms": f"{facts.slop_ms:g}",
        "thermal_offset_ms": f"{facts.thermal_offset_ms:g}",
        "closest_miss_ms": "none" if closest is None else f"{closest:.3f}",
    }


def _processing_values(facts: Facts) -> dict[str, str]:
    stages = {}
    for stage, (median, high) in facts.latency.items():
        stages[f"{stage}_ms.p50"] = f"{median:.3f}"
        stages[f"{stage}_ms.p95"] = f"{high:.3f}"
    head = {"state": facts.state, "rate_hz": _rate(facts.fused_since, facts.interval_s)}
    return {**head, **facts.registration, **stages, **facts.pipeline}


def difference(counts: StreamCounts, before: StreamCounts | None) -> StreamCounts:
    """What was added to the counts since `before`."""
    if before is None:
        return counts
    return StreamCounts(
        received=counts.received - before.received,
        fused=counts.fused - before.fused,
        dropped={reason: count - before.dropped.get(reason, 0) for reason, count in counts.dropped.items()},
        pending=counts.pending,
    )


def _seconds(nanoseconds: int | None) -> str:
    return "unknown" if nanoseconds is None else f"{nanoseconds // NANOSECONDS}.{nanoseconds % NANOSECONDS:09d}"


def _milliseconds(nanoseconds: int | None) -> str:
    return "unknown" if nanoseconds is None else f"{nanoseconds * 1e-6:.1f}"


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.2f}" if seconds > 0.0 else "unknown"


def _entry(facts: Facts, name: str, verdict: Verdict, values: Mapping[str, str]) -> DiagnosticStatus:
    level, message = verdict
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id=facts.node)
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return status
