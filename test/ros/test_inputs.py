"""From messages to pictures that were checked; over DDS in test_transports.py."""

from __future__ import annotations

import zlib
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.compressed import compressed_message, transport_topic
from isfl_ros.ros.inputs import CompressedReader, RawReader, Refusals
from isfl_ros.ros.messages import MalformedImage, decode_rgb, image_message
from isfl_ros.ros.sync import STREAMS


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (33, 47), dtype=np.uint8)


def flat(value: int = 7) -> np.ndarray:
    return np.full((33, 47), value, np.uint8)


def png(pixels: np.ndarray) -> CompressedImage:
    return compressed_message(pixels, encoding="mono8", header=Header(), format="png")


def damaged() -> CompressedImage:
    """Good in all that can be seen without decoding: its chunks have right checksums, the pixels in them none."""
    data = bytearray(png(noise()).data)
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 : at + 4 + length] = b"\xff" * length
    data[at + 4 + length : at + 8 + length] = zlib.crc32(data[at : at + 4 + length]).to_bytes(4, "big")
    return CompressedImage(format="png", data=array("B", data))


def test_a_raw_picture():
    converted = []
    reader = RawReader("rgb", lambda message: converted.append(message) or "pixels")
    message = image_message(noise(), encoding="mono8", header=Header(frame_id="there"))
    image = reader.read(message)
    assert (image.width, image.height, image.encoding, image.header.frame_id) == (47, 33, "mono8", "there")
    assert not converted and not image.palettised
    assert image.decode() == "pixels" and converted == [message], "the converter that was chosen makes the pixels"


@pytest.mark.parametrize("reader, pack", [
    (RawReader("thermal", decode_rgb), lambda pixels: image_message(pixels, encoding="mono8", header=Header())),
    (CompressedReader("thermal"), png),
])
def test_both_transports_bring_the_same_pixels_and_tell_repeated_ones(reader, pack):
    image = reader.read(pack(noise()))
    np.testing.assert_array_equal(image.decode(), noise())
    assert (image.width, image.height) == (47, 33)
    number = image.fingerprint()
    assert number is not None and reader.read(pack(noise())).fingerprint() == number
    assert reader.read(pack(noise(1))).fingerprint() not in (None, number)


def test_the_format_stands_for_the_encoding_and_the_kind_where_there_is_none():
    reader = CompressedReader("thermal")
    assert reader.read(png(noise())).encoding == "mono8; png compressed "
    bare = png(noise())
    bare.format = ""
    assert reader.read(bare).encoding == "png"


def test_a_constant_compressed_picture_is_seen_to_be_one_when_it_repeats(monkeypatch):
    reader = CompressedReader("thermal")
    decode, decoded = reader._decode, []
    monkeypatch.setattr(reader, "_decode", lambda message: decoded.append(1) or decode(message))
    numbers = [reader.read(png(flat())).fingerprint() for _ in range(5)]
    assert numbers[0] is not None and numbers[1:] == [None] * 4, "no two in a row are equal numbers"
    assert len(decoded) == 1
    assert reader.read(png(noise())).fingerprint() is not None
    assert reader.read(png(flat())).fingerprint() == numbers[0] and reader.read(png(flat())).fingerprint() is None


def test_a_large_compressed_picture_is_neither_decoded_nor_compared(monkeypatch):
    monkeypatch.setattr("isfl_ros.ros.inputs.CONSTANT_CHECK_PIXELS", flat().size - 1)
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    reader = CompressedReader("thermal")
    assert [reader.read(png(pixels)).fingerprint() for pixels in (flat(), flat(), noise(), noise())] == [None] * 4


