"""Pairing by the middleware's `message_filters`, behind the contract of `PairMatcher`; and the choice between the two.

`message_filters.ApproximateTimeSynchronizer` calls its user while it holds its lock, and an exception there leaves the
lock held for ever. Here its user is a list: what it delivers is handed out after it has returned. It never says what it
gave up either, so its queues are compared after each message with what is still waited for.

It stays what it is otherwise. Where the two matchers differ (test/ros/test_sync_contract.py runs these rows):

| case | builtin | message_filters |
|---|---|---|
| stamps exactly the slop apart | pair | no pair; with slop 0 never a pair, so that is refused |
| a closer partner still to come | waited for where one can come | first message within the slop wins |
| two waiting partners equally close | the newer | the one that came first |
| waiting message older than a pair handed out | dropped at once | can still be paired: stamps of pairs can go back |
| message older than its predecessor | dropped as out_of_order | taken, unless older than all of a full queue |
| stamp repeated while it waits | the new message is dropped | the old message is dropped |
| stamp repeated after its pair | dropped | taken, can be paired again |
| message that can have no partner any more | dropped at once | dropped when newer ones push it out of its queue |
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from types import ModuleType
from typing import Generic

from rclpy.time import Time

from isfl_ros.errors import InputError
from isfl_ros.ros.sync import BUFFER, RECENT, STREAMS, TIME_JUMP_NS, Item, Matcher, Outcome, Pair, PairMatcher

MATCHER_CHOICES = ("builtin", "message_filters")

ORIGIN_NS = 2**62
"""Added to stamps for the library: its Time holds 0 to 2**63 - 1, and a stamp plus an offset can be negative."""


@dataclass(eq=False)
class _Header:
    stamp: Time


@dataclass(eq=False)
class _Entry(Generic[Item]):
    """What the library sees instead of a message: an object with a header that has a stamp."""

    stamp: int
    """Nanoseconds, offset included."""
    item: Item
    closest: int | None = None
    """How far the closest message of the other stream was so far."""
    header: _Header = field(init=False)

    def __post_init__(self) -> None:
        self.move(0)

    def move(self, by: int) -> None:
        """Change the stamp."""
        self.stamp += by
        self.header = _Header(Time(nanoseconds=self.stamp + ORIGIN_NS))

    def met(self, stamp: int) -> None:
        """Note that the other stream has a message of this stamp."""
        distance = abs(self.stamp - stamp)
        self.closest = distance if self.closest is None else min(self.closest, distance)


class _Track(Generic[Item]):
    """One stream: what waits in the library's queue, in the order of arrival, and its recent stamps."""

    def __init__(self) -> None:
        self.waiting: list[_Entry[Item]] = []
        self.recent: deque[int] = deque(maxlen=RECENT)
        self.newest: int | None = None

    def note(self, stamp: int) -> None:
        """Take in a stamp, which can be older than others."""
        self.recent.append(stamp)
        self.newest = stamp if self.newest is None else max(self.newest, stamp)

    def shift(self, by: int) -> None:
        """Move all stamps."""
        for entry in self.waiting:
            entry.move(by)
        self.recent = deque((stamp + by for stamp in self.recent), maxlen=RECENT)
        self.newest = None if self.newest is None else self.newest + by

    def forget(self) -> list[Item]:
        """Forget everything. Returns what waited."""
        left = [entry.item for entry in self.waiting]
        self.waiting.clear()
        self.recent.clear()
        self.newest = None
        return left


