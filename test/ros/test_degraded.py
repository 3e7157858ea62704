from __future__ import annotations

import itertools
import random
import re
from array import array
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from isfl_ros.errors import InputError
from isfl_ros.ros import degraded
from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.degraded import (
    DROP_REASONS,
    GRACE_NS,
    LATE_NS,
    LONGEST_TIMEOUT_NS,
    MODES,
    DegradedConfig,
    Flush,
    Route,
    Supervisor,
    fingerprint,
)
from isfl_ros.ros.jobs import Frame, HoldJob, SingleJob
from isfl_ros.ros.router import Router
from isfl_ros.ros.sync import BUFFER, STREAMS, TIME_JUMP_NS, PairMatcher

MS = 1_000_000
ALONE = {"single": Route("single"), "hold": Route("hold", "held"), "stop": Route("stop", "degraded_stop")}
OTHER = {"thermal": "rgb", "rgb": "thermal"}


class Bench:
    """A supervisor with times in milliseconds; stamps are arrival times unless told otherwise."""

    def __init__(self, timeout=500, mode="single", identical_bytes=True):
        self.supervisor = Supervisor(
            DegradedConfig(timeout_ns=round(timeout * MS), mode=mode, identical_bytes=identical_bytes), started_ns=0
        )

    def send(self, stream, at, stamp=None, pixels=None):
        """Accept and route; returns the action, or the reason of a message that is stopped."""
        stamp = at if stamp is None else stamp
        self.verdict = self.supervisor.accept(stream, round(stamp * MS), round(at * MS), pixels)
        route = self.supervisor.route(stream, round(at * MS))
        return route.reason if route.action == "stop" else route.action

    def both(self, times):
        for at in times:
            for stream in STREAMS:
                self.send(stream, at)

    def tick(self, at):
        """Events as (kind, stream, milliseconds)."""
        self.events = self.supervisor.tick(round(at * MS))
        return [(event.kind, event.stream, event.at_ns / MS) for event in self.events]

    def states(self):
        return tuple(self.supervisor.condition(stream).state for stream in STREAMS)


# when a stream is given up


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_is_given_up_at_the_nanosecond(stream):
    supervisor = Supervisor(DegradedConfig(timeout_ns=500), started_ns=900)
    for name in STREAMS:
        supervisor.accept(name, 1, 1000)
    supervisor.accept(OTHER[stream], 2, 1400)
    assert supervisor.next_deadline_ns == 1500
    assert supervisor.tick(1499) == []
    assert supervisor.route(OTHER[stream], 1499) == ("pair", None)
    assert supervisor.route(OTHER[stream], 1500) == ("single", None)
    (event,) = supervisor.tick(1500)
    assert (event.kind, event.stream, event.at_ns, event.for_ns) == ("missing", stream, 1500, 500)
    assert event.flush == Flush(survivor=OTHER[stream], route=Route("single"))
    assert supervisor.tick(1500) == []


@pytest.mark.parametrize("late", [0, 1, 399, 5000])
def test_when_it_is_asked_does_not_change_what_happened(late):
    bench = Bench()
    bench.both([100])
    bench.send("rgb", 300)
    events = bench.tick(600 + late)
    assert events[0] == ("missing", "thermal", 600.0)
    assert bench.supervisor.condition("thermal").since_ns == 600 * MS
    assert events[1:] == ([("missing", "rgb", 800.0)] if late >= 200 else [])
    assert bench.events[0].flush == Flush(survivor="rgb", route=Route("single"))


def test_a_message_that_comes_late_reports_the_death_before_the_return():
    bench = Bench()
    bench.both([100])
    bench.send("rgb", 400)
    assert bench.send("thermal", 700) == "pair"
    assert bench.tick(700) == [("missing", "thermal", 600.0), ("returned", "thermal", 700.0)]
    assert bench.events[1].for_ns == 600 * MS
    assert bench.supervisor.condition("thermal").since_ns == 700 * MS
    # nobody acted on the death: what waits has a partner again
    assert bench.events[0].flush is None


def test_time_never_goes_back():
    bench = Bench()
    bench.both([100])
    bench.tick(400)
    bench.send("thermal", 300)
    assert bench.supervisor.condition("thermal").good_ns == 400 * MS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stream", STREAMS)
def test_a_camera_that_never_starts(stream, mode):
    bench = Bench(mode=mode)
    other = OTHER[stream]
    assert bench.states() == ("expected", "expected")
    for at in range(0, 500, 100):
        assert bench.send(other, at) == "pair"
    assert bench.supervisor.mode == "pair"
    assert bench.tick(499.9) == []
    assert bench.tick(500) == [("missing", stream, 500.0)]
    assert bench.events[0].flush == Flush(survivor=other, route=ALONE[mode])
    assert "no picture in the 500 ms since activation" in bench.events[0].text
    assert bench.send(other, 510) == ALONE[mode].reason if mode == "stop" else ALONE[mode].action
    assert bench.send(stream, 520) == "pair"
    assert bench.send(other, 530) == "pair"
    assert bench.tick(530) == [("returned", stream, 520.0)]


def test_neither_camera_ever_starts():
    bench = Bench()
    assert bench.tick(10_000) == [("missing", "thermal", 500.0), ("missing", "rgb", 500.0)]
    assert [event.flush.survivor for event in bench.events] == [None, None]
    assert bench.supervisor.mode == "none"
    assert bench.supervisor.next_deadline_ns is None


def test_of_two_that_die_at_once_the_last_picture_is_still_shown():
    bench = Bench()
    bench.both([100])
    bench.tick(9999)
    assert [(e.stream, e.at_ns, e.flush.survivor) for e in bench.events] == [
        ("thermal", 600 * MS, "rgb"),
        ("rgb", 600 * MS, None),
    ]


SEQUENCES = [
    order
    for length in (2, 4)
    for order in itertools.permutations([(action, s) for action in ("dies", "returns") for s in STREAMS], length)
    if all(
        (("dies", s) in order) == (("returns", s) in order)
        and (("dies", s) not in order or order.index(("dies", s)) < order.index(("returns", s)))
        for s in STREAMS
    )
]


