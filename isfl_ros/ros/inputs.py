"""One camera of the node: from a message to a picture that was checked but not decoded.

What a message claims is checked when it arrives, before memory is allocated for it; its pixels are made by the worker.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from isfl_ros.ros.accounting import Ledger, StreamCounts, Ticket
from isfl_ros.ros.compressed import (
    TRANSPORTS,
    check_compressed,
    decode_compressed_rgb,
    decode_compressed_thermal,
    transport_topic,
)
from isfl_ros.ros.cv_bridge_adapter import ColourConverter
from isfl_ros.ros.degraded import Condition, fingerprint
from isfl_ros.ros.diagnostics import InputFacts
from isfl_ros.ros.jobs import Frame
from isfl_ros.ros.logging_bridge import OnceLog
from isfl_ros.ros.messages import MAX_PIXELS, MalformedImage, check_image, decode_thermal, stamp_nanoseconds
from isfl_ros.ros.parameters import Settings
from isfl_ros.ros.qos import AdaptiveSubscription

CONSTANT_CHECK_PIXELS = 1920 * 1080
"""Largest compressed picture that is decoded to see whether all pixels are equal: the executor does it, once for each
picture that repeats, and the cameras wait meanwhile (some 20 ms). Larger ones are not compared at all."""


@dataclass(frozen=True, kw_only=True)
class CameraImage:
    """A picture that is still in its message. All but its pixels is known."""

    header: Header
    width: int
    height: int
    encoding: str
    """For people: of a compressed message its format."""
    palettised: bool
    """A thermal picture in colours."""
    decode: Callable[[], np.ndarray]
    """Its pixels, see `decode_thermal` and `decode_rgb`; raises MalformedImage."""
    fingerprint: Callable[[], int | None]
    """A number that differs where pixels do; None where all pixels are equal, or it would take too long."""


class Reader(Protocol):
    """From messages of one type to pictures."""

    message: type

    def read(self, message: Image | CompressedImage) -> CameraImage:
        """Check a message; decodes nothing.

        Raises:
            MalformedImage: it cannot be a picture of its stream.
        """


class RawReader:
    """sensor_msgs/Image of one stream, up to `max_pixels`; `decode_rgb` makes the pixels of the RGB camera."""

    message = Image

    def __init__(self, stream: str, decode_rgb: ColourConverter, *, max_pixels: int = MAX_PIXELS):
        self._stream = stream
        self._max_pixels = max_pixels
        self._decode = decode_thermal if stream == "thermal" else decode_rgb

    def read(self, message: Image) -> CameraImage:
        """See `Reader`."""
        encoding = check_image(message, self._stream, max_pixels=self._max_pixels)
        return CameraImage(
            header=message.header,
            width=message.width,
            height=message.height,
            encoding=message.encoding,
            palettised=self._stream == "thermal" and encoding.convert is not None,
            decode=lambda: self._decode(message),
            fingerprint=lambda: fingerprint(
                message.data,
                step=message.step,
                row_bytes=encoding.row_bytes(message.width),
                rows=encoding.rows(message.height),
                pixel_bytes=encoding.row_bytes(1),
            ),
        )


class CompressedReader:
    """sensor_msgs/CompressedImage of one stream, up to `max_pixels`.

    Its fingerprint is that of the compressed bytes. Whether all pixels are equal, bytes do not tell: so a picture whose
    bytes repeat is decoded, once, however often they repeat. One above `CONSTANT_CHECK_PIXELS` has no fingerprint.
    """

    message = CompressedImage

    def __init__(self, stream: str, *, max_pixels: int = MAX_PIXELS):
        self._stream = stream
        self._max_pixels = max_pixels
        self._decode = decode_compressed_thermal if stream == "thermal" else decode_compressed_rgb
        self._last: int | None = None
        self._constant: bool | None = None
        """Whether the picture with these bytes has equal pixels; None while they have not repeated."""

    def read(self, message: CompressedImage) -> CameraImage:
        """See `Reader`."""
        picture = check_compressed(message, self._stream, max_pixels=self._max_pixels)
        return CameraImage(
            header=message.header,
            width=picture.width,
            height=picture.height,
            encoding=message.format[:60] or picture.kind,
            palettised=self._stream == "thermal" and picture.colour,
            decode=lambda: self._decode(message),
            fingerprint=lambda: self._fingerprint(message, picture.width * picture.height),
        )

    def _fingerprint(self, message: CompressedImage, pixels: int) -> int | None:
        if pixels > CONSTANT_CHECK_PIXELS:
            return None
        number = zlib.crc32(memoryview(message.data))
        if number != self._last:
            self._last, self._constant = number, None
        elif self._constant is None:
            self._constant = self._is_constant(message)
        return None if self._constant else number

    def _is_constant(self, message: CompressedImage) -> bool:
        try:
            pixels = self._decode(message)
        except MalformedImage:
            return False  # the worker finds out and says so
        return bool((pixels == pixels[0, 0]).all())


class Refusals:
    """Messages that are no pictures: dropped under their cause, remembered, and logged once per cause; any thread."""

    def __init__(self, ledger: Ledger, log: OnceLog):
        self._ledger = ledger
        self._log = log
        self._last: dict[str, str] = {}

    def add(self, stream: str, ticket: Ticket, error: MalformedImage) -> None:
        """Drop a message of `stream`."""
        self._ledger.drop(error.cause, ticket)
        self._last[stream] = str(error)
        self._log.warning(f"{stream} {error.cause}", f"message dropped ({error.cause}): {error}")

    def last(self, stream: str) -> str | None:
        """What was wrong with the last one of `stream`; None if there was none."""
        return self._last.get(stream)


class CameraInput:
    """The subscriptions to one camera, from the node's activation to its deactivation.

    Args:
        node: subscribes.
        stream: `thermal` or `rgb`.
        settings: transport, QoS and the largest picture.
        decode_rgb: makes pixels of raw messages of the RGB camera.
        ledger: hands out the tickets.
        refusals: takes what is no picture.
        on_image: called with the stream and every picture.
        on_info: called with the stream and every calibration.
    """

    def __init__(
        self,
        node: Node,
        stream: str,
        *,
        settings: Settings,
        decode_rgb: ColourConverter,
        ledger: Ledger,
        refusals: Refusals,
        on_image: Callable[[str, int, Frame[CameraImage]], None],
        on_info: Callable[[str, CameraInfo], None],
    ):
        self._node = node
        self._stream = stream
        self._ledger = ledger
        self._refusals = refusals
        self._on_image = on_image
        self._on_info = on_info
        self._encoding = self._size = ""
        self._info_received = False
        self._qos = {"reliability": settings.qos_reliability, "depth": settings.qos_depth}
        self._transport = settings.transport[stream]
        self._reader: Reader = (
            CompressedReader(stream, max_pixels=settings.max_pixels)
            if self._transport == "compressed"
            else RawReader(stream, decode_rgb, max_pixels=settings.max_pixels)
        )
        self._topics = {name: transport_topic(node, f"{stream}/image_raw", name) for name in TRANSPORTS}
        self._image: AdaptiveSubscription | None = None
        self._info: AdaptiveSubscription | None = None

    def open(self) -> None:
        """Subscribe."""
        self._info = AdaptiveSubscription(
            self._node, CameraInfo, f"{self._stream}/camera_info", self._take_info, **self._qos
        )
        topic = self._topics[self._transport]
        self._image = AdaptiveSubscription(self._node, self._reader.message, topic, self._take_image, **self._qos)

    def update(self) -> None:
        """Follow the publishers; call it regularly."""
        self._image.update()
        self._info.update()

    def close(self) -> None:
        """Unsubscribe, also where `open` failed on the way."""
        for subscription in (self._image, self._info):
            if subscription is not None:
                subscription.close()

    def facts(
        self,
        *,
        counts: StreamCounts,
        since: StreamCounts,
        info_wanted: bool,
        info_misfit: str | None,
        condition: Condition,
    ) -> InputFacts:
        """What diagnostics say about this camera.

        Args:
            counts, since, info_misfit, condition: see `InputFacts`.
            info_wanted: somebody needs its calibration.
        """
        return InputFacts(
            stream=self._stream,
            topic=self._image.topic,
            publishers=len(self._image.publishers),
            publisher_names=", ".join(self._image.publishers),
            elsewhere=None if self._image.publishers else self._elsewhere(),
            reliability=self._image.reliability,
            incompatibility=self._image.incompatibility,
            counts=counts,
            since=since,
            malformed=self._refusals.last(self._stream),
            encoding=self._encoding,
            size=self._size,
            info_topic=self._info.topic,
            info_received=self._info_received,
            info_missed=info_wanted and not self._info_received,
            info_misfit=info_misfit,
            condition=condition,
        )

    def _elsewhere(self) -> str | None:
        """Where this camera's pictures are published instead, in words."""
        for transport, name in self._topics.items():
            topic = self._node.resolve_topic_name(name)
            if topic != self._image.topic and self._node.count_publishers(topic):
                return f"{topic} has one: set {self._stream}.transport to {transport}"
        return None

    def _take_image(self, message: Image | CompressedImage) -> None:
        ticket = self._ledger.receive(self._stream)
        try:
            image = self._reader.read(message)
        except MalformedImage as error:
            self._refusals.add(self._stream, ticket, error)
            return
        self._encoding, self._size = image.encoding, f"{image.width}x{image.height}"
        self._on_image(self._stream, stamp_nanoseconds(image.header.stamp), Frame(ticket, image, time.monotonic_ns()))

    def _take_info(self, message: CameraInfo) -> None:
        self._info_received = True
        self._on_info(self._stream, message)
