"""One thread that fuses one pair at a time, always the newest. No ROS in here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")

log = logging.getLogger(__name__)


class LatestWorker(Generic[Job]):
    """Runs `work(job)` on its own thread: one job being done, at most one waiting, a newer one replaces it.

    An exception ends the job, never the thread, not even one of `failed`: that is logged. Neither `work` nor `failed`
    is called under a lock.

    Args:
        work: called on the worker's thread with every job that was not replaced.
        failed: called there with the job and the exception that `work` raised.
        name: of the thread, as debuggers show it.
    """

    def __init__(self, work: Callable[[Job], None], failed: Callable[[Job, Exception], None], *, name: str):
        self._work = work
        self._failed = failed
        self._condition = threading.Condition()
        self._waiting: Job | None = None
        self._current: Job | None = None
        self._busy_since_ns: int | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def busy(self) -> bool:
        """Whether a job is being done."""
        with self._condition:
            return self._current is not None

    @property
    def busy_since_ns(self) -> int | None:
        """When the job that is being done was begun, by the monotonic clock; None while there is none."""
        with self._condition:
            return self._busy_since_ns

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def submit(self, job: Job) -> Job | None:
        """Hand over a job; returns the job that will not be done because of it: the one that waited, if any.

        After `stop` it is `job` itself.
        """
        with self._condition:
            if self._stopping:
                return job
            replaced, self._waiting = self._waiting, job
            self._condition.notify_all()
        return replaced

    def offer(self, job: Job) -> bool:
        """Hand over a job that may replace no other; False where one waits, or after `stop`."""
        with self._condition:
            if self._stopping or self._waiting is not None:
                return False
            self._waiting = job
            self._condition.notify_all()
        return True

    def stop(self, timeout_s: float) -> list[Job]:
        """Let the current job end, for at most `timeout_s`, and end the thread.

        Returns:
            The jobs that were not done: the one that waited, and the current one if it did not end in time.
        """
        with self._condition:
            self._stopping = True
            left = [] if self._waiting is None else [self._waiting]
            self._waiting = None
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._condition:
            if self._current is not None:
                left.append(self._current)
        return left

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping or self._waiting is not None)
                if self._stopping:
                    return
                job, self._waiting = self._waiting, None
                self._current, self._busy_since_ns = job, time.monotonic_ns()
            try:
                self._do(job)
            finally:
                with self._condition:
                    self._current = self._busy_since_ns = None

    def _do(self, job: Job) -> None:
        try:
            self._work(job)
        except Exception as error:
            try:
                self._failed(job, error)
            except Exception:
                log.exception("a failure could not be accounted for")
