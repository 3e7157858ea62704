"""Compressed pictures in and out, over DDS."""

from __future__ import annotations

import os
import zlib
from array import array
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, Client, NodeProcess
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from isfl_ros.ros.compressed import compressed_message, decode_compressed_rgb

pytestmark = pytest.mark.dds


@pytest.fixture(scope="module")
def compressed_node(fake_command, domains, tmp_path_factory):
    """Both cameras compressed, a topic remapped, a compressed output; the blue of a picture is the thermal one."""
    node = NodeProcess(
        fake_command,
        tmp_path_factory.mktemp("node") / "output.txt",
        domain=next(domains),
        parameters={"thermal.transport": "compressed", "rgb.transport": "compressed", "output.compressed": "png"},
        remappings={"rgb/image_raw": "/front/image_raw", "rgb/camera_info": "/front/camera_info"},
        environment={"FAKE_PICTURE": "mixed"},
    )
    yield node
    node.close()


@pytest.fixture(scope="module")
def client(compressed_node):
    client = Client(compressed_node.domain)
    client.cameras(compressed=True, names={"rgb": "front"})
    yield client
    client.close()


def header(stream: str, stamp_ns: int) -> Header:
    out = Header(frame_id=f"{stream}_optical")
    out.stamp.sec, out.stamp.nanosec = divmod(stamp_ns, 10**9)
    return out


def packed(stream: str, stamp_ns: int, data: bytes, format: str = "png") -> CompressedImage:
    return CompressedImage(header=header(stream, stamp_ns), format=format, data=array("B", data))


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def ramp(client, dtype=np.uint8) -> np.ndarray:
    return np.tile(np.arange(client.WIDTH, dtype=dtype), (client.HEIGHT, 1))


def damaged(client) -> bytes:
    """A PNG of which only the decoder can see that it holds no pixels."""
    data = bytearray(png(np.random.default_rng(0).integers(0, 256, (client.HEIGHT, client.WIDTH), dtype=np.uint8)))
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 : at + 4 + length] = b"\xff" * length
    data[at + 4 + length : at + 8 + length] = zlib.crc32(data[at : at + 4 + length]).to_bytes(4, "big")
    return bytes(data)


def bomb(side: int) -> bytes:
    """A grey PNG of `side` x `side` pixels that is what it claims to be."""
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def mode(client, stamp: int) -> str:
    return client.arrived("fused/status", stamp).status[0].values[0].value


def added_up(client) -> bool:
    report = client.settled()
    rows = [client.counts(report, stream) for stream in ("thermal", "rgb")]
    return all(received == fused + pending + sum(dropped.values()) for received, fused, pending, dropped in rows)


def test_a_compressed_pair_becomes_a_picture_raw_and_compressed(client):
    client.listen("fused/image", "fused/image/compressed", "fused/status")
    stamp = client.publish_pair(value=33)
    raw, out = client.arrived("fused/image", stamp), client.arrived("fused/image/compressed", stamp)
    assert mode(client, stamp) == "pair"
    assert out.header == raw.header and out.header.frame_id == "rgb_optical"
    assert out.format == "rgb8; png compressed bgr8"
    pixels = np.array(raw.data).reshape(client.HEIGHT, client.WIDTH, 3)
    np.testing.assert_array_equal(decode_compressed_rgb(out), pixels)
    assert pixels[0, 0].tolist() == [33, 1, 33] and pixels[5, 5].tolist() == [15, 16, 5]
    report = client.settled()
    for stream, topic, encoding in (
        ("thermal", "/thermal/image_raw/compressed", "mono8; png compressed "),
        ("rgb", "/front/image_raw/compressed", "rgb8; png compressed bgr8"),
    ):
        values = report[f"fusion: input {stream}"][2]
        assert (values["topic"], values["encoding"], values["size"]) == (topic, encoding, "160x120")
    assert report["fusion: processing"][2]["colour_conversion"]


def test_counts_of_a_16_bit_png_and_a_jpeg(client):
    client.listen("fused/image")
    stamp = client.next_stamp()
    rgb = np.dstack([np.full_like(ramp(client), value) for value in (200, 100, 0)])
    client.publishers["thermal"].publish(packed("thermal", stamp, png(ramp(client, np.uint16)), "16UC1; png compressed "))
    client.publishers["rgb"].publish(
        compressed_message(rgb, encoding="rgb8", header=header("rgb", stamp), format="jpeg", quality=100)
    )
    pixels = np.array(client.arrived("fused/image", stamp).data).reshape(client.HEIGHT, client.WIDTH, 3)
    assert np.abs(pixels[..., :2].astype(int) - [200, 100]).max() <= 2
    np.testing.assert_array_equal(pixels[..., 2], ramp(client))


