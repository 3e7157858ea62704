"""Publishers, listeners and parameters that come, go and change in mid-stream, and the node's own end: the rows of the
fault table about them. As in test_faults.py, each row ends in `Rig.finish`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import CameraInfo, Image

pytestmark = pytest.mark.dds


@pytest.fixture
def rig(shared_rig):
    return shared_rig("rgb")


# publishers


@pytest.mark.parametrize("reliability", ["BEST_EFFORT", "RELIABLE"])
def test_cameras_of_another_reliability(rig, reliability):
    """Cameras are replaced by ones of this reliability in mid-stream; the node follows them."""
    rig.run(3)
    rig.withdraw()
    rig.connect(reliability=reliability)
    rig.recover()
    report = rig.until_well()
    for stream in ("thermal", "rgb"):
        assert report[f"fusion: input {stream}"][2]["reliability"] == reliability.lower()
    rig.withdraw()
    rig.connect()
    rig.finish()


@pytest.mark.parametrize(
    "streams",
    [pytest.param(("thermal",), marks=pytest.mark.slow), ("rgb",), ("thermal", "rgb")],
    ids=" and ".join,
)
def test_a_camera_driver_is_restarted(rig, streams):
    """No publisher for a while, which is said; then a new one joins late, and its pictures are used."""
    rig.run(3)
    rig.withdraw(streams=streams)
    silent = dict.fromkeys(streams, lambda shot: [])
    for stream in streams:
        rig.says(f"input {stream}", "ERROR", f"no publisher on /{stream}/image_raw", **silent)
    rig.advertise(streams=streams)
    rig.client.wait(lambda: all(rig.subscribers(stream) for stream in streams), "subscriptions of the node")
    rig.recover()
    rig.finish()
    rig.check_dropped("unmatched")


@pytest.mark.parametrize(
    ("later_s", "first", "reason"),
    [
        (0.0, "thermal", "duplicate_stamp"),
        (-0.025, "thermal", "unmatched"),
        pytest.param(3600.0, "thermal", "time_jump", marks=pytest.mark.slow),
        (3600.0, "rgb", "time_jump"),
    ],
    ids=["same stamps", "between", "another clock", "another clock, RGB first"],
)
def test_two_publishers_on_one_topic(rig, later_s, first, reason):
    """A second driver sends to the thermal topic: the same stamps, half a period before, or on a clock of its own."""
    rig.order = (first, "rgb" if first == "thermal" else "thermal")
    rig.set(degraded_timeout_ms=500.0)
    rig.run(2)
    second = rig.client.node.create_publisher(Image, "/thermal/image_raw", 10)

    def both(shot):
        ghost = shot.take(stamp=shot.stamp + round(later_s * 1e9), pixels=255 - shot.pixels, shown=None)
        if later_s:
            second.publish(ghost.message)
        yield shot.take()
        if not later_s:
            second.publish(ghost.message)
        rig.sent["thermal"] += 1

    try:
        rig.client.wait(second.get_subscription_count, "the node's subscription")
        rig.run(20, thermal=both)
        if first == "thermal":
            enough = lambda: [p.mode for p in rig.pictures()].count("pair") > 10  # noqa: E731
        else:  # what a pair is waited for is beyond reach when the other clock has spoken: RGB is shown alone
            enough = lambda: [p.mode for p in rig.pictures()].count("rgb_only") > 10  # noqa: E731
        rig.until(enough, "pictures", thermal=both)
        report = rig.says("input thermal", "WARN", "2 publishers on /thermal/image_raw: .*", thermal=both)
        assert rig.entry(report, "processing", "OK", "OK.*")
    finally:
        rig.client.node.destroy_publisher(second)
    rig.recover()
    rig.finish()
    assert rig.dropped()["thermal"][reason] > 5


# everything changes at once


def test_a_storm_of_parameters(rig):
    """500 changes in 10 seconds or less, while pairs come: none of them is lost because of it."""
    storm = [
        ("sync.slop_ms", [15.0, 20.0, 24.0]),
        ("degraded.mode", ["single", "hold", "stop"]),
        ("degraded.timeout_ms", [60_000.0, 30_000.0]),
        ("degraded.identical_bytes", [True, False]),
        ("agc.mode", ["percentile", "percentile_smoothed"]),
        ("agc.low", [0.0, 7.0]),
        ("agc.high_percentile", [99.0, 98.0]),
        ("agc.time_constant_s", [1.0, 0.5]),
        ("gate.encoding", ["32FC1", "mono8"]),
        ("sync.thermal_offset_ms", [0.0, 2.0, -2.0]),
        ("sync.slop_ms", [-1.0, "wide"]),  # refused
        ("output.encoding", ["jpeg", 7]),  # refused
    ]
    rig.run(3)
    answers, refused = [], 0
    for change in range(500):
        name, values = storm[change % len(storm)]
        value = values[change // len(storm) % len(values)]
        refused += change % len(storm) >= 10
        answers.append(rig.request({name: value}))
        if change % 4 == 3:
            rig.run(1)
    rig.client.wait(lambda: all(answer.done() for answer in answers), "an answer to every change")
    results = [answer.result().results[0] for answer in answers]
    assert sum(not result.successful for result in results) == refused
    assert all(result.reason for result in results if not result.successful)
    rig.finish()
    rig.check_dropped()


def test_subscribers_come_and_go(rig):
    """Listeners on every output, each for a few pictures only."""
    topics = {
        "fused/image": Image,
        "fused/camera_info": CameraInfo,
        "fused/status": DiagnosticArray,
        "gate/image": Image,
        "gate/overlay": Image,
        "debug/side_by_side": Image,
    }
    heard = Counter()
    guests = []

    def invite(topic):
        hear = lambda message: heard.update([topic])  # noqa: E731
        guests.append(rig.client.node.create_subscription(topics[topic], f"/fusion/{topic}", hear, 1))

    rng = np.random.default_rng(5)
    for _ in range(40):
        invite(list(topics)[rng.integers(len(topics))])
        rig.run(1)
        while len(guests) > rng.integers(8):
            rig.client.node.destroy_subscription(guests.pop(rng.integers(len(guests))))
    for guest in guests:
        rig.client.node.destroy_subscription(guest)
    rig.finish()
    assert len(heard) >= 4, heard
    rig.check_dropped()


GUEST = """
import sys, rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
rclpy.init()
node = Node("guest")
node.create_subscription(Image, "/fusion/fused/image", lambda message: print("heard", flush=True), 5)
rclpy.spin(node)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_listener_dies_or_hangs(rig, number):
    """A process that listens reliably is killed, or stopped for some seconds: everybody else goes on seeing."""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(rig.node.domain), "PYTHONUNBUFFERED": "1"}
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", GUEST], env=environment, stdout=subprocess.PIPE) as guest:
            try:
                os.set_blocking(guest.stdout.fileno(), False)
                rig.until(guest.stdout.read, "a guest who sees something")
                before = len(rig.pictures())
                guest.send_signal(number)
                rig.run(60)
                assert len(rig.pictures()) - before > 50
            finally:
                guest.kill()
    rig.recover()
    rig.finish()
    rig.check_dropped()


def test_deactivated_under_load(rig):
    """While one pair is being fused, another waits, and more keep coming; then everything starts again."""

    def long(shot):
        pixels = shot.pixels.copy()
        pixels[0, 0] = 14
        return [shot.take(pixels=pixels)]

    service = rig.client.node.create_client(ChangeState, "/fusion/change_state")
    rig.client.wait(service.service_is_ready, "the life cycle")
    for label in ("deactivate", "activate"):
        load = {"thermal": long} if label == "deactivate" else {}
        rig.run(4, **load)
        future = service.call_async(ChangeState.Request(transition=Transition(label=label)))
        rig.until(future.done, f"an answer to {label}", **load)
        assert future.result().success
    rig.client.wait(lambda: all(rig.subscribers(stream) for stream in ("thermal", "rgb")), "subscriptions of the node")
    rig.recover()
    rig.finish()
    assert all(row["shutdown"] >= 1 for row in rig.dropped().values())
    rig.check_dropped("shutdown", "unmatched")


def test_ended_under_load(rig):
    """SIGINT here, SIGTERM in test_faults_degraded.py. A next row would have a node of its own."""
    rig.end_under_load(signal.SIGINT)