@pytest.mark.parametrize("how", ["missing", "frozen"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", SEQUENCES, ids=lambda order: ", ".join(" ".join(step[::-1]) for step in order))
def test_every_order_of_death_and_return(order, mode, how):
    bench = Bench(mode=mode)
    alive, at, told, stamps = set(STREAMS), 0, [], dict.fromkeys(STREAMS, 0)

    def second():
        """One second of both cameras at 20 Hz; the actions of every message of the living."""
        nonlocal at
        actions = []
        for at in range(at, at + 1000, 50):
            for offset, stream in enumerate(STREAMS):
                told.extend(bench.tick(at + offset))
                if stream in alive:
                    stamps[stream] = at
                    actions.append(bench.send(stream, at + offset, stamps[stream]))
                elif how == "frozen":
                    assert bench.send(stream, at + offset, stamps[stream]) == "duplicate_stamp"
        at += 50
        return actions

    assert set(second()) == {"pair"}
    for action, stream in order:
        (alive.remove if action == "dies" else alive.add)(stream)
        told.clear()
        actions = second()
        word = {"single": "single", "hold": "hold", "stop": "degraded_stop"}[mode]
        if action == "returns" and len(alive) == 1 and how == "missing":
            # the first to come back waits 100 ms for the other
            assert actions == ["pair"] * 2 + [word] * 18
            assert [event[:2] for event in told] == [("returned", stream), ("missing", OTHER[stream])]
        elif action == "returns":
            # from the first message on; the other was fused alone up to the message before
            assert actions[0] == (word if len(alive) == 2 and stream == "rgb" or len(alive) == 1 else "pair")
            assert set(actions[1:]) == ({"pair"} if len(alive) == 2 else {word})
            assert [event[:2] for event in told] == [("returned", stream)]
        else:
            # its last good message came 50 (thermal) or 49 ms (rgb) before the second began
            assert actions == (["pair"] * (9 + (stream == "rgb")) + [word] * (11 - (stream == "rgb")) if alive else [])
            assert [event[:2] for event in told] == [(how, stream)]
        assert bench.supervisor.mode == (
            "pair"
            if len(alive) == 2
            else "none"
            if not alive or mode == "stop"
            else "held"
            if mode == "hold"
            else f"{min(alive)}_only"
        )
        assert (bench.supervisor.consequence is None) == (len(alive) == 2)


def test_both_return_at_once():
    bench = Bench()
    bench.both([0])
    bench.tick(5000)
    assert bench.send("thermal", 6000) == "pair"
    assert bench.states() == ("alive", "expected") and bench.supervisor.mode == "pair"
    assert bench.send("rgb", 6099) == "pair"
    assert bench.tick(6099) == [("returned", "thermal", 6000.0), ("returned", "rgb", 6099.0)]
    assert bench.states() == ("alive", "alive")


def test_the_first_to_come_back_waits_for_the_other_but_not_long():
    bench = Bench()
    bench.both([0])
    bench.tick(5000)
    assert bench.send("rgb", 6000) == "pair"
    assert bench.tick(6099.9) == [("returned", "rgb", 6000.0)]
    assert bench.tick(6100) == [("missing", "thermal", 6100.0)]
    assert bench.events[0].flush == Flush(survivor="rgb", route=Route("single"))
    assert "no new picture for 6100 ms; rgb is fused alone" in bench.events[0].text
    assert bench.send("rgb", 6150) == "single"
    assert bench.send("thermal", 6200) == "pair"
    assert bench.tick(6200) == [("returned", "thermal", 6200.0)]


def test_it_waits_longer_for_a_slow_camera():
    bench = Bench()
    bench.both([0, 200, 400, 600])
    bench.tick(5000)
    bench.send("rgb", 6000)
    assert bench.supervisor.next_deadline_ns == 6300 * MS


def test_it_does_not_wait_for_a_frozen_camera():
    bench = Bench()
    bench.both([0])
    for at in (100, 5800, 5900):
        bench.send("thermal", at, stamp=0)
    assert bench.supervisor.condition("thermal").state == "frozen"
    assert bench.send("rgb", 6000) == "single"


def test_at_the_start_the_second_camera_is_waited_for_too():
    bench = Bench()
    assert bench.send("rgb", 450) == "pair"
    assert bench.tick(549) == []
    assert bench.tick(550) == [("missing", "thermal", 550.0)]


# stamps


@pytest.mark.parametrize(
    "stamp, word, good",
    [
        (1001, "advanced", True),
        (1000, "duplicate_stamp", False),
        (999, "out_of_order", False),
        (1000 - TIME_JUMP_NS / MS, "out_of_order", False),
        (1000 - TIME_JUMP_NS / MS - 1e-6, "time_jump", True),
        (-1e9, "time_jump", True),
        (1e9, "advanced", True),
    ],
)
def test_stamps(stamp, word, good):
    bench = Bench()
    bench.send("rgb", 10, 1000)
    assert (bench.verdict.stamp, bench.verdict.good) == ("first", True)
    assert bench.send("rgb", 20, stamp) == ("pair" if good else word)
    assert (bench.verdict.stamp, bench.verdict.good) == (word, good)
    condition = bench.supervisor.condition("rgb")
    assert condition.last_stamp_ns == round((stamp if good else 1000) * MS)
    assert condition.good_ns == (20 if good else 10) * MS


def test_after_a_time_jump_stamps_advance_from_there():
    bench = Bench()
    for at, stamp in ((0, 100_000), (10, 0), (20, 33), (30, 66)):
        assert bench.send("thermal", at, stamp) == "pair"
    assert bench.send("thermal", 40, 66) == "duplicate_stamp"


def test_a_clock_set_back_by_less_than_a_jump_is_told_by_the_node():
    bench = Bench()
    bench.send("thermal", 0, 5000)
    assert bench.send("thermal", 10, 4100) == "out_of_order"
    bench.supervisor.time_jumped()
    assert bench.send("thermal", 20, 4200) == "pair"
    assert bench.verdict.stamp == "first"


def test_stamps_that_stand_still_are_frozen_then_missing_when_the_messages_end():
    bench = Bench()
    bench.both([0])
    for at in range(50, 800, 50):
        bench.send("rgb", at)
        assert bench.send("thermal", at, 0) == "duplicate_stamp"
    assert bench.tick(800) == [("frozen", "thermal", 500.0)]
    condition = bench.supervisor.condition("thermal")
    assert (condition.cause, condition.since_ns) == ("stamps", 500 * MS)
    assert condition.sentence(800 * MS) == "thermal camera is frozen: its stamps have not advanced for 800 ms"
    assert bench.supervisor.next_deadline_ns == 1250 * MS
    assert bench.tick(1249) == []
    assert bench.tick(1250)[:2] == [("missing", "thermal", 1250.0), ("missing", "rgb", 1250.0)]
    # it was given up before: what waits in the matcher was seen to then
    assert [event.flush is None for event in bench.events] == [True, False]
    assert bench.events[0].for_ns == 1250 * MS


def test_one_stray_duplicate_does_not_make_a_dead_stream_frozen():
    bench = Bench()
    bench.both([0])
    bench.send("thermal", 1, 0)
    bench.send("rgb", 300)
    assert bench.tick(600) == [("missing", "thermal", 500.0)]
    bench.send("thermal", 700, 0)
    assert bench.states()[0] == "missing"
    bench.send("thermal", 1250, 0)  # no row: 550 ms later
    assert bench.states()[0] == "missing"
    bench.send("thermal", 1300, 0)
    assert bench.states()[0] == "frozen"


def test_stamps_that_stand_still_behind_the_last_one_are_frozen_too():
    bench = Bench()
    bench.both([0])
    for at in range(100, 700, 100):
        bench.send("rgb", at)
        assert bench.send("thermal", at, -100) == "out_of_order"
    assert bench.states() == ("frozen", "alive")


# bytes


def test_repeated_bytes_are_paired_until_the_stream_is_given_up_and_no_longer():
    bench = Bench()
    bench.send("rgb", 0)
    routes = {}
    for at in range(0, 2000, 40):
        bench.send("rgb", at)
        bench.tick(at)
        routes[at] = bench.send("thermal", at, pixels=7)
    assert {at for at, route in routes.items() if route == "pair"} == set(range(0, 500, 40))
    assert {route for at, route in routes.items() if at >= 500} == {"frozen"}
    assert bench.verdict.repeats and bench.verdict.stamp == "advanced"
    condition = bench.supervisor.condition("thermal")
    assert (condition.state, condition.since_ns, condition.cause) == ("frozen", 500 * MS, "bytes")
    assert "degraded.identical_bytes: false if that is intended" in condition.sentence(2000 * MS)
    assert bench.send("thermal", 2000, pixels=8) == "pair"


def test_constant_pictures_are_never_frozen_by_their_bytes():
    black = fingerprint(bytes(64 * 64), step=64, row_bytes=64, rows=64, pixel_bytes=1)
    bench = Bench()
    for at in range(0, 5000, 40):
        bench.send("rgb", at)
        assert bench.send("thermal", at, pixels=black) == "pair"
    assert bench.tick(5000) == []


@pytest.mark.parametrize("stream, option", [("rgb", True), ("thermal", False), ("rgb", False)])
def test_bytes_count_for_thermal_only_and_by_option(stream, option):
    bench = Bench(identical_bytes=option)
    assert not bench.supervisor.wants_fingerprint(stream)
    for at in range(0, 5000, 40):
        for name in STREAMS:
            assert bench.send(name, at, pixels=7 if name == stream else None) == "pair"
    assert bench.tick(5000) == []


def test_a_slow_sensor_behind_a_fast_driver_is_alive():
    bench = Bench()
    for number in range(200):  # 9 Hz sensor, each picture sent three times
        at = 37 * number
        bench.send("rgb", at)
        assert bench.send("thermal", at, pixels=number // 3) == "pair"
    assert bench.tick(37 * 199) == []
    assert bench.supervisor.condition("thermal").period_ns == 111 * MS


def test_switching_the_option_off_brings_a_still_picture_back():
    bench = Bench()
    for at in range(0, 1000, 40):
        bench.send("rgb", at)
        bench.send("thermal", at, pixels=7)
    assert bench.states()[0] == "frozen"
    bench.supervisor.configure(DegradedConfig(identical_bytes=False), 1000 * MS)
    assert bench.states()[0] == "frozen"
    assert bench.send("thermal", 1000, pixels=7) == "pair"


def picture(pixels, padding=0, fill=0):
    """A message's worth of bytes and its layout."""
    rows = pixels.reshape(pixels.shape[0], -1).view(np.uint8)
    padded = np.full((rows.shape[0], rows.shape[1] + padding), fill, np.uint8)
    padded[:, : rows.shape[1]] = rows
    data = array("B", padded.tobytes())
    pixel_bytes = rows.shape[1] // pixels.shape[1]
    return data, {"step": padded.shape[1], "row_bytes": rows.shape[1], "rows": len(rows), "pixel_bytes": pixel_bytes}


def print_of(*args, **kwargs):
    data, layout = picture(*args, **kwargs)
    return fingerprint(data, **layout)


@pytest.mark.parametrize("dtype, channels", [("u1", 1), ("<u2", 1), (">u2", 1), ("<f4", 1), ("u1", 3)])
@pytest.mark.parametrize("padding", [0, 5])
def test_fingerprint(dtype, channels, padding):
    shape = (33, 47) if channels == 1 else (33, 47, channels)
    # neither a pixel of equal bytes nor rows of equal pixels may pass for a constant picture
    constant = np.empty(shape, dtype)
    constant[...] = 0x1234 if constant.dtype.itemsize > 1 else 0x34
    if channels == 3:
        constant[...] = (1, 2, 3)
    assert print_of(constant, padding) is None
    seen = set()
    for index in ((0, 0), (0, 46), (32, 0), (32, 46), (16, 23)):
        changed = constant.copy()
        changed[index] = 99
        one = print_of(changed, padding, fill=1)
        assert one is not None and one == print_of(changed.copy(), padding, fill=200)
        seen.add(one)
    assert len(seen) == 5
    stripes = constant.copy()
    stripes[1::2] = 77
    assert print_of(stripes, padding) is not None
    stripes = constant.copy()
    stripes[:, 1::2] = 77
    assert print_of(stripes, padding) is not None


def test_nan_everywhere_is_a_constant_picture():
    assert print_of(np.full((40, 40), np.nan, np.float32)) is None


# rules that change


def test_a_shorter_timeout_gives_up_now_what_is_overdue():
    bench = Bench()
    bench.both([0])
    bench.send("rgb", 200)
    bench.supervisor.configure(DegradedConfig(timeout_ns=100 * MS, mode="stop"), 250 * MS)
    assert bench.tick(299) == [("missing", "thermal", 250.0)]
    assert bench.events[0].flush == Flush(survivor="rgb", route=Route("stop", "degraded_stop"))
    assert bench.tick(300) == [("missing", "rgb", 300.0)]


def test_a_longer_timeout_brings_nothing_back_but_a_message_does():
    bench = Bench()
    bench.both(range(0, 1000, 100))
    for at in range(1000, 1500, 100):
        bench.send("rgb", at)
    assert bench.tick(1450) == [("missing", "thermal", 1400.0)]
    bench.supervisor.configure(DegradedConfig(timeout_ns=2000 * MS), 1450 * MS)
    assert bench.states() == ("missing", "alive")
    assert bench.supervisor.next_deadline_ns == 3400 * MS
    assert bench.send("thermal", 1500) == "pair"


def test_what_was_due_under_the_old_rules_happened_under_the_old_rules():
    bench = Bench()
    bench.both([0])
    bench.send("rgb", 300)
    bench.supervisor.configure(DegradedConfig(timeout_ns=5000 * MS, mode="stop"), 600 * MS)
    assert bench.tick(600) == [("missing", "thermal", 500.0)]
    assert bench.events[0].flush.route == Route("single")


def test_under_a_shorter_timeout_what_would_have_been_frozen_is_missing_at_once():
    bench = Bench()
    bench.both([0])
    for at in (100, 200):
        bench.send("thermal", at, 0)
    bench.supervisor.configure(DegradedConfig(timeout_ns=50 * MS), 400 * MS)
    assert bench.tick(400) == [("missing", "thermal", 400.0), ("missing", "rgb", 400.0)]


def test_the_mode_changes_with_the_next_message():
    bench = Bench()
    bench.send("rgb", 400)
    bench.tick(500)
    seen = []
    for at, mode in zip(range(510, 600, 10), MODES * 3):
        bench.supervisor.configure(DegradedConfig(mode=mode), at * MS)
        seen.append((bench.send("rgb", at), bench.supervisor.mode))
    assert seen == [("single", "rgb_only"), ("hold", "held"), ("degraded_stop", "none")] * 3
    assert bench.tick(600) == []


@pytest.mark.parametrize("wrong", [{"mode": "both"}, {"timeout_ns": 0}, {"timeout_ns": -1}])
def test_wrong_rules_are_refused(wrong):
    with pytest.raises(InputError, match="degraded"):
        DegradedConfig(**wrong)


# a node that was busy elsewhere


def test_after_a_pause_of_the_node_what_waits_in_its_queues_is_heard_first():
    bench = Bench()
    bench.both([0])
    bench.supervisor.woke(2000 * MS)
    assert bench.tick(2000) == []
    assert [bench.send(stream, 2001) for stream in STREAMS] == ["pair", "pair"]
    assert bench.tick(2001) == []


def test_the_grace_ends_and_is_not_given_twice_in_a_row():
    bench = Bench()
    bench.both([0])
    bench.supervisor.woke(2000 * MS)
    grace = 2000 + GRACE_NS / MS
    assert bench.send("rgb", 2001) == "pair"
    assert bench.supervisor.next_deadline_ns == grace * MS
    bench.supervisor.woke(round(grace + 200) * MS)
    assert bench.tick(grace + 200) == [("missing", "thermal", grace)]
    assert bench.send("thermal", 2400) == "pair"
    bench.supervisor.woke(4000 * MS)
    assert ("missing", "thermal", 2900.0) not in bench.tick(4000)


def test_a_message_ends_the_grace():
    bench = Bench(timeout=30)
    bench.both([0])
    bench.supervisor.woke(200 * MS)
    bench.both([201])
    assert bench.tick(300) == [("missing", "thermal", 231.0), ("missing", "rgb", 231.0)]


def test_on_time_there_is_no_grace():
    bench = Bench()
    bench.both([0])
    bench.supervisor.woke(round(500 * MS + LATE_NS - 1))
    assert [event[2] for event in bench.tick(600)] == [500, 500]


# timeouts shorter than the period


def test_a_timeout_shorter_than_the_period_does_not_flap():
    bench = Bench(timeout=100)
    told, actions = [], []
    for at in range(0, 4000, 20):
        told += bench.tick(at)
        if at % 200 == 0:
            bench.send("thermal", at)
        actions.append(bench.send("rgb", at))
    told = [event for event in told if event[0] == "slow" or event[2] > 600]
    assert told == [("slow", "thermal", 600.0)]
    assert set(actions[620 // 20 :]) == {"pair"}
    condition = bench.supervisor.condition("thermal")
    assert (condition.slow, condition.period_ns, condition.timeout_ns) == (True, 200 * MS, 500 * MS)
    assert bench.supervisor.condition("rgb").timeout_ns == 100 * MS
    # and it still dies
    bench.tick(4000)
    for at in range(4000, 5000, 20):
        bench.send("rgb", at)
    assert bench.tick(5000) == [("missing", "thermal", 4300.0)]


def test_it_is_said_that_the_timeout_is_too_short():
    bench = Bench(timeout=100)
    bench.both(range(0, 601, 200))
    bench.tick(600)
    slow = [event for event in bench.events if event.kind == "slow"]
    assert [event.text for event in slow] == [
        f"{stream} camera brings a picture every 200 ms, degraded.timeout_ms 100 is too short for it: 500 ms is used"
        for stream in STREAMS
    ]
    assert {event.level for event in slow} == {"warning"}


def test_beyond_the_longest_timeout_a_stream_is_given_up_between_its_messages_but_quietly():
    bench = Bench()
    levels = []
    for at in range(0, 40_000, 100):
        bench.tick(at)
        levels += [(event.kind, event.level) for event in bench.events if at > 10_000]
        levels += [("slow", event.text) for event in bench.events if event.kind == "slow"]
        if at % 3000 == 0:
            bench.send("thermal", at)
        if at > 30_000 and at % 3000 == (LONGEST_TIMEOUT_NS / MS):
            assert bench.send("rgb", at) == "single"
        else:
            bench.send("rgb", at)
    assert ("missing", "debug") in levels and ("returned", "debug") in levels
    assert ("missing", "warning") not in levels and ("returned", "info") not in levels
    (text,) = [text for kind, text in levels if kind == "slow"]
    assert text.endswith("2000 ms is used, and it is given up between its pictures")


@pytest.mark.parametrize("seed", range(3))
def test_a_period_at_the_edge_is_not_reported_again_and_again(seed):
    generator = random.Random(seed)
    for period in (200, 250):
        bench = Bench()
        told = []
        at = 0.0
        for _ in range(300):
            at += period + generator.uniform(-20, 20)
            bench.send("rgb", at)
            bench.send("thermal", at)
            told += [event for event in bench.tick(at) if event[0] == "slow"]
        assert len(told) <= 2


def test_faster_again_is_said_again_when_it_slows_down():
    bench = Bench()
    at = 0
    told = []
    for period in (300, 30, 300):
        for _ in range(20):
            at += period
            bench.both([at])
            told += [event[1] for event in bench.tick(at) if event[0] == "slow"]
    assert Counter(told) == {"thermal": 2, "rgb": 2}


def test_messages_that_come_in_twos_are_not_twice_as_fast():
    bench = Bench(timeout=100)
    for at in range(0, 4000, 200):
        bench.both([at, at + 1])
    assert bench.supervisor.condition("rgb").period_ns == 199 * MS


def test_a_long_pause_does_not_make_a_fast_camera_slow():
    bench = Bench()
    bench.both(range(0, 1000, 100))
    bench.both(range(60_000, 61_000, 100))
    bench.tick(61_000)
    assert "slow" not in {event.kind for event in bench.events}
    assert bench.supervisor.condition("rgb").timeout_ns == 500 * MS


# words


def test_events_say_what_is_wrong_and_what_follows():
    expected = {
        "single": "rgb is fused alone",
        "hold": "the last fused picture is repeated with its old stamp (degraded.mode hold)",
        "stop": "nothing is published (degraded.mode stop)",
    }
    for mode, consequence in expected.items():
        bench = Bench(mode=mode)
        bench.both([0])
        bench.send("rgb", 100)
        bench.tick(5000)
        assert [event.text.split(" camera is missing: no new picture for 500 ms; ") for event in bench.events] == [
            ["thermal", consequence],
            ["rgb", "nothing is published, neither camera brings new pictures"],
        ]
        bench.send("thermal", 5000)
        bench.send("rgb", 6000)
        assert bench.tick(6000)[0] == ("returned", "thermal", 5000.0)
        assert bench.events[0].text == "thermal camera is back after 5000 ms"  # the other one may follow
        assert [event.kind for event in bench.events] == ["returned", "missing", "missing", "returned"]
        bench.send("thermal", 6050)
        bench.both(range(6100, 6600, 100))
        bench.send("rgb", 7050)
        assert bench.send("thermal", 7060) == "pair" and bench.tick(7060)[-1] == ("returned", "thermal", 7060.0)
        bench.send("thermal", 7500)
        assert bench.tick(7550)[-1] == ("missing", "rgb", 7550.0)
        assert bench.events[-1].text == f"rgb camera is missing: no new picture for 500 ms; {consequence.replace('rgb', 'thermal')}"


def test_every_drop_reason_has_a_line():
    bench = Bench(mode="stop")
    reasons = {ALONE[mode].reason for mode in ("hold", "stop")}
    bench.send("thermal", 0, pixels=1)
    reasons |= {bench.send("thermal", 2000, pixels=1)}
    reasons |= {bench.send("rgb", 2000, stamp) for stamp in (5, 5, 4)}
    assert reasons == set(DROP_REASONS)


# against the plain model


class Plain:
    """The same rules, lived through one nanosecond after the other, from the whole history each time."""

    def __init__(self, config):
        self.config = config
        self.now = 0
        self.messages = {name: [] for name in STREAMS}
        """(time, good, what does not advance, timeout then)"""
        self.state = dict.fromkeys(STREAMS, "expected")
        self.lost = set()
        self.not_before = dict.fromkeys(STREAMS, 0)
        self.graced = dict.fromkeys(STREAMS, False)
        self.stamp = dict.fromkeys(STREAMS)
        self.pixels = {name: [] for name in STREAMS}
        self.late = {name: [] for name in STREAMS}
        self.slow = dict.fromkeys(STREAMS, False)
        self.refusal = dict.fromkeys(STREAMS)
        self.events = []

    def good_times(self, name):
        return [time for time, good, *_ in self.messages[name] if good]

    def last_good(self, name):
        return max([0, *self.good_times(name)])

    def heard(self, name):
        return max([0, *(time for time, *_ in self.messages[name])])

    def period(self, name):
        times = self.good_times(name)
        gaps = sorted([after - before for before, after in zip(times, times[1:])][-8:])
        return gaps[len(gaps) // 2] if len(gaps) >= 3 else None

    def timeout(self, name):
        period = self.period(name)
        asked = self.config.timeout_ns
        return asked if period is None else max(asked, min(int(2.5 * period), degraded.LONGEST_TIMEOUT_NS))

    def refused_in_row(self, name):
        count, before = 0, 0
        for time, good, _, timeout in self.messages[name]:
            count = 0 if good else count + 1 if time - before < timeout else 1
            before = time
        return count

    def dead(self, name):
        return self.state[name] in ("missing", "frozen")

    def alone(self):
        return ALONE[self.config.mode]

    def overdue(self, name, now):
        return now >= self.last_good(name) + self.timeout(name) and now >= self.not_before[name]

    def silent(self, name):
        return self.now >= self.heard(name) + self.timeout(name) and self.now >= self.not_before[name]

    def expire(self):
        for name in STREAMS:
            if not self.dead(name) and self.overdue(name, self.now):
                frozen = self.refused_in_row(name) >= 2 and self.now < self.heard(name) + self.timeout(name)
                other = OTHER[name]
                flush = Flush(survivor=other if self.state[other] == "alive" else None, route=self.alone())
                self.state[name] = "frozen" if frozen else "missing"
                self.tell(self.state[name], name, flush)
            elif self.state[name] == "frozen" and self.silent(name):
                self.state[name] = "missing"
                self.tell("missing", name, None)

    def tell(self, kind, name, flush):
        self.lost.add(name)
        self.events.append([kind, name, self.now, self.now - self.last_good(name), flush])

    def live_to(self, now):
        while self.now < now:
            self.now += 1
            self.expire()

    def wake(self, now):
        for name in STREAMS:
            late_for = [t for t in range(self.now, now + 1) if self.overdue(name, t)]
            if not self.dead(name) and not self.graced[name] and late_for and now - late_for[0] >= degraded.LATE_NS:
                self.graced[name] = True
                self.not_before[name] = now + degraded.GRACE_NS

    def message(self, name, stamp, now, pixels):
        self.live_to(now)
        before = self.stamp[name]
        straggler = before is not None and before - degraded.TIME_JUMP_NS <= stamp <= before
        if straggler and stamp < before:
            in_order = not self.late[name] or stamp > self.late[name][-1]
            self.late[name] = [*self.late[name], stamp] if in_order else [stamp]
        jump = before is not None and stamp < before and (not straggler or len(self.late[name]) >= 4)
        if straggler and not jump:
            self.refusal[name] = "duplicate_stamp" if stamp == before else "out_of_order"
            good, repeats = False, False
        else:
            self.late[name] = []
            if jump:
                self.pixels[name] = []
            self.refusal[name] = None
            watched = name == "thermal" and self.config.identical_bytes
            repeats = watched and pixels is not None and pixels in self.pixels[name][-8:]
            good = not repeats
            self.stamp[name] = stamp
            self.pixels[name] += [] if pixels is None else [pixels]
        was_alive, silent, other = self.state[name] == "alive", now - self.last_good(name), OTHER[name]
        self.messages[name].append((now, good, "bytes" if repeats else "stamps", self.timeout(name)))
        if good:
            self.state[name] = "alive"
            self.graced[name] = False
            self.not_before[name] = now
            if not was_alive and self.state[other] != "alive" and self.heard(other) == self.last_good(other):
                self.state[other] = "expected"
                grace = max(degraded.GRACE_NS, int(1.5 * (self.period(other) or 0)))
                self.not_before[other] = max(self.not_before[other], now + min(grace, self.timeout(other)))
            if name in self.lost:
                self.lost.remove(name)
                for event in self.events:
                    if event[1] == name:
                        event[4] = None
                self.events.append(["returned", name, now, silent, None])
            self.judge_pace(name)
        elif self.state[name] == "missing" and self.refused_in_row(name) >= 2:
            self.state[name] = "frozen"
            self.tell("frozen", name, None)
        if repeats and self.dead(name):
            self.refusal[name] = "frozen"

    def judge_pace(self, name):
        period, asked = self.period(name), self.config.timeout_ns
        if period is None or int(2.5 * period) <= asked:
            self.slow[name] = False
        elif period > asked / 2 and not self.slow[name]:
            self.slow[name] = True
            self.events.append(["slow", name, self.now, period, None])

    def configure(self, config, now):
        self.live_to(now)
        self.config = config
        for name in STREAMS:
            self.not_before[name] = max(self.not_before[name], now)
            self.judge_pace(name)
        # at one instant a stream can be given up as frozen and then found silent
        self.expire()
        self.expire()

    def route(self, name):
        if self.refusal[name] is not None:
            return Route("stop", self.refusal[name])
        return self.alone() if self.dead(OTHER[name]) else Route("pair")

    def mode(self):
        dead = {name for name in STREAMS if self.dead(name)}
        table = {"single": "rgb_only" if "thermal" in dead else "thermal_only", "hold": "held", "stop": "none"}
        return "pair" if not dead else "none" if len(dead) == 2 else table[self.config.mode]

    def cause(self, name):
        return self.messages[name][-1][2] if self.state[name] == "frozen" else None


class AgainstPlain(RuleBasedStateMachine):
    """Supervisor and Plain side by side, with constants that fit times of a few hundred nanoseconds."""

    SMALL = {"TIME_JUMP_NS": 20, "LATE_NS": 5, "GRACE_NS": 9, "LONGEST_TIMEOUT_NS": 60}

    def __init__(self):
        super().__init__()
        self.patch = mock.patch.multiple(degraded, **self.SMALL)
        self.patch.start()
        config = DegradedConfig(timeout_ns=20)
        self.supervisor, self.plain = Supervisor(config, started_ns=0), Plain(config)
        self.now = 0

    def teardown(self):
        self.patch.stop()

    @rule(
        name=st.sampled_from(STREAMS),
        after=st.one_of(st.integers(0, 12), st.integers(0, 45)),
        step=st.one_of(st.just(1), st.integers(-25, 5)),
        pixels=st.sampled_from([None, 1, 1, 2]),
        wake=st.booleans(),
        tick=st.booleans(),
    )
    def one_message(self, **kwargs):
        self.message(**kwargs)

    def message(self, name, after, step, pixels, wake=False, tick=True):
        self.now += after
        if wake:
            self.supervisor.woke(self.now)
            self.plain.wake(self.now)
        stamp = (self.plain.stamp[name] or 0) + step
        verdict = self.supervisor.accept(name, stamp, self.now, pixels)
        self.plain.message(name, stamp, self.now, pixels)
        assert verdict.good == self.plain.messages[name][-1][1]
        if tick:
            self.compare_events()
        assert self.supervisor.route(name, self.now) == self.plain.route(name)

    @rule(
        first=st.sampled_from(STREAMS),
        periods=st.tuples(st.integers(2, 14), st.integers(2, 30)),
        count=st.integers(1, 6),
        step=st.sampled_from([1, 1, 0]),
        pixels=st.sampled_from([None, 1]),
    )
    def burst(self, first, periods, count, step, pixels):
        """Regular messages of both, so that periods get known and rows of refused ones happen."""
        times = sorted(
            (self.now + period * number, name)
            for name, period in zip((first, OTHER[first]), periods)
            for number in range(1, count + 1)
        )
        for at, name in times:
            self.message(name, at - self.now, step, pixels)

    @rule(after=st.integers(0, 70))
    def tick(self, after):
        self.now += after
        self.plain.live_to(self.now)
        self.compare_events()

    @rule()
    def sleep_to_deadline(self):
        """Nothing changes before the time that is given, and something does at it."""
        deadline = self.supervisor.next_deadline_ns
        assert (deadline is None) == (set(self.plain.state.values()) == {"missing"})
        if deadline is None:
            return
        assert deadline > self.now
        before = dict(self.plain.state)
        self.plain.live_to(deadline - 1)
        assert self.plain.state == before
        self.now = deadline
        self.plain.live_to(deadline)
        assert self.plain.state != before
        self.compare_events()

    @rule(
        timeout=st.integers(1, 50), mode=st.sampled_from(MODES), identical=st.booleans(), after=st.integers(0, 20)
    )
    def configure(self, timeout, mode, identical, after):
        self.now += after
        config = DegradedConfig(timeout_ns=timeout, mode=mode, identical_bytes=identical)
        self.supervisor.configure(config, self.now)
        self.plain.configure(config, self.now)

    @rule()
    def time_jumped(self):
        self.supervisor.time_jumped()
        self.plain.stamp = dict.fromkeys(STREAMS)
        self.plain.late, self.plain.pixels = ({name: [] for name in STREAMS} for _ in range(2))

    def compare_events(self):
        events = self.supervisor.tick(self.now)
        assert [[e.kind, e.stream, e.at_ns, e.for_ns, e.flush] for e in events] == self.plain.events
        self.plain.events = []

    @invariant()
    def same_state(self):
        assert self.supervisor.mode == self.plain.mode()
        for name in STREAMS:
            condition = self.supervisor.condition(name)
            assert condition.state == self.plain.state[name]
            assert condition.cause == self.plain.cause(name)
            assert condition.good_ns == self.plain.last_good(name)
            assert condition.period_ns == self.plain.period(name)
            assert condition.timeout_ns == self.plain.timeout(name)
            assert condition.slow == self.plain.slow[name]
            assert condition.last_stamp_ns == self.plain.stamp[name]
            assert (condition.sentence(self.now) is None) == (not self.plain.dead(name))


TestAgainstPlain = AgainstPlain.TestCase
TestAgainstPlain.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# with the matcher, as the node wires them


class Wiring:
    """The router with a worker that takes no time, and a clock that is set by hand."""

    def __init__(self, config, *, slop_ms=50, reference="rgb", unpaired=False):
        self.matcher = PairMatcher(slop_ns=round(slop_ms * MS))
        self.ledger = Ledger(STREAMS)
        self.pairs, self.alone, self.held, self.events, self.now = [], [], 0, [], 0
        self.epochs = []
        self.router = Router(self.matcher, self.ledger, reference=reference, say=self.events.append, now_ns=lambda: self.now)
        self.router.start(self, config)
        self.router._supervisor.woke = lambda now_ns: None  # as if the node had listened all the time
        if not unpaired:
            self.router._misses_pairs = lambda now_ns: False

    def on_image(self, stream, stamp, arrived, pixels=None):
        """Returns the route."""
        self.now = arrived
        ticket = self.ledger.receive(stream)
        self.router.offer(stream, stamp, Frame(ticket, stamp, arrived), pixels)
        return self.router._supervisor.route(stream, arrived)

    def on_timer(self, now):
        self.now = now
        flushed = len(self.events)
        self.router.watch()
        if any(event.flush for event in self.events[flushed:]):
            assert self.matcher.pending == {"thermal": 0, "rgb": 0}

    def submit(self, job):
        """Of the worker."""
        assert self.ledger.is_open(*job.tickets) and self.ledger.fuse(*job.tickets)
        stamps = tuple(frame.message for frame in job.frames.values())
        if isinstance(job, SingleJob):
            self.alone.append((job.stream, *stamps))
        else:
            self.epochs.append(job.epoch)
            self.pairs.append(stamps)

    def offer(self, job):
        """Of the worker."""
        assert isinstance(job, HoldJob)
        self.held += 1

    def dropped(self, stream):
        return dict(self.ledger.snapshot()[stream].dropped)


def test_flush_shows_the_newest_that_waits_and_drops_the_rest_as_unmatched():
    node = Wiring(DegradedConfig())
    for stream in STREAMS:
        node.on_image(stream, 0, 0)
    for at in range(40, 500, 40):
        assert node.on_image("rgb", at * MS, at * MS).action == "pair"
    waiting = node.matcher.pending["rgb"]
    assert 2 <= waiting <= BUFFER and node.alone == []
    node.on_timer(500 * MS)
    assert node.alone == [("rgb", 480 * MS)]
    assert node.dropped("rgb") == {"unmatched": 11} and node.dropped("thermal") == {}
    assert node.on_image("rgb", 520 * MS, 520 * MS).action == "single"
    counts = node.ledger.snapshot()["rgb"]
    assert (counts.received, counts.fused, counts.pending) == (14, 3, 0)


@pytest.mark.parametrize("mode, reason", [("hold", "held"), ("stop", "degraded_stop")])
def test_flush_in_the_other_modes(mode, reason):
    node = Wiring(DegradedConfig(mode=mode))
    node.on_image("thermal", 400 * MS, 400 * MS)
    node.on_image("thermal", 440 * MS, 440 * MS)
    node.on_timer(500 * MS)
    assert node.dropped("thermal") == {"unmatched": 1, reason: 1}
    assert node.held == (mode == "hold") and node.alone == []


def test_flush_hands_out_a_pair_that_was_held_back_for_a_closer_partner():
    node = Wiring(DegradedConfig())
    for at in (0, 20, 40):
        for stream in STREAMS:
            node.on_image(stream, at * MS, at * MS)
    node.on_image("thermal", 60 * MS, 60 * MS)
    node.on_image("rgb", 75 * MS, 75 * MS)  # 15 ms later; a closer one was due at 80
    node.on_image("rgb", 108 * MS, 108 * MS)
    assert len(node.pairs) == 3
    node.on_timer(560 * MS)
    assert node.pairs[3:] == [(60 * MS, 75 * MS)]
    assert node.alone == [("rgb", 108 * MS)]


def test_flush_empties_the_stream_that_died_too():
    node = Wiring(DegradedConfig())
    node.on_image("rgb", 0, 0)
    node.on_image("thermal", 9000 * MS, 0)  # its clock is ahead
    node.on_image("rgb", 300 * MS, 300 * MS)
    assert node.matcher.pending == {"thermal": 1, "rgb": 0}
    node.on_timer(500 * MS)
    assert node.alone == []
    assert node.dropped("rgb") == {"unmatched": 2} and node.dropped("thermal") == {"unmatched": 1}


# two cameras without pairs


def drive(node, begin, end, *, ahead=0, period=50, delay=None):
    """Both cameras from `begin` to `end` (milliseconds), the stamps of RGB `ahead`, arriving `delay[stream]` later."""
    delay = {"thermal": 0, "rgb": 0} | (delay or {})
    messages = sorted(
        (at + delay[stream], stream == "rgb", stream, at + ahead * (stream == "rgb"))
        for at in range(begin, end, period)
        for stream in STREAMS
    )
    for arrived, _, stream, stamp in messages:
        node.on_image(stream, stamp * MS, arrived * MS)


@pytest.mark.parametrize("reference", STREAMS)
@pytest.mark.parametrize("ahead", [5000, 1300, -1300, -5000])
def test_a_clock_that_was_set_does_not_make_everybody_invisible(ahead, reference):
    node = Wiring(DegradedConfig(), reference=reference, unpaired=True)
    drive(node, 0, 2000)
    assert len(node.pairs) == 40 and node.alone == []
    drive(node, 2000, 6000, ahead=ahead)
    assert {stream for stream, _ in node.alone} >= {reference}
    shown = [stamp for stream, stamp in node.alone if stream == reference]
    assert len(shown) >= 60, "of 80: the rest waited for a dead camera's time"
    assert shown == sorted(set(shown))
    assert node.router.mode == f"{reference}_only" and node.router.unpaired
    assert re.fullmatch(rf"no pair for \d+ ms: {reference} is fused alone", node.router.consequence)
    assert [e.level for e in node.events if e.kind == "unpaired"] == ["warning"]
    drive(node, 6000, 8000)
    assert len(node.pairs) >= 40 + 34 and node.router.mode == "pair" and node.router.consequence is None
    assert [e.level for e in node.events if e.kind == "paired"] == ["info"]
    row = node.ledger.snapshot()
    for stream in STREAMS:
        waiting = node.matcher.pending[stream]
        assert row[stream].received == row[stream].fused + sum(row[stream].dropped.values()) + waiting


@pytest.mark.parametrize("reference", STREAMS)
@pytest.mark.parametrize("ahead", [700, -700])
def test_what_could_as_well_be_a_long_journey_is_shown_in_pairs_or_alone(ahead, reference):
    node = Wiring(DegradedConfig(), reference=reference, unpaired=True)
    drive(node, 0, 2000)
    drive(node, 2000, 6000, ahead=ahead)
    assert len(node.pairs) - 40 + len(node.alone) >= 60, "of 80"


@pytest.mark.parametrize(("mode", "reason"), [("hold", "held"), ("stop", "degraded_stop")])
def test_without_pairs_the_other_modes_do_what_they_say(mode, reason):
    node = Wiring(DegradedConfig(mode=mode), unpaired=True)
    drive(node, 0, 1000)
    drive(node, 1000, 3000, ahead=5000)
    assert node.alone == [] and node.dropped("rgb")[reason] > 20
    assert node.held == (node.dropped("rgb")[reason] if mode == "hold" else 0)
    assert node.router.mode == {"hold": "held", "stop": "none"}[mode]


@pytest.mark.parametrize("late", ["thermal", "rgb"])
@pytest.mark.parametrize("delay", [150, 400, 900])
def test_a_camera_whose_pictures_travel_long_is_paired_with_its_own_moment(late, delay):
    node = Wiring(DegradedConfig(timeout_ns=2000 * MS), unpaired=True)
    drive(node, 0, 6000, period=16, delay={late: delay})
    assert len(node.pairs) > 300
    assert all(thermal == rgb for thermal, rgb in node.pairs) and node.alone == []


def test_pairs_that_are_rare_are_pairs():
    node = Wiring(DegradedConfig(), unpaired=True)
    for at in range(0, 6000, 50):
        if at % 400 == 0:
            node.on_image("thermal", at * MS, at * MS)
        node.on_image("rgb", at * MS, (at + 1) * MS)
    assert len(node.pairs) == 15 and not any(event.kind == "unpaired" for event in node.events)


def test_a_clock_set_back_a_little_is_a_time_jump():
    node = Wiring(DegradedConfig(), unpaired=True)
    drive(node, 1000, 2000)
    for at in range(2000, 3000, 50):
        for stream in STREAMS:
            node.on_image(stream, (at - 600) * MS, at * MS)
    assert [pair[0] // MS for pair in node.pairs[20:]] == list(range(1600, 2400, 50))
    assert node.dropped("thermal") == {"out_of_order": 3, "time_jump": 1}
    assert node.dropped("rgb") == {"out_of_order": 3, "unmatched": 1} or node.dropped("rgb") == {"out_of_order": 3}
    assert set(node.epochs[:20]) == {0} and min(node.epochs[20:]) > 0, "stamps of another time are not compared"


def test_stragglers_are_no_time_jump():
    bench = Bench()
    bench.both(range(0, 1000, 50))
    for stamp in (700, 710, 720):
        assert bench.send("rgb", 1000, stamp=stamp) == "out_of_order"
    assert bench.send("rgb", 1001, stamp=1001) == "pair"
    assert [bench.send("rgb", 1002, stamp=stamp) for stamp in (730, 740, 735, 745, 746)] == ["out_of_order"] * 5
    assert bench.send("rgb", 1003, stamp=747) == "pair" and bench.verdict.stamp == "time_jump"


@pytest.mark.parametrize("ring", [1, 2, 3, degraded.REMEMBERED])
def test_a_driver_that_goes_round_in_its_buffers_is_frozen(ring):
    bench = Bench()
    for at in range(0, 1000, 50):
        bench.send("rgb", at)
        bench.send("thermal", at, pixels=1000 + at)
    for at in range(1000, 3000, 50):
        bench.send("rgb", at)
        last = bench.send("thermal", at, pixels=1000 + 1000 - 50 * (1 + at // 50 % ring))
    assert last == "frozen" and bench.states() == ("frozen", "alive")


def scenario(generator):
    """Two cameras with outages: (arrival, stream, stamp, pixels, kind) in order, and the good arrivals of each."""
    messages, good = [], {}
    number = 0
    for stream in STREAMS:
        period, delay, phase = generator.uniform(10, 60), generator.uniform(0, 30), generator.uniform(0, 60)
        start = generator.choice([0, 0, 0, generator.uniform(0, 900)])
        fates = []  # (from, to, what the camera does)
        at = start
        for _ in range(generator.randint(0, 3)):
            at += generator.uniform(900, 2000)
            kinds = ["silent", "stamps", "behind"] + ["bytes"] * (stream == "thermal")
            fates.append((at, at := at + generator.choice([100, 300, 600, 1500]), generator.choice(kinds)))
        stamp, pixels, last = 0, 0, 0.0
        good[stream] = []
        for step in range(round((4500 - start) / period)):
            at = start + phase + step * period
            arrival = round(MS * max(last + 0.001, at + delay + generator.uniform(0, 5)))
            last = arrival / MS
            fate = next((what for begin, end, what in fates if begin <= at < end), None)
            if fate == "silent":
                continue
            if fate in ("stamps", "behind") and stamp:
                kind = "duplicate_stamp" if fate == "stamps" else "out_of_order"
                messages.append((arrival, stream, stamp - (fate == "behind"), pixels + 1, kind))
                continue
            repeats = fate == "bytes" and pixels > 0
            if not repeats:
                number += 1
                pixels = number
                good[stream].append(arrival)
            stamp = round(at * MS)
            messages.append((arrival, stream, stamp, pixels, "repeated" if repeats else "good"))
    messages.sort(key=lambda message: message[0])
    return messages, good


class Demand:
    """When streams are dead, from the arrivals of their messages alone."""

    def __init__(self, timeout):
        self.timeout = timeout
        self.until = dict.fromkeys(STREAMS, timeout)
        """When a stream is given up if nothing comes."""
        self.alive_until = dict.fromkeys(STREAMS, 0)
        self.silent = dict.fromkeys(STREAMS, True)
        """No message since the last good one."""
        self.events = {stream: [] for stream in STREAMS}

    def message(self, stream, at, good):
        self.pass_time(at)
        self.silent[stream] = good
        if not good:
            return
        other = OTHER[stream]
        if at >= max(self.alive_until.values()) and self.silent[other]:
            self.until[other] = max(self.until[other], at + 100 * MS)
        if self.events[stream] and self.events[stream][-1][1] == "dies":
            self.events[stream].append((at, "returns"))
        self.until[stream] = self.alive_until[stream] = at + self.timeout

    def pass_time(self, at):
        for stream, events in self.events.items():
            if self.until[stream] <= at and (not events or events[-1][1] == "returns"):
                events.append((self.until[stream], "dies"))

    def end(self):
        self.pass_time(max(self.until.values()))


@pytest.mark.parametrize("block", range(10))
def test_random_scenarios(block):
    """What the node does is what the arrivals of good messages alone demand, however late its timer is."""
    singles = deaths = 0
    for seed in range(100 * block, 100 * block + 100):
        generator = random.Random(seed)
        messages, good = scenario(generator)
        timeout = generator.choice([200, 350, 500]) * MS
        mode = generator.choice(MODES)
        punctual = generator.random() < 0.5
        node = Wiring(DegradedConfig(timeout_ns=timeout, mode=mode))

        demand = Demand(timeout)
        routed = []
        for arrived, stream, stamp, pixels, kind in messages:
            while punctual and (due := node.router.next_deadline_ns) is not None and due <= arrived:
                node.on_timer(due)
            route = node.on_image(stream, stamp, arrived, pixels)
            routed.append(route)
            demand.message(stream, arrived, kind == "good")
            mine, others = (arrived >= demand.until[name] for name in (stream, OTHER[stream]))
            if kind in ("duplicate_stamp", "out_of_order"):
                assert route == ("stop", kind), (seed, arrived)
            elif kind == "repeated" and mine:
                assert route == ("stop", "frozen"), (seed, arrived)
            else:
                assert not mine and route == (ALONE[mode] if others else ("pair", None)), (seed, arrived)
            singles += route.action == "single"
        node.on_timer(messages[-1][0] + 10 * timeout)
        demand.end()

        # one route, one fate
        assert len(routed) == len(messages)
        counts = node.ledger.snapshot()
        for stream in STREAMS:
            row = counts[stream]
            assert row.received == sum(message[1] == stream for message in messages)
            assert row.received == row.fused + sum(row.dropped.values()) and row.pending == 0
        by_route = Counter(route.reason for route in routed if route.reason)
        fates = Counter({reason: sum(counts[s].dropped.get(reason, 0) for s in STREAMS) for reason in DROP_REASONS})
        flushed = Counter(e.flush.route.reason for e in node.events if e.flush and e.flush.survivor)
        assert all({"unmatched", *DROP_REASONS} >= set(row.dropped) for row in counts.values())
        for reason in DROP_REASONS:
            assert by_route[reason] <= fates[reason] <= by_route[reason] + flushed[reason]
        assert node.held == fates["held"]
        # nothing is shown alone twice, or out of order
        for stream in STREAMS:
            stamps = [stamp for name, stamp in node.alone if name == stream]
            assert all(before < after for before, after in zip(stamps, stamps[1:]))
        # deaths and returns are those of the arrivals, to the nanosecond, whenever the timer ran
        for stream in STREAMS:
            expected = demand.events[stream]
            told = [
                (event.at_ns, "returns" if event.kind == "returned" else "dies")
                for event in node.events
                if event.stream == stream
            ]
            # a dead one goes from missing to frozen and back
            told = [entry for before, entry in zip([(0, "returns"), *told], told) if entry[1] != before[1]]
            assert told == expected, (seed, stream)
            deaths += len(expected)
    assert singles > 500 and deaths > 300