@pytest.mark.parametrize("stream, other", [("thermal", "rgb"), ("rgb", "thermal")])
def test_a_picture_that_cannot_be_decoded_leaves_the_other_camera(client, compressed_node, stream, other):
    client.listen("fused/image", "fused/status")
    before = {name: client.counts(client.settled(), name) for name in ("thermal", "rgb")}
    for _ in range(2):
        stamp = client.next_stamp()
        client.publishers[stream].publish(packed(stream, stamp, damaged(client)))
        client.send(other, client.image(other, stamp))
        assert mode(client, stamp) == f"{other}_only"
    report = client.wait_report(lambda r: "refused" in r[f"fusion: input {stream}"][1], "the refusals")
    assert "has a damaged png" in report[f"fusion: input {stream}"][1]
    after = client.counts(client.settled(), stream)
    assert after[3]["undecodable"] == before[stream][3].get("undecodable", 0) + 2
    assert client.counts(client.settled(), other)[1] == before[other][1] + 2
    stamp = client.publish_pair()
    assert mode(client, stamp) == "pair" and added_up(client)
    assert compressed_node.output.count(f"message dropped (undecodable): {stream}") == 1


@pytest.mark.parametrize(
    "data, cause",
    [
        (lambda client: png(ramp(client))[:-30], "truncated"),
        (lambda client: b"", "truncated"),
        (lambda client: b"nothing that is known", "unsupported_format"),
        (lambda client: bomb(16384), "bad_size"),
    ],
    ids=["cut off", "empty", "no picture", "bomb"],
)
def test_what_cannot_be_a_picture_is_dropped_when_it_arrives(client, compressed_node, data, cause):
    client.listen("fused/image")
    before = client.counts(client.settled())[3].get(cause, 0)
    memory, data = resident(compressed_node), data(client)
    for _ in range(2):
        client.publishers["thermal"].publish(packed("thermal", client.next_stamp(), data))
    client.wait_report(lambda r: client.counts(r)[3].get(cause, 0) == before + 2, f"{cause} in the counts")
    assert resident(compressed_node) - memory < 100, "MB; a bomb would be 256"
    client.arrived("fused/image", client.publish_pair())
    assert added_up(client)


def resident(node) -> float:
    """Peak memory of a process in MB."""
    lines = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def test_a_compressed_camera_that_repeats_a_picture_is_frozen_but_not_one_in_the_dark(client):
    client.listen("fused/status")
    for name, value in {"degraded.identical_bytes": True, "degraded.timeout_ms": 400.0}.items():
        assert client.set_parameter(name, value) == (True, "")
    try:
        for thermal, expected in ((ramp(client), "rgb_only"), (np.full_like(ramp(client), 9), "pair")):
            client.forget()
            data, modes = png(thermal), []
            for _ in range(30):
                stamp = client.next_stamp()
                client.publishers["thermal"].publish(packed("thermal", stamp, data))
                client.send("rgb", client.image("rgb", stamp))
                client.poll(lambda: False, 0.05)
            modes = [message.status[0].values[0].value for message in client.received["fused/status"]]
            assert modes[-1] == expected and "pair" in modes, modes
            said = client.reports[-1]["fusion: input thermal"][1]
            assert ("has repeated its pictures" in said) == (expected == "rgb_only"), said
    finally:
        for name, value in {"degraded.identical_bytes": False, "degraded.timeout_ms": 60_000.0}.items():
            assert client.set_parameter(name, value) == (True, "")


CV_BRIDGE = """
class CvBridge:
    def imgmsg_to_cv2(self, message, desired_encoding="passthrough"):
        from isfl_ros.ros.messages import decode_rgb, decode_thermal

        print("asked for", message.encoding, message.width, flush=True)
        return decode_thermal(message) if message.encoding == "16UC1" else decode_rgb(message)
"""


def test_cv_bridge_converts_where_it_is_installed(start_node, make_client, fake_command, tmp_path):
    """A made-up one, to see who is asked; test_cv_bridge_adapter.py asks the real one."""
    (tmp_path / "cv_bridge.py").write_text(CV_BRIDGE)
    path = os.pathsep.join((str(REPOSITORY), str(tmp_path)))
    node = start_node(command=fake_command, environment={"PYTHONPATH": path})
    client = make_client(node)
    client.cameras()
    client.listen("fused/image")
    said = client.settled()["fusion: processing"][2]["colour_conversion"]
    assert said.startswith("cv_bridge for bayer_") and "asked for rgb8" not in node.output
    stamp = client.next_stamp()
    client.publishers["thermal"].publish(client.image("thermal", stamp))
    mosaic = client.image("thermal", stamp)
    mosaic.encoding = "bayer_rggb8"
    client.publishers["rgb"].publish(mosaic)
    client.arrived("fused/image", stamp)
    assert f"asked for bayer_rggb8 {client.WIDTH}" in node.output