@pytest.mark.parametrize("make, pack", [
    (
        lambda most: RawReader("thermal", decode_rgb, max_pixels=most),
        lambda: image_message(noise(), encoding="mono8", header=Header()),
    ),
    (lambda most: CompressedReader("thermal", max_pixels=most), lambda: png(noise())),
], ids=["raw", "compressed"])
def test_both_transports_refuse_what_is_larger_than_the_parameter_says(make, pack):
    assert make(noise().size).read(pack()).width == 47
    with pytest.raises(MalformedImage, match="47x33.*input.max_pixels") as raised:
        make(noise().size - 1).read(pack())
    assert raised.value.cause == "bad_size"


def test_a_damaged_picture_that_repeats_is_left_to_the_worker():
    reader = CompressedReader("thermal")
    images = [reader.read(damaged()) for _ in range(2)]
    assert images[0].fingerprint() == images[1].fingerprint() is not None
    with pytest.raises(MalformedImage) as raised:
        images[0].decode()
    assert raised.value.cause == "undecodable"


@pytest.mark.parametrize("stream, palettised", [("thermal", True), ("rgb", False)])
def test_a_palettised_camera(stream, palettised):
    colours = np.dstack([noise(), noise(1), noise(2)])
    raw = image_message(colours, encoding="rgb8", header=Header())
    packed = compressed_message(colours, encoding="rgb8", header=Header(), format="jpeg")
    assert RawReader(stream, decode_rgb).read(raw).palettised is palettised
    assert CompressedReader(stream).read(packed).palettised is palettised


@pytest.mark.parametrize("message", [png(noise()), CompressedImage(format="png")], ids=["good", "empty"])
def test_what_is_claimed_is_checked_before_anything_is_decoded(message, monkeypatch):
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    reader = CompressedReader("thermal")
    if message.data:
        reader.read(message)
    else:
        with pytest.raises(MalformedImage):
            reader.read(message)


def test_refusals_are_dropped_remembered_and_said_once_per_stream_and_cause():
    said = []
    ledger = Ledger(STREAMS)
    refusals = Refusals(ledger, SimpleNamespace(warning=lambda key, text: said.append((key, text))))
    assert refusals.last("rgb") is None
    refusals.add("rgb", ledger.receive("rgb"), MalformedImage("truncated", "rgb image ends"))
    refusals.add("rgb", ledger.receive("rgb"), MalformedImage("bad_size", "rgb image is 0x0"))
    assert ledger.snapshot()["rgb"].dropped == {"truncated": 1, "bad_size": 1}
    assert (refusals.last("rgb"), refusals.last("thermal")) == ("rgb image is 0x0", None)
    assert said == [
        ("rgb truncated", "message dropped (truncated): rgb image ends"),
        ("rgb bad_size", "message dropped (bad_size): rgb image is 0x0"),
    ]


@pytest.mark.dds
@pytest.mark.parametrize(
    "rules, raw, compressed",
    [
        ({}, "/rgb/image_raw", "/rgb/image_raw/compressed"),
        ({"rgb/image_raw": "/front/image"}, "/front/image", "/front/image/compressed"),
        ({"rgb/image_raw/compressed": "/front/packed"}, "/rgb/image_raw", "/front/packed"),
        ({"__ns": "/car"}, "/car/rgb/image_raw", "/car/rgb/image_raw/compressed"),
        # cameras exchanged: a name that was remapped is not remapped back
        (
            {"rgb/image_raw": "thermal/image_raw", "thermal/image_raw": "rgb/image_raw"},
            "/thermal/image_raw",
            "/thermal/image_raw/compressed",
        ),
    ],
)
def test_a_remapping_of_the_image_topic_carries_over(rules, raw, compressed, domains):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=next(domains))
    arguments = ["--ros-args", *(part for old, new in rules.items() for part in ("-r", f"{old}:={new}"))]
    node = Node("fusion", context=context, cli_args=arguments)
    try:
        names = [transport_topic(node, "rgb/image_raw", transport) for transport in ("raw", "compressed")]
        subscriptions = [node.create_subscription(CompressedImage, name, lambda _: None, 1) for name in names]
        assert [subscription.topic_name for subscription in subscriptions] == [raw, compressed]
    finally:
        node.destroy_node()
        context.try_shutdown()
