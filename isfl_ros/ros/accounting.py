"""Where every received message is. No ROS in here.

For each stream and at every instant: received == fused + sum of dropped by reason + pending.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Ticket:
    """One received message, from its reception until it is fused or dropped. Made by `Ledger.receive`."""

    __slots__ = ("stream", "_open")

    def __init__(self, stream: str):
        self.stream = stream
        self._open = True


@dataclass(frozen=True, kw_only=True)
class StreamCounts:
    """Messages of one stream since the node was activated for the first time."""

    received: int
    fused: int
    dropped: Mapping[str, int]
    """Reason -> count."""
    pending: int
    """Received, not yet fused or dropped: waiting for a partner, waiting for the worker, or being fused."""


class Ledger:
    """Counts the fate of messages exactly once each; every method may be called from any thread."""

    def __init__(self, streams: Iterable[str]):
        self._lock = threading.Lock()
        self._received: Counter[str] = Counter()
        self._fused: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        self._dropped: dict[str, Counter[str]] = {stream: Counter() for stream in streams}

    def receive(self, stream: str) -> Ticket:
        """Note one more message of `stream`."""
        with self._lock:
            self._received[stream] += 1
            self._pending[stream] += 1
        return Ticket(stream)

    def fuse(self, *tickets: Ticket) -> bool:
        """Note that the messages of a pair were fused; False where they had been dropped before (see `drop`)."""
        with self._lock:
            open_ones = self._close(tickets)
            self._fused.update(ticket.stream for ticket in open_ones)
        return bool(open_ones)

    def drop(self, reason: str, *tickets: Ticket) -> None:
        """Note that messages were dropped for `reason`, all in one step.

        The first entry stands: a pair that was given up at shutdown while a stuck worker still held it stays dropped.
        """
        with self._lock:
            for ticket in self._close(tickets):
                self._dropped[ticket.stream][reason] += 1

    def is_open(self, *tickets: Ticket) -> bool:
        """Whether none of these messages has met its fate yet."""
        with self._lock:
            return all(ticket._open for ticket in tickets)

    def snapshot(self) -> dict[str, StreamCounts]:
        """Counts of all streams at one instant."""
        with self._lock:
            return {
                stream: StreamCounts(
                    received=self._received[stream],
                    fused=self._fused[stream],
                    dropped=dict(dropped),
                    pending=self._pending[stream],
                )
                for stream, dropped in self._dropped.items()
            }

    def _close(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        open_ones = [ticket for ticket in tickets if ticket._open]
        for ticket in open_ones:
            ticket._open = False
            self._pending[ticket.stream] -= 1
        return open_ones
