"""The node in a process of its own, talked to over DDS."""

from __future__ import annotations

import re
import signal
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.dds

IMAGES = {"fused/image": "rgb8", "gate/image": "mono8", "gate/overlay": "rgb8", "debug/side_by_side": "rgb8"}
ALL = (*IMAGES, "fused/camera_info", "fused/status")


@pytest.fixture
def client(shared_client):
    """The shared client, with calibrated cameras."""
    from sensor_msgs.msg import CameraInfo

    for stream, focal in (("thermal", 100.0), ("rgb", 200.0)):
        info = CameraInfo(width=shared_client.WIDTH, height=shared_client.HEIGHT)
        info.k[0] = focal
        shared_client.publishers[f"{stream} info"].publish(info)
    return shared_client


def pixels(image) -> np.ndarray:
    kind = np.float32 if image.encoding == "32FC1" else np.uint8
    return np.frombuffer(image.data, kind).reshape(image.height, image.width, -1)


def added_up(rows) -> bool:
    return all(received == fused + pending + sum(dropped.values()) for received, fused, pending, dropped in rows)


def both(client, report):
    return [client.counts(report, stream) for stream in ("thermal", "rgb")]


def test_every_output_carries_stamp_and_frame_of_the_reference_camera(client):
    client.listen(*ALL)
    stamp = client.publish_pair(skew_ns=10_000_000)
    for topic, encoding in IMAGES.items():
        image = client.arrived(topic, stamp)
        scale = 2 if topic == "debug/side_by_side" else 1
        assert (image.encoding, image.header.frame_id) == (encoding, "rgb_optical"), topic
        assert (image.width, image.height) == (scale * client.WIDTH, scale * client.HEIGHT), topic
        assert len(image.data) == image.step * image.height
        assert np.ptp(pixels(image)) > 0, topic
    info = client.arrived("fused/camera_info", stamp)
    assert (info.header.frame_id, info.k[0], info.width) == ("rgb_optical", 200.0, client.WIDTH)
    values = {v.key: v.value for v in client.arrived("fused/status", stamp).status[0].values}
    assert (values["mode"], float(values["stamp_skew_ms"])) == ("pair", 10.0)
    assert float(values["valid_fraction.thermal"]) == float(values["valid_fraction.rgb"]) == 1.0
    assert 0.0 < float(values["age_ms"])


def test_every_message_is_accounted_for(client):
    client.listen("fused/image")
    before = both(client, client.settled())
    stamps = []
    for _ in range(5):
        stamps.append(client.publish_pair())
        client.arrived("fused/image", stamps[-1])
    client.publishers["thermal"].publish(client.image("thermal", client.next_stamp()))
    client.next_stamp()
    stamps.append(client.publish_pair())
    client.arrived("fused/image", stamps[-1])
    after = both(client, client.settled())
    assert added_up(after)
    gained = [tuple(a[i] - b[i] for i in range(2)) for a, b in zip(after, before)]
    assert gained == [(7, 6), (6, 6)]
    assert after[0][3].get("unmatched", 0) == before[0][3].get("unmatched", 0) + 1


def test_latencies_and_what_runs_where_are_reported(client):
    client.listen("fused/image")
    values = client.settled()["fusion: processing"][2]
    for stage in ("wait_for_pair", "decode", "preprocess", "network", "postprocess", "publish", "total", "age"):
        assert float(values[f"{stage}_ms.p95"]) >= float(values[f"{stage}_ms.p50"]) >= 0.0
    for key in ("model", "device", "device_reason", "implementation", "implementation_reason", "precision", "precision_reason", "rate_hz"):
        assert values[key]


def test_a_model_runs_only_for_somebody(client):
    client.listen("fused/image")
    client.deaf()
    before = both(client, client.settled())

    def dropped():
        client.publish_pair()
        report = client.wait_report(lambda r: True, "a report")
        return client.counts(report)[3].get("no_subscriber", 0) > before[0][3].get("no_subscriber", 0)

    client.wait(dropped, "pairs that nobody wants")
    settled = both(client, client.settled())
    for _ in range(3):
        client.publish_pair()
        client.poll(lambda: False, 0.2)
    after = both(client, client.settled())
    assert [row[1] for row in after] == [row[1] for row in settled]
    assert after[0][3]["no_subscriber"] + after[0][3].get("superseded", 0) == (
        settled[0][3]["no_subscriber"] + settled[0][3].get("superseded", 0) + 3
    )
    assert added_up(after)


