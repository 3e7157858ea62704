"""What changes while pictures flow: parameters, publishers and subscribers, over DDS."""

from __future__ import annotations

import pytest
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image

from isfl_ros.ros.parameters import TABLE

pytestmark = pytest.mark.dds

LIVE = {
    "sync.slop_ms": 60.0,
    "sync.thermal_offset_ms": 1.0,
    "degraded.mode": "hold",
    "degraded.timeout_ms": 50_000.0,
    "degraded.identical_bytes": True,
    "registration.plane_depth_m": 30.0,
    "registration.transform.x": 0.1,
    "registration.transform.y": 0.1,
    "registration.transform.z": 0.1,
    "agc.mode": "fixed",
    "agc.low": 1.0,
    "agc.high": 1000.0,
    "agc.low_percentile": 2.0,
    "agc.high_percentile": 98.0,
    "agc.time_constant_s": 2.0,
    "agc.scale": 2.0,
    "agc.offset": 1.0,
    "output.encoding": "mono8",
    "output.compressed": "jpeg",
    "output.max_rate_hz": 1000.0,
    "debug.max_rate_hz": 1.0,
    "gate.encoding": "32FC1",
}
"""Another value than the default for every live parameter but those that are changed together."""

TOGETHER = {f"registration.transform.q{axis}": 0.5 for axis in "xyzw"}


@pytest.fixture
def client(fake_client):
    return fake_client


def change(client, values: dict[str, object]) -> None:
    parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    request = SetParametersAtomically.Request(parameters=parameters)
    result = client.call(SetParametersAtomically, "/fusion/set_parameters_atomically", request).result
    assert result.successful, result.reason


def test_no_live_parameter_is_left_out():
    assert {parameter.name for parameter in TABLE if parameter.live} == {*LIVE, *TOGETHER}


def test_every_live_parameter_changes_without_a_lost_picture(client):
    client.listen("fused/image", "fused/status")
    before = [client.counts(client.settled(), stream) for stream in ("thermal", "rgb")]
    stamps = []
    for new in (*({name: value} for name, value in LIVE.items()), TOGETHER):
        old = {name: client.get_parameter(name) for name in new}
        for values in (new, old):
            for during in (True, False):
                stamps.append(client.publish_pair())
                if during:
                    change(client, values)
                # one by one: of two at once, outputs of depth 1 may keep the newer one
                client.arrived("fused/image", stamps[-1])
    for stamp in stamps:
        assert client.arrived("fused/status", stamp).status[0].message == "pair"
    for stream, was in zip(("thermal", "rgb"), before):
        received, fused, pending, dropped = client.counts(client.settled(), stream)
        assert (received - was[0], fused - was[1], pending, dropped) == (len(stamps), len(stamps), 0, was[3])


def test_the_compressed_output_comes_and_goes(client):
    topic = "/fusion/fused/image/compressed"

    def advertised():
        client.executor.spin_once(timeout_sec=0.05)
        return bool(client.node.get_publishers_info_by_topic(topic))

    assert not advertised()
    for compression in ("jpeg", "png"):
        assert client.set_parameter("output.compressed", compression) == (True, "")
        client.wait(advertised, "the compressed topic")
        client.listen("fused/image/compressed")
        stamp = client.publish_pair()
        assert client.arrived("fused/image/compressed", stamp).format == f"rgb8; {compression} compressed bgr8"
    assert client.set_parameter("output.compressed", "none") == (True, "")
    client.wait(lambda: not advertised(), "the compressed topic to go")
    assert client.set_parameter("output.compressed", "off")[0] is False
    client.deaf()
    client.listen("fused/image")


