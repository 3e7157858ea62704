from __future__ import annotations

import struct
import tracemalloc
import zlib
from array import array

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from isfl_ros.errors import InputError
from isfl_ros.ros import compressed
from isfl_ros.ros.compressed import (
    COMPRESSED_CAUSES,
    FORMATS,
    LARGE_CHUNK,
    MAX_FILL_BYTES,
    MAX_SCANS,
    MAX_SEGMENTS,
    check_compressed,
    compressed_message,
    decode_compressed_rgb,
    decode_compressed_thermal,
)
from isfl_ros.ros.messages import (
    MAX_PIXELS,
    MAX_SIDE,
    RGB_ENCODINGS,
    MalformedImage,
    decode_rgb,
    decode_thermal,
    image_message,
)

HEIGHT, WIDTH = 33, 47


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def smooth(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Colour picture that a JPEG hardly changes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([100 + x, 40 + y, 200 - x - y], axis=-1).clip(0, 255).astype(np.uint8)


def message(data: bytes, format: str) -> CompressedImage:
    out = CompressedImage(format=format)
    out.data = array("B", data)
    return out


# a PNG writer of its own, so that OpenCV is not its own oracle


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def header(width=WIDTH, height=HEIGHT, depth=8, kind=0, rest=(0, 0, 0)) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, *rest))


def png(samples: np.ndarray, *, kind: int, extra: bytes = b"") -> bytes:
    """Samples H x W x channels, u8 or u16, without row filters."""
    height, width = samples.shape[:2]
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    half = len(packed) // 2
    body = chunk(b"IDAT", packed[:half]) + chunk(b"IDAT", packed[half:])
    depth = 8 * samples.itemsize
    return SIGNATURE + header(width, height, depth, kind) + extra + body + chunk(b"IEND")


def jpeg(pixels: np.ndarray, *flags: int) -> bytes:
    """RGB or grey."""
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95, *flags])[1].tobytes()


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def frame(width=WIDTH, height=HEIGHT, depth=8, marker=0xC0, factors=(0x11, 0x11, 0x11), more=b"") -> bytes:
    parts = b"".join(bytes([index, factor, 0]) for index, factor in enumerate(factors))
    return segment(marker, struct.pack(">BHHB", depth, height, width, len(factors)) + parts + more)


START, END = b"\xff\xd8", b"\xff\xd9"
SCAN = segment(0xDA, bytes(10)) + bytes(10_000)


# what good messages become


@pytest.mark.parametrize(
    "format", ["png", "mono16; png compressed ", "16UC1; png compressed ", "16UC1; png compressed"]
)
def test_counts_of_a_16_bit_png_come_back_native_and_exact(format):
    counts = noise(HEIGHT, WIDTH, dtype=np.uint16)
    out = decode_compressed_thermal(message(png(counts, kind=0), format))
    assert out.dtype == np.uint16 and out.dtype.isnative and out.flags.c_contiguous
    np.testing.assert_array_equal(out, counts)


@pytest.mark.parametrize(
    "decode, format",
    [
        (decode_compressed_thermal, "png"),
        (decode_compressed_thermal, "mono8; png compressed "),
        (decode_compressed_thermal, "8UC1; png compressed "),
        (decode_compressed_rgb, "png"),
        (decode_compressed_rgb, "mono8; png compressed "),
    ],
)
def test_grey_png(decode, format):
    pixels = noise(HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode(message(png(pixels, kind=0), format)), pixels)


@pytest.mark.parametrize("source", ["rgb8", "bgr8"])
def test_colour_png_is_what_the_raw_message_would_be(source):
    pixels = noise(HEIGHT, WIDTH, 3)
    packed = message(png(pixels, kind=2), f"{source}; png compressed bgr8")
    raw = image_message(pixels if source == "rgb8" else pixels[..., ::-1], encoding=source, header=Header())
    np.testing.assert_array_equal(decode_compressed_rgb(packed), decode_rgb(raw))
    np.testing.assert_array_equal(decode_compressed_rgb(packed), pixels)
    np.testing.assert_array_equal(decode_compressed_thermal(packed), decode_thermal(raw))


@pytest.mark.parametrize("format", ["rgb8; png compressed rgb8", "rgb8; png compressed ", "bgr8; png compressed rgb8"])
def test_format_that_does_not_say_bgr_means_red_and_blue_swapped(format):
    """As compressed_image_transport reads it: what was compressed as if it were BGR was RGB."""
    pixels = noise(HEIGHT, WIDTH, 3)
    packed = message(png(pixels, kind=2), format)
    np.testing.assert_array_equal(decode_compressed_rgb(packed), pixels[..., ::-1])
    luma = decode_thermal(image_message(pixels[..., ::-1], encoding="rgb8", header=Header()))
    np.testing.assert_array_equal(decode_compressed_thermal(packed), luma)


