"""Which camera can be relied on now, and what becomes of a message when the other cannot. No ROS in here, no clock, no
lock: times are whole nanoseconds of the monotonic clock, handed in, and one thread (the executor's) makes all calls.

A message is good when its stamp is newer than that of its predecessor, or time itself jumped back (it is older by more
than `TIME_JUMP_NS`, or the `LATE_TO_JUMP`th in a row that is older than what came before but newer than the last one),
and (thermal, by option) when it does not repeat the bytes of one of the last pictures. A stream is in one of four states:
- `expected`: no good message since activation, or since it was given up, and not overdue yet (see below);
- `alive`: a good message arrived less than the timeout ago;
- `frozen`: none did, but messages that are not good keep coming: at least `REFUSED_TO_FREEZE` in a row, each less than
  the timeout after the one before, the last less than the timeout ago;
- `missing`: none did, and nothing else comes either.
A stream is given up exactly when the timeout has passed since its last good message (or since activation), whenever
`tick` is called; events carry that time. Its next good message brings it back at once. A changed timeout never brings
a stream back, only a message does.

Where both streams were silent (at the start, in a pause, while a bag begins anew), one of them is the first to come
back. So that this does not show a single picture or two each time, the silent one is then expected for `GRACE_NS`, or
one and a half of its periods, before the other's message, which waits, is fused alone.

A timeout that is shorter than the period of its stream would give the stream up between any two of its messages, and
pictures would change between both cameras and one many times a second. So a stream is given `SAFE_PERIODS` times its
median recent period where that is longer than the timeout, but no more than `LONGEST_TIMEOUT_NS`: of two evils, the
camera that died a little earlier is the lesser one, yet beyond this bound the pictures of the other camera cannot wait.
A stream whose period is more than half the timeout is reported (`slow`).

Order of calls for each message: `accept`, `tick` (and carry out its events), `route`. Duplicates and messages out of
order end here: the matcher has not seen the stamps of what was fused alone, and could not tell them.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.ros.sync import RECENT, STREAMS, TIME_JUMP_NS

MODES = ("single", "hold", "stop")
"""What happens while one stream is dead: the other is fused alone, the last picture is repeated, or nothing."""

LATE_TO_JUMP = 4
"""Messages in a row, each newer than the last, all older than what came before them: no stragglers, a clock was set."""

REMEMBERED = 8
"""Pictures that one is compared with: a driver that hangs repeats its last buffer, or goes round in a ring of them."""

REFUSED_TO_FREEZE = 2
"""Messages in a row that are not good before a dead stream is called frozen: a single one may be a stray duplicate."""

SAFE_PERIODS = (5, 2)
"""A stream is not given up before this many of its periods (a fraction: 5/2) went by: one message may be lost."""

LONGEST_TIMEOUT_NS = 2_000_000_000
"""How far a slow stream may lengthen its own timeout."""

KNOWN_GAPS = 3
"""Gaps between good messages that make a period known: the median of three is not moved by one interruption."""

LATE_NS = 50_000_000
"""A caller that comes this long after `next_deadline_ns` was busy elsewhere, and messages may wait in its queues."""

GRACE_NS = 100_000_000
"""What an overdue stream is given then, once, to deliver what waits; also a silent one when the other comes back."""

DROP_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "duplicate_stamp": "had the stamp of its predecessor",
        "out_of_order": "had a stamp older than its predecessor's, by no more than a time jump",
        "frozen": "repeated the bytes of a recent picture, in a stream that had been given up",
        "held": "was alone, and the last fused picture was published again instead of it",
        "degraded_stop": "was alone, and the node publishes nothing then",
    }
)
"""Why `Supervisor.route` has a message dropped -> what such a message did."""

State = Literal["expected", "alive", "missing", "frozen"]

DEAD = ("missing", "frozen")


@dataclass(frozen=True, kw_only=True)
class DegradedConfig:
    """What counts as a dead stream, and what is done about it.

    Raises:
        InputError: on construction, when a value is out of range.
    """

    timeout_ns: int = 500_000_000
    """Nanoseconds without a good message after which a stream is given up."""
    mode: str = "single"
    """One of `MODES`."""
    identical_bytes: bool = True
    """Whether a thermal picture with the bytes of one of the last `REMEMBERED`, not all pixels equal, is no sign of life.
    A sensor's noise never repeats; a simulated or a still picture does."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError("degraded.mode unknown", expected=f"one of {', '.join(MODES)}", got=repr(self.mode))
        if self.timeout_ns <= 0:
            raise InputError("degraded.timeout_ms out of range", expected="> 0 ms", got=f"{self.timeout_ns * 1e-6:g}")


