"""sensor_msgs/Image to numpy and back, with at most one copy of the pixels.

What a message claims about itself (encoding, size, step, length of the data) is checked by `check_image` from its
metadata alone, before any memory is allocated; the `decode_*` functions then turn a checked message into pixels.
Shapes: H x W pictures, H x W x 3 colour, always in the order R, G, B.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from isfl_ros.images import to_uint8
from isfl_ros.network.config import MINIMUM_SIZE

MAX_SIDE = 16384
"""Largest width and height in pixels; anything above is a corrupt header, not a camera."""

MAX_PIXELS = 2**26
"""Most that `input.max_pixels` can be set to, 67 megapixels."""

NANOSECONDS = 1_000_000_000


class MalformedImage(ValueError):
    """A message that cannot be a picture of its stream.

    Args:
        cause: stable key under which such messages are counted, one of `CAUSES`.
        text: one line saying what was wrong with this message.
    """

    def __init__(self, cause: str, text: str):
        super().__init__(text)
        self.cause = cause


CAUSES = ("unsupported_encoding", "bad_size", "step_smaller_than_row", "data_shorter_than_step_times_height")
"""Every cause that MalformedImage is raised with, in the order in which they are checked."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the pixels of one encoding lie in memory, and how they become what the pipeline takes."""

    sample: str = "u1"
    """numpy type of one sample without its byte order."""
    channels: int = 1
    """Samples per pixel of a packed row."""
    chroma: Literal["none", "packed_422", "planar_420"] = "none"
    """YUV layouts: two pixels share a colour in four bytes, or a luma plane is followed by one of colour pairs."""
    convert: int | None = None
    """OpenCV colour conversion; None where the samples are taken as they are."""

    def row_bytes(self, width: int) -> int:
        """Bytes that a row of `width` pixels needs."""
        if self.chroma == "packed_422":
            return 4 * ((width + 1) // 2)
        if self.chroma == "planar_420":
            return 2 * ((width + 1) // 2)
        return width * self.channels * np.dtype(self.sample).itemsize

    def rows(self, height: int) -> int:
        """Rows of `step` bytes that a picture of `height` pixels needs."""
        return height + (height + 1) // 2 if self.chroma == "planar_420" else height


_GRAY8 = Encoding()
_GRAY16 = Encoding(sample="u2")

THERMAL_ENCODINGS: Mapping[str, Encoding] = {
    "mono8": _GRAY8,
    "8UC1": _GRAY8,
    "mono16": _GRAY16,
    "16UC1": _GRAY16,
    "32FC1": Encoding(sample="f4"),
    # palettised by the camera: only its luma says anything about temperature
    "rgb8": Encoding(channels=3, convert=cv2.COLOR_RGB2GRAY),
    "bgr8": Encoding(channels=3, convert=cv2.COLOR_BGR2GRAY),
}

_UYVY = Encoding(chroma="packed_422", convert=cv2.COLOR_YUV2RGB_UYVY)
_YUYV = Encoding(chroma="packed_422", convert=cv2.COLOR_YUV2RGB_YUY2)

RGB_ENCODINGS: Mapping[str, Encoding] = {
    "rgb8": Encoding(channels=3),
    "bgr8": Encoding(channels=3, convert=cv2.COLOR_BGR2RGB),
    "rgba8": Encoding(channels=4, convert=cv2.COLOR_RGBA2RGB),
    "bgra8": Encoding(channels=4, convert=cv2.COLOR_BGRA2RGB),
    "mono8": _GRAY8,
    # the middleware renamed the two in 2023; drivers use either name
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "nv12": Encoding(chroma="planar_420", convert=cv2.COLOR_YUV2RGB_NV12),
    "nv21": Encoding(chroma="planar_420", convert=cv2.COLOR_YUV2RGB_NV21),
    "bayer_rggb8": Encoding(convert=cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr8": Encoding(convert=cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": Encoding(convert=cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg8": Encoding(convert=cv2.COLOR_BayerGRBG2RGB),
}


ENCODINGS: Mapping[str, Mapping[str, Encoding]] = {"thermal": THERMAL_ENCODINGS, "rgb": RGB_ENCODINGS}
"""Stream name -> encoding name -> layout."""


def check_size(width: int, height: int, *, max_pixels: int = MAX_PIXELS) -> None:
    """Check the size that a message claims; the text of the error begins with `is`.

    Raises:
        MalformedImage: `bad_size`.
    """
    sides = (width, height)
    if not all(MINIMUM_SIZE <= side <= MAX_SIDE for side in sides) or width * height > min(max_pixels, MAX_PIXELS):
        raise MalformedImage(
            "bad_size",
            f"is {width}x{height}; expected {MINIMUM_SIZE} to {MAX_SIDE} pixels on either side,"
            f" {max_pixels} in all (parameter input.max_pixels)",
        )


def check_image(message: Image, stream: str, *, max_pixels: int = MAX_PIXELS) -> Encoding:
    """Check what `message` claims about itself against its stream and the length of its data; touches no pixel.

    Args:
        message: the message.
        stream: `thermal` or `rgb`.
        max_pixels: of the largest picture to be taken.

    Raises:
        MalformedImage: see `CAUSES`.
    """
    encoding = ENCODINGS[stream].get(message.encoding)
    if encoding is None:
        known = ", ".join(ENCODINGS[stream])
        raise MalformedImage(
            "unsupported_encoding", f"{stream} image has encoding {message.encoding[:40]!r}; expected one of {known}"
        )
    width, height = message.width, message.height
    try:
        check_size(width, height, max_pixels=max_pixels)
    except MalformedImage as error:
        raise MalformedImage(error.cause, f"{stream} image {error}") from None
    if message.step < encoding.row_bytes(width):
        raise MalformedImage(
            "step_smaller_than_row",
            f"{stream} image has step {message.step}; expected at least {encoding.row_bytes(width)} bytes"
            f" for {width} pixels of {message.encoding}",
        )
    needed = message.step * encoding.rows(height)
    if len(message.data) < needed:
        raise MalformedImage(
            "data_shorter_than_step_times_height",
            f"{stream} image has {len(message.data)} bytes of data; expected {needed}"
            f" (step {message.step} x {encoding.rows(height)} rows)",
        )
    return encoding


def decode_thermal(message: Image) -> np.ndarray:
    """Thermal picture, H x W, contiguous, native byte order: u8 (8-bit and palettised), u16 counts or f32.

    Raises:
        MalformedImage: see `check_image`.
    """
    encoding = check_image(message, "thermal")
    pixels = _samples(message, encoding)
    if encoding.convert is not None:
        return cv2.cvtColor(pixels, encoding.convert)
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def decode_rgb(message: Image) -> np.ndarray:
    """Visible picture, contiguous u8: H x W x 3 in the order R, G, B, or H x W for `mono8`.

    Raises:
        MalformedImage: see `check_image`.
    """
    encoding = check_image(message, "rgb")
    if encoding.chroma == "packed_422":
        return _decode_packed_422(message, encoding)
    if encoding.chroma == "planar_420":
        return _decode_planar_420(message, encoding)
    pixels = _samples(message, encoding)
    return np.ascontiguousarray(pixels) if encoding.convert is None else cv2.cvtColor(pixels, encoding.convert)


def image_message(pixels: np.ndarray, *, encoding: str, header: Header) -> Image:
    """A message holding `pixels` (H x W or H x W x C, contiguous or not) as `encoding`, rows without padding."""
    pixels = np.ascontiguousarray(pixels)
    message = Image(header=header, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = pixels.strides[0]
    # any other type than array("B") is checked byte by byte in Python: 38 ms for a list, 137 ms for a numpy array
    data = array("B")
    data.frombytes(memoryview(pixels).cast("B"))
    message.data = data
    return message


def gate_pixels(gate: np.ndarray, encoding: str) -> np.ndarray:
    """The gate (H x W f32 in [0, 1]) as the samples of `encoding`: `mono8` (0..255) or `32FC1` (0..1)."""
    return to_uint8(gate) if encoding == "mono8" else gate.astype(np.float32, copy=False)


def stamp_nanoseconds(stamp: Time) -> int:
    """A ROS stamp as whole nanoseconds."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def _samples(message: Image, encoding: Encoding) -> np.ndarray:
    """View of the pixels, H x W (or H x W x channels), rows `step` bytes apart, still in the message's byte order."""
    dtype = np.dtype((">" if message.is_bigendian else "<") + encoding.sample)
    shape, strides = (message.height, message.width), (message.step, encoding.channels * dtype.itemsize)
    if encoding.channels > 1:
        shape, strides = (*shape, encoding.channels), (*strides, dtype.itemsize)
    # np.ndarray rather than frombuffer().reshape(): a padded step need not be a multiple of the sample size
    return np.ndarray(shape, dtype, buffer=message.data, strides=strides)


def _rows(message: Image, *, first: int, count: int, width: int) -> np.ndarray:
    """View of `count` rows from `first` on as `width` pairs of bytes: count x width x 2."""
    return np.ndarray(
        (count, width, 2), np.uint8, buffer=message.data, offset=first * message.step, strides=(message.step, 2, 1)
    )


def _decode_packed_422(message: Image, encoding: Encoding) -> np.ndarray:
    # pixels come in pairs: an odd width has one more pixel in its last pair, which is cut off again
    even = message.width + message.width % 2
    rgb = cv2.cvtColor(_rows(message, first=0, count=message.height, width=even), encoding.convert)
    return np.ascontiguousarray(rgb[:, : message.width])


def _decode_planar_420(message: Image, encoding: Encoding) -> np.ndarray:
    height, width = message.height, message.width
    luma = np.ndarray((height, width), np.uint8, buffer=message.data, strides=(message.step, 1))
    chroma = _rows(message, first=height, count=(height + 1) // 2, width=(width + 1) // 2)
    # a colour covers 2 x 2 pixels: at an odd size the last ones have only part of theirs in the picture
    if height % 2 or width % 2:
        luma = cv2.copyMakeBorder(luma, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    rgb = cv2.cvtColorTwoPlane(luma, chroma, encoding.convert)
    return np.ascontiguousarray(rgb[:height, :width])