@pytest.mark.parametrize(
    "stream, spoil, cause",
    [
        ("rgb", {"data": array("B", bytes(100))}, "data_shorter_than_step_times_height"),
        ("thermal", {"encoding": "64FC9"}, "unsupported_encoding"),
        ("rgb", {"step": 3}, "step_smaller_than_row"),
        ("thermal", {"width": 0}, "bad_size"),
    ],
)
def test_a_malformed_image_is_dropped_named_and_survived(client, shared_node, stream, spoil, cause):
    client.listen("fused/image")
    before = client.counts(client.settled(), stream)
    for _ in range(2):
        bad = client.image(stream, client.next_stamp())
        for field, value in spoil.items():
            setattr(bad, field, value)
        client.publishers[stream].publish(bad)
    report = client.wait_report(
        lambda r: client.counts(r, stream)[3].get(cause, 0) == before[3].get(cause, 0) + 2, f"{cause} in the counts"
    )
    assert report[f"fusion: input {stream}"][0] != b"\x00"
    stamp = client.publish_pair()
    client.arrived("fused/image", stamp)
    assert added_up(both(client, client.settled()))
    said = [line for line in shared_node.output.splitlines() if f"message dropped ({cause}): {stream} image" in line]
    assert len(said) == 1, "said once per cause"


def test_sizes_that_differ_are_named(client):
    client.listen("fused/image")
    thermal, rgb = (client.image(s, client.next_stamp(), width=w) for s, w in (("thermal", 80), ("rgb", 160)))
    thermal.header.stamp = rgb.header.stamp
    client.publishers["thermal"].publish(thermal)
    client.publishers["rgb"].publish(rgb)
    report = client.wait_report(
        lambda r: "size mismatch" in r["fusion: processing"][1], "the size mismatch in the diagnostics"
    )
    assert "thermal is 80x120, rgb is 160x120" in report["fusion: processing"][1]
    assert client.counts(client.settled())[3]["size_mismatch"] == 1


def test_stamps_too_far_apart_are_named_with_their_distance(client):
    client.listen("fused/image")

    def told():
        client.next_stamp()  # 200 ms between pairs: the closest wrong partner is further away than the right one
        client.publish_pair(skew_ns=-73_000_000)
        client.poll(lambda: False, 0.2)
        return client.reports[-1]["fusion: pairing"][1] == "no pair within the slop of 50 ms, closest was 73.0 ms apart"

    client.wait(told, "the distance in the diagnostics")
    client.publish_pair()  # whatever still waited is decided now
    assert added_up(both(client, client.settled()))
    assert client.set_parameter("sync.thermal_offset_ms", 73.0) == (True, "")
    try:
        stamp = client.publish_pair(skew_ns=-73_000_000)
        client.arrived("fused/image", stamp)
    finally:
        assert client.set_parameter("sync.thermal_offset_ms", 0) == (True, "")


def test_encodings_change_at_run_time(client):
    client.listen("fused/image", "gate/image")
    assert client.set_parameter("output.encoding", "mono8") == (True, "")
    assert client.set_parameter("gate.encoding", "32FC1") == (True, "")
    try:
        stamp = client.publish_pair()
        assert client.arrived("fused/image", stamp).encoding == "mono8"
        gate = client.arrived("gate/image", stamp)
        assert gate.encoding == "32FC1" and gate.step == 4 * client.WIDTH
        assert 0.0 <= pixels(gate).min() < pixels(gate).max() <= 1.0
    finally:
        client.set_parameter("output.encoding", "rgb8")
        client.set_parameter("gate.encoding", "mono8")


def test_a_refused_change_says_why_and_changes_nothing(client):
    good, reason = client.set_parameter("output.encoding", "jpeg")
    assert not good and reason == "parameter output.encoding; expected one of rgb8, mono8; got 'jpeg'"
    assert client.get_parameter("output.encoding") == "rgb8"
    good, reason = client.set_parameter("agc.low_percentile", 99.5)
    assert not good and "agc.low_percentile < agc.high_percentile" in reason
    assert client.get_parameter("agc.low_percentile") == 1.0
    good, reason = client.set_parameter("model", "other")
    assert not good and "read-only" in reason


def test_a_pair_that_cannot_be_fused_does_not_end_the_node(fake_client, fake_node):
    client = fake_client
    client.listen("fused/image")
    for _ in range(2):
        client.publish_pair(value=13)
    report = client.wait_report(lambda r: "could not be fused" in r["fusion: processing"][1], "the failure")
    assert "RuntimeError: thirteen" in report["fusion: processing"][1]
    client.arrived("fused/image", client.publish_pair())
    assert added_up(both(client, client.settled()))
    assert fake_node.output.count("thirteen") == 1


