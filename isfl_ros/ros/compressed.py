"""sensor_msgs/CompressedImage (JPEG, PNG) to numpy and back.

What a message claims about itself is read from the first bytes of its data and checked by `check_compressed` without
decoding anything: kind, size, depth, and whether the data is there to its end. So a message that claims 100000x100000
pixels costs nothing, and neither does one that was cut off, of which OpenCV 4.8 still makes a picture with a grey rest.
What a JPEG cannot tell is that its middle is wrong: it has no checksum.

`format` follows compressed_image_transport: "SOURCE; KIND compressed TARGET", where SOURCE is the encoding that was
compressed and TARGET the one it was converted to before ("rgb8; jpeg compressed bgr8", "mono16; png compressed "); or a
bare "jpeg" or "png" from drivers that compress by themselves. Which of the two kinds the data is, the data says itself.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from isfl_ros.errors import InputError
from isfl_ros.ros.messages import ENCODINGS, MAX_PIXELS, Encoding, MalformedImage, check_size

TRANSPORTS = ("raw", "compressed")
"""sensor_msgs/Image, or sensor_msgs/CompressedImage."""

MAX_SCANS = 100
"""Most scans of a JPEG: each costs a pass over the whole picture. Cameras write 1, progressive encoders about 10."""

MAX_SEGMENTS = 1000
"""Most segments of a JPEG or chunks of a PNG, large ones of pixels (`LARGE_CHUNK`) not counted: whoever checks messages
has the cameras wait meanwhile, and an empty one takes few bytes. Cameras write about 10, a colour profile up to 255."""

LARGE_CHUNK = 1024
"""Bytes from which on a chunk of pixels may come any number of times: a picture takes many (libpng writes 8192)."""

MAX_FILL_BYTES = 16
"""Most fill bytes before a marker of a JPEG; encoders that align their segments write a few."""

COMPRESSED_CAUSES = (
    "unsupported_format",
    "unsupported_encoding",
    "bad_size",
    "wrong_depth",
    "truncated",
    "undecodable",
)
"""Every cause with which this file raises MalformedImage; `check_compressed` finds all but a part of the last."""

# IMWRITE flag, range and default of `quality`
_QUALITY: Mapping[str, tuple[int, range, int]] = {
    "jpeg": (cv2.IMWRITE_JPEG_QUALITY, range(1, 101), 90),
    "png": (cv2.IMWRITE_PNG_COMPRESSION, range(0, 10), 1),
}

FORMATS = tuple(_QUALITY)
"""Kinds of compression, as `CompressedImage.format` names them."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"

_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Colour type (grey, colour, palette, grey and alpha, colour and alpha) -> depths allowed (PNG, table 11.1)."""

_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

_DEFLATE_RATIO = 1032
"""Deflate makes at most this many bytes out of one (258 from 2 bits)."""

_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""End of a JPEG's coded data: 0xff of its own is followed by 0, restart markers and fill bytes belong to it."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the data of a message is, from its own header."""

    kind: str
    """`jpeg` or `png`."""
    width: int
    height: int
    depth: int
    """Bits of a sample, as they come out of the decoder."""
    colour: bool
    """Three colours, palettised ones included; otherwise one grey."""
    alpha: bool
    source: str
    """Encoding that was compressed; empty where `format` does not say."""
    swapped: bool
    """Red and blue are in each other's place."""
    mosaic: Encoding | None
    """Layout of the Bayer pattern that a grey picture is."""


def transport_topic(node: Node, topic: str, transport: str) -> str:
    """Name under which to subscribe or publish the images of `topic` by one of `TRANSPORTS`.

    As image_transport does it since 6.0: the name of the raw images is remapped first, and /compressed appended to what
    comes out, so that the same rule serves both transports. A rule for the name with /compressed counts as well.
    """
    return topic if transport == "raw" else f"{node.resolve_topic_name(topic)}/compressed"


