"""No more pictures a second than asked for. No clock in here: times are whole nanoseconds, handed in."""

from __future__ import annotations

from isfl_ros.ros.messages import NANOSECONDS
from isfl_ros.ros.sync import TIME_JUMP_NS

EARLY = 0.25
"""Part of a period by which a picture may be early: cameras jitter, and one of 30.1 Hz is not to be halved by a limit
of 30 Hz. The schedule does not move with it, so that the rate is kept in the long run."""


class RateLimit:
    """Says which pictures are due, by their stamps: at once or never, none is held back.

    Only what was shown counts (`note`): a picture that failed leaves its place to the next one.
    """

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._max_hz = 0.0
        """The limit at that time."""
        self._due_ns = 0
        """When the picture after the last one is due; meaningless before the first."""

    def allows(self, at_ns: int, max_hz: float) -> bool:
        """Whether a picture of this time may be shown; always where `max_hz` is 0, and where time jumped back."""
        if max_hz == 0.0 or self._last_ns is None or at_ns < self._last_ns - TIME_JUMP_NS:
            return True
        period_ns = NANOSECONDS / max_hz
        # a limit that was changed meanwhile counts from the last picture on
        due_ns = self._due_ns if max_hz == self._max_hz else self._last_ns + period_ns
        return at_ns >= due_ns - EARLY * period_ns

    def note(self, at_ns: int, max_hz: float) -> None:
        """A picture of this time was shown."""
        if max_hz > 0.0:
            period_ns = round(NANOSECONDS / max_hz)
            goes_on = self._last_ns is not None and max_hz == self._max_hz and at_ns > self._last_ns
            # one that is late gives the next one that much more room, but for no more than a period
            self._due_ns = (max(self._due_ns, at_ns - period_ns) if goes_on else at_ns) + period_ns
        self._last_ns, self._max_hz = at_ns, max_hz


class Rates:
    """One limit for every picture, and one more for outputs that cost too much to be shown each time.

    Args:
        costly: names of these outputs.
    """

    def __init__(self, costly: frozenset[str]):
        self._costly = costly
        self._every = RateLimit()
        self._seldom = RateLimit()

    def due(self, wanted: frozenset[str], at_ns: int, *, max_hz: float, costly_max_hz: float) -> frozenset[str]:
        """Those of the outputs `wanted` that may show a picture of this time."""
        if not self._every.allows(at_ns, max_hz):
            return frozenset()
        return wanted if self._seldom.allows(at_ns, costly_max_hz) else wanted - self._costly

    def note(self, shown: frozenset[str], at_ns: int, *, max_hz: float, costly_max_hz: float) -> None:
        """These outputs showed a picture of this time."""
        self._every.note(at_ns, max_hz)
        if shown & self._costly:
            self._seldom.note(at_ns, costly_max_hz)
