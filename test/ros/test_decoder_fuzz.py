"""Random messages through every decoder: a picture or MalformedImage, and never a byte from outside the data.

The data of each message lies inside a larger buffer. Every message is decoded twice, with other bytes around its data
each time: whatever was read from outside would make a difference.
"""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isfl_ros.images import GAIN_MODES, GainControl, GainControlConfig
from isfl_ros.ros.compressed import COMPRESSED_CAUSES, decode_compressed_rgb, decode_compressed_thermal
from isfl_ros.ros.inputs import RawReader
from isfl_ros.ros.messages import (
    CAUSES,
    ENCODINGS,
    RGB_ENCODINGS,
    MAX_PIXELS,
    THERMAL_ENCODINGS,
    MalformedImage,
    decode_rgb,
    decode_thermal,
)

GUARD = 4096
STREAMS = st.sampled_from(["thermal", "rgb"])
DECODERS = {"thermal": decode_thermal, "rgb": decode_rgb}
COMPRESSED_DECODERS = {"thermal": decode_compressed_thermal, "rgb": decode_compressed_rgb}
ALL_ENCODINGS = sorted({*THERMAL_ENCODINGS, *RGB_ENCODINGS})


def outcome(decode, causes, data: bytes, **fields):
    """The picture (or the cause and the text) that `decode` makes of the message, whatever lies around its data."""
    results = []
    for guard in (0x00, 0xFF):
        buffer = np.full(len(data) + 2 * GUARD, guard, np.uint8)
        buffer[GUARD : GUARD + len(data)] = np.frombuffer(data, np.uint8)
        inside = memoryview(buffer)[GUARD : GUARD + len(data)]
        before = buffer.copy()
        try:
            results.append(decode(SimpleNamespace(data=inside, **fields)))
        except MalformedImage as error:
            assert error.cause in causes
            results.append((error.cause, str(error)))
        np.testing.assert_array_equal(buffer, before)
    one, other = results
    if isinstance(one, tuple):
        assert one == other
    else:
        assert isinstance(other, np.ndarray) and one.dtype == other.dtype
        np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))  # NaN and all
    return one


def assert_picture(pixels: np.ndarray, stream: str, height: int, width: int) -> None:
    assert pixels.shape in ([(height, width)] if stream == "thermal" else [(height, width), (height, width, 3)])
    assert pixels.dtype in ([np.uint8, np.uint16, np.float32] if stream == "thermal" else [np.uint8])
    assert pixels.dtype.isnative and pixels.flags.c_contiguous


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


# raw messages


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_raw_messages_close_to_good_ones(data):
    """Sizes, steps and lengths around what the encoding needs: off by little, or not at all."""
    stream = data.draw(STREAMS)
    encoding = data.draw(st.sampled_from([*ENCODINGS[stream]]))
    layout = ENCODINGS[stream][encoding]
    width, height = (data.draw(st.integers(31, 70)) for _ in "wh")
    step = layout.row_bytes(width) + data.draw(st.integers(-2, 9))
    needed = layout.rows(height) * step
    size = needed + data.draw(st.one_of(st.just(0), st.integers(-3, 3), st.integers(-step, 0)))
    result = outcome(
        DECODERS[stream],
        CAUSES,
        noise(needed, size),
        encoding=encoding,
        width=width,
        height=height,
        step=step,
        is_bigendian=data.draw(st.integers(0, 2)),
    )
    good = min(width, height) >= 32 and step >= layout.row_bytes(width) and size >= needed
    assert isinstance(result, np.ndarray) == good
    if good:
        assert_picture(result, stream, height, width)


@settings(max_examples=300, deadline=None)
@given(
    stream=STREAMS,
    encoding=st.one_of(st.sampled_from(ALL_ENCODINGS), st.text(max_size=12)),
    width=st.one_of(st.integers(0, 80), st.integers(0, 2**32 - 1)),
    height=st.one_of(st.integers(0, 80), st.integers(0, 2**32 - 1)),
    step=st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)),
    size=st.integers(0, 30_000),
    big=st.integers(0, 255),
)
def test_raw_messages_of_any_kind(stream, encoding, width, height, step, size, big):
    result = outcome(
        DECODERS[stream],
        CAUSES,
        noise(size, size),
        encoding=encoding,
        width=width,
        height=height,
        step=step,
        is_bigendian=big,
    )
    if isinstance(result, np.ndarray):
        assert_picture(result, stream, height, width)


