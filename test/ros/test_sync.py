from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.sync import BUFFER, STREAMS, TIME_JUMP_NS, PairMatcher

MS = 1_000_000


class Log:
    """Offers messages named by stream and stamp, and keeps what comes back."""

    def __init__(self, slop_ms: float = 50, offset_ms: float = 0):
        self.matcher = PairMatcher(slop_ns=round(slop_ms * MS), thermal_offset_ns=round(offset_ms * MS))
        self.pairs: list[tuple[float, float]] = []
        self.dropped: list[tuple[str, float, str]] = []

    def take(self, outcome):
        self.pairs += [(pair.thermal[1], pair.rgb[1]) for pair in outcome.pairs]
        self.dropped += [(*item, reason) for item, reason in outcome.dropped]
        return [(pair.thermal[1], pair.rgb[1]) for pair in outcome.pairs]

    def t(self, ms):
        return self.take(self.matcher.offer("thermal", round(ms * MS), ("thermal", ms)))

    def r(self, ms):
        return self.take(self.matcher.offer("rgb", round(ms * MS), ("rgb", ms)))


@pytest.mark.parametrize("first", STREAMS)
def test_equal_stamps_are_paired_at_once(first):
    log = Log()
    for stamp in range(0, 330, 33):
        one, other = (log.t, log.r) if first == "thermal" else (log.r, log.t)
        assert one(stamp) == []
        assert other(stamp) == [(stamp, stamp)]
    assert log.dropped == []


@pytest.mark.parametrize("skew, paired", [(50.0, True), (-50.0, True), (50.000001, False), (-50.000001, False)])
def test_slop_is_inclusive(skew, paired):
    log = Log(slop_ms=50)
    log.r(1000)
    assert bool(log.t(1000 + skew)) is paired


def test_first_pair_does_not_wait_for_a_period_nobody_knows():
    log = Log()
    log.t(0)
    assert log.r(30) == [(0, 30)]


def test_waits_for_a_closer_partner_where_one_can_come_and_takes_it():
    log = Log(slop_ms=50)
    for stamp in (0, 20, 40):
        log.t(stamp)
    log.r(0)
    log.r(40)
    log.t(60)
    log.r(75)  # 15 ms after 60; the thermal camera's next is due at 80
    assert (60, 75) not in log.pairs
    assert log.t(80) == [(80, 75)]


def test_does_not_wait_where_the_next_message_cannot_be_closer():
    log = Log(slop_ms=50)
    for stamp in (0, 100, 200):
        log.t(stamp)
        assert log.r(stamp + 40) == [(stamp, stamp + 40)]


def test_one_partner_is_used_once_by_the_closest():
    log = Log(slop_ms=50)  # thermal at 9 Hz, RGB at 30 Hz
    for stamp in (0, 33, 66, 100):
        log.r(stamp)
    assert log.t(105) == [(105, 100)]
    assert [d for d in log.dropped if d[0] == "thermal"] == []
    assert Counter(reason for _, _, reason in log.dropped) == {"unmatched": 3}


def test_of_two_equally_close_the_newer_wins():
    log = Log(slop_ms=50)
    log.r(-10)
    log.r(10)
    assert log.t(0) == [(0, 10)]


def test_offset_is_added_to_thermal_stamps():
    log = Log(slop_ms=5, offset_ms=-1000)
    log.r(500)
    assert log.t(1503) == [(1503, 500)]
    log = Log(slop_ms=5)
    log.r(500)
    assert log.t(1503) == []


def test_a_new_offset_judges_waiting_messages_anew():
    log = Log(slop_ms=50)
    log.t(0)
    log.t(40)
    log.t(80)
    log.r(105)  # 25 ms after 80, the next is due at 120; with the offset below 80 is at 100, the next due at 140
    assert log.pairs == []
    assert log.take(log.matcher.configure(slop_ns=50 * MS, thermal_offset_ns=20 * MS)) == [(80, 105)]
    assert log.r(121) == []
    assert log.t(101) == [(101, 121)]


def test_a_new_slop_holds_from_the_next_message_on():
    log = Log(slop_ms=5)
    log.t(500)
    log.matcher.configure(slop_ns=10 * MS, thermal_offset_ns=0)
    assert log.r(510) == [(500, 510)]


@pytest.mark.parametrize("stream", STREAMS)
def test_duplicate_and_old_stamps_are_dropped_under_their_own_names(stream):
    log = Log()
    offer = log.t if stream == "thermal" else log.r
    offer(100)
    offer(100)
    offer(99)
    offer(101)
    assert [reason for _, _, reason in log.dropped] == ["duplicate_stamp", "out_of_order"]
    assert log.matcher.pending[stream] == 2


def test_bag_loop_restarts_pairing():
    log = Log()
    for stamp in (100_000, 100_033):
        log.t(stamp)
        log.r(stamp)
    log.t(100_066)
    log.t(0)
    assert log.dropped == [("thermal", 100_066, "time_jump")]
    log.r(100_066)  # a straggler from before the jump
    assert log.r(0) == []  # its partner was given up for the straggler
    for stamp in (33, 66):
        log.t(stamp)
        assert log.r(stamp) == [(stamp, stamp)]


def test_one_second_back_is_disorder_not_a_jump():
    log = Log()
    log.t(10_000)
    log.t(10_000 - TIME_JUMP_NS / MS)
    assert log.dropped == [("thermal", 9000.0, "out_of_order")]