def check_compressed(message: CompressedImage, stream: str, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Check what `message` claims about itself against its stream, and that its data is complete; decodes nothing.

    Args:
        message: the message.
        stream: `thermal` or `rgb`.
        max_pixels: of the largest picture to be taken.

    Raises:
        MalformedImage: see `COMPRESSED_CAUSES`.
    """
    label = f"{stream} image with format {message.format[:60]!r}"
    data = memoryview(message.data).cast("B")
    source, _, rest = message.format.partition(";")
    source, words = (source.strip(), rest.split()) if rest else ("", [])
    if "compressedDepth" in message.format:
        raise MalformedImage(
            "unsupported_format",
            f"{label} is of the compressedDepth transport; expected the compressed one with PNG:"
            " set the topic that ends in /compressed, or the transport to raw",
        )
    if source and source not in ENCODINGS[stream]:
        known = ", ".join(ENCODINGS[stream])
        raise MalformedImage("unsupported_encoding", f"{label} was compressed from {source!r}; expected one of {known}")

    try:
        if data[: len(_PNG_SIGNATURE)] == _PNG_SIGNATURE:
            found = _check_png(data, max_pixels)
        elif data[: len(_JPEG_SIGNATURE)] == _JPEG_SIGNATURE:
            found = _check_jpeg(data, max_pixels)
        elif len(data) < len(_PNG_SIGNATURE):
            raise MalformedImage("truncated", f"has {len(data)} bytes of data; expected a JPEG or PNG")
        else:
            raise MalformedImage(
                "unsupported_format", f"has data that starts with {data[:8].hex(' ')}; expected a JPEG or PNG"
            )
        return _check_layout(found, stream, source, words)
    except MalformedImage as error:
        raise MalformedImage(error.cause, f"{label} {error}") from None


def decode_compressed_thermal(message: CompressedImage) -> np.ndarray:
    """Thermal picture, H x W, contiguous, native byte order: u8 (8-bit and palettised) or u16 counts.

    Raises:
        MalformedImage: see `COMPRESSED_CAUSES`.
    """
    picture = check_compressed(message, "thermal")
    pixels = _decode(message, picture, "thermal")
    if picture.colour:
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY if picture.swapped else cv2.COLOR_BGR2GRAY)
    return pixels


def decode_compressed_rgb(message: CompressedImage) -> np.ndarray:
    """Visible picture, contiguous u8: H x W x 3 in the order R, G, B, or H x W for a grey one.

    Raises:
        MalformedImage: see `COMPRESSED_CAUSES`.
    """
    picture = check_compressed(message, "rgb")
    pixels = _decode(message, picture, "rgb")
    if picture.mosaic is not None:
        return cv2.cvtColor(pixels, picture.mosaic.convert)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if picture.colour and not picture.swapped else pixels


def compressed_message(
    pixels: np.ndarray, *, encoding: str, header: Header, format: str = "jpeg", quality: int | None = None
) -> CompressedImage:
    """A message holding `pixels` compressed, with the `format` that compressed_image_transport would give it.

    Args:
        pixels: H x W x 3 u8 in the order R, G, B for `rgb8`; H x W u8 for `mono8`; H x W u16 for `mono16` and `16UC1`.
        encoding: one of these; 16 bits are for PNG only.
        header: of the message.
        format: one of `FORMATS`.
        quality: 1 to 100 for JPEG (default 90), or 0 to 9, from fast to small, for PNG (default 1).

    Raises:
        InputError: another encoding, format or quality, or pixels of another shape or type.
    """
    if format not in FORMATS:
        raise InputError("compression unknown", expected=f"one of {', '.join(FORMATS)}", got=repr(format))
    flag, allowed, default = _QUALITY[format]
    quality = default if quality is None else quality
    if quality not in allowed:
        raise InputError(
            f"quality of {format} out of range", expected=f"{allowed[0]} to {allowed[-1]}", got=str(quality)
        )
    wanted = {"rgb8": (3, np.uint8), "mono8": (2, np.uint8), "mono16": (2, np.uint16), "16UC1": (2, np.uint16)}
    dimensions, dtype = wanted.get(encoding, (None, None))
    if dimensions is None or (format == "jpeg" and dtype is not np.uint8):
        fitting = [name for name, (_, kind) in wanted.items() if format == "png" or kind is np.uint8]
        raise InputError(f"encoding has no {format}", expected=f"one of {', '.join(fitting)}", got=repr(encoding))
    if pixels.ndim != dimensions or pixels.dtype != dtype or (dimensions == 3 and pixels.shape[2] != 3):
        raise InputError(
            f"pixels are not {encoding}",
            expected=f"({'H, W, 3' if dimensions == 3 else 'H, W'}) {np.dtype(dtype).name}",
            got=f"{pixels.shape} {pixels.dtype}",
        )
    if dimensions == 3:
        pixels, target = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), "bgr8"
    else:
        target = "mono8" if format == "jpeg" else ""
    _, coded = cv2.imencode(f".{format}", pixels, [flag, quality])
    message = CompressedImage(header=header, format=f"{encoding}; {format} compressed {target}")
    data = array("B")  # any other type is checked byte by byte in Python
    data.frombytes(memoryview(coded).cast("B"))
    message.data = data
    return message


@dataclass(frozen=True)
class _Found:
    """What a file header says."""

    kind: str
    width: int
    height: int
    depth: int
    colour: bool
    alpha: bool = False


def _check_layout(found: _Found, stream: str, source: str, words: list[str]) -> Picture:
    """Whether the pixels that will come out can be a picture of `stream` made from `source`."""
    depths = (8, 16) if stream == "thermal" and not found.colour else (8,)
    if found.depth not in depths:
        raise MalformedImage(
            "wrong_depth",
            f"has {found.depth} bits a sample; expected {' or '.join(map(str, depths))} in a"
            f" {'colour' if found.colour else 'grey'} picture of this stream",
        )
    if stream == "thermal" and found.alpha:
        raise MalformedImage("unsupported_format", "has transparency; expected a thermal picture without")
    encoding = ENCODINGS[stream].get(source)
    if encoding is not None and 8 * np.dtype(encoding.sample).itemsize != found.depth:
        raise MalformedImage(
            "wrong_depth",
            f"has {found.depth} bits a sample of what was {source}: counts are lost;"
            " expected png (set the format of the camera's compressed transport to it), or the raw transport",
        )
    target = words[2] if len(words) > 2 else ""
    mosaic = None
    if encoding is not None and not found.colour and not target:
        if encoding.chroma != "none":
            raise MalformedImage(
                "unsupported_format",
                f"has the bytes of {source} as one grey picture; expected colours, or the raw transport",
            )
        if source.startswith("bayer_"):
            mosaic = encoding
    # compressed_image_transport compresses as if it were BGR what it had in memory, and this is how it says what it was
    in_order = not source.startswith(("rgb", "bgr")) or target.startswith("bgr")
    return Picture(
        kind=found.kind,
        width=found.width,
        height=found.height,
        depth=found.depth,
        colour=found.colour,
        alpha=found.alpha,
        source=source,
        swapped=not in_order,
        mosaic=mosaic,
    )


def _goes_on(data: memoryview, kind: str) -> str:
    return f"has {len(data)} bytes of a {kind} that goes on; expected it to its end"


def _number(data: memoryview, at: int, size: int) -> int:
    """Big-endian number of `size` bytes."""
    if at + size > len(data):
        raise MalformedImage("truncated", f"ends in the middle of its structure, after {len(data)} bytes")
    return int.from_bytes(data[at : at + size], "big")


def _check_png(data: memoryview, max_pixels: int) -> _Found:
    """Header of a PNG (ISO/IEC 15948), after a walk over its chunks: all there, none damaged, enough for the size."""
    _number(data, 0, 33)  # signature and header, which is checked first
    if bytes(data[12:16]) != b"IHDR" or _number(data, 8, 4) != 13:
        raise MalformedImage("undecodable", "has a PNG that does not start with its header")
    width, height = _number(data, 16, 4), _number(data, 20, 4)
    depth, kind = _number(data, 24, 1), _number(data, 25, 1)
    check_size(width, height, max_pixels=max_pixels)  # a few bytes of data can claim, and deflate to, any size
    if depth not in _PNG_DEPTHS.get(kind, ()) or _number(data, 26, 2) != 0 or _number(data, 28, 1) > 1:
        raise MalformedImage("undecodable", f"has a PNG of colour type {kind} with {depth} bits, which does not exist")
    at, name, pixel_bytes, chunks = len(_PNG_SIGNATURE), b"", 0, 0
    while name != b"IEND":
        length = _number(data, at, 4)
        end = at + 12 + length
        if end > len(data):
            raise MalformedImage("truncated", _goes_on(data, "PNG"))
        name = bytes(data[at + 4 : at + 8])
        if name != b"IDAT" or length < LARGE_CHUNK:
            chunks += 1
            if chunks > MAX_SEGMENTS:
                raise MalformedImage("undecodable", f"has a PNG of more than {MAX_SEGMENTS} small chunks")
        if zlib.crc32(data[at + 4 : end - 4]) != _number(data, end - 4, 4):
            raise MalformedImage("undecodable", "has a PNG with a wrong checksum")
        if name == b"acTL":
            raise MalformedImage("unsupported_format", "has an animated PNG; expected a single picture")
        if name == b"IDAT":
            pixel_bytes += length
        at = end
    row_bytes = (width * _PNG_SAMPLES[kind] * depth + 7) // 8
    if height * row_bytes > _DEFLATE_RATIO * pixel_bytes:
        raise MalformedImage(
            "truncated", f"has {pixel_bytes} bytes of pixels, which cannot fill the {width}x{height} that it claims"
        )
    colour = kind in (2, 3, 6)
    return _Found("png", width, height, 8 if kind == 3 else depth, colour, alpha=kind in (4, 6))


def _check_jpeg(data: memoryview, max_pixels: int) -> _Found:
    """Header of a JPEG (ITU-T T.81), after a walk over its segments to the end marker."""
    at = 2
    found: _Found | None = None
    segments, scans, coded_bytes, least_bits = 0, 0, 0, 0
    while True:
        segments += 1
        if segments > MAX_SEGMENTS:
            raise MalformedImage("undecodable", f"has a JPEG of more than {MAX_SEGMENTS} segments")
        if _number(data, at, 1) != 0xFF:
            raise MalformedImage("undecodable", f"has a JPEG with no marker at byte {at}, where one belongs")
        first = at
        while (marker := _number(data, at + 1, 1)) == 0xFF:
            at += 1
            if at - first > MAX_FILL_BYTES:
                raise MalformedImage("undecodable", f"has a JPEG with more than {MAX_FILL_BYTES} fill bytes at {first}")
        if marker == 0xD9:
            break
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:
            raise MalformedImage("undecodable", f"has a JPEG with marker {marker:#04x} at byte {at}, out of place")
        length = _number(data, at + 2, 2)
        start, at = at + 4, at + 2 + length
        if at > len(data):
            raise MalformedImage("truncated", _goes_on(data, "JPEG"))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if found is not None:
                raise MalformedImage("undecodable", "has a JPEG with two headers")
            found, least_bits = _jpeg_frame(data[start:at], marker, max_pixels)
        elif marker == 0xDA:
            scans += 1
            if found is None or scans > MAX_SCANS:
                header = "a" if found else "no"
                raise MalformedImage("undecodable", f"has a JPEG with {scans} scans and {header} header")
            following = _NEXT_MARKER.search(data, at)
            if following is None:
                raise MalformedImage("truncated", _goes_on(data, "JPEG"))
            coded_bytes += following.start() - at
            at = following.start()
    if found is None or scans == 0:
        raise MalformedImage("undecodable", "has a JPEG without a picture")
    if least_bits > 8 * coded_bytes:
        raise MalformedImage(
            "truncated",
            f"has {coded_bytes} bytes of pixels, which cannot fill the {found.width}x{found.height} that it claims",
        )
    return found


def _jpeg_frame(segment: memoryview, marker: int, max_pixels: int) -> tuple[_Found, int]:
    """What a frame header says, and the least bits in which its pixels can be coded."""
    depth, height, width, components = (_number(segment, *field) for field in ((0, 1), (1, 2), (3, 2), (5, 1)))
    check_size(width, height, max_pixels=max_pixels)
    if marker > 0xC2:
        raise MalformedImage(
            "unsupported_format", f"has a JPEG of kind {marker:#04x}; expected a baseline or progressive one"
        )
    if depth != 8:
        raise MalformedImage("wrong_depth", f"has {depth} bits a sample; expected 8 in a JPEG")
    if components not in (1, 3):
        raise MalformedImage("unsupported_format", f"has a JPEG of {components} colours; expected 1 or 3")
    factors = [divmod(_number(segment, 7 + 3 * index, 1), 16) for index in range(components)]
    if not all(1 <= factor <= 4 for pair in factors for factor in pair) or len(segment) != 6 + 3 * components:
        raise MalformedImage("undecodable", "has a JPEG with an impossible header")
    most = [max(pair[axis] for pair in factors) for axis in (0, 1)]
    blocks = sum(-(-width * across // (8 * most[0])) * -(-height * down // (8 * most[1])) for across, down in factors)
    # a block of 8x8 takes a bit for its mean, and where it is not progressive another for the end of the rest
    return _Found("jpeg", width, height, depth, components == 3), blocks * (1 if marker == 0xC2 else 2)


def _decode(message: CompressedImage, picture: Picture, stream: str) -> np.ndarray:
    """Pixels of a checked message: H x W x 3 in the order B, G, R, or H x W."""
    # a camera's orientation tag is not followed: its calibration is for the pixels as they are
    flags = cv2.IMREAD_COLOR if picture.colour else cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    try:
        pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        pixels, reason = None, " ".join(str(error).split())
    else:
        reason = "OpenCV cannot decode it"
    shape = (picture.height, picture.width, 3) if picture.colour else (picture.height, picture.width)
    if pixels is not None and (pixels.shape != shape or 8 * pixels.itemsize != picture.depth):
        pixels, reason = None, f"it became {pixels.shape} {pixels.dtype}"
    if pixels is None:
        raise MalformedImage(
            "undecodable", f"{stream} image with format {message.format[:60]!r} has a damaged {picture.kind}: {reason}"
        )
    return pixels