@settings(max_examples=200, deadline=None)
@given(
    encoding=st.sampled_from([*THERMAL_ENCODINGS]),
    width=st.integers(32, 40),
    height=st.integers(32, 40),
    padding=st.integers(0, 9),
    more=st.integers(0, 9),
    flat=st.booleans(),
    big=st.integers(0, 1),
)
def test_whether_a_picture_repeats_is_told_from_its_own_bytes(encoding, width, height, padding, more, flat, big):
    """Not from those around the data, nor those between its rows."""
    layout = THERMAL_ENCODINGS[encoding]
    step = layout.row_bytes(width) + padding
    data = bytearray(noise(width * height, step * height + more))
    if flat:
        for row in range(height):
            data[row * step : row * step + layout.row_bytes(width)] = bytes([7]) * layout.row_bytes(width)

    def compared(message):
        number = RawReader("thermal", decode_rgb).read(message).fingerprint()
        return np.array([-1 if number is None else number])

    fields = {"encoding": encoding, "width": width, "height": height, "step": step, "is_bigendian": big}
    fields["header"] = None
    (number,) = outcome(compared, CAUSES, bytes(data), **fields)
    assert (number == -1) == flat
    for place in (layout.row_bytes(width), step * height - 1, len(data) - 1):  # no pixels, where there is padding
        other = bytearray(data)
        other[place] ^= 0xFF
        outside = place >= step * height or place % step >= layout.row_bytes(width)
        assert (outcome(compared, CAUSES, bytes(other), **fields)[0] == number) == outside


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    big=st.integers(0, 1),
    special=st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 300.0]), max_size=6),
    share=st.floats(0.0, 1.0),
    mode=st.sampled_from(GAIN_MODES),
)
def test_floats_of_any_kind_become_pixels_or_are_missing(seed, big, special, share, mode):
    """What goes on to the network lies in 0 to 1 at every pixel, and nothing that is no measurement counts as seen."""
    raw = np.frombuffer(noise(seed, 4 * 33 * 47), ">f4" if big else "<f4").copy()
    if special:
        places = np.random.default_rng(seed).random(raw.size) < share
        raw[places] = np.resize(np.array(special, np.float32), raw.size)[places]
    fields = {"encoding": "32FC1", "width": 47, "height": 33, "step": 188, "is_bigendian": big}
    pixels = outcome(decode_thermal, CAUSES, raw.tobytes(), **fields)
    picture, valid = GainControl(GainControlConfig(mode=mode)).apply(pixels, stamp_s=1.0)
    assert picture.dtype == np.float32 and picture.min() >= 0.0 and picture.max() <= 1.0
    seen = (np.abs(raw.astype(np.float32)) <= 1e30).reshape(33, 47)
    np.testing.assert_array_equal(np.ones_like(seen) if valid is None else valid, seen)


# compressed messages


FORMATS = st.one_of(
    st.sampled_from(["jpeg", "png", "jpg", "", ";", "rgb8;", "16UC1; compressedDepth", "h264"]),
    st.builds(
        "{}; {} compressed {}".format,
        st.sampled_from([*ALL_ENCODINGS, "rgb16", ""]),
        st.sampled_from(["jpeg", "png", "tiff"]),
        st.sampled_from(["", "bgr8", "rgb8", "mono8"]),
    ),
    st.text(max_size=20),
)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _good_pictures() -> list[bytes]:
    colour = np.frombuffer(noise(1, 33 * 47 * 3), np.uint8).reshape(33, 47, 3)
    grey, counts = colour[..., 0], colour[..., 0].astype(np.uint16) * 257
    jpeg_flags = ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])
    flat = np.full_like(colour, 90)  # coded in so few bytes that every one of them matters
    pictures = [cv2.imencode(".jpg", pixels, flags)[1] for pixels in (colour, grey, flat) for flags in jpeg_flags]
    alpha = np.dstack([colour, grey])
    pictures += [cv2.imencode(".png", pixels)[1] for pixels in (colour, grey, counts, flat, alpha)]
    palette = bytes(range(256)) * 3
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(grey)))
    header = struct.pack(">IIBBBBB", 47, 33, 8, 3, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"PLTE", palette) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return [picture.tobytes() for picture in pictures] + [b"\x89PNG\r\n\x1a\n" + body]


PICTURES = _good_pictures()