class Route(NamedTuple):
    """What to do with one message."""

    action: Literal["pair", "single", "hold", "stop"]
    """To the matcher; fused alone; dropped, and the held picture published again; dropped."""
    reason: str | None = None
    """Under which a dropped message is counted: one of `DROP_REASONS`, None where it is not dropped."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one message said about its stream."""

    stamp: Literal["first", "advanced", "time_jump", "duplicate_stamp", "out_of_order"]
    repeats: bool
    """It repeats the bytes of a recent picture, and its pixels are not all equal."""

    @property
    def good(self) -> bool:
        """Whether it is a sign of life."""
        return not self.repeats and self.stamp not in ("duplicate_stamp", "out_of_order")


@dataclass(frozen=True, kw_only=True)
class Flush:
    """Empty the matcher, nothing in it will find a partner soon: see `Event.flush`."""

    survivor: str | None
    """The newest message of this stream that waits is treated as `route` says; the rest is dropped as unmatched. None
    where the other stream is not alive either."""
    route: Route


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that changed, to be logged and acted upon once."""

    kind: Literal["missing", "frozen", "returned", "slow", "unpaired", "paired"]
    stream: str
    at_ns: int
    """When it happened, however late it is told."""
    for_ns: int
    """missing, frozen, returned: time since the good message before (or since activation); slow: the period; unpaired,
    paired (told by the router): time without a pair."""
    level: Literal["debug", "info", "warning"]
    """How loud to say it: quietly what a stream slower than `LONGEST_TIMEOUT_NS` does at each of its messages."""
    text: str
    """One line for the log."""
    flush: Flush | None = None
    """What to do with messages that wait in the matcher, before any other message is routed; None: leave them."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One stream as of the latest call."""

    stream: str
    state: State
    since_ns: int
    """When it came into this state."""
    good_ns: int
    """When its last good message arrived; the time of activation before the first."""
    cause: Literal["stamps", "bytes"] | None
    """What does not advance in a `frozen` stream; None in any other state."""
    last_stamp_ns: int | None
    """Stamp of the last message that was neither a duplicate nor out of order, without any offset."""
    period_ns: int | None
    """Median recent time between good messages; None until known."""
    timeout_ns: int
    """The timeout that this stream is given."""
    slow: bool
    """Its period is too long for the timeout that was asked for."""
    asked_ns: int
    """The timeout that was asked for."""
    started: bool
    """Whether a message has come since activation."""

    def pace(self) -> str:
        """What a slow stream and its timeout are like, in one line."""
        text = (
            f"{self.stream} camera brings a picture every {_milliseconds(self.period_ns)} ms, degraded.timeout_ms"
            f" {self.asked_ns * 1e-6:g} is too short for it: {_milliseconds(self.timeout_ns)} ms is used"
        )
        return text + ", and it is given up between its pictures" if self.period_ns >= self.timeout_ns else text

    def sentence(self, now_ns: int) -> str | None:
        """What is wrong with the stream, in one line; None if nothing is."""
        silent = _milliseconds(now_ns - self.good_ns)
        if self.state == "frozen" and self.cause == "bytes":
            return (
                f"{self.stream} camera is frozen: it has repeated its pictures for {silent} ms"
                " (degraded.identical_bytes: false if that is intended)"
            )
        if self.state == "frozen":
            return f"{self.stream} camera is frozen: its stamps have not advanced for {silent} ms"
        if self.state == "missing" and not self.started:
            return f"{self.stream} camera is missing: no picture in the {silent} ms since activation"
        if self.state == "missing":
            return f"{self.stream} camera is missing: no new picture for {silent} ms"
        return None


