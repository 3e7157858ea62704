"""Which thermal message belongs to which RGB message. No ROS in here, no clock, no lock, and no callback.

Stamps are whole nanoseconds. A thermal stamp is compared after `thermal_offset_ns` was added to it.

Two messages form a pair when each is the other's closest within the slop. The pair is handed out as soon as no message
still to come can be closer to either of the two. Stamps grow within a stream, so what is still to come is newer than
everything seen. Let `e` be the earlier and `l` the later message of a pair, `d` nanoseconds apart:
- the stream of `l` can only bring messages farther from `e`;
- the stream of `e` can bring one closer to `l` only if it has brought nothing newer than `e` yet, and only if its next
  stamp, `e` plus its shortest recent period, lies less than `d` from `l`, that is if the period is below 2 d.
Equal stamps and cameras in step therefore never wait. A stream whose period is not known yet is not waited for either.
A pair that does wait is handed out at the next message that decides it, or by `release` when the stream went silent.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")

STREAMS = ("thermal", "rgb")
"""The two streams, by the names used in topics, parameters and diagnostics."""

TIME_JUMP_NS = 1_000_000_000
"""A stamp further than this behind its predecessor means that time itself went back (bag loop, clock reset)."""

KEEP_NS = 1_000_000_000
"""How long, by stamps, a message waits for a partner: pictures of an encoded stream or a radio link arrive that late."""

BUFFER = 64
"""Messages kept per stream while they wait for a partner: `KEEP_NS` of a 60 Hz camera."""

RECENT = 8
"""Stamps remembered per stream: for its shortest recent period, and for how close a missed partner was."""


@dataclass(frozen=True)
class Pair(Generic[Item]):
    """Two messages that belong together."""

    thermal: Item
    rgb: Item
    skew_ns: int
    """Thermal stamp (offset added) minus RGB stamp."""


@dataclass
class Outcome(Generic[Item]):
    """What one call decided: pairs in the order of their stamps, and messages that will never have a partner."""

    pairs: list[Pair[Item]] = field(default_factory=list)
    dropped: list[tuple[Item, str]] = field(default_factory=list)
    """Items with the reason: `unmatched`, `duplicate_stamp`, `out_of_order`, or the one given to `reset`."""


class Matcher(Protocol[Item]):
    """What `PairMatcher` and the adapter of message_filters have in common; every item comes back exactly once."""

    paired: int
    """Pairs handed out so far."""

    @property
    def closest_miss_ns(self) -> int | None:
        """How far the closest message of the other stream was from a recent unmatched one; None after a pair."""

    def configure(self, *, slop_ns: int, thermal_offset_ns: int) -> Outcome[Item]:
        """Change the slop and the offset from now on; messages that wait are judged anew."""

    def offer(self, stream: str, stamp_ns: int, item: Item) -> Outcome[Item]:
        """Take in one message of `stream`."""

    def release(self) -> Outcome[Item]:
        """Hand out what was held back too long. Call it regularly."""

    def take_newest(self, stream: str | None) -> tuple[Outcome[Item], Item | None]:
        """Empty the matcher because a stream died; the newest message of `stream` is returned by itself."""

    def take_older(self, stream: str) -> tuple[Outcome[Item], Item | None]:
        """Take out of `stream` all that waits but the newest; the last of these is returned by itself."""

    def reset(self, reason: str) -> Outcome[Item]:
        """Drop everything that waits, with `reason`, and forget all stamps."""


@dataclass
class _Entry(Generic[Item]):
    stamp: int
    item: Item


class _Track(Generic[Item]):
    """One stream: what waits for a partner, and what its stamps looked like. Stamps include the offset."""

    def __init__(self) -> None:
        self.waiting: deque[_Entry[Item]] = deque()
        self.recent: deque[int] = deque(maxlen=RECENT)
        self._gaps: deque[int] = deque(maxlen=RECENT)

    @property
    def newest(self) -> int | None:
        return self.recent[-1] if self.recent else None

    @property
    def period(self) -> int | None:
        """Shortest of the recent periods: dropped frames make a period longer, never shorter."""
        return min(self._gaps, default=None)

    def append(self, entry: _Entry[Item]) -> None:
        """Take in a message newer than all before."""
        if self.newest is not None:
            self._gaps.append(entry.stamp - self.newest)
        self.recent.append(entry.stamp)
        self.waiting.append(entry)

    @property
    def overfull(self) -> bool:
        """Whether the oldest message has waited long enough."""
        waiting = self.waiting
        return len(waiting) > BUFFER or (len(waiting) > 1 and waiting[-1].stamp - waiting[0].stamp > KEEP_NS)

    def shift(self, by: int) -> None:
        """Move all stamps."""
        for entry in self.waiting:
            entry.stamp += by
        self.recent = deque((stamp + by for stamp in self.recent), maxlen=RECENT)

    def forget(self) -> list[Item]:
        """Forget all stamps, but not the period: a camera keeps its rate when time jumps. Returns what waited."""
        left = [entry.item for entry in self.waiting]
        self.waiting.clear()
        self.recent.clear()
        return left

    def nearest(self, stamp: int) -> _Entry[Item] | None:
        """The waiting message closest to `stamp`; of two equally close, the newer."""
        return min(self.waiting, key=lambda entry: (abs(entry.stamp - stamp), -entry.stamp), default=None)


class PairMatcher(Generic[Item]):
    """Pairs the messages of two streams by stamp. Every item offered comes back exactly once: paired or dropped.

    Not thread-safe: one thread (the executor's) makes all calls.

    Args:
        slop_ns: largest distance of two stamps in a pair, inclusive.
        thermal_offset_ns: added to every thermal stamp (a known clock offset).
    """

    def __init__(self, *, slop_ns: int, thermal_offset_ns: int = 0):
        self.slop_ns = slop_ns
        self.paired = 0
        """Pairs handed out so far."""
        self._offset_ns = thermal_offset_ns
        self._tracks: dict[str, _Track[Item]] = {stream: _Track() for stream in STREAMS}
        self._misses: deque[int] = deque(maxlen=RECENT)
        self._held: tuple[int, int] | None = None

    @property
    def pending(self) -> dict[str, int]:
        """Messages that wait for a partner, by stream."""
        return {stream: len(track.waiting) for stream, track in self._tracks.items()}

    @property
    def closest_miss_ns(self) -> int | None:
        """How far the closest message of the other stream was from a recent unmatched one; None after a pair."""
        return min(self._misses, default=None)

    def configure(self, *, slop_ns: int, thermal_offset_ns: int) -> Outcome[Item]:
        """Change the slop and the offset from now on; messages that wait are judged anew."""
        self.slop_ns = slop_ns
        shift, self._offset_ns = thermal_offset_ns - self._offset_ns, thermal_offset_ns
        self._tracks["thermal"].shift(shift)
        self._misses.clear()
        outcome: Outcome[Item] = Outcome()
        self._settle(outcome)
        return outcome

    def offer(self, stream: str, stamp_ns: int, item: Item) -> Outcome[Item]:
        """Take in one message of `stream`."""
        outcome: Outcome[Item] = Outcome()
        track = self._tracks[stream]
        stamp = stamp_ns + self._offset_ns if stream == "thermal" else stamp_ns
        if track.newest is not None and stamp < track.newest - TIME_JUMP_NS:
            self._forget_after(stamp, outcome)
        if track.newest is not None and stamp <= track.newest:
            outcome.dropped.append((item, "duplicate_stamp" if stamp == track.newest else "out_of_order"))
            return outcome
        track.append(_Entry(stamp, item))
        self._settle(outcome)
        return outcome

    def release(self) -> Outcome[Item]:
        """Hand out a pair that was already held back for a closer partner at the previous call. Call it regularly."""
        outcome: Outcome[Item] = Outcome()
        candidate = self._candidate()
        stamps = candidate and (candidate[0].stamp, candidate[1].stamp)
        if stamps is not None and stamps == self._held:
            self._settle(outcome, hold=False)
            stamps = None
        self._held = stamps
        return outcome

    def take_newest(self, stream: str | None) -> tuple[Outcome[Item], Item | None]:
        """Empty the matcher because a stream died, without forgetting stamps or periods.

        Returns:
            Pairs held back for a closer partner, and everything else that waited as `unmatched`, except for the newest
            message of `stream` (the one that is alive; None: there is none), which is returned by itself.
        """
        outcome: Outcome[Item] = Outcome()
        self._settle(outcome, hold=False)
        newest = None
        for name, track in self._tracks.items():
            waiting = [entry.item for entry in track.waiting]
            track.waiting.clear()
            if name == stream and waiting:
                newest = waiting.pop()
            outcome.dropped.extend((item, "unmatched") for item in waiting)
        return outcome, newest

    def take_older(self, stream: str) -> tuple[Outcome[Item], Item | None]:
        """Take out of `stream` all that waits but the newest, which may still find its partner.

        Returns:
            What was taken out as `unmatched`, except for the last of it, which is returned by itself; None: there is none.
        """
        outcome: Outcome[Item] = Outcome()
        waiting = self._tracks[stream].waiting
        older = [waiting.popleft().item for _ in range(len(waiting) - 1)]
        last = older.pop() if older else None
        outcome.dropped.extend((item, "unmatched") for item in older)
        return outcome, last

    def reset(self, reason: str) -> Outcome[Item]:
        """Drop everything that waits, with `reason`, and forget all stamps."""
        outcome: Outcome[Item] = Outcome()
        for track in self._tracks.values():
            outcome.dropped.extend((item, reason) for item in track.forget())
        self._misses.clear()
        return outcome

    def _forget_after(self, stamp: int, outcome: Outcome[Item]) -> None:
        """Time went back to `stamp`: forget what either stream had from the time that is now ahead."""
        for track in self._tracks.values():
            if track.newest is not None and track.newest > stamp + TIME_JUMP_NS:
                outcome.dropped.extend((item, "time_jump") for item in track.forget())

    def _settle(self, outcome: Outcome[Item], *, hold: bool = True) -> None:
        """Move every pair and every hopeless message into `outcome`."""
        if any(track.overfull for track in self._tracks.values()):
            hold = False
        while (candidate := self._candidate()) is not None:
            thermal, rgb = candidate
            if hold and self._closer_may_come(thermal, rgb):
                break
            for stream, entry in zip(STREAMS, candidate):
                self._drop_before(stream, entry, outcome)
            self._misses.clear()
            self.paired += 1
            outcome.pairs.append(Pair(thermal.item, rgb.item, thermal.stamp - rgb.stamp))
        for stream, other in (STREAMS, STREAMS[::-1]):
            self._drop_hopeless(self._tracks[stream], self._tracks[other], outcome)

    def _candidate(self) -> tuple[_Entry[Item], _Entry[Item]] | None:
        """The oldest two messages within the slop that are each other's closest."""
        thermal_track, rgb_track = (self._tracks[stream] for stream in STREAMS)
        for thermal in thermal_track.waiting:
            rgb = rgb_track.nearest(thermal.stamp)
            if rgb is None or abs(thermal.stamp - rgb.stamp) > self.slop_ns:
                continue
            if thermal_track.nearest(rgb.stamp) is thermal:
                return thermal, rgb
        return None

    def _closer_may_come(self, thermal: _Entry[Item], rgb: _Entry[Item]) -> bool:
        """Whether the stream of the earlier of the two can still bring a closer partner (see the top of this file)."""
        distance = abs(thermal.stamp - rgb.stamp)
        earlier, track = (
            (thermal, self._tracks["thermal"]) if thermal.stamp < rgb.stamp else (rgb, self._tracks["rgb"])
        )
        if track.newest != earlier.stamp or track.period is None:
            return False
        return track.period < 2 * distance

    def _drop_before(self, stream: str, entry: _Entry[Item], outcome: Outcome[Item]) -> None:
        """Take `entry` out of its stream, and everything older: the newest pair wins."""
        waiting = self._tracks[stream].waiting
        while (oldest := waiting.popleft()) is not entry:
            outcome.dropped.append((oldest.item, "unmatched"))

    def _drop_hopeless(self, track: _Track[Item], other: _Track[Item], outcome: Outcome[Item]) -> None:
        """Drop what has no partner and can get none, and what no longer fits."""
        while track.waiting:
            entry = track.waiting[0]
            partner = other.nearest(entry.stamp)
            within = partner is not None and abs(partner.stamp - entry.stamp) <= self.slop_ns
            passed = other.newest is not None and other.newest - entry.stamp >= self.slop_ns
            if not track.overfull and (within or not passed):
                break
            track.waiting.popleft()
            outcome.dropped.append((entry.item, "unmatched"))
            if other.recent and passed:  # else its partner may be on its way still, and nothing is known of a distance
                self._misses.append(min(abs(stamp - entry.stamp) for stamp in other.recent))