def test_an_exception_in_a_callback_does_not_end_the_node(start_node, make_client):
    node = start_node([sys.executable, str(Path(__file__).with_name("raising_fusion_node.py"))])
    client = make_client(node)
    client.cameras()
    client.listen("fused/image")
    from sensor_msgs.msg import CameraInfo

    def spoil(height, said):
        client.publishers["rgb info"].publish(CameraInfo(width=13, height=height))
        report = client.wait_report(lambda r: said in r["fusion: processing"][1], said)
        assert report["fusion: processing"][:2] == (b"\x02", f"internal error: {said}")

    for height in (2, 3, 4):
        spoil(height, f"ValueError: thirteen by {height}")
    spoil(1, "KeyError: 'another line'")
    client.arrived("fused/image", client.publish_pair())
    assert added_up(both(client, client.settled()))
    client.wait_report(lambda r: r["fusion: processing"][0] == b"\x00", "an end of the error in the reports")
    assert node.end(signal.SIGINT) == 0
    assert node.output.count("Traceback") == 2, "once per type and line"
    assert node.output.count("raising_fusion_node.py") == 2 and "thirteen by 3" not in node.output


def test_deactivation_accounts_for_everything_and_activation_starts_again(client):
    client.listen("fused/image")
    client.publishers["thermal"].publish(client.image("thermal", client.next_stamp()))
    client.wait_report(lambda r: client.counts(r)[2] == 1, "a message that waits for its partner")
    assert client.transition("deactivate")
    report = client.wait_report(lambda r: r["fusion: processing"][2]["state"] == "inactive", "an inactive node")
    rows = both(client, report)
    assert added_up(rows) and [row[2] for row in rows] == [0, 0]
    assert rows[0][3]["shutdown"] == 1
    assert report["fusion: input rgb"][:2] == (b"\x03", "the node is inactive")
    assert client.transition("cleanup")
    assert client.transition("configure")
    assert client.transition("activate")
    client.listen("fused/image")
    client.arrived("fused/image", client.publish_pair())


def test_gain_control_changes_at_run_time(fake_client):
    client = fake_client
    client.listen("fused/image")
    client.set_parameter("output.encoding", "mono8")
    assert client.set_parameter("agc.mode", "fixed") == (True, "")
    assert client.set_parameter("agc.high", 100) == (True, "")
    try:
        row = pixels(client.arrived("fused/image", client.publish_pair()))[1, :, 0]
        np.testing.assert_array_equal(row, np.clip(np.arange(client.WIDTH) / 100 * 255, 0, 255).astype(np.uint8))
    finally:
        for name, value in {"agc.mode": "percentile", "agc.high": 65535.0, "output.encoding": "rgb8"}.items():
            assert client.set_parameter(name, value) == (True, "")


def test_overload_shows_the_newest_and_never_queues(start_node, make_client, fake_command):
    """Cameras at 40 Hz, a model at 10 Hz at most: with a queue, the last picture would be 9 s old."""
    node = start_node(fake_command, environment={"FAKE_DELAY_S": "0.1"})
    client = make_client(node)
    client.cameras()
    client.listen("fused/image", "fused/status")
    before = client.counts(client.settled())
    start, pairs = time.monotonic(), 0
    while time.monotonic() < start + 3.0:
        pairs += 1
        client.publish_pair(stamp=time.time_ns())
        client.poll(lambda: time.monotonic() > start + pairs / 40.0, 0.025)
    for report in client.reports:
        assert added_up(both(client, report))
    report = client.settled()
    after = client.counts(report)
    assert 30 < after[0] - before[0] <= pairs
    assert after[3]["superseded"] > before[3].get("superseded", 0)
    assert after[1] - before[1] == len(client.received["fused/status"])
    stamps = [(m.header.stamp.sec, m.header.stamp.nanosec) for m in client.received["fused/image"]]
    assert stamps == sorted(set(stamps)) and len(stamps) > 5
    ages = sorted(float(m.status[0].values[4].value) for m in client.received["fused/status"])
    assert client.received["fused/status"][0].status[0].values[4].key == "age_ms"
    # One input period (25 ms), one model time (100 ms), and slack for transport on a busy machine. A queue of four would
    # be over it in every picture; a single slow moment of the machine is not what is tested.
    assert ages[int(0.8 * len(ages))] < 25.0 + 100.0 + 275.0


def test_an_unknown_parameter_is_refused_in_one_line(start_node):
    node = start_node(parameters={"sync.slop": 20})
    assert node.process.wait(60) == 2
    assert "unknown parameter sync.slop" in node.output and "Traceback" not in node.output