def decode_compressed(stream: str, format: str, data: bytes):
    result = outcome(COMPRESSED_DECODERS[stream], COMPRESSED_CAUSES, data, format=format)
    if isinstance(result, np.ndarray):
        assert min(result.shape[:2]) >= 32 and result.shape[0] * result.shape[1] <= MAX_PIXELS
        assert_picture(result, stream, *result.shape[:2])
    return result


@settings(max_examples=200, deadline=None)
@given(stream=STREAMS, format=FORMATS, picture=st.sampled_from(PICTURES), padding=st.binary(max_size=20))
def test_whole_pictures_under_any_format(stream, format, picture, padding):
    result = decode_compressed(stream, format, picture + padding)
    assert isinstance(result, tuple) or result.shape[:2] == (33, 47)


@settings(max_examples=400, deadline=None)
@given(
    stream=STREAMS,
    picture=st.sampled_from(PICTURES),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4),
)
def test_damaged_pictures(stream, picture, edits):
    """Bytes replaced, inserted and left out anywhere, headers included more often than their share."""
    damaged = bytearray(picture)
    for place, removed, inserted in edits:
        at = int(place**3 * len(damaged))
        damaged[at : at + removed] = inserted
    decode_compressed(stream, "", bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(stream=STREAMS, picture=st.sampled_from(PICTURES), keep=st.floats(0, 1, exclude_max=True))
def test_pictures_that_were_cut_off_are_refused(stream, picture, keep):
    result = decode_compressed(stream, "", picture[: int(keep * len(picture))])
    assert isinstance(result, tuple)


@settings(max_examples=200, deadline=None)
@given(
    stream=STREAMS,
    fields=st.tuples(
        st.one_of(st.integers(0, 80), st.integers(0, 2**32 - 1)),
        st.one_of(st.integers(0, 80), st.integers(0, 2**32 - 1)),
        st.sampled_from([8, 8, 16, 1, 2, 4, 7]),
        st.sampled_from([0, 2, 3, 4, 6, 5]),
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from([0, 0, 0, 1]),
        st.integers(0, 2),
    ),
    extra=st.sampled_from([b"", _chunk(b"PLTE", bytes(30)), _chunk(b"tRNS", bytes(6)), _chunk(b"gAMA", bytes(4))]),
    rows=st.integers(0, 100_000),
    level=st.integers(0, 9),
)
def test_png_headers_of_any_kind(stream, fields, extra, rows, level):
    """Headers whose checksum is right, before any number of bytes that are properly deflated."""
    samples = bytes(value % 5 for value in noise(0, rows // 100)) * 100  # each of them a row filter that exists
    body = _chunk(b"IDAT", zlib.compress(samples, level))
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))
    data = b"\x89PNG\r\n\x1a\n" + header + extra + body + _chunk(b"IEND", b"")
    result = decode_compressed(stream, "", data)
    if isinstance(result, np.ndarray):
        assert result.shape[1::-1] == fields[:2]


@settings(max_examples=200, deadline=None)
@given(
    stream=STREAMS,
    picture=st.sampled_from(PICTURES),
    height=st.one_of(st.integers(28, 80), st.integers(0, 0xFFFF)),
    width=st.one_of(st.integers(28, 80), st.integers(0, 0xFFFF)),
)
def test_jpeg_headers_of_any_size(stream, picture, height, width):
    at = max(picture.find(b"\xff\xc0"), picture.find(b"\xff\xc2"))
    assume(picture[:2] == b"\xff\xd8" and at > 0)
    changed = picture[: at + 5] + struct.pack(">HH", height, width) + picture[at + 9 :]
    result = decode_compressed(stream, "", changed)
    assert isinstance(result, tuple) or result.shape[:2] == (height, width)


@settings(max_examples=200, deadline=None)
@given(
    stream=STREAMS,
    format=FORMATS,
    start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"]),
    data=st.binary(max_size=300),
)
def test_bytes_that_are_no_picture(stream, format, start, data):
    assert isinstance(decode_compressed(stream, format, start + data), tuple)


def test_a_read_outside_the_data_is_seen():
    """That the guards work: a decoder that reads one byte too many."""

    def careless(message):
        whole = np.frombuffer(message.data.obj, np.uint8)
        return whole[GUARD : GUARD + len(message.data) + 1].copy()

    with pytest.raises(AssertionError):
        outcome(careless, CAUSES, b"12")