def test_unmatched_are_dropped_as_soon_as_they_are_hopeless_and_say_how_close_they_were():
    log = Log(slop_ms=50)
    log.t(1000)
    log.r(1073)
    assert ("thermal", 1000, "unmatched") in log.dropped
    assert log.matcher.closest_miss_ns == 73 * MS
    log.t(1073)
    assert log.matcher.closest_miss_ns is None


def test_clocks_that_disagree_do_not_fill_the_buffers():
    log = Log()
    for i in range(100):
        log.t(1e9 + 33 * i)
        log.r(33 * i)
    assert log.pairs == []
    assert max(log.matcher.pending.values()) <= BUFFER
    assert log.matcher.closest_miss_ns > 9e8 * MS


def test_a_pair_held_for_a_closer_partner_is_released_when_the_stream_went_silent():
    log = Log(slop_ms=50)
    for stamp in (0, 20, 40):
        log.t(stamp)
        log.r(stamp)
    log.t(60)
    assert log.r(75) == []
    assert log.take(log.matcher.release()) == []
    assert log.take(log.matcher.release()) == [(60, 75)]


def test_reset_returns_everything_with_the_reason():
    log = Log()
    log.t(0)
    log.t(20)
    log.take(log.matcher.reset("shutdown"))
    assert log.dropped == [("thermal", 0, "shutdown"), ("thermal", 20, "shutdown")]
    assert log.matcher.pending == {"thermal": 0, "rgb": 0}
    assert log.t(0) == []  # stamps are forgotten too


@pytest.mark.parametrize("rates", [(30, 30), (9, 30), (60, 30), (25, 30)])
@pytest.mark.parametrize("seed", range(3))
def test_each_pair_of_jittered_cameras_is_mutually_closest_among_all_messages(rates, seed):
    """Against the offline answer, which sees all messages at once."""
    generator = random.Random(seed)
    thermal, rgb = (
        [round(1000 * i / rate + generator.uniform(0, 3), 3) for i in range(40)] for rate in rates
    )
    phase = generator.uniform(0, 30)
    thermal = [stamp + phase for stamp in thermal]
    end = min(thermal[-1], rgb[-1]) - 100
    # transport delays that reorder the streams against each other, not within themselves
    arrivals = sorted([(s + 40, "t", s) for s in thermal] + [(s + 15, "r", s) for s in rgb])
    log = Log(slop_ms=50)
    for _, stream, stamp in arrivals:
        (log.t if stream == "t" else log.r)(stamp)
    expected = []
    for r in rgb:
        t = min(thermal, key=lambda x: abs(x - r))
        if abs(t - r) <= 50 and min(rgb, key=lambda x: abs(x - t)) == r and max(r, t) < end:
            expected.append((t, r))
    # before two stamps of a stream are known its period is not, and a first pair may be early
    settled = [pair for pair in log.pairs if 150 < pair[1] and max(pair) < end]
    assert settled == [pair for pair in expected if 150 < pair[1]]
    assert len(settled) > 5


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_message_ends_exactly_once(data):
    """Any sequence of offers, releases, resets and changes, through matcher, ledger and a one-place worker."""
    matcher: PairMatcher = PairMatcher(slop_ns=50)
    ledger = Ledger(STREAMS)
    waiting = None
    offered: Counter[str] = Counter()
    seen = set()

    def carry_out(outcome):
        nonlocal waiting
        for ticket, reason in outcome.dropped:
            assert ticket not in seen
            seen.add(ticket)
            ledger.drop(reason, ticket)
        for pair in outcome.pairs:
            assert abs(pair.skew_ns) <= matcher.slop_ns
            assert (pair.thermal.stream, pair.rgb.stream) == STREAMS
            for ticket in (pair.thermal, pair.rgb):
                assert ticket not in seen
                seen.add(ticket)
            if waiting is not None:
                ledger.drop("superseded", *waiting)
            waiting = (pair.thermal, pair.rgb)

    steps = data.draw(
        st.lists(
            st.one_of(
                st.tuples(st.sampled_from(STREAMS), st.integers(0, 600)),
                st.tuples(st.sampled_from(STREAMS), st.integers(3 * TIME_JUMP_NS, 3 * TIME_JUMP_NS + 300)),
                st.tuples(st.sampled_from(["work", "release", "reset", "slop", "offset"]), st.integers(0, 100)),
            ),
            max_size=60,
        )
    )
    for action, value in steps:
        if action in STREAMS:
            offered[action] += 1
            carry_out(matcher.offer(action, value, ledger.receive(action)))
        elif action == "work" and waiting is not None:
            assert ledger.fuse(*waiting)
            waiting = None
        elif action == "release":
            carry_out(matcher.release())
        elif action == "reset":
            carry_out(matcher.reset("shutdown"))
        elif action in ("slop", "offset"):
            slop, offset = (value, 0) if action == "slop" else (50, value - 50)
            carry_out(matcher.configure(slop_ns=slop, thermal_offset_ns=offset))
        counts = ledger.snapshot()
        for stream in STREAMS:
            row = counts[stream]
            assert row.received == offered[stream] == row.fused + sum(row.dropped.values()) + row.pending
            assert row.pending == matcher.pending[stream] + (waiting is not None)
            assert matcher.pending[stream] <= BUFFER
        assert counts["thermal"].fused == counts["rgb"].fused