class _Stream:
    """What is known of one stream. `good_ns` is that of activation until there is a good message."""

    def __init__(self, name: str, started_ns: int):
        self.name = name
        self.state: State = "expected"
        self.since_ns = started_ns
        self.good_ns = started_ns
        self.heard_ns = started_ns
        self.not_before_ns = started_ns
        """No deadline lies before this: when the rules changed, or the end of a grace."""
        self.graced = False
        self.lost = False
        """Its death was told, its return was not."""
        self.stamp_ns: int | None = None
        self.late_stamp_ns: int | None = None
        self.late = 0
        """Messages in a row that are out of order, in order among themselves; `late_stamp_ns` is of the last one."""
        self.fingerprints: deque[int] = deque(maxlen=REMEMBERED)
        self.gaps: deque[int] = deque(maxlen=RECENT)
        self.refused = 0
        self.cause: Literal["stamps", "bytes"] = "stamps"
        self.started = False
        self.slow = False
        self.refusal: str | None = None
        """Why the latest message is dropped."""

    @property
    def period_ns(self) -> int | None:
        if len(self.gaps) < KNOWN_GAPS:
            return None
        # the upper of two medians: messages that come in twos are not half as far apart as they seem
        return sorted(self.gaps)[len(self.gaps) // 2]


class Supervisor:
    """Watches both streams from one activation of the node to its deactivation; the next activation takes a new one.

    Args:
        config: see there.
        started_ns: when the node was activated.
    """

    def __init__(self, config: DegradedConfig, *, started_ns: int):
        self.config = config
        self._now = started_ns
        self._streams = {name: _Stream(name, started_ns) for name in STREAMS}
        self._events: list[Event] = []

    @property
    def next_deadline_ns(self) -> int | None:
        """When the next stream changes its state if no message comes; None if none does. `tick` then."""
        return min((deadline for _, deadline in self._deadlines()), default=None)

    @property
    def mode(self) -> Literal["pair", "thermal_only", "rgb_only", "held", "none"]:
        """What is published as of the latest call; `none`: nothing can be, or `stop` was asked for."""
        dead = [name for name, stream in self._streams.items() if stream.state in DEAD]
        if not dead:
            return "pair"
        return "none" if len(dead) == len(STREAMS) else self.mode_of(_other(dead[0]))

    def mode_of(self, name: str) -> Literal["thermal_only", "rgb_only", "held", "none"]:
        """What is published where messages of stream `name` have no partner."""
        return {"single": f"{name}_only", "hold": "held", "stop": "none"}[self.config.mode]

    @property
    def consequence(self) -> str | None:
        """What dead streams lead to as of the latest call, in words; None while both can be relied on."""
        dead = [name for name, stream in self._streams.items() if stream.state in DEAD]
        if not dead:
            return None
        if len(dead) == len(STREAMS):
            return "nothing is published, neither camera brings new pictures"
        return self.consequence_of(_other(dead[0]))

    def consequence_of(self, name: str) -> str:
        """The same where messages of stream `name` have no partner, in words."""
        return {
            "single": f"{name} is fused alone",
            "hold": "the last fused picture is repeated with its old stamp (degraded.mode hold)",
            "stop": "nothing is published (degraded.mode stop)",
        }[self.config.mode]

    def condition(self, name: str) -> Condition:
        """The stream `name` as of the latest call."""
        stream = self._streams[name]
        return Condition(
            stream=name,
            state=stream.state,
            since_ns=stream.since_ns,
            good_ns=stream.good_ns,
            cause=stream.cause if stream.state == "frozen" else None,
            last_stamp_ns=stream.stamp_ns,
            period_ns=stream.period_ns,
            timeout_ns=self._timeout(stream),
            slow=stream.slow,
            asked_ns=self.config.timeout_ns,
            started=stream.started,
        )

    def wants_fingerprint(self, name: str) -> bool:
        """Whether `accept` compares the bytes of messages of stream `name`."""
        return name == "thermal" and self.config.identical_bytes

    def woke(self, now_ns: int) -> None:
        """Say that the node reads its queues again; at the beginning of every callback, before anything else.

        Where that is long after `next_deadline_ns`, it was the node that did not listen: the overdue streams get
        `GRACE_NS` from now on, once each until they bring a good message.
        """
        for stream in self._streams.values():
            if stream.state in DEAD or stream.graced or now_ns - self._deadline(stream) < LATE_NS:
                continue
            stream.graced = True
            stream.not_before_ns = now_ns + GRACE_NS

    def accept(self, name: str, stamp_ns: int, arrived_ns: int, fingerprint: int | None = None) -> Verdict:
        """Take note of a well-formed message.

        Args:
            name: its stream.
            stamp_ns: its stamp, without any offset.
            arrived_ns: when it arrived.
            fingerprint: of its pixels, see there; None where it need not be compared (`wants_fingerprint`).
        """
        self._advance(arrived_ns)
        stream = self._streams[name]
        verdict = self._judge(stream, stamp_ns, fingerprint)
        if verdict.stamp not in ("duplicate_stamp", "out_of_order"):
            stream.stamp_ns, stream.late, stream.refusal = stamp_ns, 0, None
            if fingerprint is not None:
                stream.fingerprints.append(fingerprint)
        else:
            stream.refusal = verdict.stamp
        if verdict.good:
            self._take_good(stream)
        else:
            self._take_refused(stream, cause="bytes" if verdict.repeats else "stamps")
            if verdict.repeats and stream.state in DEAD:
                stream.refusal = "frozen"
        return verdict

    def route(self, name: str, now_ns: int) -> Route:
        """What to do with the message of stream `name` that was accepted last."""
        self._advance(now_ns)
        stream, other = self._streams[name], self._streams[_other(name)]
        if stream.refusal is not None:
            return Route("stop", stream.refusal)
        return self.alone() if other.state in DEAD else Route("pair")

    def tick(self, now_ns: int) -> list[Event]:
        """Everything that happened up to now and was not told yet, in its order."""
        self._advance(now_ns)
        events, self._events = self._events, []
        return events

    def configure(self, config: DegradedConfig, now_ns: int) -> None:
        """Change the rules from now on: a stream that is overdue under the new ones is given up now."""
        self._advance(now_ns)
        self.config = config
        for stream in self._streams.values():
            stream.not_before_ns = max(stream.not_before_ns, self._now)
            self._judge_pace(stream)
        self._advance(now_ns)

    def time_jumped(self) -> None:
        """Say that time itself was set back (simulated clock): the next stamp of either stream is good in any case."""
        for stream in self._streams.values():
            stream.stamp_ns, stream.late = None, 0
            stream.fingerprints.clear()

    def _judge(self, stream: _Stream, stamp_ns: int, fingerprint: int | None) -> Verdict:
        before = stream.stamp_ns
        if before is None:
            stamp = "first"
        elif stamp_ns > before:
            stamp = "advanced"
        elif stamp_ns < before - TIME_JUMP_NS:
            stamp = "time_jump"
        elif stamp_ns == before:
            return Verdict(stamp="duplicate_stamp", repeats=False)
        else:
            stream.late = stream.late + 1 if stream.late and stamp_ns > stream.late_stamp_ns else 1
            stream.late_stamp_ns = stamp_ns
            if stream.late < LATE_TO_JUMP:
                return Verdict(stamp="out_of_order", repeats=False)
            stamp = "time_jump"
        if stamp == "time_jump":
            stream.fingerprints.clear()  # a bag begins anew, with the same pictures
        repeats = fingerprint in stream.fingerprints and self.wants_fingerprint(stream.name)
        return Verdict(stamp=stamp, repeats=repeats)

    def _take_good(self, stream: _Stream) -> None:
        now, silent_ns, state = self._now, self._now - stream.good_ns, stream.state
        if stream.started:
            stream.gaps.append(silent_ns)
        if state != "alive":
            stream.state, stream.since_ns = "alive", now
            self._expect(self._streams[_other(stream.name)])
        stream.good_ns = stream.heard_ns = now
        stream.refused, stream.graced, stream.started = 0, False, True
        stream.not_before_ns = now
        if stream.lost:
            stream.lost = False
            # it came back before its death was told: what waits in the matcher has a partner again
            self._events = [
                replace(event, flush=None) if event.stream == stream.name else event for event in self._events
            ]
            text = f"{stream.name} camera is back after {_milliseconds(silent_ns)} ms"
            if self.consequence is not None:
                text += f"; {self.consequence}"
            level = "debug" if self._is_expected(stream) else "info"
            self._events.append(
                Event(kind="returned", stream=stream.name, at_ns=now, for_ns=silent_ns, level=level, text=text)
            )
        self._judge_pace(stream)

    def _expect(self, stream: _Stream) -> None:
        """Give a silent stream, not a frozen one, time to come back as the other just did."""
        if stream.state == "alive" or stream.heard_ns != stream.good_ns:
            return
        if stream.state in DEAD:
            stream.state, stream.since_ns = "expected", self._now
        soon = GRACE_NS if stream.period_ns is None else max(GRACE_NS, 3 * stream.period_ns // 2)
        stream.not_before_ns = max(stream.not_before_ns, self._now + min(soon, self._timeout(stream)))

    def _take_refused(self, stream: _Stream, *, cause: Literal["stamps", "bytes"]) -> None:
        in_row = self._now - stream.heard_ns < self._timeout(stream)
        stream.refused = stream.refused + 1 if in_row else 1
        stream.heard_ns, stream.cause = self._now, cause
        if stream.state == "missing" and stream.refused >= REFUSED_TO_FREEZE:
            self._give_up(stream, "frozen", self._now, flush=None)

    def _advance(self, now_ns: int) -> None:
        """Let everything happen that is due, in the order in which it is."""
        self._now = max(self._now, now_ns)
        while True:
            # min takes the first of equals: the order of STREAMS
            stream, at_ns = min(self._deadlines(), key=lambda item: item[1], default=(None, 0))
            if stream is None or at_ns > self._now:
                return
            if stream.state == "frozen":
                self._give_up(stream, "missing", at_ns, flush=None)
                continue
            frozen = stream.refused >= REFUSED_TO_FREEZE and at_ns < stream.heard_ns + self._timeout(stream)
            survivor = self._streams[_other(stream.name)]
            flush = Flush(survivor=survivor.name if survivor.state == "alive" else None, route=self.alone())
            self._give_up(stream, "frozen" if frozen else "missing", at_ns, flush=flush)

    def _give_up(
        self, stream: _Stream, state: Literal["missing", "frozen"], at_ns: int, *, flush: Flush | None
    ) -> None:
        stream.state, stream.since_ns, stream.lost = state, at_ns, True
        self._events.append(
            Event(
                kind=state,
                stream=stream.name,
                at_ns=at_ns,
                for_ns=at_ns - stream.good_ns,
                level="debug" if self._is_expected(stream) else "warning",
                text=f"{self.condition(stream.name).sentence(at_ns)}; {self.consequence}",
                flush=flush,
            )
        )

    def _deadlines(self) -> list[tuple[_Stream, int]]:
        return [(stream, self._deadline(stream)) for stream in self._streams.values() if stream.state != "missing"]

    def _deadline(self, stream: _Stream) -> int:
        """When this stream is given up, or a frozen one is missing, if nothing comes."""
        last = stream.heard_ns if stream.state == "frozen" else stream.good_ns
        return max(last + self._timeout(stream), stream.not_before_ns)

    def _timeout(self, stream: _Stream) -> int:
        if stream.period_ns is None:
            return self.config.timeout_ns
        return max(self.config.timeout_ns, min(_safe(stream.period_ns), LONGEST_TIMEOUT_NS))

    def _is_expected(self, stream: _Stream) -> bool:
        """Whether it is so slow that it dies between any two of its messages."""
        return stream.period_ns is not None and stream.period_ns >= self._timeout(stream)

    def _judge_pace(self, stream: _Stream) -> None:
        """Report a period of more than half the timeout, and again only after it was as short as is safe."""
        period, asked = stream.period_ns, self.config.timeout_ns
        if period is None or _safe(period) <= asked:
            stream.slow = False
        elif 2 * period > asked and not stream.slow:
            stream.slow = True
            text = self.condition(stream.name).pace()
            self._events.append(
                Event(kind="slow", stream=stream.name, at_ns=self._now, for_ns=period, level="warning", text=text)
            )

    def alone(self) -> Route:
        """What is done with a message that has no partner, because its stream is dead or brings none."""
        return {
            "single": Route("single"),
            "hold": Route("hold", "held"),
            "stop": Route("stop", "degraded_stop"),
        }[self.config.mode]


def fingerprint(
    data: bytes | bytearray | memoryview, *, step: int, row_bytes: int, rows: int, pixel_bytes: int
) -> int | None:
    """A number that differs where pixels do (but for one time in 2**32); None where all pixels are equal.

    Bytes between the end of a row and the next one are not looked at. 640 x 480 16-bit pixels take about 0.1 ms.

    Args:
        data: of the message, or anything with a buffer of bytes.
        step: bytes from one row to the next.
        row_bytes: bytes of the pixels of one row, at most `step`.
        rows: number of rows.
        pixel_bytes: bytes of one pixel.
    """
    pixels = np.ndarray((rows, row_bytes), np.uint8, buffer=data, strides=(step, 1))
    first = pixels[0]
    # nearly every picture is told from a constant one by its first row
    if np.array_equal(first[pixel_bytes:], first[:-pixel_bytes]) and (pixels == first).all():
        return None
    return zlib.crc32(np.ascontiguousarray(pixels))


def _safe(period_ns: int) -> int:
    numerator, denominator = SAFE_PERIODS
    return numerator * period_ns // denominator


def _other(name: str) -> str:
    return STREAMS[1 - STREAMS.index(name)]


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds * 1e-6:.0f}"