def test_pairs_above_the_rate_are_dropped_by_their_stamps(client):
    client.listen("fused/image")
    before = client.counts(client.settled())
    assert client.set_parameter("output.max_rate_hz", 5) == (True, "")
    try:
        first = client.next_stamp()
        for index in range(40):  # of 20 Hz by their stamps, faster by the clock
            client.publish_pair(stamp=first + index * 50_000_000)
            client.poll(lambda: False, 0.02)
        client.stamp_ns = first + 40 * 50_000_000
        # which are shown goes by the stamps: every fourth, give or take a pair that the node was too busy to take
        after = client.counts(client.settled())
        assert after[3]["rate_limited"] - before[3].get("rate_limited", 0) >= 28
        assert 8 <= after[1] - before[1] <= 11
        assert after[0] - before[0] == 40
        report = client.reports[-1]["fusion: processing"]
    finally:
        assert client.set_parameter("output.max_rate_hz", 0.0) == (True, "")
    client.arrived("fused/image", client.publish_pair())
    assert report[0] == b"\x00"


SHORT = Duration(seconds=0.1)


@pytest.mark.parametrize(
    "policies, words",
    [
        ({"durability": DurabilityPolicy.TRANSIENT_LOCAL}, "durability offered volatile, requested transient_local"),
        ({"deadline": SHORT}, "deadline offered infinite, requested 100 ms"),
        ({"liveliness": LivelinessPolicy.MANUAL_BY_TOPIC}, "liveliness offered automatic, requested manual_by_topic"),
        ({"liveliness_lease_duration": SHORT}, "liveliness_lease_duration offered infinite, requested 100 ms"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_subscriber_that_asks_for_too_much_is_named(client, fake_node, policies, words):
    expected = f"incompatible QoS on /fusion/fused/image: {words} by /client"
    before = fake_node.output.count("a subscriber gets nothing")
    bad = client.node.create_subscription(Image, "/fusion/fused/image", lambda _: None, QoSProfile(depth=1, **policies))
    report = client.wait_report(lambda r: r["fusion: processing"][1] == expected, expected)
    assert report["fusion: processing"][0] == b"\x01"
    assert fake_node.output.count("a subscriber gets nothing") == before + 1, "the event of the middleware is logged"
    client.node.destroy_subscription(bad)
    client.wait_report(lambda r: "incompatible" not in r["fusion: processing"][1], "the end of it")


@pytest.mark.parametrize(
    "policies",
    [
        {"durability": DurabilityPolicy.TRANSIENT_LOCAL},
        {"deadline": Duration(seconds=10)},
        {"liveliness": LivelinessPolicy.MANUAL_BY_TOPIC, "liveliness_lease_duration": Duration(seconds=10)},
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_camera_that_offers_more_than_is_asked_for_is_heard_and_named_as_the_second_one(client, policies):
    second = client.node.create_publisher(Image, "/rgb/image_raw", QoSProfile(depth=5, **policies))
    try:
        client.wait(second.get_subscription_count, "the node's subscription")
        report = client.wait_report(lambda r: r["fusion: input rgb"][2]["publishers"] == "2", "both cameras")
        expected = "2 publishers on /rgb/image_raw: /client, /client"
        report = client.wait_report(lambda r: r["fusion: input rgb"][1] == expected or heard(client, second), expected)
        assert report["fusion: input rgb"][:2] == (b"\x01", expected)
    finally:
        client.node.destroy_publisher(second)
    client.wait_report(lambda r: r["fusion: input rgb"][2]["publishers"] == "1", "the end of the second")


def heard(client, publisher) -> None:
    """A pair of which the RGB picture comes from the second camera."""
    stamp = client.next_stamp()
    client.send("thermal", client.image("thermal", stamp))
    publisher.publish(client.image("rgb", stamp))


def test_a_camera_that_is_there_by_the_other_transport_is_pointed_out(start_node, make_client, fake_command):
    client = make_client(start_node(command=fake_command, parameters={"rgb.transport": "compressed"}))
    client.node.create_publisher(Image, "/rgb/image_raw", 1)
    client.node.create_publisher(CompressedImage, "/thermal/image_raw/compressed", 1)
    for stream, topic, hint in (
        ("rgb", "/rgb/image_raw/compressed", "/rgb/image_raw has one: set rgb.transport to raw"),
        (
            "thermal",
            "/thermal/image_raw",
            "/thermal/image_raw/compressed has one: set thermal.transport to compressed",
        ),
    ):
        said = f"no publisher on {topic}, but {hint}"
        client.wait_report(lambda r: r[f"fusion: input {stream}"][:2] == (b"\x02", said), said)
