"""The processes around the node in a soak: what can be said of them without a graph."""

from __future__ import annotations

import numpy as np
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from isfl_ros.errors import InputError
from isfl_ros.ros.messages import check_image, decode_rgb, decode_thermal, stamp_nanoseconds
from isfl_ros.ros.soak import player
from isfl_ros.ros.soak.listener import serialised_stamp
from isfl_ros.ros.soak.player import play, prepare

STAMP = 1_800_000_000_123_456_789


def test_prepared_pairs_are_well_formed_share_a_stamp_and_never_repeat():
    pairs = prepare("160x120", distinct=4, rate_hz=15.0)
    for number, pair in enumerate(pairs):
        pair.stamp(STAMP + number)
        for stream, (info, image) in pair.messages.items():
            check_image(image, stream)
            assert stamp_nanoseconds(info.header.stamp) == stamp_nanoseconds(image.header.stamp) == STAMP + number
            assert image.header.frame_id == info.header.frame_id == f"{stream}_optical_frame"
            assert (info.width, info.height) == (image.width, image.height) == (160, 120) and info.k[0] > 0.0
    thermal = [decode_thermal(pair.messages["thermal"][1]) for pair in pairs]
    rgb = [decode_rgb(pair.messages["rgb"][1]) for pair in pairs]
    assert thermal[0].dtype == np.uint16 and rgb[0].shape == (120, 160, 3)
    # also over the end of the loop: a camera that repeats a picture is a frozen one
    for pictures in (thermal, rgb):
        assert not any(np.array_equal(pictures[k - 1], pictures[k]) for k in range(4))


def test_one_picture_over_and_over_is_refused():
    with pytest.raises(InputError, match="2 or more"):
        prepare("160x120", distinct=1, rate_hz=15.0)


@pytest.mark.parametrize("message", [Image(encoding="rgb8", data=[1, 2, 3]), CameraInfo()])
def test_the_stamp_of_a_serialised_message(message):
    message.header = Header(frame_id="rgb_optical_frame")
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(STAMP, 10**9)
    data = serialize_message(message)
    assert serialised_stamp(data) == STAMP
    other = bytes((data[0], data[1] ^ 1, *data[2:4], *data[7:3:-1], *data[11:7:-1]))
    assert serialised_stamp(other) == STAMP


class Clock:
    """Stands in for `time`: sleeping is instant, and sending takes as long as the test says."""

    def __init__(self, takes):
        self.now = 100.0
        self.takes = takes
        self.sent: list[tuple[float, object]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def send(self, pair) -> int:
        self.sent.append((round(self.now - 100.0, 6), pair))
        self.now += self.takes.get(len(self.sent), 0.001)
        return len(self.sent)


@pytest.mark.parametrize(
    "takes, expected",
    [
        ({}, [0.0, 0.1, 0.2, 0.3, 0.4]),
        # less than a period late: sent at once, and the schedule stands
        ({2: 0.13}, [0.0, 0.1, 0.23, 0.3, 0.4]),
        # slots that went by stay empty: cameras do not catch up
        ({2: 0.25}, [0.0, 0.1, 0.35, 0.4]),
    ],
)
def test_the_schedule_is_kept(monkeypatch, takes, expected):
    clock = Clock(takes)
    monkeypatch.setattr(player, "time", clock)
    stamps: list[int] = []
    play(clock, ["a", "b"], rate_hz=10.0, seconds=0.5, stamps_ns=stamps)
    assert [at for at, _ in clock.sent] == pytest.approx(expected)
    assert [pair for _, pair in clock.sent] == ["a", "b", "a", "b", "a"][: len(expected)]
    assert stamps == list(range(1, len(expected) + 1))
