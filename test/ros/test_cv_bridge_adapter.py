from __future__ import annotations

import itertools
import sys
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from sensor_msgs.msg import Image

from isfl_ros.ros import cv_bridge_adapter
from isfl_ros.ros.cv_bridge_adapter import CV_BRIDGE_ENCODINGS, colour_converter
from isfl_ros.ros.messages import RGB_ENCODINGS, THERMAL_ENCODINGS, MalformedImage, decode_rgb, decode_thermal


def message(encoding: str, *, height=34, width=36, pad=0, big=0, known=RGB_ENCODINGS) -> Image:
    layout = known[encoding]
    step = layout.row_bytes(width) + pad
    out = Image(height=height, width=width, encoding=encoding, step=step, is_bigendian=big)
    size = layout.rows(height) * step
    out.data = array("B", np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes())
    return out


def install(monkeypatch, convert):
    """A cv_bridge whose only method is `convert(message, desired_encoding)`."""
    calls = []

    class CvBridge:
        def imgmsg_to_cv2(self, message, desired_encoding="passthrough"):
            calls.append(message)
            return convert(message, desired_encoding)

    monkeypatch.setitem(sys.modules, "cv_bridge", SimpleNamespace(CvBridge=CvBridge))
    return calls


def faithful(message, desired_encoding):
    return decode_thermal(message) if desired_encoding == "passthrough" else decode_rgb(message)


# the real one


@pytest.fixture
def bridge():
    return pytest.importorskip("cv_bridge", reason="cv_bridge comes with a ROS distribution").CvBridge()


def test_the_installed_cv_bridge_is_used(bridge):
    convert, reason = colour_converter()
    assert reason.startswith("cv_bridge for "), reason
    assert convert is not decode_rgb


@pytest.mark.parametrize("encoding", RGB_ENCODINGS)
def test_converter_equals_decode_rgb(bridge, encoding):
    convert, _ = colour_converter()
    for (height, width), pad, big in itertools.product([(34, 36), (33, 47)], [0, 1, 6], [0, 1]):
        image = message(encoding, height=height, width=width, pad=pad, big=big)
        out = convert(image)
        assert out.dtype == np.uint8 and out.flags.c_contiguous
        np.testing.assert_array_equal(out, decode_rgb(image), err_msg=f"{height}x{width}, {pad}, {big}")


@pytest.mark.parametrize("pad", [0, 12])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", *CV_BRIDGE_ENCODINGS])
def test_cv_bridge_itself_equals_decode_rgb(bridge, encoding, pad):
    image = message(encoding, pad=pad)
    wanted = "mono8" if encoding == "mono8" else "rgb8"
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(image, desired_encoding=wanted), decode_rgb(image))


@pytest.mark.parametrize("pad", [0, 12])
@pytest.mark.parametrize("encoding", THERMAL_ENCODINGS)
def test_cv_bridge_itself_equals_decode_thermal(bridge, encoding, pad):
    image = message(encoding, pad=pad, known=THERMAL_ENCODINGS)
    colour = THERMAL_ENCODINGS[encoding].convert is not None
    plain = bridge.imgmsg_to_cv2(image, desired_encoding="mono8" if colour else "passthrough")
    np.testing.assert_array_equal(plain, decode_thermal(image))


# which one is taken


def test_opencv_where_there_is_no_cv_bridge(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    convert, reason = colour_converter()
    assert convert is decode_rgb
    assert reason == "OpenCV: cv_bridge is not installed"


def test_a_cv_bridge_that_cannot_be_imported_is_not_said_to_be_missing(monkeypatch, tmp_path):
    (tmp_path / "cv_bridge.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv_bridge", raising=False)
    convert, reason = colour_converter()
    assert convert is decode_rgb
    assert "a_module_that_nobody_has" in reason and "is not installed" not in reason


def test_a_cv_bridge_that_converts_alike_is_asked_for_what_it_knows_and_nothing_else(monkeypatch):
    calls = install(monkeypatch, faithful)
    convert, reason = colour_converter()
    assert reason.startswith("cv_bridge for bayer_rggb8, ")
    for encoding in RGB_ENCODINGS:
        calls.clear()
        image = message(encoding)
        np.testing.assert_array_equal(convert(image), decode_rgb(image))
        assert calls == ([image] if encoding in CV_BRIDGE_ENCODINGS else []), encoding


def test_cv_bridge_never_sees_a_foreign_byte_order_or_half_a_pair(monkeypatch):
    calls = install(monkeypatch, faithful)
    convert, _ = colour_converter()
    calls.clear()
    foreign = int(sys.byteorder == "little")
    for image in (message("bayer_grbg8", big=foreign), message("yuv422", big=foreign)):
        np.testing.assert_array_equal(convert(image), decode_rgb(image))
        assert image.is_bigendian == foreign  # the message itself stays as it was
    assert [seen.is_bigendian for seen in calls] == [1 - foreign] * 2
    calls.clear()
    for image in (message("yuv422", width=47), message("yuv422_yuy2", pad=1)):
        np.testing.assert_array_equal(convert(image), decode_rgb(image))
    assert calls == []


def test_malformed_messages_never_reach_cv_bridge(monkeypatch):
    calls = install(monkeypatch, faithful)
    convert, _ = colour_converter()
    calls.clear()
    short = message("bayer_rggb8")
    short.data = short.data[:-1]
    for bad in (short, message("32FC1", known=THERMAL_ENCODINGS)):
        with pytest.raises(MalformedImage):
            convert(bad)
    assert calls == []


def _opencv_5(message, desired_encoding):
    raise KeyError(16)


def _ros_1_port(message, desired_encoding):
    out = faithful(message, desired_encoding)
    return out.astype(np.uint8) if message.encoding == "16UC1" else out


def _red_and_blue_swapped(message, desired_encoding):
    out = faithful(message, desired_encoding)
    return out[..., ::-1] if message.encoding == "yuv422_yuy2" else out


def _blind_to_padding(message, desired_encoding):
    if message.step == RGB_ENCODINGS.get(message.encoding, THERMAL_ENCODINGS["16UC1"]).row_bytes(message.width):
        return faithful(message, desired_encoding)
    return np.zeros((message.height, message.width, 3), np.uint8)


@pytest.mark.parametrize(
    "broken, words",
    [
        (_opencv_5, "KeyError: 16"),
        (_ros_1_port, "misreads 16UC1"),
        (_red_and_blue_swapped, "yuv422_yuy2 comes out otherwise"),
        (_blind_to_padding, "bayer_rggb8 with padded rows"),
    ],
)
def test_a_cv_bridge_that_converts_otherwise_is_left_alone_and_the_reason_says_so(monkeypatch, broken, words):
    install(monkeypatch, broken)
    convert, reason = colour_converter()
    assert convert is decode_rgb
    assert reason.startswith("OpenCV: the installed cv_bridge ") and words in reason
    assert "\n" not in reason


def test_what_cv_bridge_knows_is_a_part_of_what_the_node_takes():
    assert set(CV_BRIDGE_ENCODINGS) <= set(RGB_ENCODINGS)
    assert len(CV_BRIDGE_ENCODINGS) == 6
    assert all(RGB_ENCODINGS[name].convert is not None for name in cv_bridge_adapter.CV_BRIDGE_ENCODINGS)
