from __future__ import annotations

from dataclasses import replace

import pytest
from builtin_interfaces.msg import Time

from isfl_ros.ros.accounting import StreamCounts
from isfl_ros.ros.degraded import DegradedConfig, Supervisor
from isfl_ros.ros.diagnostics import ERROR, OK, STALE, WARN, Facts, InputFacts, difference, report

NOW_NS = 100_000_000


def counts(received=10, fused=10, pending=0, **dropped):
    return StreamCounts(received=received, fused=fused, dropped=dropped, pending=pending)


def condition(stream, **changes):
    """Of a stream that was good 20 ms ago."""
    supervisor = Supervisor(DegradedConfig(), started_ns=0)
    supervisor.accept(stream, 7_000_000_042, NOW_NS - 20_000_000)
    return replace(supervisor.condition(stream), **changes)


def input_facts(stream, **changes):
    facts = InputFacts(
        stream=stream,
        topic=f"/{stream}/image_raw",
        publishers=1,
        publisher_names="/camera",
        elsewhere=None,
        reliability="reliable",
        incompatibility=None,
        counts=counts(),
        since=counts(),
        malformed=None,
        encoding="mono8",
        size="160x120",
        info_topic=f"/{stream}/camera_info",
        info_received=True,
        info_missed=False,
        info_misfit=None,
        condition=condition(stream),
    )
    return replace(facts, **changes)


def facts(*, thermal=None, rgb=None, **changes):
    everything = Facts(
        node="/front/fusion",
        state="active",
        inputs=(input_facts("thermal", **thermal or {}), input_facts("rgb", **rgb or {})),
        counts={"thermal": counts(), "rgb": counts()},
        now_ns=NOW_NS,
        mode="pair",
        consequence=None,
        unpaired=False,
        matching={"matcher": "builtin", "matcher_reason": "closest partner wins"},
        interval_s=2.0,
        slop_ms=50.0,
        thermal_offset_ms=0.0,
        closest_miss_ms=None,
        registration={"registration": "none"},
        unregistered=None,
        concern=None,
        size_mismatch=None,
        failure=None,
        internal_error=None,
        busy_ms=None,
        age_s=0.04,
        timeout_ms=500.0,
        unreachable=None,
        paired_since=10,
        fused_since=10,
        latency={"network": (12.5, 20.0)},
        pipeline={"model": "isfl"},
        trouble=None,
    )
    return replace(everything, **changes)


def entries(everything):
    message = report(everything, Time(sec=7))
    assert message.header.stamp.sec == 7
    assert {entry.hardware_id for entry in message.status} == {"/front/fusion"}
    return {e.name: (e.level, e.message, {v.key: v.value for v in e.values}) for e in message.status}


def test_all_is_well():
    said = entries(facts())
    assert list(said) == ["fusion: input thermal", "fusion: input rgb", "fusion: pairing", "fusion: processing"]
    assert {(level, message) for level, message, _ in said.values()} == {(OK, "OK")}
    assert said["fusion: processing"][2]["network_ms.p95"] == "20.000"
    assert said["fusion: processing"][2]["rate_hz"] == "5.00"
    assert said["fusion: processing"][2]["model"] == "isfl"


def test_counters_have_their_keys():
    row = counts(received=9, fused=4, pending=2, unmatched=2, bad_size=1)
    values = entries(facts(counts={"thermal": row, "rgb": counts()}))["fusion: input thermal"][2]
    assert {k: values[k] for k in ("received", "fused", "dropped.unmatched", "dropped.bad_size", "pending")} == {
        "received": "9",
        "fused": "4",
        "dropped.unmatched": "2",
        "dropped.bad_size": "1",
        "pending": "2",
    }


INCOMPATIBLE = "incompatible QoS on /thermal/image_raw: reliability requested reliable, offered best_effort by /cam"


@pytest.mark.parametrize(
    "changes, level, message",
    [
        ({"publishers": 0, "since": counts(0, 0)}, ERROR, "no publisher on /thermal/image_raw"),
        (
            {"publishers": 0, "elsewhere": "/x has one: set thermal.transport to raw"},
            ERROR,
            "no publisher on /thermal/image_raw, but /x has one: set thermal.transport to raw",
        ),
        (
            {"publishers": 2, "publisher_names": "/a, /b"},
            WARN,
            "2 publishers on /thermal/image_raw: /a, /b",
        ),
        (
            {"since": counts(10, 0, truncated=6, undecodable=4), "malformed": "thermal image has 3 bytes"},
            ERROR,
            "10 of 10 messages refused: thermal image has 3 bytes",
        ),
        ({"since": counts(0, 0), "incompatibility": INCOMPATIBLE}, ERROR, INCOMPATIBLE),
        ({"incompatibility": INCOMPATIBLE}, WARN, INCOMPATIBLE),
        ({"since": counts(0, 0)}, ERROR, "no message on /thermal/image_raw, though it has 1 publisher(s)"),
        (
            {"since": counts(10, 9, bad_size=1), "malformed": "thermal image is 0x0"},
            WARN,
            "1 of 10 messages refused: thermal image is 0x0",
        ),
        (
            {"since": counts(10, 0, unsupported_encoding=10), "malformed": "thermal image has encoding 'x'"},
            ERROR,
            "10 of 10 messages refused: thermal image has encoding 'x'",
        ),
        ({"since": counts(10, 0, duplicate_stamp=10)}, ERROR, "stamps on /thermal/image_raw do not advance"),
        (
            {"info_missed": True},
            WARN,
            "no camera_info on /thermal/camera_info: ~/fused/camera_info is not published",
        ),
        ({"info_misfit": "camera_info is for 1x1"}, WARN, "camera_info is for 1x1"),
    ],
)
def test_causes_of_an_input(changes, level, message):
    said = entries(facts(thermal=changes))
    assert said["fusion: input thermal"][:2] == (level, message)
    assert said["fusion: input rgb"][:2] == (OK, "OK")


