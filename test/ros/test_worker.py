from __future__ import annotations

import logging
import threading
import time

import pytest

from isfl_ros.ros.worker import LatestWorker

LONG = 20.0


class Bench:
    """A worker whose jobs start and end when the test says so."""

    def __init__(self):
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.done: list = []
        self.failures: list = []
        self.ended = threading.Semaphore(0)
        self.worker = LatestWorker(self.work, self.failed, name="bench")
        self.worker.start()

    def work(self, job):
        self.started.release()
        assert self.go.acquire(timeout=LONG)
        if job == "bad":
            raise RuntimeError("bad job")
        self.done.append(job)
        self.ended.release()

    def failed(self, job, error):
        self.failures.append((job, str(error)))
        self.ended.release()

    def begin(self, job):
        assert self.worker.submit(job) is None
        assert self.started.acquire(timeout=LONG)

    def end(self):
        self.go.release()
        assert self.ended.acquire(timeout=LONG)


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    for _ in range(10):
        bench.go.release()
    bench.worker.stop(LONG)


def test_the_newest_waits_and_the_older_comes_back(bench):
    bench.begin(1)
    assert bench.worker.submit(2) is None
    assert bench.worker.submit(3) == 2
    assert bench.worker.submit(4) == 3
    bench.end()
    assert bench.started.acquire(timeout=LONG)
    bench.end()
    assert bench.done == [1, 4]


def test_an_exception_ends_the_job_not_the_thread(bench):
    bench.begin("bad")
    bench.end()
    bench.begin("good")
    bench.end()
    assert bench.failures == [("bad", "bad job")]
    assert bench.done == ["good"]


def test_stop_lets_the_current_job_end_and_returns_the_one_that_waited(bench):
    bench.begin(1)
    bench.worker.submit(2)
    bench.go.release()
    assert bench.worker.stop(LONG) in ([2], [])  # the job that waited may have begun before the stop
    assert bench.done[0] == 1
    assert not bench.worker.busy


def test_stop_does_not_wait_for_ever_and_names_what_is_left(bench):
    bench.begin(1)
    bench.worker.submit(2)
    assert bench.worker.stop(0.01) == [2, 1]
    assert bench.worker.busy
    assert bench.worker.submit(3) == 3


def test_submitting_from_the_job_itself_does_not_lock_up():
    """`work` is not called under the worker's lock."""
    finished = threading.Event()

    def work(job):
        if job == 0:
            worker.submit(1)
        else:
            finished.set()

    worker = LatestWorker(work, lambda job, error: None, name="reentrant")
    worker.start()
    worker.submit(0)
    assert finished.wait(LONG)
    assert worker.stop(LONG) == []


def test_an_offer_replaces_nothing_and_is_replaced_by_a_job(bench):
    bench.begin("a")
    assert bench.worker.offer("again") is True
    assert bench.worker.offer("once more") is False
    assert bench.worker.submit("b") == "again"
    assert bench.worker.offer("again") is False
    bench.end()
    assert bench.started.acquire(timeout=LONG)
    bench.end()
    assert bench.done == ["a", "b"]
    assert bench.worker.stop(LONG) == []
    assert bench.worker.offer("late") is False


def test_since_when_it_is_busy(bench):
    assert bench.worker.busy_since_ns is None
    before = time.monotonic_ns()
    bench.begin("a")
    since = bench.worker.busy_since_ns
    assert before <= since <= time.monotonic_ns()
    bench.worker.submit("b")
    assert bench.worker.busy_since_ns == since, "of the job that is being done, not of the one that waits"
    bench.end()
    assert bench.started.acquire(timeout=LONG)
    assert bench.worker.busy_since_ns > since
    bench.end()
    bench.worker.stop(LONG)
    assert bench.worker.busy_since_ns is None


def test_not_even_an_exception_of_the_accounting_ends_the_thread(bench, caplog):
    def broken(job, error):
        bench.ended.release()
        raise KeyError(job)

    bench.worker._failed = broken
    with caplog.at_level(logging.ERROR, "isfl_ros"):
        bench.begin("bad")
        bench.end()
        bench.begin("good")
    assert "could not be accounted for" in caplog.text and "KeyError: 'bad'" in caplog.text
    bench.end()
    assert bench.done == ["good"]
