"""The contract that both matchers keep, the table of their differences, and why message_filters is wrapped at all."""

from __future__ import annotations

import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isfl_ros.errors import InputError
from isfl_ros.ros import sync_message_filters
from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.sync import BUFFER, STREAMS, TIME_JUMP_NS, PairMatcher
from isfl_ros.ros.sync_message_filters import MATCHER_CHOICES, MessageFiltersMatcher, make_matcher

MS = 1_000_000
YEARS_NS = 10**18  # the largest offset that the parameter takes


def real_message_filters():
    return pytest.importorskip("message_filters", reason="message_filters comes with a ROS distribution")


@pytest.fixture(params=MATCHER_CHOICES)
def kind(request):
    if request.param == "message_filters":
        real_message_filters()
    return {"builtin": PairMatcher, "message_filters": MessageFiltersMatcher}[request.param]


class Log:
    """Offers messages named by stream and stamp, and keeps what comes back."""

    def __init__(self, kind, slop_ms: float = 50, offset_ms: float = 0):
        self.matcher = kind(slop_ns=round(slop_ms * MS), thermal_offset_ns=round(offset_ms * MS))
        self.pairs: list[tuple[float, float]] = []
        self.dropped: list[tuple[str, float, str]] = []

    def take(self, outcome):
        new = [(pair.thermal[1], pair.rgb[1]) for pair in outcome.pairs]
        self.pairs += new
        self.dropped += [(*item, reason) for item, reason in outcome.dropped]
        return new

    def offer(self, stream, ms, name=None):
        return self.take(self.matcher.offer(stream, round(ms * MS), (stream, ms if name is None else name)))

    def t(self, ms, name=None):
        return self.offer("thermal", ms, name)

    def r(self, ms, name=None):
        return self.offer("rgb", ms, name)


# the contract


@pytest.mark.parametrize("first", STREAMS)
def test_equal_stamps_are_paired_at_once(kind, first):
    log = Log(kind)
    other = STREAMS[1 - STREAMS.index(first)]
    for stamp in range(0, 330, 33):
        assert log.offer(first, stamp) == []
        assert log.offer(other, stamp) == [(stamp, stamp)]
    assert log.dropped == []
    assert log.matcher.paired == 10
    assert log.matcher.pending == {"thermal": 0, "rgb": 0}