@pytest.mark.parametrize("source", ["rgba8", "bgra8"])
def test_transparency_is_left_out(source):
    pixels = noise(HEIGHT, WIDTH, 4)
    out = decode_compressed_rgb(message(png(pixels, kind=6), f"{source}; png compressed bgr8"))
    np.testing.assert_array_equal(out, pixels[..., :3])


def test_transparency_of_a_grey_picture_is_left_out():
    pixels = noise(HEIGHT, WIDTH, 2)
    out = decode_compressed_rgb(message(png(pixels, kind=4), "png"))
    np.testing.assert_array_equal(out, pixels[..., 0])


def test_palette_is_looked_up():
    palette, indices = noise(256, 3), noise(HEIGHT, WIDTH)
    packed = message(png(indices, kind=3, extra=chunk(b"PLTE", palette.tobytes())), "png")
    np.testing.assert_array_equal(decode_compressed_rgb(packed), palette[indices])


def test_transparent_colour_of_a_grey_png_changes_nothing():
    pixels = noise(HEIGHT, WIDTH)
    packed = message(png(pixels, kind=0, extra=chunk(b"tRNS", b"\0\7")), "png")
    np.testing.assert_array_equal(decode_compressed_rgb(packed), pixels)


@pytest.mark.parametrize("source", [name for name in RGB_ENCODINGS if name.startswith("bayer_")])
def test_bayer_pattern(source):
    mosaic = noise(HEIGHT, WIDTH)
    raw = image_message(mosaic, encoding=source, header=Header())
    # the transport leaves it as it is in a PNG, and makes it grey for a JPEG
    np.testing.assert_array_equal(
        decode_compressed_rgb(message(png(mosaic, kind=0), f"{source}; png compressed ")), decode_rgb(raw)
    )
    grey = decode_compressed_rgb(message(jpeg(mosaic), f"{source}; jpeg compressed mono8"))
    assert grey.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("format", ["jpeg", "jpg", "", "rgb8; jpeg compressed bgr8", "yuv422; jpeg compressed bgr8"])
@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_colour_jpeg(format, flags):
    out = decode_compressed_rgb(message(jpeg(smooth(), *flags), format))
    assert out.dtype == np.uint8 and out.shape == (HEIGHT, WIDTH, 3) and out.flags.c_contiguous
    assert np.abs(out.astype(int) - smooth()).max() < 12


@pytest.mark.parametrize("format", ["jpeg", "mono8; jpeg compressed mono8", "mono8; jpeg compressed "])
def test_grey_jpeg(format):
    pixels = smooth()[..., 0]
    for decode in (decode_compressed_rgb, decode_compressed_thermal):
        out = decode(message(jpeg(pixels), format))
        assert out.dtype == np.uint8 and np.abs(out.astype(int) - pixels).max() < 6


def test_palettised_thermal_jpeg_becomes_luma():
    out = decode_compressed_thermal(message(jpeg(smooth()), "rgb8; jpeg compressed bgr8"))
    luma = smooth() @ [0.299, 0.587, 0.114]
    assert out.shape == (HEIGHT, WIDTH) and np.abs(out - luma).max() < 6


