from __future__ import annotations

import numpy as np
import pytest

from isfl_ros.ros.rates import RateLimit, Rates

SECOND = 10**9


def shown(stamps_ns, max_hz: float) -> list[int]:
    """Those of a camera's pictures that are shown."""
    limit, kept = RateLimit(), []
    for stamp in stamps_ns:
        if limit.allows(stamp, max_hz):
            limit.note(stamp, max_hz)
            kept.append(stamp)
    return kept


def steady(hz: float, seconds: float, *, jitter: float = 0.0) -> list[int]:
    """Stamps of a camera; `jitter` in periods."""
    count = int(hz * seconds)
    noise = np.random.default_rng(0).uniform(-jitter, jitter, count)
    return [round((index + float(late)) * SECOND / hz) for index, late in enumerate(noise)]


@pytest.mark.parametrize("hz", [1.0, 10.0, 15.0, 29.9, 30.0])
@pytest.mark.parametrize("jitter", [0.0, 0.2, 0.5])
def test_a_camera_below_the_limit_loses_nothing_or_one_picture_once(hz, jitter):
    stamps = steady(hz, 60.0, jitter=jitter)
    assert len(shown(stamps, 30.0)) >= len(stamps) - 1


@pytest.mark.parametrize("jitter", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("hz", [30.0, 30.1, 33.0, 40.0, 50.0, 60.0, 90.0, 144.0])
def test_a_camera_above_the_limit_is_brought_down_to_it_and_no_further(hz, jitter):
    kept = shown(steady(hz, 60.0, jitter=jitter), 30.0)
    assert 0.99 * 30 * 60 <= len(kept) <= 30 * 60 + 1
    assert np.diff(kept).max() / SECOND < max(2.001 / hz, 1.3 / 30.0) + 2.1 * jitter / hz, "two in a row are never lost"


def test_a_limit_at_the_rate_of_the_camera_does_not_halve_it():
    assert len(shown(steady(30.1, 60.0), 30.0)) >= 0.99 * 30 * 60


def test_without_a_limit_everything_is_shown():
    stamps = steady(144.0, 1.0)
    assert shown(stamps, 0.0) == stamps


def test_a_pause_is_made_up_for_by_one_picture_at_most():
    after = [stamp + 10 * SECOND for stamp in steady(100.0, 1.0)]
    alone = len(shown(steady(100.0, 1.0), 10.0))
    assert len(shown(steady(100.0, 1.0) + after, 10.0)) <= 2 * alone + 1


def test_time_that_jumped_back_begins_anew():
    again = [stamp + 1 for stamp in steady(10.0, 3.0)]
    kept = shown(steady(10.0, 3.0) + again, 5.0)
    assert len(kept) == 30 and kept[15] == again[0]


def test_a_picture_that_was_not_shown_leaves_its_place():
    limit = RateLimit()
    limit.note(0, 10.0)
    assert not limit.allows(50_000_000, 10.0)
    assert limit.allows(100_000_000, 10.0) and limit.allows(110_000_000, 10.0)


def test_a_changed_limit_counts_from_the_last_picture():
    limit = RateLimit()
    limit.note(0, 0.1)  # the next one in ten seconds
    assert limit.allows(100_000_000, 10.0)
    assert not limit.allows(50_000_000, 10.0)
    limit.note(100_000_000, 0.0)
    assert limit.allows(101_000_000, 0.0)
    assert limit.allows(200_000_000, 10.0)


def test_costly_outputs_have_a_limit_of_their_own():
    rates, seen = Rates(frozenset({"overlay"})), {"fused": 0, "overlay": 0}
    for stamp in steady(30.0, 10.0):
        due = rates.due(frozenset(seen), stamp, max_hz=15.0, costly_max_hz=5.0)
        if due:
            rates.note(due, stamp, max_hz=15.0, costly_max_hz=5.0)
        for name in due:
            seen[name] += 1
    assert seen == {"fused": 150, "overlay": 50}


def test_only_costly_outputs_wanted_and_none_due():
    rates, wanted = Rates(frozenset({"overlay"})), frozenset({"overlay"})
    rates.note(wanted, 0, max_hz=0.0, costly_max_hz=5.0)
    assert rates.due(wanted, 100_000_000, max_hz=0.0, costly_max_hz=5.0) == frozenset()
    assert rates.due(wanted, 200_000_000, max_hz=0.0, costly_max_hz=5.0) == wanted