def test_shut_down_by_a_lifecycle_manager_and_then_by_a_signal(start_node, make_client):
    node = start_node()
    client = make_client(node)
    client.wait_report(lambda r: r["fusion: processing"][2]["state"] == "active", "an active node")
    assert client.transition("shutdown")
    assert node.end(2) == 0 and "Traceback" not in node.output


def test_best_effort_cameras_and_a_missing_one(start_node, make_client):
    node = start_node(parameters={"reference": "thermal"})
    client = make_client(node)
    report = client.wait_report(lambda r: r["fusion: processing"][2]["state"] == "active", "an active node")
    for stream in ("thermal", "rgb"):
        assert report[f"fusion: input {stream}"][:2] == (b"\x02", f"no publisher on /{stream}/image_raw")
    client.cameras(reliability="BEST_EFFORT", infos=False)
    client.listen("fused/image", "fused/status")
    stamp = client.publish_pair(skew_ns=-7_000_000) - 7_000_000
    assert client.arrived("fused/image", stamp).header.frame_id == "thermal_optical"
    # the same topics from reliable cameras
    for publisher in client.publishers.values():
        client.node.destroy_publisher(publisher)
    client.cameras(reliability="RELIABLE", infos=False)
    client.arrived("fused/image", client.publish_pair())


def test_incompatible_qos_is_named_and_a_clock_reset_restarts_the_pairing(start_node, make_client):
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import Image

    client = make_client(start_node(parameters={"qos.reliability": "reliable", "use_sim_time": "true"}))
    client.node.create_publisher(
        Image, "/thermal/image_raw", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    client.wait_report(
        lambda r: r["fusion: input thermal"][1]
        == "incompatible QoS on /thermal/image_raw: reliability requested reliable, offered best_effort by /client",
        "the incompatible QoS",
    )
    clock = client.node.create_publisher(Clock, "/clock", 1)
    cameras = client.node.create_publisher(Image, "/thermal/image_raw", 10)
    client.wait(lambda: clock.get_subscription_count() and cameras.get_subscription_count(), "the node's subscriptions")
    cameras.publish(client.image("thermal", 1000 * 10**9))
    client.wait_report(lambda r: client.counts(r)[2] == 1, "a message that waits for its partner")

    def dropped():
        for seconds in (1000, 1):
            message = Clock()
            message.clock.sec = seconds
            clock.publish(message)
            client.poll(lambda: False, 0.2)  # /clock has depth 1: two in a row are one, and no jump
        return client.counts(client.reports[-1])[3].get("time_jump") == 1

    client.wait(dropped, "the drop")


def test_managed_from_outside_with_remapped_topics_and_no_calibration(start_node, make_client):
    node = start_node(
        parameters={"autostart": "false"},
        remappings={"rgb/image_raw": "/front/image_raw", "rgb/camera_info": "/front/camera_info"},
    )
    client = make_client(node)
    client.wait_report(lambda r: r["fusion: processing"][2]["state"] == "unconfigured", "a node that waits")
    assert client.transition("configure")
    assert client.transition("activate")
    client.cameras(infos=False, names={"rgb": "front"})
    client.listen("fused/image")
    from sensor_msgs.msg import CameraInfo

    client.node.create_subscription(CameraInfo, "/fusion/fused/camera_info", lambda m: None, 1)

    def told():
        client.publish_pair()
        client.poll(lambda: False, 0.1)
        return "no camera_info on /front/camera_info" in client.reports[-1]["fusion: input rgb"][1]

    client.wait(told, "the missing camera_info")


def test_a_model_without_gates_has_no_gate_topics(fake_client):
    fake_client.listen("fused/image", "debug/side_by_side")
    topics = {name for name, _ in fake_client.node.get_topic_names_and_types()}
    assert "/fusion/fused/image" in topics
    assert not {name for name in topics if name.startswith("/fusion/gate")}


@pytest.mark.parametrize(
    "parameters, said",
    [
        ({"model": "nonesuch"}, "no model 'nonesuch'"),
        ({"reference": "depth"}, "parameter reference; expected one of rgb, thermal; got 'depth'"),
    ],
)
def test_what_cannot_start_says_why_in_one_line_and_exits_with_2(start_node, parameters, said):
    node = start_node(parameters=parameters)
    assert node.process.wait(30.0) == 2
    lines = [line for line in node.output.splitlines() if line.strip()]
    assert len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_start_up_ends_it_quietly(start_node, number):
    node = start_node(parameters={"warmup.width": 640})
    node.wait_for_signals()  # from here on it imports, loads and warms up
    assert node.end(number) == 0
    assert not re.search("Traceback|Error|ERROR", node.output), node.output