def test_causes_of_pairing():
    def pairing(**changes):
        return entries(facts(**changes))["fusion: pairing"][:2]

    assert pairing(rgb={"since": counts(0, 0)}) == (WARN, "no pair without messages of rgb")
    assert pairing(paired_since=0, closest_miss_ms=73.04) == (
        WARN,
        "no pair within the slop of 50 ms, closest was 73.0 ms apart",
    )
    assert pairing(paired_since=0, closest_miss_ms=1.7e12) == (
        ERROR,
        "the clocks of the cameras disagree: closest stamps were 1700000000.0 s apart",
    )
    assert pairing(closest_miss_ms=73.0) == (OK, "OK")  # pairs come: that some messages have no partner is normal
    assert pairing(rgb={"since": counts(10, 9, time_jump=1)}) == (WARN, "time jumped back: pairing was reset")


def test_causes_of_processing():
    def processing(fused_since=0, **changes):
        since = changes.pop("since")
        return entries(facts(thermal={"since": since}, rgb={"since": since}, fused_since=fused_since, **changes))[
            "fusion: processing"
        ][:2]

    assert processing(since=counts(10, 0, size_mismatch=10), size_mismatch="size mismatch: ...") == (
        ERROR,
        "size mismatch: ...",
    )
    assert processing(since=counts(10, 0, failed=2), failure="RuntimeError: x") == (
        ERROR,
        "2 pairs could not be fused: RuntimeError: x",
    )
    assert processing(since=counts(10, 0, no_subscriber=10)) == (OK, "idle: no output has a subscriber")
    assert processing(since=counts(10, 0, no_subscriber=10), unreachable="incompatible QoS on /x: ...") == (
        WARN,
        "incompatible QoS on /x: ...",
    )
    assert processing(since=counts(10, 5, rate_limited=5), fused_since=5) == (
        OK,
        "OK, rate limited: 5 pairs came too soon",
    )
    assert processing(since=counts(10, 4, superseded=6), fused_since=4) == (
        OK,
        "OK, slower than the cameras: 6 pairs gave way to newer ones",
    )


def processing(**changes):
    return entries(facts(**changes))["fusion: processing"][:2]


def test_a_worker_that_is_stuck_is_an_error_whatever_gave_way_to_newer_pairs():
    since = {"since": counts(10, 0, superseded=10, failed=1)}
    assert processing(busy_ms=1000.0) == (OK, "OK")
    assert processing(busy_ms=1234.4, thermal=since, rgb=since, fused_since=0) == (
        ERROR,
        "no picture for 1234 ms: the pair being fused has taken that long",
    )


@pytest.mark.parametrize("state", ["active", "inactive"])
def test_an_internal_error_comes_before_everything_else(state):
    changes = {"inputs": ()} if state == "inactive" else {"busy_ms": 5000.0}
    assert processing(state=state, internal_error="KeyError: 'x'", **changes) == (
        ERROR,
        "internal error: KeyError: 'x'",
    )


@pytest.mark.parametrize(
    ("age_s", "timeout_ms", "old"),
    [
        (0.99, 500.0, False),
        (1.01, 500.0, True),
        (1.99, 2000.0, False),
        (2.01, 2000.0, True),
        (-0.04, 500.0, False),
        (-0.06, 500.0, True),
        (59.9, 500.0, True),
        (60.1, 500.0, False),
        (-60.1, 500.0, False),
        (None, 500.0, False),
    ],
)
def test_pictures_that_are_old_or_from_the_future(age_s, timeout_ms, old):
    level, message = processing(age_s=age_s, timeout_ms=timeout_ms)
    if not old:
        assert (level, message) == (OK, "OK")
        return
    assert level == WARN and message == (
        f"pictures are {age_s:.2f} s old when they are published: a backlog, or the clock of the cameras differs from"
        " this computer's"
    )
    assert processing(age_s=age_s, timeout_ms=timeout_ms, fused_since=0) == (OK, "OK"), "long ago"


def test_cameras_that_are_not_registered_and_a_registration_that_looks_wrong():
    said = entries(facts(unregistered="no camera_info on /x", trouble="CUDA failed", registration={"registration": "calibrated"}))
    level, message, values = said["fusion: processing"]
    assert (level, message) == (WARN, "cameras not registered: no camera_info on /x")
    assert values["registration"] == "calibrated"
    level, message, _ = entries(facts(concern="homography: turned round?"))["fusion: processing"]
    assert (level, message) == (WARN, "the registration looks wrong: homography: turned round?")


def test_an_inactive_node_says_so_and_keeps_its_counts():
    said = entries(facts(state="inactive", inputs=()))
    assert {(level, message) for level, message, _ in said.values()} == {(STALE, "the node is inactive")}
    assert said["fusion: input rgb"][2]["received"] == "10"


def test_difference():
    now, before = counts(received=10, fused=5, failed=3, unmatched=2), counts(received=4, fused=2, failed=2)
    assert difference(now, before) == counts(received=6, fused=3, failed=1, unmatched=2)
    assert difference(now, None) == now


def test_a_device_that_failed_is_named():
    level, message, _ = entries(facts(trouble="CUDA out of memory: 2 GiB"))["fusion: processing"]
    assert (level, message) == (WARN, "pictures are fused on the CPU: CUDA out of memory: 2 GiB")
