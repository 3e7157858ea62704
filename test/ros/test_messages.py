from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from isfl_ros.ros.messages import (
    CAUSES,
    ENCODINGS,
    MAX_PIXELS,
    MAX_SIDE,
    RGB_ENCODINGS,
    THERMAL_ENCODINGS,
    MalformedImage,
    check_image,
    decode_rgb,
    decode_thermal,
    gate_pixels,
    image_message,
    stamp_nanoseconds,
)

POISON = 0xA5
SIZES = [(32, 32), (33, 47), (61, 40)]


def message(rows: np.ndarray, encoding: str, *, width: int, height: int, pad: int = 0, big: bool = False) -> Image:
    """`rows`: bytes, rows x row_bytes; `pad` poisoned bytes follow each row."""
    padded = np.full((rows.shape[0], rows.shape[1] + pad), POISON, np.uint8)
    padded[:, : rows.shape[1]] = rows
    out = Image(width=width, height=height, encoding=encoding, step=padded.shape[1], is_bigendian=int(big))
    out.data = array("B", padded.tobytes())
    return out


def random_bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("pad", [0, 1, 16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_thermal_8_bit(encoding, size, pad):
    height, width = size
    pixels = random_bytes(height, width)
    out = decode_thermal(message(pixels, encoding, width=width, height=height, pad=pad))
    assert out.dtype == np.uint8 and out.flags.c_contiguous
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("pad", [0, 1, 6])  # 1: rows that start at odd addresses
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding, dtype", [("mono16", "u2"), ("16UC1", "u2"), ("32FC1", "f4")])
def test_thermal_deep_in_either_byte_order(encoding, dtype, big, pad):
    height, width = 33, 47
    size = np.dtype(dtype).itemsize
    rows = random_bytes(height, width * size)
    out = decode_thermal(message(rows, encoding, width=width, height=height, pad=pad, big=big))
    assert out.dtype == np.dtype(dtype) and out.dtype.isnative and out.flags.c_contiguous and out.flags.aligned
    for y in range(height):
        for x in range(width):
            raw = bytes(rows[y, x * size : (x + 1) * size])
            if dtype == "u2":
                assert out[y, x] == int.from_bytes(raw, "big" if big else "little")
            else:
                assert out[y, x].tobytes() == (raw[::-1] if big else raw)


@pytest.mark.parametrize("encoding, order", [("rgb8", (0, 1, 2)), ("bgr8", (2, 1, 0))])
def test_palettised_thermal_becomes_luma(encoding, order):
    height, width = 33, 47
    pixels = random_bytes(height, width, 3)
    out = decode_thermal(message(pixels.reshape(height, -1), encoding, width=width, height=height, pad=5))
    rgb = pixels[..., list(order)].astype(float)
    luma = 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]
    assert out.dtype == np.uint8 and out.shape == (height, width)
    assert np.abs(out - luma).max() <= 0.51


@pytest.mark.parametrize("pad", [0, 7])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "encoding, order", [("rgb8", (0, 1, 2)), ("bgr8", (2, 1, 0)), ("rgba8", (0, 1, 2)), ("bgra8", (2, 1, 0))]
)
def test_rgb_packed(encoding, order, size, pad):
    height, width = size
    channels = 4 if "a" in encoding else 3
    pixels = random_bytes(height, width, channels)
    out = decode_rgb(message(pixels.reshape(height, -1), encoding, width=width, height=height, pad=pad))
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, pixels[..., list(order)])


def test_rgb_mono8_stays_grey():
    pixels = random_bytes(33, 47)
    out = decode_rgb(message(pixels, "mono8", width=47, height=33, pad=3))
    np.testing.assert_array_equal(out, pixels)


def yuv_to_rgb(y: float, u: float, v: float) -> np.ndarray:
    """BT.601, limited range."""
    y = 1.164 * (y - 16.0)
    rgb = np.array([y + 1.596 * (v - 128), y - 0.391 * (u - 128) - 0.813 * (v - 128), y + 2.018 * (u - 128)])
    return np.clip(rgb, 0.0, 255.0)


