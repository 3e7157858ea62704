"""Two cameras that do what they are told at a steady rate, and a check of every picture that the node makes of it.

The node runs with the fake pipeline and FAKE_PICTURE=mixed: red and green of a fused picture are those of the RGB
picture, blue is the thermal one, and zeros stand for a camera that was left out. So each picture shows whether it is
what its status says.
"""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image

STREAMS = ("thermal", "rgb")
FOCAL = {"thermal": 100.0, "rgb": 200.0}
LEVELS = {"OK": b"\x00", "WARN": b"\x01", "ERROR": b"\x02", "STALE": b"\x03"}
LONG = 30.0

PERIOD_NS = 50_000_000
ONE_SECOND = 10**9 // PERIOD_NS
"""Good pairs that a node may take to show one of them."""

OUTPUTS = {"fused/image": Image, "fused/status": DiagnosticArray, "fused/camera_info": CameraInfo}

NODE_PARAMETERS = {
    "sync.slop_ms": 20.0,  # neighbours are 50 ms apart: a pair is made of messages of one tick, or of none
    **{f"qos_overrides./fusion/{topic}.publisher.depth": 50 for topic in OUTPUTS},  # here, none of them is lost
}

NORMAL = {
    "degraded.mode": "single",
    "degraded.timeout_ms": 60_000.0,
    "degraded.identical_bytes": False,
    "sync.slop_ms": 20.0,
    "sync.thermal_offset_ms": 0.0,
    "output.encoding": "rgb8",
    "gate.encoding": "mono8",
    "agc.mode": "percentile",
    "agc.low": 0.0,
    "agc.high_percentile": 99.0,
    "agc.time_constant_s": 1.0,
}
"""Live parameters as every row finds them."""


@dataclass(frozen=True)
class Sent:
    """A message, and what the fake pipeline makes of its pixels; None where it must never be shown."""

    message: Image
    pixels: np.ndarray | None


@dataclass(frozen=True)
class Shot:
    """A camera at the moment when it is about to send."""

    stream: str
    stamp: int
    pixels: np.ndarray
    """A new picture."""
    last_stamp: int
    """Of its last message that was shown or could be."""
    last_pixels: np.ndarray

    def take(self, *, stamp: int | None = None, pixels: np.ndarray | None = None, shown=True, **fields) -> Sent:
        """A message: good, but for what is given.

        Args:
            stamp: instead of the new one.
            pixels: instead of the new ones.
            shown: what the pipeline makes of its pixels, True where it is the pixels themselves, None for nothing.
            **fields: of the message, changed after it was made.
        """
        pixels = self.pixels if pixels is None else pixels
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        message = Image(width=pixels.shape[1], height=pixels.shape[0], encoding="rgb8" if channels == 3 else "mono8")
        message.step = pixels.shape[1] * channels * pixels.itemsize
        message.data = array("B", np.ascontiguousarray(pixels).tobytes())
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.stamp if stamp is None else stamp, 10**9)
        message.header.frame_id = f"{self.stream}_optical"
        for name, value in fields.items():
            setattr(message, name, value)
        return Sent(message, pixels if shown is True else shown)


Behaviour = Callable[[Shot], Iterable[Sent]]

BEHAVIOURS: dict[str, Behaviour] = {
    "good": lambda shot: [shot.take()],
    "silent": lambda shot: [],
    "old stamp": lambda shot: [shot.take(stamp=shot.last_stamp, shown=None)],
    "old picture": lambda shot: [shot.take(pixels=shot.last_pixels)],
}


@dataclass(frozen=True)
class Picture:
    """What the node published at one time."""

    at: float
    """When it came; monotonic clock."""
    stamp: int
    frame_id: str
    mode: str
    valid: dict[str, float]
    pixels: np.ndarray
    tick: int
    """When the messages were sent that it was made from."""


