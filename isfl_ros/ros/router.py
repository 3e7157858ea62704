"""From messages to jobs: every message goes into a pair, is fused alone, or is dropped for a reason. No ROS in here.

Two cameras that both bring pictures can still bring no pairs: a clock was set, stamps come from different sources, one
arrives too late for the other. Where that lasts as long as a dead camera would be waited for, it is treated as one: the
reference camera's messages are shown as `degraded.mode` says, while pairs are still looked for, and the first pair ends it.

One thread (the executor's) makes all calls. User code, here the worker, is called under no lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.degraded import Condition, DegradedConfig, Event, Route, Supervisor
from isfl_ros.ros.jobs import Frame, HoldJob, Job, PairJob, SingleJob
from isfl_ros.ros.sync import STREAMS, Matcher, Outcome
from isfl_ros.ros.worker import LatestWorker

Message = TypeVar("Message")


class Router(Generic[Message]):
    """Holds the matcher and, between `start` and `stop`, the supervisor of both streams.

    Args:
        matcher: which message belongs to which; it lives as long as the node.
        ledger: every ticket that is given up here is dropped there.
        reference: the stream that is shown while both bring pictures, but no pairs.
        say: called with what happens to a stream.
        now_ns: the monotonic clock.
    """

    def __init__(
        self,
        matcher: Matcher[Frame[Message]],
        ledger: Ledger,
        *,
        reference: str,
        say: Callable[[Event], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ):
        self._matcher = matcher
        self._ledger = ledger
        self._reference = reference
        self._say = say
        self._now_ns = now_ns
        self._supervisor: Supervisor | None = None
        self._worker: LatestWorker[Job] | None = None
        self._epoch = 0
        """Grows when time jumps."""
        self._paired_ns = 0
        """When the last pair was found."""
        self._unpaired_ns: int | None = None
        """Since when there have been no pairs, where that is too long."""

    @property
    def paired(self) -> int:
        """Pairs found since the node was made."""
        return self._matcher.paired

    @property
    def closest_miss_ns(self) -> int | None:
        """How far the closest message of the other stream was from a recent unmatched one; None after a pair."""
        return self._matcher.closest_miss_ns

    @property
    def next_deadline_ns(self) -> int | None:
        """When a stream is given up if nothing comes: call `watch` then. None where none can be."""
        return None if self._supervisor is None else self._supervisor.next_deadline_ns

    @property
    def mode(self) -> str:
        """See `Supervisor.mode`; `none` while stopped."""
        if self._supervisor is None:
            return "none"
        return self._supervisor.mode_of(self._reference) if self.unpaired else self._supervisor.mode

    @property
    def unpaired(self) -> bool:
        """Whether both cameras bring pictures, but no pairs."""
        return self._unpaired_ns is not None and self._supervisor.mode == "pair"

    @property
    def consequence(self) -> str | None:
        """See `Supervisor.consequence`."""
        if self._supervisor is None or not self.unpaired:
            return None if self._supervisor is None else self._supervisor.consequence
        silent_ms = (self._now_ns() - self._unpaired_ns) * 1e-6
        return f"no pair for {silent_ms:.0f} ms: {self._supervisor.consequence_of(self._reference)}"

    def condition(self, stream: str) -> Condition | None:
        """See `Supervisor.condition`; None while stopped."""
        return None if self._supervisor is None else self._supervisor.condition(stream)

    def wants_fingerprint(self, stream: str) -> bool:
        """Whether `offer` compares the bytes of messages of this stream."""
        return self._supervisor is not None and self._supervisor.wants_fingerprint(stream)

    def start(self, worker: LatestWorker[Job], degraded: DegradedConfig) -> None:
        """Watch both streams from now on, and hand jobs to `worker`."""
        self._worker = worker
        self._supervisor = Supervisor(degraded, started_ns=self._now_ns())
        self._paired_ns, self._unpaired_ns = self._now_ns(), None

    def stop(self) -> None:
        """Give up what waits for a partner, as `shutdown`."""
        self._carry_out(self._matcher.reset("shutdown"))
        self._supervisor = self._worker = self._unpaired_ns = None

    def configure_matching(self, *, slop_ns: int, thermal_offset_ns: int) -> None:
        """Change the slop and the offset from now on."""
        self._epoch += 1  # with the offset, stamps of pictures can go back
        self._carry_out(self._matcher.configure(slop_ns=slop_ns, thermal_offset_ns=thermal_offset_ns))

    def configure_degraded(self, degraded: DegradedConfig) -> None:
        """Change what counts as dead, and what is done about it, from now on."""
        if self._supervisor is not None:
            now = self._now_ns()
            self._supervisor.configure(degraded, now)
            self._act(now)

    def time_jumped(self) -> None:
        """Say that a simulated clock was set back."""
        if self._supervisor is not None:
            self._supervisor.time_jumped()
        self._start_epoch()

    def offer(self, stream: str, stamp_ns: int, frame: Frame[Message], fingerprint: int | None = None) -> None:
        """Find out what becomes of a well-formed message.

        Args:
            stream: `thermal` or `rgb`.
            stamp_ns: its stamp, without any offset.
            frame: the message.
            fingerprint: of its pixels, where it is wanted; None also where all pixels are equal.
        """
        now = frame.arrived_ns
        self._supervisor.woke(now)
        verdict = self._supervisor.accept(stream, stamp_ns, now, fingerprint)
        if verdict.stamp == "time_jump":
            self._start_epoch()
        self._act(now)
        route = self._supervisor.route(stream, now)
        if route.action != "pair":
            self._without_partner(stream, route, frame)
            return
        outcome = self._matcher.offer(stream, stamp_ns, frame)
        alone = None
        if outcome.pairs:
            self._note_pair(now)
        elif self._misses_pairs(now):
            alone = self._take_alone(stream, outcome)
        self._carry_out(outcome)
        if alone is not None:
            self._without_partner(self._reference, self._supervisor.alone(), alone)

    def watch(self) -> None:
        """Act on streams that died; call it at `next_deadline_ns`."""
        if self._supervisor is not None:
            now = self._now_ns()
            self._supervisor.woke(now)
            self._act(now)

    def release(self) -> None:
        """Hand out a pair that was held back for a closer partner; call it regularly."""
        if self._supervisor is not None:
            outcome = self._matcher.release()
            if outcome.pairs:
                self._note_pair(self._now_ns())
            self._carry_out(outcome)

    def _start_epoch(self) -> None:
        self._epoch += 1
        self._carry_out(self._matcher.reset("time_jump"))

    def _note_pair(self, now_ns: int) -> None:
        self._paired_ns = now_ns
        if self._unpaired_ns is not None:
            for_ns, self._unpaired_ns = now_ns - self._unpaired_ns, None
            text = f"pairs again after {for_ns * 1e-6:.0f} ms"
            self._say(
                Event(kind="paired", stream=self._reference, at_ns=now_ns, for_ns=for_ns, level="info", text=text)
            )

    def _misses_pairs(self, now_ns: int) -> bool:
        """Whether both cameras have been alive, and have brought no pair, for as long as a dead one is waited for."""
        conditions = [self._supervisor.condition(stream) for stream in STREAMS]
        if any(condition.state != "alive" for condition in conditions):
            return False
        since_ns = max(self._paired_ns, *(condition.since_ns for condition in conditions))
        if now_ns - since_ns < max(condition.timeout_ns for condition in conditions):
            return False
        if self._unpaired_ns is None:
            self._unpaired_ns = since_ns
            for_ns, text = now_ns - since_ns, f"both cameras bring pictures, but {self.consequence}"
            self._say(
                Event(kind="unpaired", stream=self._reference, at_ns=now_ns, for_ns=for_ns, level="warning", text=text)
            )
        return True

    def _take_alone(self, stream: str, outcome: Outcome[Frame[Message]]) -> Frame[Message] | None:
        """The newest message of the reference camera that is not waited for any more, out of what `outcome` gives up.

        The very newest may still find its partner, which is how pairs begin again; so it is the one before, if need be.
        """
        lost = [
            number
            for number, (frame, reason) in enumerate(outcome.dropped)
            if reason == "unmatched" and frame.ticket.stream == self._reference
        ]
        if lost:
            return outcome.dropped.pop(lost[-1])[0]
        if stream != self._reference:
            return None
        older, last = self._matcher.take_older(stream)
        outcome.dropped += older.dropped
        outcome.pairs += older.pairs
        return last

    def _act(self, now_ns: int) -> None:
        for event in self._supervisor.tick(now_ns):
            self._say(event)
            if event.flush is None:
                continue
            outcome, newest = self._matcher.take_newest(event.flush.survivor)
            self._carry_out(outcome)
            if newest is not None:
                self._without_partner(event.flush.survivor, event.flush.route, newest)

    def _without_partner(self, stream: str, route: Route, frame: Frame[Message]) -> None:
        if route.action == "single":
            self._submit(SingleJob(stream, frame, self._now_ns(), self._epoch))
            return
        self._ledger.drop(route.reason, frame.ticket)
        if route.action == "hold":
            # where another picture waits, it is newer than the held one
            self._worker.offer(HoldJob())

    def _carry_out(self, outcome: Outcome[Frame[Message]]) -> None:
        for frame, reason in outcome.dropped:
            self._ledger.drop(reason, frame.ticket)
        for pair in outcome.pairs:
            self._submit(PairJob(pair, self._now_ns(), self._epoch))

    def _submit(self, job: Job) -> None:
        replaced = self._worker.submit(job)
        if replaced is not None:
            self._ledger.drop("superseded", *replaced.tickets)