def test_orientation_of_the_camera_is_not_followed():
    """Its calibration is for the pixels as they lie."""
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 1, 6) + bytes(4)  # turned by 90 degrees
    turned = START + segment(0xE1, b"Exif\0\0" + tiff) + jpeg(smooth())[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (WIDTH, HEIGHT, 3)
    assert decode_compressed_rgb(message(turned, "jpeg")).shape == (HEIGHT, WIDTH, 3)


def test_bytes_after_the_end_are_padding():
    for data in (jpeg(smooth()), png(smooth(), kind=2)):
        padded = decode_compressed_rgb(message(data + bytes(1000), "jpeg"))
        np.testing.assert_array_equal(padded, decode_compressed_rgb(message(data, "jpeg")))


@pytest.mark.parametrize("kind, flags", [("jpeg", ()), ("jpeg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)), ("png", ())])
def test_a_flat_picture_is_not_taken_for_one_that_was_cut_off(kind, flags):
    """It is coded in hardly more than the least that its size can take."""
    flat = np.full((1000, 2000, 3), 90, np.uint8)
    smallest = [*flags, cv2.IMWRITE_PNG_COMPRESSION, 9] if kind == "png" else [*flags, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    coded = cv2.imencode(f".{kind}", flat, smallest)[1].tobytes()
    assert len(coded) < flat.size / 200
    np.testing.assert_array_equal(decode_compressed_rgb(message(coded, kind)), flat)


def test_a_progressive_jpeg_can_spend_one_bit_on_a_block():
    tables = segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC4, b"\0\1" + bytes(15) + b"\0")
    means_only = segment(0xDA, bytes([1, 0, 0, 0, 0, 0]))
    data = START + tables + frame(64, 64, marker=0xC2, factors=(0x11,)) + means_only + bytes(64 // 8) + END
    np.testing.assert_array_equal(decode_compressed_thermal(message(data, "jpeg")), np.full((64, 64), 128))
    refused(data.replace(bytes(8) + END, bytes(7) + END), "jpeg", "thermal", "truncated")


def test_fill_bytes_before_a_marker_are_skipped():
    data = jpeg(smooth())
    filled = data[:2] + b"\xff\xff\xff" + data[2:-2] + b"\xff\xff" + data[-2:]
    np.testing.assert_array_equal(
        decode_compressed_rgb(message(filled, "jpeg")), decode_compressed_rgb(message(data, "jpeg"))
    )


def test_what_is_not_too_many_passes():
    fill, segments = MAX_FILL_BYTES * b"\xff", (MAX_SEGMENTS - 12) * segment(0xE0, b"")
    data = jpeg(smooth())
    np.testing.assert_array_equal(
        decode_compressed_rgb(message(START + fill + segments + data[2:], "jpeg")),
        decode_compressed_rgb(message(data, "jpeg")),
    )
    texts = (MAX_SEGMENTS - 4) * chunk(b"tEXt", b"k\0")  # beside header, end and two chunks of pixels
    check_compressed(message(png(noise(HEIGHT, WIDTH), kind=0, extra=texts), "png"), "rgb")


def test_a_picture_may_have_any_number_of_large_chunks_of_pixels():
    bodies = (2 * MAX_SEGMENTS) * chunk(b"IDAT", bytes(LARGE_CHUNK))
    check_compressed(message(SIGNATURE + header(4000, 2000) + bodies + chunk(b"IEND"), "png"), "rgb")
    smaller = bodies.replace(chunk(b"IDAT", bytes(LARGE_CHUNK)), chunk(b"IDAT", bytes(LARGE_CHUNK - 1)))
    refused(SIGNATURE + header(4000, 2000) + smaller + chunk(b"IEND"), "png", "rgb", "undecodable")


@pytest.mark.parametrize("data", [png(noise(HEIGHT, WIDTH), kind=0), jpeg(smooth())], ids=FORMATS[::-1])
def test_the_largest_picture_is_what_the_user_says(data):
    check_compressed(message(data, "x"), "rgb", max_pixels=HEIGHT * WIDTH)
    with pytest.raises(MalformedImage) as raised:
        check_compressed(message(data, "x"), "rgb", max_pixels=HEIGHT * WIDTH - 1)
    assert raised.value.cause == "bad_size"
    assert "is 47x33; expected" in str(raised.value)
    assert str(raised.value).endswith(" 1550 in all (parameter input.max_pixels)")


def test_what_is_known_without_decoding():
    found = check_compressed(message(GREY16, "16UC1; png compressed "), "thermal")
    assert (found.kind, found.width, found.height, found.depth) == ("png", WIDTH, HEIGHT, 16)
    assert (found.colour, found.alpha, found.source) == (False, False, "16UC1")
    found = check_compressed(message(jpeg(smooth(40, 64)), "jpeg"), "rgb")
    assert (found.kind, found.width, found.height, found.depth) == ("jpeg", 64, 40, 8)
    assert (found.colour, found.source) == (True, "")


# what bad messages become


@pytest.fixture
def no_decoding(monkeypatch):
    """No decoder may see what the header gives away."""

    def refuse(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr(compressed.cv2, "imdecode", refuse)


def refused(data: bytes, format: str, stream: str, cause: str) -> str:
    with pytest.raises(MalformedImage) as raised:
        (decode_compressed_thermal if stream == "thermal" else decode_compressed_rgb)(message(data, format))
    assert raised.value.cause == cause
    assert cause in COMPRESSED_CAUSES
    text = str(raised.value)
    assert text.startswith(f"{stream} image with format {format[:60]!r} ") and "\n" not in text
    return text


GREY8, GREY16 = png(noise(HEIGHT, WIDTH), kind=0), png(noise(HEIGHT, WIDTH, dtype=np.uint16), kind=0)
COLOUR = png(noise(HEIGHT, WIDTH, 3), kind=2)


@pytest.mark.parametrize(
    "data, format, stream, cause",
    [
        (b"\0\0\0\1gBxx", "h264", "rgb", "unsupported_format"),
        (b"II*\0xxxxxxx", "rgb8; tiff compressed bgr8", "rgb", "unsupported_format"),
        (bytes(12) + GREY16, "16UC1; compressedDepth png", "thermal", "unsupported_format"),
        (GREY16, "16UC1; compressedDepth", "thermal", "unsupported_format"),
        (png(noise(HEIGHT, WIDTH, 2), kind=4), "png", "thermal", "unsupported_format"),
        (png(noise(HEIGHT, WIDTH, 4), kind=6), "png", "thermal", "unsupported_format"),
        (GREY8, "yuv422; png compressed ", "rgb", "unsupported_format"),
        (GREY8, "nv12; png compressed ", "rgb", "unsupported_format"),
        (png(noise(HEIGHT, WIDTH), kind=0, extra=chunk(b"acTL", bytes(8))), "png", "rgb", "unsupported_format"),
        (START + frame(marker=0xC9) + SCAN + END, "jpeg", "rgb", "unsupported_format"),  # arithmetic coding
        (START + frame(marker=0xC3) + SCAN + END, "jpeg", "rgb", "unsupported_format"),  # lossless
        (START + frame(factors=(0x11,) * 4) + SCAN + END, "jpeg", "rgb", "unsupported_format"),  # CMYK
        (GREY16, "rgb16; png compressed bgr16", "rgb", "unsupported_encoding"),
        (GREY8, "bayer_rggb8; png compressed ", "thermal", "unsupported_encoding"),
        (jpeg(smooth()[..., 0]), "mono16; jpeg compressed mono8", "thermal", "wrong_depth"),
        (GREY8, "16UC1; png compressed ", "thermal", "wrong_depth"),
        (GREY16, "mono8; png compressed ", "thermal", "wrong_depth"),
        (GREY8, "32FC1; png compressed ", "thermal", "wrong_depth"),
        (GREY16, "png", "rgb", "wrong_depth"),
        (png(noise(HEIGHT, WIDTH, 3, dtype=np.uint16), kind=2), "png", "rgb", "wrong_depth"),
        (png(noise(HEIGHT, WIDTH, 3, dtype=np.uint16), kind=2), "png", "thermal", "wrong_depth"),
        (SIGNATURE + header(depth=1) + chunk(b"IDAT", bytes(99)) + chunk(b"IEND"), "png", "thermal", "wrong_depth"),
        (START + frame(depth=12) + SCAN + END, "jpeg", "thermal", "wrong_depth"),
        (b"", "jpeg", "rgb", "truncated"),
        (b"\xff\xd8", "jpeg", "rgb", "truncated"),
        (SIGNATURE, "png", "rgb", "truncated"),
        (GREY8[:-1], "png", "rgb", "truncated"),
        (jpeg(smooth())[:-1], "jpeg", "rgb", "truncated"),
        (jpeg(smooth())[:-2] + bytes(500), "jpeg", "rgb", "truncated"),
        (SIGNATURE + header(2000, 2000) + chunk(b"IDAT", bytes(99)) + chunk(b"IEND"), "png", "rgb", "truncated"),
        (START + frame(2000, 2000) + segment(0xDA, bytes(10)) + bytes(99) + END, "jpeg", "rgb", "truncated"),
        (GREY8[:60] + bytes([GREY8[60] ^ 1]) + GREY8[61:], "png", "rgb", "undecodable"),
        (SIGNATURE + chunk(b"IDAT", bytes(13)) + GREY8[8:], "png", "rgb", "undecodable"),
        (SIGNATURE + header(depth=7) + GREY8[33:], "png", "rgb", "undecodable"),
        (SIGNATURE + header(kind=5) + GREY8[33:], "png", "rgb", "undecodable"),
        (SIGNATURE + header(rest=(1, 0, 0)) + GREY8[33:], "png", "rgb", "undecodable"),
        (SIGNATURE + header(rest=(0, 0, 2)) + GREY8[33:], "png", "rgb", "undecodable"),
        (START + END + bytes(9), "jpeg", "rgb", "undecodable"),
        (START + segment(0xE0, b"") + END, "jpeg", "rgb", "undecodable"),
        (START + frame() + END, "jpeg", "rgb", "undecodable"),
        (START + frame() + frame() + SCAN + END, "jpeg", "rgb", "undecodable"),
        (START + segment(0xE0, b"") + b"x" + frame() + SCAN + END, "jpeg", "rgb", "undecodable"),
        (START + segment(0xE0, b"") + START + END, "jpeg", "rgb", "undecodable"),
        (START + SCAN + frame() + END, "jpeg", "rgb", "undecodable"),
        (START + b"\xff\xe0\0\0" + frame() + SCAN + END, "jpeg", "rgb", "undecodable"),  # no segment is shorter
        (START + b"\xff\xe0\0\1" + frame() + SCAN + END, "jpeg", "rgb", "undecodable"),
        (START + frame(more=b"x") + SCAN + END, "jpeg", "rgb", "undecodable"),
        (START + frame(factors=(0x51, 0x11, 0x11)) + SCAN + END, "jpeg", "rgb", "undecodable"),
        (START + frame(factors=(0x10, 0x11, 0x11)) + SCAN + END, "jpeg", "rgb", "undecodable"),
        (START + frame() + (MAX_SCANS + 1) * SCAN + END, "jpeg", "rgb", "undecodable"),
        (START + (MAX_SEGMENTS + 1) * segment(0xE0, b"") + frame() + SCAN + END, "jpeg", "rgb", "undecodable"),
        (START + (MAX_FILL_BYTES + 1) * b"\xff" + frame() + SCAN + END, "jpeg", "rgb", "undecodable"),
        (png(noise(HEIGHT, WIDTH), kind=0, extra=MAX_SEGMENTS * chunk(b"tEXt")), "png", "rgb", "undecodable"),
        (png(noise(HEIGHT, WIDTH), kind=0, extra=MAX_SEGMENTS * chunk(b"IDAT")), "png", "rgb", "undecodable"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_causes_seen_without_decoding(data, format, stream, cause, no_decoding):
    refused(data, format, stream, cause)


@pytest.mark.parametrize(
    "width, height",
    [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (MAX_SIDE, MAX_SIDE), (31, 40), (40, 31), (0, 40), (40, 0)],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_absurd_sizes_cost_nothing(kind, width, height, no_decoding):
    width, height = (width, height) if kind == "png" else (min(width, 0xFFFF), min(height, 0xFFFF))
    # enough data for any size: a megabyte that would deflate to a gigabyte
    body = bytes(2**20)
    if kind == "png":
        data = SIGNATURE + header(width, height, 8, 2) + chunk(b"IDAT", body) + chunk(b"IEND")
    else:
        data = START + frame(width, height, marker=0xC2) + segment(0xDA, bytes(10)) + body + END
    claim = message(data, kind)
    tracemalloc.start()
    with pytest.raises(MalformedImage) as raised:
        decode_compressed_rgb(claim)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert raised.value.cause == "bad_size"
    assert f"{width}x{height}" in str(raised.value) and str(MAX_PIXELS) in str(raised.value)
    assert peak < 100_000


@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_a_jpeg_is_refused_wherever_it_was_cut_off(flags, no_decoding):
    data = jpeg(smooth(), *flags)
    for length in range(len(data)):
        with pytest.raises(MalformedImage) as raised:
            decode_compressed_rgb(message(data[:length], "jpeg"))
        assert raised.value.cause == "truncated", length


def test_a_png_is_refused_wherever_it_was_cut_off(no_decoding):
    for length in range(len(GREY16)):
        with pytest.raises(MalformedImage) as raised:
            decode_compressed_thermal(message(GREY16[:length], "png"))
        assert raised.value.cause == "truncated", length


@pytest.mark.parametrize(
    "data",
    [
        START + frame(factors=(0x11,)) + SCAN + END,  # no tables
        SIGNATURE + header() + chunk(b"IDAT", bytes(2000)) + chunk(b"IEND"),  # not deflated
        SIGNATURE + header() + chunk(b"IDAT", zlib.compress(bytes(HEIGHT * WIDTH // 2))) + chunk(b"IEND"),
        SIGNATURE + header(kind=3) + GREY8[33:],  # palette without its colours
    ],
    ids=["no tables", "not deflated", "too few rows", "no palette"],
)
def test_what_only_the_decoder_can_see(data):
    check_compressed(message(data, "x"), "rgb")
    text = refused(data, "x", "rgb", "undecodable")
    assert "damaged" in text


def _other_size(*args):
    return np.zeros((HEIGHT - 1, WIDTH), np.uint8)


def _other_depth(*args):
    return np.zeros((HEIGHT, WIDTH), np.uint16)


def _error(*args):
    raise cv2.error("too\nlarge")


@pytest.mark.parametrize(
    "decoder, words", [(_other_size, "(32, 47) uint8"), (_other_depth, "uint16"), (_error, "too large")]
)
def test_a_decoder_that_finds_another_picture_than_the_header_is_not_believed(monkeypatch, decoder, words):
    monkeypatch.setattr(compressed.cv2, "imdecode", decoder)
    assert words in refused(GREY8, "png", "rgb", "undecodable")


def test_remedies_are_named():
    assert "/compressed" in refused(GREY16, "16UC1; compressedDepth", "thermal", "unsupported_format")
    lost = refused(jpeg(smooth()[..., 0]), "mono16; jpeg compressed mono8", "thermal", "wrong_depth")
    assert "expected png" in lost and "mono16" in lost
    assert "'h264'" in refused(bytes(99), "h264", "rgb", "unsupported_format")


# encoding


@pytest.mark.parametrize(
    "encoding, format, text",
    [
        ("rgb8", "png", "rgb8; png compressed bgr8"),
        ("mono8", "png", "mono8; png compressed "),
        ("mono16", "png", "mono16; png compressed "),
        ("16UC1", "png", "16UC1; png compressed "),
        ("rgb8", "jpeg", "rgb8; jpeg compressed bgr8"),
        ("mono8", "jpeg", "mono8; jpeg compressed mono8"),
    ],
)
def test_what_is_encoded_is_decoded_again(encoding, format, text):
    pixels = {"rgb8": smooth(), "mono8": smooth()[..., 0]}.get(encoding, noise(HEIGHT, WIDTH, dtype=np.uint16))
    stamped = Header(frame_id="camera")
    out = compressed_message(pixels, encoding=encoding, header=stamped, format=format)
    assert out.format == text and out.header == stamped and type(out.data) is array
    back = (decode_compressed_rgb if encoding == "rgb8" else decode_compressed_thermal)(out)
    assert back.dtype == pixels.dtype
    assert np.abs(back.astype(int) - pixels).max() <= (0 if format == "png" else 12)
    # and any other reader finds the same: OpenCV's own order is B, G, R
    other = cv2.imdecode(np.frombuffer(out.data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(other[..., ::-1] if other.ndim == 3 else other, back)


def test_quality():
    pixels = noise(HEIGHT, WIDTH, 3)

    def size(format, quality):
        out = compressed_message(pixels // 16, encoding="rgb8", header=Header(), format=format, quality=quality)
        return len(out.data)

    assert size("jpeg", 1) < size("jpeg", 50) < size("jpeg", None) < size("jpeg", 100)
    assert size("png", 9) <= size("png", None) < size("png", 0)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"format": "webp"}, "jpeg, png"),
        ({"quality": 0}, "1 to 100"),
        ({"quality": 101}, "1 to 100"),
        ({"format": "png", "quality": 10}, "0 to 9"),
        ({"encoding": "32FC1"}, "rgb8, mono8;"),
        ({"encoding": "mono16"}, "rgb8, mono8;"),
        ({"format": "png", "encoding": "32FC1"}, "rgb8, mono8, mono16, 16UC1"),
        ({"encoding": "mono8"}, "(H, W) uint8"),
        ({"pixels": noise(40, 40)}, "(H, W, 3) uint8"),
        ({"pixels": noise(40, 40, 4)}, "(H, W, 3) uint8"),
        ({"pixels": np.zeros((40, 40, 3), np.float32)}, "(H, W, 3) uint8"),
    ],
)
def test_what_cannot_be_encoded(change, words):
    arguments = {"pixels": smooth(), "encoding": "rgb8", "header": Header(), **change}
    pixels = arguments.pop("pixels")
    with pytest.raises(InputError) as raised:
        compressed_message(pixels, **arguments)
    assert words in str(raised.value)


def test_strided_pixels_are_encoded():
    pixels = np.repeat(smooth(), 2, axis=0)[::2]
    out = compressed_message(pixels, encoding="rgb8", header=Header(), format="png")
    np.testing.assert_array_equal(decode_compressed_rgb(out), smooth())