@pytest.mark.parametrize("slop_ns", [1, 3, 999_999, 1_001_000, 50_000_000, 50_000_001, 299_999_999, 10_000_000_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_slop_is_exact_to_the_nanosecond(kind, slop_ns, sign):
    stamp = 1_700_000_000 * 10**9
    for distance, paired in ((slop_ns - 1, True), (slop_ns, kind is PairMatcher), (slop_ns + 1, False)):
        matcher = kind(slop_ns=slop_ns)
        matcher.offer("rgb", stamp, "rgb")
        outcome = matcher.offer("thermal", stamp + sign * distance, "thermal")
        assert [pair.skew_ns for pair in outcome.pairs] == ([sign * distance] if paired else [])


def test_a_message_is_used_once(kind):
    log = Log(kind)
    log.t(0)
    assert log.r(10) == [(0, 10)]
    assert log.r(20) == []
    assert log.t(22) == [(22, 20)]


@pytest.mark.parametrize("offset_ms", [-1000, 250.000001, -YEARS_NS / MS, YEARS_NS / MS])
def test_offset_is_added_to_thermal_stamps(kind, offset_ms):
    log = Log(kind, slop_ms=5, offset_ms=offset_ms)
    log.r(500)
    outcome = log.matcher.offer("thermal", 503 * MS - round(offset_ms * MS), ("thermal", 0))
    assert [pair.skew_ns for pair in outcome.pairs] == [3 * MS]


def test_a_new_offset_holds_for_waiting_messages_too(kind):
    log = Log(kind, slop_ms=20)
    log.t(0)
    assert log.take(log.matcher.configure(slop_ns=20 * MS, thermal_offset_ns=995 * MS)) == []
    assert log.r(1000) == [(0, 1000)]
    assert log.r(1100) == []
    assert log.t(106) == [(106, 1100)]


def test_a_new_slop_holds_for_waiting_messages_too(kind):
    log = Log(kind, slop_ms=5)
    log.t(500)
    assert log.take(log.matcher.configure(slop_ns=11 * MS, thermal_offset_ns=0)) == []
    assert log.r(510) == [(500, 510)]
    log.t(600)
    log.matcher.configure(slop_ns=5 * MS, thermal_offset_ns=0)
    assert log.r(610) == []


@pytest.mark.parametrize("survivor", [*STREAMS, None])
@pytest.mark.parametrize("stream", STREAMS)
def test_taking_the_newest_empties_the_matcher(kind, stream, survivor):
    log = Log(kind, slop_ms=5)
    for stamp in (500, 600, 700):
        log.offer(stream, stamp)
    outcome, newest = log.matcher.take_newest(survivor)
    log.take(outcome)
    assert newest == ((stream, 700) if survivor == stream else None)
    left = [500, 600] if survivor == stream else [500, 600, 700]
    assert log.pairs == [] and log.dropped == [(stream, stamp, "unmatched") for stamp in left]
    assert log.matcher.pending == {"thermal": 0, "rgb": 0}
    assert log.matcher.take_newest(survivor)[1] is None
    log.t(800)
    assert log.r(801) == [(800, 801)], "pairing goes on"


def test_taking_the_newest_forgets_no_stamp():
    log = Log(PairMatcher)
    log.r(100)
    log.matcher.take_newest("thermal")
    log.r(100)
    assert log.dropped[-1] == ("rgb", 100, "duplicate_stamp")


def test_messages_that_wait_in_both_queues_of_message_filters_are_judged_anew():
    real_message_filters()
    log = Log(MessageFiltersMatcher, slop_ms=5)
    log.t(500)
    assert log.r(510) == []
    assert log.take(log.matcher.configure(slop_ns=11 * MS, thermal_offset_ns=0)) == [(500, 510)]
    log.t(600)
    assert log.r(1600) == []
    assert log.take(log.matcher.configure(slop_ns=11 * MS, thermal_offset_ns=995 * MS)) == [(600, 1600)]
    assert log.dropped == []


def test_bag_loop_restarts_pairing(kind):
    """With cameras of different rates, whose leftovers fill a queue: there the bare library never pairs again."""
    log = Log(kind)

    def play():
        for frame in range(60):
            log.r(33 * frame)
            if frame % 3 == 0:
                log.t(33 * frame + 1)

    play()
    first = len(log.pairs)
    assert first == 20
    play()
    assert len(log.pairs) == 2 * first
    assert log.pairs[first:] == log.pairs[:first]
    assert {reason for _, _, reason in log.dropped} == {"unmatched", "time_jump"}


def test_only_the_time_that_is_now_ahead_is_forgotten(kind):
    log = Log(kind)
    log.t(100_000)
    log.r(99_000)  # waits as well: too far from it
    log.t(99_000.5 - TIME_JUMP_NS / MS)  # 1999.5 ms behind its predecessor, 1000.5 behind that of the other stream
    assert [row for row in log.dropped if row[2] == "time_jump"] == [("thermal", 100_000, "time_jump")]


def test_what_waits_in_message_filters_from_before_the_jump_is_kept():
    real_message_filters()
    log = Log(MessageFiltersMatcher)
    log.t(100_000)
    log.r(0)
    assert log.t(20) == [(20, 0)]
    assert log.dropped == [("thermal", 100_000, "time_jump")]


def test_one_second_back_is_disorder_not_a_jump(kind):
    log = Log(kind)
    log.t(10_000)
    log.t(10_000 - TIME_JUMP_NS / MS)
    assert "time_jump" not in {reason for _, _, reason in log.dropped}


def test_reset_returns_everything_with_the_reason_and_forgets_stamps(kind):
    log = Log(kind)
    log.t(0)
    log.t(20)
    log.take(log.matcher.reset("shutdown"))
    assert log.dropped == [("thermal", 0, "shutdown"), ("thermal", 20, "shutdown")]
    assert log.matcher.pending == {"thermal": 0, "rgb": 0}
    assert log.r(20) == []
    assert log.t(20) == [(20, 20)]


def test_clocks_that_disagree_do_not_fill_the_buffers_and_say_by_how_much(kind):
    log = Log(kind)
    for i in range(100):
        log.t(3_600_000 + 33 * i)
        log.r(33 * i)
    assert log.pairs == []
    assert max(log.matcher.pending.values()) <= BUFFER
    assert 3_590_000 * MS < log.matcher.closest_miss_ns < 3_600_001 * MS


def test_closest_miss_is_that_of_unmatched_messages_and_ends_with_a_pair(kind):
    log = Log(kind, slop_ms=5)
    for i in range(3 * BUFFER):
        log.t(100 * i)
        log.r(100 * i + 12)
    assert log.matcher.closest_miss_ns == 12 * MS
    log.t(100_000)
    log.r(100_000)
    assert log.matcher.closest_miss_ns is None


class Hostile:
    """An item that must not be looked at."""

    def __getattribute__(self, name):
        raise AssertionError(f"{name} of an item was asked for")

    def _refuse(self, *args):
        raise AssertionError("code of an item was run")

    __eq__ = __hash__ = __bool__ = __len__ = __lt__ = __repr__ = _refuse


def test_no_code_of_an_item_is_run(kind):
    matcher = kind(slop_ns=50 * MS)
    pairs = 0
    for i in range(40):
        pairs += len(matcher.offer("rgb", 33 * i * MS, Hostile()).pairs)
        pairs += len(matcher.offer("thermal", (33 * i + (0 if i % 3 else 200)) * MS, Hostile()).pairs)
    matcher.configure(slop_ns=60 * MS, thermal_offset_ns=MS)
    matcher.release()
    matcher.offer("rgb", -3 * TIME_JUMP_NS, Hostile())
    matcher.reset("shutdown")
    assert pairs > 10


@settings(max_examples=100, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("choice", MATCHER_CHOICES)
def test_every_message_ends_exactly_once(choice, data):
    if choice == "message_filters":
        real_message_filters()
    matcher, _ = make_matcher(choice, slop_ns=50, thermal_offset_ns=0)
    ledger = Ledger(STREAMS)
    offered: Counter[str] = Counter()
    seen = set()
    paired = 0

    def carry_out(outcome):
        nonlocal paired
        for pair in outcome.pairs:
            assert abs(pair.skew_ns) <= matcher.slop_ns
            assert (pair.thermal.stream, pair.rgb.stream) == STREAMS
        for ticket in [t for t, _ in outcome.dropped] + [t for p in outcome.pairs for t in (p.thermal, p.rgb)]:
            assert ticket not in seen
            seen.add(ticket)
        for ticket, reason in outcome.dropped:
            assert reason in ("unmatched", "duplicate_stamp", "out_of_order", "time_jump", "shutdown")
            ledger.drop(reason, ticket)
        for pair in outcome.pairs:
            assert ledger.fuse(pair.thermal, pair.rgb)
        paired += len(outcome.pairs)

    steps = data.draw(
        st.lists(
            st.one_of(
                st.tuples(st.sampled_from(STREAMS), st.integers(0, 600)),
                st.tuples(st.sampled_from(STREAMS), st.integers(3 * TIME_JUMP_NS, 3 * TIME_JUMP_NS + 300)),
                st.tuples(st.sampled_from(["release", "reset", "slop", "offset"]), st.integers(1, 100)),
            ),
            max_size=60,
        )
    )
    for action, value in steps:
        if action in STREAMS:
            offered[action] += 1
            carry_out(matcher.offer(action, value, ledger.receive(action)))
        elif action == "release":
            carry_out(matcher.release())
        elif action == "reset":
            carry_out(matcher.reset("shutdown"))
        else:
            slop, offset = (value, 0) if action == "slop" else (50, value - 50)
            carry_out(matcher.configure(slop_ns=slop, thermal_offset_ns=offset))
        counts = ledger.snapshot()
        for stream in STREAMS:
            row = counts[stream]
            assert row.received == offered[stream] == row.fused + sum(row.dropped.values()) + row.pending
            assert row.pending == matcher.pending[stream] <= BUFFER
        assert counts["thermal"].fused == counts["rgb"].fused == paired == matcher.paired


# where they differ: one row here for each row of the table in sync_message_filters.py


def _exactly_the_slop(log):
    log.t(0)
    log.r(50)


def _closer_one_to_come(log):
    for stamp in (0, 20, 40):
        log.t(stamp)
        log.r(stamp)
    log.t(60)
    log.r(75)
    log.t(80)


def _equally_close(log):
    log.r(-10)
    log.r(10)
    log.t(0)


def _older_than_a_pair(log):
    log.t(0)
    log.t(30)
    log.r(31)
    log.r(35)


def _out_of_order(log):
    log.t(100)
    log.t(90)
    log.r(90)


def _repeated_while_waiting(log):
    log.t(100, "old")
    log.t(100, "new")
    log.r(100)


def _repeated_after_its_pair(log):
    log.t(100, "old")
    log.r(100)
    log.t(100, "new")
    log.r(120)


def _hopeless(log):
    log.t(0)
    log.r(1000)


DIFFERENCES = {
    "stamps exactly the slop apart": (
        _exactly_the_slop,
        ([(0, 50)], []),
        ([], []),
    ),
    "a closer partner still to come": (
        _closer_one_to_come,
        ([(0, 0), (20, 20), (40, 40), (80, 75)], [("thermal", 60, "unmatched")]),
        ([(0, 0), (20, 20), (40, 40), (60, 75)], []),
    ),
    "two waiting partners equally close": (
        _equally_close,
        ([(0, 10)], [("rgb", -10, "unmatched")]),
        ([(0, -10)], []),
    ),
    "waiting message older than a pair handed out": (
        _older_than_a_pair,
        ([(30, 31)], [("thermal", 0, "unmatched")]),
        ([(30, 31), (0, 35)], []),
    ),
    "message older than its predecessor": (
        _out_of_order,
        ([(100, 90)], [("thermal", 90, "out_of_order")]),
        ([(90, 90)], []),
    ),
    "stamp repeated while it waits": (
        _repeated_while_waiting,
        ([("old", 100)], [("thermal", "new", "duplicate_stamp")]),
        ([("new", 100)], [("thermal", "old", "duplicate_stamp")]),
    ),
    "stamp repeated after its pair": (
        _repeated_after_its_pair,
        ([("old", 100)], [("thermal", "new", "duplicate_stamp")]),
        ([("old", 100), ("new", 120)], []),
    ),
    "message that can have no partner any more": (
        _hopeless,
        ([], [("thermal", 0, "unmatched")]),
        ([], []),
    ),
}


def test_the_table_has_these_rows():
    table = [line.split("|")[1].strip() for line in sync_message_filters.__doc__.splitlines() if line.startswith("|")]
    assert table[2:] == list(DIFFERENCES)


@pytest.mark.parametrize("row", DIFFERENCES)
def test_differences(kind, row):
    script, *expected = DIFFERENCES[row]
    log = Log(kind)
    script(log)
    assert (log.pairs, log.dropped) == expected[kind is MessageFiltersMatcher]


def test_a_full_queue_of_message_filters_gives_up_its_oldest():
    real_message_filters()
    log = Log(MessageFiltersMatcher)
    for i in range(BUFFER + 1):
        log.t(1000 + 10 * i)
    assert log.dropped == [("thermal", 1000, "unmatched")]
    log.t(1005)
    assert log.dropped[1:] == [("thermal", 1005, "out_of_order")]
    log.t(1055)  # late as well, but not the oldest
    assert log.dropped[2:] == [("thermal", 1010, "unmatched")]


@pytest.mark.parametrize("came", [0, 1])
@pytest.mark.parametrize("first", STREAMS)
def test_message_filters_remembers_how_close_a_partner_came(first, came):
    """Before or after the message, which is pushed out long after that."""
    real_message_filters()
    log = Log(MessageFiltersMatcher, slop_ms=5)
    order = (first, STREAMS[1 - STREAMS.index(first)])
    for stream in order:
        log.offer(stream, 112 if stream == "thermal" else 100)
    for i in range(1, BUFFER + 1):
        log.offer(order[came], 1000 * i)
    assert [(stream, reason) for stream, _, reason in log.dropped] == [(order[came], "unmatched")]
    assert log.matcher.closest_miss_ns == 12 * MS


def test_message_filters_measures_anew_after_an_offset():
    real_message_filters()
    log = Log(MessageFiltersMatcher, slop_ms=5)
    log.t(0)
    log.r(12)
    log.matcher.configure(slop_ns=5 * MS, thermal_offset_ns=300 * MS)
    for i in range(1, BUFFER + 1):
        log.t(1000 * i)
    assert log.dropped == [("thermal", 0, "unmatched")]
    assert log.matcher.closest_miss_ns == 288 * MS


def test_message_filters_is_fed_anew_in_the_order_of_stamps():
    real_message_filters()
    log = Log(MessageFiltersMatcher, slop_ms=1)
    for stamp in (0, 10):
        log.t(stamp)
    log.r(5)
    assert log.take(log.matcher.configure(slop_ns=6 * MS, thermal_offset_ns=0)) == [(0, 5)]


# the bare library, as the adapter finds it


def _bare(library, **kwargs):
    from rclpy.time import Time

    inputs = [library.SimpleFilter(), library.SimpleFilter()]
    synchronizer = library.ApproximateTimeSynchronizer(inputs, 10, 0.05)

    def offer(index, ms):
        stamp = Time(nanoseconds=round(ms * MS)).to_msg()
        inputs[index].signalMessage(SimpleNamespace(header=SimpleNamespace(stamp=stamp)))

    return synchronizer, offer


def test_bare_message_filters_pairs_nothing_after_time_went_back():
    """Until it is past the leftovers that fill a queue: what comes is older, and is what a full queue gives up."""
    pairs = []
    synchronizer, offer = _bare(real_message_filters())
    synchronizer.registerCallback(lambda *messages: pairs.append(messages))
    for frames in (60, 40):
        for frame in range(frames):
            offer(0, 33 * frame)
            if frame % 3 == 0:
                offer(1, 33 * frame + 1)
        assert len(pairs) == 20


def test_bare_message_filters_keeps_its_lock_after_an_exception():
    def user(*messages):
        raise RuntimeError("user code")

    synchronizer, offer = _bare(real_message_filters())
    synchronizer.registerCallback(user)
    offer(0, 0)
    with pytest.raises(RuntimeError, match="user code"):
        offer(1, 0)
    assert synchronizer.lock.locked()


def test_an_exception_inside_the_library_costs_what_waited_and_no_more():
    real_message_filters()
    log = Log(MessageFiltersMatcher)

    def interrupt(*messages):
        raise KeyboardInterrupt

    log.matcher._synchronizer.registerCallback(interrupt)
    log.t(0)
    with pytest.raises(KeyboardInterrupt):
        log.r(0)
    assert not log.matcher._synchronizer.lock.locked()
    assert log.matcher.pending == {"thermal": 1, "rgb": 1}
    assert log.t(33) == []
    assert log.dropped == [("thermal", 0, "unmatched"), ("rgb", 0, "unmatched")]
    assert log.r(33) == [(33, 33)]


# the choice


def test_builtin_needs_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "message_filters", None)
    matcher, reason = make_matcher("builtin", slop_ns=0, thermal_offset_ns=7)
    assert type(matcher) is PairMatcher and matcher.slop_ns == 0
    assert "closest" in reason


def test_message_filters_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "message_filters", None)
    with pytest.raises(InputError, match=r"apt install ros-\$ROS_DISTRO-message-filters") as raised:
        make_matcher("message_filters", slop_ns=1, thermal_offset_ns=0)
    assert "\n" not in str(raised.value)


def test_message_filters_is_made_when_asked_for():
    real_message_filters()
    matcher, reason = make_matcher("message_filters", slop_ns=5, thermal_offset_ns=7)
    assert type(matcher) is MessageFiltersMatcher and matcher.slop_ns == 5
    assert "asked for" in reason


def test_a_slop_that_can_never_pair_is_refused_and_the_old_one_stays():
    real_message_filters()
    with pytest.raises(InputError, match="slop"):
        make_matcher("message_filters", slop_ns=0, thermal_offset_ns=0)
    log = Log(MessageFiltersMatcher, slop_ms=5)
    log.t(0)
    with pytest.raises(InputError, match="slop"):
        log.matcher.configure(slop_ns=0, thermal_offset_ns=100 * MS)
    assert log.matcher.slop_ns == 5 * MS
    assert log.r(4) == [(0, 4)]