@pytest.mark.parametrize("pad", [0, 9])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_rgb_packed_yuv(encoding, size, pad):
    height, width = size
    pairs = random_bytes(height, (width + 1) // 2, 4)
    out = decode_rgb(message(pairs.reshape(height, -1), encoding, width=width, height=height, pad=pad))
    assert out.shape == (height, width, 3) and out.flags.c_contiguous
    for y in range(height):
        for x in range(width):
            group = pairs[y, x // 2]
            if encoding in ("yuv422", "uyvy"):
                u, v, luma = group[0], group[2], group[1 + 2 * (x % 2)]
            else:
                u, v, luma = group[1], group[3], group[2 * (x % 2)]
            expected = yuv_to_rgb(max(float(luma), 16.0), float(u), float(v))
            assert np.abs(out[y, x] - expected).max() <= 2.0, (y, x)


@pytest.mark.parametrize("pad", [0, 10])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_rgb_planar_yuv(encoding, size, pad):
    height, width = size
    row = 2 * ((width + 1) // 2)
    rows = random_bytes(height + (height + 1) // 2, row)
    out = decode_rgb(message(rows, encoding, width=width, height=height, pad=pad))
    assert out.shape == (height, width, 3) and out.flags.c_contiguous
    for y in range(height):
        for x in range(width):
            chroma = rows[height + y // 2, 2 * (x // 2) : 2 * (x // 2) + 2]
            u, v = chroma if encoding == "nv12" else chroma[::-1]
            expected = yuv_to_rgb(max(float(rows[y, x]), 16.0), float(u), float(v))
            assert np.abs(out[y, x] - expected).max() <= 2.0, (y, x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_rgb_bayer_of_one_colour(pattern, size):
    """Every pixel of a mosaic of one colour shows that colour, whatever the interpolation."""
    height, width = size
    colour = {"r": 200, "g": 120, "b": 30}
    mosaic = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            mosaic[y, x] = colour[pattern[2 * (y % 2) + x % 2]]
    out = decode_rgb(message(mosaic, f"bayer_{pattern}8", width=width, height=height, pad=4))
    np.testing.assert_array_equal(out, np.broadcast_to([200, 120, 30], (height, width, 3)))


def good(encoding: str = "rgb8") -> Image:
    return message(random_bytes(40, 48 * 3), encoding, width=48, height=40)


@pytest.mark.parametrize(
    "change, cause",
    [
        ({"encoding": "rgb16"}, "unsupported_encoding"),
        ({"encoding": ""}, "unsupported_encoding"),
        ({"width": 0}, "bad_size"),
        ({"height": 0}, "bad_size"),
        ({"width": 31}, "bad_size"),
        ({"height": 31}, "bad_size"),
        ({"width": MAX_SIDE + 1}, "bad_size"),
        ({"height": 2**32 - 1}, "bad_size"),
        ({"width": MAX_SIDE, "height": MAX_PIXELS // MAX_SIDE + 1}, "bad_size"),
        ({"step": 143}, "step_smaller_than_row"),
        ({"step": 0}, "step_smaller_than_row"),
        ({"step": 145}, "data_shorter_than_step_times_height"),
        ({"step": 2**32 - 1, "height": MAX_SIDE}, "data_shorter_than_step_times_height"),
        ({"data": array("B", bytes(40 * 144 - 1))}, "data_shorter_than_step_times_height"),
        ({"data": array("B")}, "data_shorter_than_step_times_height"),
        ({"height": 41}, "data_shorter_than_step_times_height"),
    ],
)
def test_causes(change, cause):
    bad = good()
    check_image(bad, "rgb")
    for field, value in change.items():
        setattr(bad, field, value)
    with pytest.raises(MalformedImage) as raised:
        check_image(bad, "rgb")
    assert raised.value.cause == cause
    assert cause in CAUSES
    assert str(raised.value).startswith("rgb image ") and "expected" in str(raised.value)


def test_the_largest_picture_is_what_the_user_says():
    pixels = good().width * good().height
    check_image(good(), "rgb", max_pixels=pixels)
    with pytest.raises(MalformedImage, match=rf"{pixels - 1} in all \(parameter input.max_pixels\)") as raised:
        check_image(good(), "rgb", max_pixels=pixels - 1)
    assert raised.value.cause == "bad_size"


def test_streams_have_encodings_of_their_own():
    with pytest.raises(MalformedImage):
        check_image(message(random_bytes(40, 96), "16UC1", width=48, height=40), "rgb")
    with pytest.raises(MalformedImage):
        check_image(message(random_bytes(40, 192), "rgba8", width=48, height=40), "thermal")


@settings(max_examples=300, deadline=None)
@given(
    stream=st.sampled_from(["thermal", "rgb"]),
    encoding=st.one_of(st.sampled_from([*THERMAL_ENCODINGS, *RGB_ENCODINGS]), st.text(max_size=8)),
    width=st.one_of(st.integers(28, 70), st.integers(0, 2**32 - 1)),
    height=st.one_of(st.integers(28, 70), st.integers(0, 2**32 - 1)),
    step=st.one_of(st.integers(0, 400), st.integers(0, 2**32 - 1)),
    size=st.integers(0, 40_000),
    big=st.integers(0, 255),
)
def test_no_header_brings_more_than_a_malformed_image(stream, encoding, width, height, step, size, big):
    claim = Image(width=width, height=height, encoding=encoding, step=step, is_bigendian=big)
    claim.data = array("B", bytes(size))
    try:
        pixels = (decode_thermal if stream == "thermal" else decode_rgb)(claim)
    except MalformedImage as error:
        assert error.cause in CAUSES
    else:
        assert encoding in ENCODINGS[stream]
        assert pixels.shape[:2] == (height, width)
        assert step * height <= size


@pytest.mark.parametrize(
    "encoding, decode", [("rgb8", decode_rgb), ("mono8", decode_thermal), ("32FC1", decode_thermal)]
)
def test_what_is_encoded_is_decoded_again(encoding, decode):
    pixels = {
        "rgb8": random_bytes(33, 47, 3),
        "mono8": random_bytes(33, 47),
        "32FC1": np.random.default_rng(0).random((33, 47), dtype=np.float32),
    }[encoding]
    strided = np.repeat(pixels, 2, axis=0)[::2]  # not contiguous
    header = Header(frame_id="camera")
    header.stamp.sec, header.stamp.nanosec = 12, 345
    out = image_message(strided, encoding=encoding, header=header)
    assert (out.width, out.height, out.encoding, out.header.frame_id) == (47, 33, encoding, "camera")
    assert out.step * out.height == len(out.data)
    assert stamp_nanoseconds(out.header.stamp) == 12_000_000_345
    np.testing.assert_array_equal(decode(out), pixels)


def test_gate_encodings():
    gate = np.array([[0.0, 0.25, 1.0]], np.float32)
    np.testing.assert_array_equal(gate_pixels(gate, "mono8"), [[0, 64, 255]])
    np.testing.assert_array_equal(gate_pixels(gate, "32FC1"), gate)
