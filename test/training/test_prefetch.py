"""Batches ahead: in order, bounded, the same whoever makes them; failures come out and nothing stays behind."""

from __future__ import annotations

import threading
import time
import traceback

import pytest

from isfl_ros.training.prefetch import Prefetcher, default_workers


def threads_of_ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("isfl-data")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_parts_come_in_order_and_no_thread_stays(workers):
    def make(step, part):
        time.sleep(0.002 * ((step + part) % 3))  # so that they are ready in another order
        return step, part

    ahead = Prefetcher(make, parts=2, steps=5, workers=workers)
    assert [item for step in range(5) for item in ahead.take(step)] == [(s, p) for s in range(5) for p in range(2)]
    assert len(threads_of_ours()) <= workers
    ahead.close()
    assert not threads_of_ours()


def test_a_bounded_number_is_made_ahead_and_none_beyond_the_end():
    made = []
    ahead = Prefetcher(lambda step, part: made.append(step) or step, parts=1, steps=40, workers=2)
    assert list(ahead.take(0)) == [0]
    time.sleep(0.1)
    assert 1 < len(made) <= 5, "two for each worker besides the one that is handed out"
    for step in range(1, 40):
        assert list(ahead.take(step)) == [step]
    ahead.close()
    assert sorted(made) == list(range(40))


def test_another_step_than_the_next_may_be_asked_for():
    ahead = Prefetcher(lambda step, part: (step, part), parts=2, steps=100, workers=2)
    for step in (0, 1, 50, 51, 2):
        assert list(ahead.take(step)) == [(step, 0), (step, 1)]
    ahead.close()


def test_a_failure_in_a_thread_is_raised_in_the_loop_with_its_traceback():
    def cut_badly(step, part):
        if step == 3:
            raise ValueError("no such pixel")
        return step

    ahead = Prefetcher(cut_badly, parts=1, steps=10, workers=2)
    for step in range(3):
        list(ahead.take(step))
    with pytest.raises(ValueError, match="no such pixel") as caught:
        list(ahead.take(3))
    assert "cut_badly" in "".join(traceback.format_tb(caught.value.__traceback__))
    ahead.close()
    assert not threads_of_ours()


def test_default_workers(monkeypatch):
    monkeypatch.setattr("isfl_ros.training.prefetch.usable_cores", lambda: 16)
    assert [default_workers("cpu", 1), default_workers("cuda", 1), default_workers("cuda:3", 8)] == [1, 8, 1]
    monkeypatch.setattr("isfl_ros.training.prefetch.usable_cores", lambda: 1)
    assert [default_workers("cpu", 1), default_workers("cuda", 1)] == [0, 1]