class MessageFiltersMatcher(Generic[Item]):
    """Pairs the messages of two streams with `message_filters`. Every item offered comes back exactly once.

    Not thread-safe: one thread (the executor's) makes all calls.

    Args:
        slop_ns: two stamps in a pair are less than this apart.
        thermal_offset_ns: added to every thermal stamp (a known clock offset).

    Raises:
        InputError: message_filters is not installed, or the slop is 0.
    """

    def __init__(self, *, slop_ns: int, thermal_offset_ns: int = 0):
        self._library = _message_filters()
        self.slop_ns = check_slop(slop_ns)
        self.paired = 0
        """Pairs handed out so far."""
        self._offset_ns = thermal_offset_ns
        self._tracks: dict[str, _Track[Item]] = {stream: _Track() for stream in STREAMS}
        self._misses: deque[int] = deque(maxlen=RECENT)
        self._delivered: list[tuple[_Entry[Item], _Entry[Item]]] = []
        self._connect()

    @property
    def pending(self) -> dict[str, int]:
        """Messages that wait for a partner, by stream."""
        return {stream: len(track.waiting) for stream, track in self._tracks.items()}

    @property
    def closest_miss_ns(self) -> int | None:
        """How far the closest message of the other stream was from a recent unmatched one; None after a pair."""
        return min(self._misses, default=None)

    def configure(self, *, slop_ns: int, thermal_offset_ns: int) -> Outcome[Item]:
        """Change the slop and the offset from now on; messages that wait are judged anew.

        Raises:
            InputError: the slop is 0; nothing was changed then.
        """
        self.slop_ns = check_slop(slop_ns)
        shift, self._offset_ns = thermal_offset_ns - self._offset_ns, thermal_offset_ns
        self._tracks["thermal"].shift(shift)
        self._misses.clear()
        return self._rebuild(Outcome())

    def offer(self, stream: str, stamp_ns: int, item: Item) -> Outcome[Item]:
        """Take in one message of `stream`."""
        outcome: Outcome[Item] = Outcome()
        entry = _Entry(stamp_ns + self._offset_ns if stream == "thermal" else stamp_ns, item)
        newest = self._tracks[stream].newest
        if newest is not None and entry.stamp < newest - TIME_JUMP_NS:
            self._forget_after(entry.stamp, outcome)
        self._feed(stream, entry, outcome)
        return outcome

    def release(self) -> Outcome[Item]:
        """Hand out what was held back: nothing ever is."""
        return Outcome()

    def take_newest(self, stream: str | None) -> tuple[Outcome[Item], Item | None]:
        """Empty the matcher because a stream died, without forgetting its stamps.

        Returns:
            Everything that waited as `unmatched`, except for the newest message of `stream` (the one that is alive;
            None: there is none), which is returned by itself.
        """
        outcome: Outcome[Item] = Outcome()
        newest = None
        for name, track in self._tracks.items():
            waiting, track.waiting = sorted(track.waiting, key=lambda entry: entry.stamp), []
            if name == stream and waiting:
                newest = waiting.pop().item
            outcome.dropped.extend((entry.item, "unmatched") for entry in waiting)
        self._connect()
        return outcome, newest

    def take_older(self, stream: str) -> tuple[Outcome[Item], Item | None]:
        """Take out of `stream` all that waits but the newest; see `PairMatcher.take_older`."""
        outcome: Outcome[Item] = Outcome()
        track = self._tracks[stream]
        waiting = sorted(track.waiting, key=lambda entry: entry.stamp)
        older, track.waiting = waiting[:-1], waiting[-1:]
        last = older.pop().item if older else None
        outcome.dropped.extend((entry.item, "unmatched") for entry in older)
        return self._rebuild(outcome), last

    def reset(self, reason: str) -> Outcome[Item]:
        """Drop everything that waits, with `reason`, and forget all stamps."""
        outcome: Outcome[Item] = Outcome()
        for track in self._tracks.values():
            outcome.dropped.extend((item, reason) for item in track.forget())
        self._misses.clear()
        self._connect()
        return outcome

    def _connect(self) -> None:
        """A new synchroniser with empty queues; also the way out of one whose lock was left held."""
        self._inputs = {stream: self._library.SimpleFilter() for stream in STREAMS}
        # a product, because it cuts its seconds off to whole nanoseconds: slop / 1e9 can become one nanosecond less
        seconds = self.slop_ns * 1e-9
        self._synchronizer = self._library.ApproximateTimeSynchronizer(list(self._inputs.values()), BUFFER, seconds)
        self._delivered.clear()
        self._synchronizer.registerCallback(lambda thermal, rgb: self._delivered.append((thermal, rgb)))

    def _rebuild(self, outcome: Outcome[Item]) -> Outcome[Item]:
        """A new synchroniser that is fed once more with what waits."""
        waiting = [(entry, stream) for stream, track in self._tracks.items() for entry in track.waiting]
        for track in self._tracks.values():
            track.waiting.clear()
        self._connect()
        for entry, stream in sorted(waiting, key=lambda row: row[0].stamp):
            entry.closest = None
            self._feed(stream, entry, outcome)
        return outcome

    def _forget_after(self, stamp: int, outcome: Outcome[Item]) -> None:
        """Time went back to `stamp`: forget what either stream had from the time that is now ahead."""
        for track in self._tracks.values():
            if track.newest is not None and track.newest > stamp + TIME_JUMP_NS:
                outcome.dropped.extend((item, "time_jump") for item in track.forget())
        self._rebuild(outcome)

    def _feed(self, stream: str, entry: _Entry[Item], outcome: Outcome[Item]) -> None:
        """Hand one message to the library, and move what that decided into `outcome`."""
        track, other = (self._tracks[name] for name in (STREAMS if stream == STREAMS[0] else STREAMS[::-1]))
        late = track.newest is not None and entry.stamp < track.newest
        for stamp in other.recent:
            entry.met(stamp)
        for waiting in other.waiting:
            waiting.met(entry.stamp)
        track.note(entry.stamp)
        track.waiting.append(entry)
        try:
            self._inputs[stream].signalMessage(entry)
        except BaseException:
            # its lock is still held and its queues are not to be trusted: what waited is given up at the next message
            self._connect()
            raise

        paired, self._delivered = self._delivered, []
        handed_out = {id(one) for pair in paired for one in pair}
        for name, queue in zip(STREAMS, self._synchronizer.queues):
            kept = {id(one) for one in queue.values()}
            waiting, self._tracks[name].waiting = self._tracks[name].waiting, []
            for one in waiting:
                if id(one) in kept:
                    self._tracks[name].waiting.append(one)
                elif id(one) not in handed_out:
                    self._drop(one, entry, late, outcome)
        for thermal, rgb in paired:
            self._misses.clear()
            self.paired += 1
            outcome.pairs.append(Pair(thermal.item, rgb.item, thermal.stamp - rgb.stamp))

    def _drop(self, lost: _Entry[Item], arrived: _Entry[Item], late: bool, outcome: Outcome[Item]) -> None:
        """Say why `lost` fell out of its queue when `arrived` came."""
        if lost is arrived and late:
            outcome.dropped.append((lost.item, "out_of_order"))
        elif lost is not arrived and lost.stamp == arrived.stamp:
            outcome.dropped.append((lost.item, "duplicate_stamp"))
        else:
            outcome.dropped.append((lost.item, "unmatched"))
            if lost.closest is not None:
                self._misses.append(lost.closest)