def pattern(stream: str, number: int, width: int, height: int) -> np.ndarray:
    """A picture unlike those before and after it; its first pixel means nothing to the fake pipeline."""
    shape = (height, width) if stream == "thermal" else (height, width, 3)
    pixels = (np.arange(np.prod(shape), dtype=np.uint32).reshape(shape) // 7 + 5 * number).astype(np.uint8)
    pixels[0, 0] = 20 + number % 200
    return pixels


def stamp_of(header) -> int:
    return header.stamp.sec * 10**9 + header.stamp.nanosec


class Rig:
    """Cameras and a listener around one node.

    Args:
        node: the process.
        client: in its domain.
        reference: as the parameter of the node.
    """

    def __init__(self, node, client, *, reference: str = "rgb"):
        self.node, self.client, self.reference = node, client, reference
        self.size = client.WIDTH, client.HEIGHT
        """Width and height of the cameras."""
        self._ahead_ns = 0
        self.order = STREAMS
        """Which camera sends first in each tick."""
        self.publishers: dict[str, Publisher] = {}
        self._tick = 0
        self._stamp = client.stamp_ns
        self._known = {**NORMAL}
        self._settled: dict | None = None
        self._last: dict[str, tuple[int, np.ndarray]] = {}
        self._service = client.node.create_client(SetParameters, "/fusion/set_parameters")
        self._pictures: list[Picture] = []
        self._forget()

    # rows

    def reset(self) -> None:
        """What every row starts from: cameras that are good, parameters that are known, nothing under way."""
        self._restore()
        if self._settled is None:
            if not self.publishers:
                self.connect()
                self.listen()
            # a row that failed may have left anything behind
            self.run(3)
            self.client.settled()
            self._forget()
            self.recover()
            self._settled = self.client.settled()
        self._forget()
        self._before, self._settled = self._counts(self._settled), None

    def finish(self) -> list[Picture]:
        """End a row: good input is shown within a second, nothing is wrong any more, every message and picture is
        accounted for.

        Returns:
            Every picture of the row.
        """
        assert self.node.process.poll() is None, self.node.output
        self._restore()
        self.recover()
        self.until_well()
        report = self.client.poll(self._all_is_here, 0.5) or self.client.settled()
        pictures = self.pictures()
        self._check_accounts(report)
        self._check_pictures(pictures)
        assert "Traceback" not in self.node.output
        self._settled = report
        return pictures

    def recover(self) -> None:
        """Send good pairs until one is shown as a pair: one of the first second."""
        first, started = self._tick + 1, time.monotonic()

        def shown():
            return next((p for p in self.pictures() if p.mode == "pair" and p.tick >= first), None)

        for _ in range(ONE_SECOND):
            self.run(1)
            if shown():
                break
        picture = self.client.wait(shown, f"one of {ONE_SECOND} good pairs")
        self.recovery = self.recovery or (picture.tick - first, picture.at - started)

    def until_well(self) -> dict:
        """The first report from now on in which nothing is wrong."""
        start = len(self.client.reports)

        def look():
            return next((report for report in self.client.reports[start:] if self._is_well(report)), None)

        return self.until(look, "a node that has nothing to say")

    def _restore(self) -> None:
        self.set(NORMAL)
        self.ahead_ns, self.size = 0, (self.client.WIDTH, self.client.HEIGHT)
        self.order = STREAMS

    def _forget(self) -> None:
        self.recovery: tuple[int, float] | None = None
        """Of the first `recover` in this row: good pairs before the first that was shown, and seconds from sending the
        first of them to seeing that one."""
        self.sent = dict.fromkeys(STREAMS, 0)
        self._originals: dict[str, dict[int, tuple[int, np.ndarray]]] = {stream: {} for stream in STREAMS}
        """Stamp as it is published -> tick, pixels."""
        self._ticks: dict[str, dict[int, np.ndarray]] = {stream: {} for stream in STREAMS}
        self._received: dict[str, list] = {topic: [] for topic in OUTPUTS}
        self._last_stamp = self._pictures[-1].stamp if self._pictures else None
        self._pictures = []
        self._jumps = 0
        self.frame_ids = {f"{self.reference}_optical"}
        """That pictures may carry."""

    @staticmethod
    def _is_well(report: dict) -> bool:
        # of a machine that stalled, it may say that it was slower than the cameras
        return all(level == LEVELS["OK"] and said.startswith("OK") for level, said, _ in report.values())

    def _all_is_here(self) -> dict | None:
        """The last report, if nothing that was sent can come any more."""
        report = self.client.reports[-1]
        for stream, (received, fused, pending, _) in self._counts(report).items():
            gained, shown = received - self._before[stream][0], fused - self._before[stream][1]
            if pending or gained != self.sent[stream] or shown != self._shown(stream):
                return None
        return report

    def _shown(self, stream: str) -> int:
        """How many of its messages are in pictures of this row."""
        return sum(picture.mode in ("pair", f"{stream}_only") for picture in self.pictures())

    def _counts(self, report: dict) -> dict[str, tuple]:
        return {stream: self.client.counts(report, stream) for stream in STREAMS}

    def _check_accounts(self, report: dict) -> None:
        """Every message met one fate, and whatever counts as fused was shown."""
        for stream, (received, fused, pending, dropped) in self._counts(report).items():
            assert pending == 0 and received == fused + sum(dropped.values()), (stream, received, fused, dropped)
            before = self._before[stream]
            # what a machine that stalls loses on the way to the callback is not the node's to count
            assert 0 < received - before[0] <= self.sent[stream], stream
            assert fused - before[1] == self._shown(stream), (stream, dropped)

    def _check_pictures(self, pictures: list[Picture]) -> None:
        """Each is what its status says, and none is older than the one before, but for time jumps and held ones."""
        last, backwards = None, 0
        for picture in pictures:
            assert picture.frame_id in self.frame_ids
            if picture.mode == "held":
                assert picture.stamp == last.stamp, "a held picture keeps its stamp"
                np.testing.assert_array_equal(picture.pixels, last.pixels)
                continue
            alone = {"thermal_only": "thermal", "rgb_only": "rgb"}.get(picture.mode)
            expected = np.zeros_like(picture.pixels)
            if alone != "thermal":
                expected[..., :2] = self._ticks["rgb"][picture.tick][..., :2]
            if alone != "rgb":
                expected[..., 2] = self._ticks["thermal"][picture.tick]
            np.testing.assert_array_equal(picture.pixels, expected, f"{picture.mode} of tick {picture.tick}")
            assert alone != "rgb" or picture.valid["thermal"] == 0.0
            assert picture.valid["rgb"] == float(alone != "thermal")
            backwards += last is not None and picture.stamp <= last.stamp
            last = picture
        assert backwards <= self._jumps, "pictures went back in time"
        shown = {picture.stamp: (picture.frame_id, picture.pixels.shape) for picture in pictures}
        for _, info in self._received["fused/camera_info"]:
            if stamp_of(info.header) == self._last_stamp:
                continue  # of the last picture of the row before
            assert (info.k[0], info.header.frame_id) == (FOCAL[self.reference], f"{self.reference}_optical")
            assert shown[stamp_of(info.header)] == (info.header.frame_id, (info.height, info.width, 3))

    def end_under_load(self, number: int) -> None:
        """End the node with a signal, again and again, while it fuses one pair, another waits, and more keep coming."""

        def slow(shot: Shot) -> list[Sent]:
            pixels = shot.pixels.copy()
            pixels[0, 0] = 14
            return [shot.take(pixels=pixels)]

        def ended() -> bool:
            # a terminal and a launcher may both pass on the same key stroke, and users press it twice
            self.node.process.send_signal(number)
            return self.node.process.poll() is not None

        self.run(4, thermal=slow)
        self.until(ended, "the end of the node", thermal=slow)
        assert self.node.process.returncode == 0
        assert "Traceback" not in self.node.output and "left at once" not in self.node.output

    # the node

    def set(self, parameters: dict | None = None, **more) -> None:
        """Change parameters at once; `degraded_mode` is short for `degraded.mode`."""
        wanted = {**(parameters or {}), **{name.replace("_", ".", 1): value for name, value in more.items()}}
        changed = {name: value for name, value in wanted.items() if self._known.get(name) != value}
        if not changed:
            return
        self.client.wait(self._service.service_is_ready, "the parameter service")
        future = self.request(changed)
        self.client.wait(future.done, "an answer of the parameter service")
        assert all(result.successful for result in future.result().results), future.result()
        self._known.update(changed)

    def request(self, parameters: dict) -> Future:
        """Ask for a change of parameters, whatever comes of it: the answer, which may take a while."""
        for name in parameters:
            self._known.pop(name, None)
        values = [Parameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
        return self._service.call_async(SetParameters.Request(parameters=values))

    def says(self, entry: str, level: str, text: str, **behaviours) -> dict:
        """The first report from now on whose entry has this level and this text (a regular expression)."""
        start = len(self.client.reports)

        def look():
            return next((r for r in self.client.reports[start:] if self.entry(r, entry, level, text)), None)

        return self.until(look, f"{entry} {level} {text!r}", **behaviours)

    @staticmethod
    def entry(report: dict, entry: str, level: str, text: str) -> bool:
        """Whether an entry of a report has this level and this text (a regular expression)."""
        found = report[f"fusion: {entry}"]
        return found[0] == LEVELS[level] and re.fullmatch(text, found[1]) is not None

    def dropped(self, report: dict | None = None) -> dict[str, dict[str, int]]:
        """What was dropped in this row, by stream and reason; up to the last report by default."""
        counts = self._counts(report or self.client.reports[-1])
        gained = {
            stream: {reason: count - self._before[stream][3].get(reason, 0) for reason, count in row[3].items()}
            for stream, row in counts.items()
        }
        return {stream: {reason: count for reason, count in row.items() if count} for stream, row in gained.items()}

    def check_dropped(self, *reasons: str) -> None:
        """Nothing was dropped in this row but for these reasons, and where the machine was too slow."""
        counts = self._counts(self.client.reports[-1])
        lost = any(counts[stream][0] - self._before[stream][0] < self.sent[stream] for stream in STREAMS)
        excused = {"superseded", *(["unmatched"] if lost else [])}
        for stream, row in self.dropped().items():
            assert set(row) <= {*reasons, *excused}, (stream, row)

    def pictures(self) -> list[Picture]:
        """Every picture of this row so far."""
        images, statuses = self._received["fused/image"], self._received["fused/status"]
        done = len(self._pictures)
        for (at, image), (_, status) in zip(images[done:], statuses[done:]):
            stamp = stamp_of(image.header)
            assert stamp == stamp_of(status.header) and image.encoding == "rgb8"
            values = {value.key: value.value for value in status.status[0].values}
            mode = values["mode"]
            # of a pair it also warns when it came late, as on a machine that stalled
            assert mode == "pair" or status.status[0].level == LEVELS["WARN"]
            if mode == "held":
                tick = self._pictures[-1].tick
            else:
                stream = mode.removesuffix("_only") if mode.endswith("_only") else self.reference
                tick, _ = self._originals[stream][stamp]
            self._pictures.append(
                Picture(
                    at=at,
                    stamp=stamp,
                    frame_id=image.header.frame_id,
                    mode=mode,
                    valid={stream: float(values[f"valid_fraction.{stream}"]) for stream in STREAMS},
                    pixels=np.array(image.data, np.uint8).reshape(image.height, image.width, 3),
                    tick=tick,
                )
            )
        return self._pictures

    def listen(self) -> None:
        """Subscribe to the outputs, and wait until the node knows it."""
        for topic, kind in OUTPUTS.items():
            self.client.subscriptions[topic] = self.client.node.create_subscription(
                kind,
                f"/fusion/{topic}",
                lambda message, topic=topic: self._received[topic].append((time.monotonic(), message)),
                50,
            )
        self.until(lambda: all(self._received.values()), "a picture, its status and its calibration")
        # the first picture can have come without its status
        self.client.settled()
        self._forget()

    # cameras

    def connect(self, *, reliability: str = "RELIABLE", streams: Iterable[str] = STREAMS) -> None:
        """Advertise cameras, and wait until the node has subscribed to them with what they offer."""
        self.advertise(reliability=reliability, streams=streams)

        def matched(report):
            inputs = [report[f"fusion: input {stream}"][2] for stream in streams]
            return all(row.get("reliability") == reliability.lower() and row["publishers"] == "1" for row in inputs)

        self.client.wait_report(matched, "subscriptions that follow the cameras")
        self.client.wait(lambda: all(self.subscribers(stream) for stream in streams), "subscriptions of the node")

    def advertise(self, *, reliability: str = "RELIABLE", streams: Iterable[str] = STREAMS) -> None:
        """Advertise cameras."""
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy[reliability])
        for stream in streams:
            for name, kind in (("image_raw", Image), ("camera_info", CameraInfo)):
                topic = f"{stream}/{name}"
                self.publishers[topic] = self.client.node.create_publisher(kind, f"/{topic}", qos)

    def withdraw(self, *, streams: Iterable[str] = STREAMS) -> None:
        """Take cameras out of the graph."""
        for stream in streams:
            for name in ("image_raw", "camera_info"):
                self.client.node.destroy_publisher(self.publishers.pop(f"{stream}/{name}"))

    def subscribers(self, stream: str) -> bool:
        """Whether the node listens to this camera."""
        topics = [f"{stream}/{name}" for name in ("image_raw", "camera_info")]
        return all(self.publishers[topic].get_subscription_count() == 1 for topic in topics)

    @property
    def ahead_ns(self) -> int:
        """How far the clock of the thermal camera is ahead."""
        return self._ahead_ns

    @ahead_ns.setter
    def ahead_ns(self, value: int) -> None:
        self._jumps += value < self._ahead_ns and self.reference == "thermal"
        self._ahead_ns = value

    @property
    def stamp_ns(self) -> int:
        """The clock of the RGB camera."""
        return self._stamp

    def jump(self, seconds: float) -> None:
        """Set the clocks of both cameras forward, or back."""
        # never onto a stamp that was there before
        self._stamp += round(seconds * 1e9) + 1
        self._jumps += seconds < 0

    def until(self, condition: Callable[[], object], what: str, **behaviours):
        """What `condition` returns once that is true; the cameras go on."""
        deadline = time.monotonic() + LONG
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {LONG} s for {what}; last report: {self.client.reports[-1:]}"
            self.run(1, **behaviours)
        return value

    def run(self, ticks: int, **behaviours: str | Behaviour) -> None:
        """Let the cameras do something this many times; what is not named is good."""
        for _ in range(ticks):
            started = time.monotonic()
            for stream, sent in self._shoot(behaviours):
                self.send(stream, sent)
            # when the machine stalled, nothing is made up for: no burst
            while (left := started + PERIOD_NS * 1e-9 - time.monotonic()) > 0:
                self.client.executor.spin_once(timeout_sec=left)

    def send(self, stream: str, sent: Sent) -> None:
        """Publish a message, after its calibration."""
        message = sent.message
        if sent.pixels is not None:
            stamp = stamp_of(message.header)
            self._originals[stream].setdefault(self._published_stamp(stream, stamp), (self._tick, sent.pixels))
            self._ticks[stream].setdefault(self._tick, sent.pixels)
            self._last[stream] = stamp, sent.pixels
        info = CameraInfo(header=message.header, width=self.size[0], height=self.size[1])
        info.k[0] = FOCAL[stream]
        self.publishers[f"{stream}/camera_info"].publish(info)
        self.publishers[f"{stream}/image_raw"].publish(message)
        self.sent[stream] += 1

    def _published_stamp(self, stream: str, stamp: int) -> int:
        """On the clock of the reference camera."""
        if stream == self.reference:
            return stamp
        offset = round(self._known.get("sync.thermal_offset_ms", 0.0) * 1e6)
        return stamp + offset if stream == "thermal" else stamp - offset

    def _shoot(self, behaviours: dict[str, str | Behaviour]) -> Iterator[tuple[str, Sent]]:
        self._tick += 1
        self._stamp += PERIOD_NS
        for stream in self.order:
            what = behaviours.get(stream, "good")
            stamp = self._stamp + (self.ahead_ns if stream == "thermal" else 0)
            pixels = pattern(stream, self._tick, *self.size)
            last_stamp, last_pixels = self._last.get(stream, (stamp, pixels))
            act = what if callable(what) else BEHAVIOURS[what]
            for sent in act(Shot(stream, stamp, pixels, last_stamp, last_pixels)):
                yield stream, sent
