"""Colour conversion by cv_bridge where it is installed and gives what OpenCV gives, by OpenCV alone otherwise.

cv_bridge knows the Bayer patterns and two of the YUV layouts. Before it is trusted it has to convert a few small
pictures exactly as `decode_rgb` does, because not every installation can:
- OpenCV 5 numbers its types anew: cv_bridge fails with `KeyError: 16`;
- with numpy 2 it fails on every message that calls itself big-endian, 8-bit ones too, so it never gets to see one;
- what the Python index calls `cv-bridge` is a port of the ROS 1 package that reads 16UC1 as 8 bits. Never install it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable

import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from isfl_ros.ros.messages import RGB_ENCODINGS, check_image, decode_rgb, image_message

CV_BRIDGE_ENCODINGS = (
    *(name for name in RGB_ENCODINGS if name.startswith("bayer_")),
    "yuv422",
    "yuv422_yuy2",
)
"""What needs a colour conversion that cv_bridge knows. It takes the YUV layouts under no other name, and no NV12."""

ColourConverter = Callable[[Image], np.ndarray]
"""As `decode_rgb`: a message to H x W x 3 RGB u8, or H x W for `mono8`; raises MalformedImage."""


def colour_converter() -> tuple[ColourConverter, str]:
    """What turns messages of the RGB camera into pixels, and in words why. Takes milliseconds: call it once."""
    try:
        from cv_bridge import CvBridge

        convert = _CvBridgeConverter(CvBridge())
        fault = _fault(convert)
    except Exception as error:  # whatever a broken installation raises is the reason not to use it
        if isinstance(error, ModuleNotFoundError) and error.name == "cv_bridge":
            return decode_rgb, "OpenCV: cv_bridge is not installed"
        fault = " ".join(f"{type(error).__name__}: {error}".split())
    if fault is not None:
        return decode_rgb, f"OpenCV: the installed cv_bridge does not convert as it should ({fault})"
    return convert, f"cv_bridge for {', '.join(CV_BRIDGE_ENCODINGS)}; OpenCV for the rest"


class _CvBridgeConverter:
    """`decode_rgb` with cv_bridge for the encodings it knows."""

    def __init__(self, bridge):
        self.bridge = bridge

    def __call__(self, message: Image) -> np.ndarray:
        if message.encoding not in CV_BRIDGE_ENCODINGS or not _fits(message):
            return decode_rgb(message)
        check_image(message, "rgb")
        return np.ascontiguousarray(self.bridge.imgmsg_to_cv2(_native(message), desired_encoding="rgb8"))


def _fits(message: Image) -> bool:
    """Whether cv_bridge takes rows of this width and step: of YUV only whole pairs of pixels."""
    if RGB_ENCODINGS[message.encoding].chroma == "none":
        return True
    return message.width % 2 == 0 and message.step % 2 == 0


def _native(message: Image) -> Image:
    """The same message in this machine's byte order, which means nothing for 8-bit samples; the data is shared."""
    native = int(sys.byteorder == "big")
    if message.is_bigendian == native:
        return message
    return Image(
        header=message.header,
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        is_bigendian=native,
        step=message.step,
        data=message.data,
    )


def _fault(convert: _CvBridgeConverter) -> str | None:
    """What cv_bridge gets wrong; None where nothing."""
    counts = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 61
    plain = convert.bridge.imgmsg_to_cv2(image_message(counts, encoding="16UC1", header=Header()))
    if plain.dtype != np.uint16 or not np.array_equal(plain, counts):
        return "it misreads 16UC1, as the port of the ROS 1 package on the Python index does"
    for encoding in CV_BRIDGE_ENCODINGS:
        for padding in (0, 6):
            message = _probe(encoding, padding)
            if not np.array_equal(convert(message), decode_rgb(message)):
                return f"{encoding}{' with padded rows' if padding else ''} comes out otherwise than from OpenCV"
    return None


def _probe(encoding: str, padding: int) -> Image:
    """A small noisy message."""
    height, width = 34, 36
    step = RGB_ENCODINGS[encoding].row_bytes(width) + padding
    noise = np.random.default_rng(0).integers(0, 256, height * step, dtype=np.uint8)
    message = Image(height=height, width=width, encoding=encoding, step=step)
    message.is_bigendian = int(sys.byteorder == "big")
    message.data = array("B", noise.tobytes())
    return message