def make_matcher(requested: str, *, slop_ns: int, thermal_offset_ns: int) -> tuple[Matcher, str]:
    """The matcher that was asked for, and in words why one would.

    Args:
        requested: one of `MATCHER_CHOICES`.
        slop_ns, thermal_offset_ns: as for the matchers.

    Raises:
        InputError: message_filters is asked for and not installed, or its slop would be 0.
    """
    if requested == "builtin":
        matcher = PairMatcher(slop_ns=slop_ns, thermal_offset_ns=thermal_offset_ns)
        return matcher, "closest partner wins, slop inclusive, stamps of pairs never go back"
    matcher = MessageFiltersMatcher(slop_ns=slop_ns, thermal_offset_ns=thermal_offset_ns)
    return matcher, "asked for: first partner wins, slop exclusive, takes messages that come out of order"


def _message_filters() -> ModuleType:
    try:
        import message_filters
    except ImportError as error:
        raise InputError(
            "sync.matcher message_filters is not installed",
            do="sudo apt install ros-$ROS_DISTRO-message-filters, or set sync.matcher to builtin",
        ) from error
    return message_filters


def check_slop(slop_ns: int) -> int:
    """`slop_ns`, where message_filters can make a pair with it.

    Raises:
        InputError: it never can.
    """
    if slop_ns <= 0:
        raise InputError(
            "sync.slop_ms makes no pair ever with message_filters, whose slop is exclusive",
            expected="more than 0",
            got=f"{slop_ns * 1e-6:g}",
            do="raise it, or set sync.matcher to builtin",
        )
    return slop_ns
