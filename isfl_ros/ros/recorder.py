"""``fusion_recorder``: records what the fusion node publishes and checks it against the reference camera's stamps.

Writes into ``--out``: ``fused.mp4`` (thermal, RGB, fused and gate side by side), ``sheet.png``, ``record.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, Image

from isfl_ros.io.folders import write_png
from isfl_ros.io.staging import write_bytes
from isfl_ros.ros.messages import NANOSECONDS, decode_rgb, stamp_nanoseconds
from isfl_ros.visualization import captioned

_DEPTH = 20
_PANELS = ("thermal", "rgb", "fused", "gate")
_SHEET_ROWS = 6
_SHEET_PANEL_WIDTH = 400
_KEPT = 4 * _SHEET_ROWS
# Outputs besides the fused picture whose stamps must be the fused picture's, by topic below the node's name.
_COMPANIONS = ("fused/camera_info", "gate/image", "gate/overlay", "fused/status", "debug/side_by_side")


class Thinned:
    """At most ``most`` items spread evenly over a stream of unknown length."""

    def __init__(self, most: int):
        self.items: list = []
        self._most, self._stride, self._seen = most, 1, 0

    def offer(self, item) -> None:
        """Takes every ``stride``-th item; when full, every other one goes and the stride doubles."""
        if self._seen % self._stride == 0:
            self.items.append(item)
            if len(self.items) > self._most:
                self.items = self.items[::2]
                self._stride *= 2
        self._seen += 1

    def evenly(self, count: int) -> list:
        """``count`` of the kept items, first and last among them."""
        if len(self.items) <= count:
            return list(self.items)
        return [self.items[round(i)] for i in np.linspace(0, len(self.items) - 1, count)]


class Video:
    """Frames of any size into one MP4: the first decides the size, others are fitted in with black borders."""

    def __init__(self, path: Path, rate_hz: float):
        self._path, self._rate = path, rate_hz
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, rgb: np.ndarray) -> None:
        if self._writer is None:
            self._size = (rgb.shape[1], rgb.shape[0])
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter_fourcc(*"mp4v"), self._rate, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self._path} cannot be written as a video")
        self._writer.write(cv2.cvtColor(fit(rgb, *self._size), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


class FusionRecorder(Node):
    """Subscribes to every output of one fusion node and to the reference camera's camera_info."""

    def __init__(self, options: argparse.Namespace):
        super().__init__("fusion_recorder")
        self._options = options
        self._out = Path(options.out)
        self._out.mkdir(parents=True, exist_ok=True)
        self._video = Video(self._out / "fused.mp4", options.rate)
        self._kept = Thinned(_KEPT)
        self._reference: dict[int, str] = {}  # stamp -> frame_id
        self._fused: dict[int, str] = {}
        self._age_ms: list[float] = []
        self._companions: dict[str, dict[int, str]] = {name: {} for name in _COMPANIONS}
        self._modes: Counter[str] = Counter()
        self._diagnostics: dict[str, dict[str, str]] = {}
        qos = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        self._qos = qos

        def subscribe(kind, name, callback):
            self.create_subscription(kind, f"{options.node}/{name}", callback, qos)

        subscribe(Image, "fused/image", self._on_fused)
        subscribe(CameraInfo, "fused/camera_info", lambda m: self._companion("fused/camera_info", m.header))
        subscribe(Image, "gate/image", lambda m: self._companion("gate/image", m.header))
        subscribe(Image, "gate/overlay", lambda m: self._companion("gate/overlay", m.header))
        subscribe(DiagnosticArray, "fused/status", self._on_status)
        subscribe(Image, "debug/side_by_side", self._on_side_by_side)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos)
        self._reference_subscription = None
        # The player waits for this subscription, so it is made only once the node's outputs are there to be heard.
        self._waiting = self.create_timer(0.1, self._subscribe_to_reference)

    def finish(self) -> None:
        """Writes what was recorded."""
        self._video.close()
        rows = self._kept.evenly(_SHEET_ROWS)
        if rows:
            write_png(self._out / "sheet.png", sheet(rows))
        stray = sorted(set(self._fused) - set(self._reference))
        foreign = [s for s, frame in self._fused.items() if self._reference.get(s, frame) != frame]
        document = {
            "fused": len(self._fused),
            "age_ms": self._age_ms,
            "modes": dict(self._modes),
            "stamps_not_of_the_reference": stray,
            "frame_ids_not_of_the_reference": foreign,
            "companions": {
                name: {
                    "received": len(found),
                    "missing": len(set(self._fused) - set(found)),
                    "without_fused": len(set(found) - set(self._fused)),
                    "other_frame_id": sum(self._fused.get(s, f) != f for s, f in found.items()),
                }
                for name, found in self._companions.items()
            },
            "diagnostics": self._diagnostics,
        }
        write_bytes(self._out / "record.json", json.dumps(document, indent=2).encode())

    def _subscribe_to_reference(self) -> None:
        if self.count_publishers(f"{self._options.node}/fused/image") == 0:
            return
        self._waiting.cancel()
        self._reference_subscription = self.create_subscription(
            CameraInfo, self._options.reference_info, self._on_reference, self._qos
        )

    def _on_reference(self, message: CameraInfo) -> None:
        self._reference[stamp_nanoseconds(message.header.stamp)] = message.header.frame_id

    def _on_fused(self, message: Image) -> None:
        stamp = stamp_nanoseconds(message.header.stamp)
        self._fused[stamp] = message.header.frame_id
        self._age_ms.append((self.get_clock().now().nanoseconds - stamp) / NANOSECONDS * 1e3)

    def _companion(self, name: str, header) -> None:
        self._companions[name][stamp_nanoseconds(header.stamp)] = header.frame_id

    def _on_status(self, message: DiagnosticArray) -> None:
        # A status array has no frame of its own: it stands for the picture of its stamp.
        stamp = stamp_nanoseconds(message.header.stamp)
        self._companions["fused/status"][stamp] = self._fused.get(stamp, message.header.frame_id)
        for status in message.status:
            for item in status.values:
                if item.key == "mode":
                    self._modes[item.value] += 1

    def _on_side_by_side(self, message: Image) -> None:
        self._companion("debug/side_by_side", message.header)
        picture = decode_rgb(message)
        self._video.write(picture)
        self._kept.offer(picture)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        ours = [status for status in message.status if status.name.startswith("fusion:")]
        for status in ours:
            self._diagnostics[status.name] = {"message": status.message, **{v.key: v.value for v in status.values}}
        if ours:  # one line a tick for whoever runs this program
            print(json.dumps({"recorded": len(self._fused), "diagnostics": self._diagnostics}), flush=True)


def sheet(pictures: list[np.ndarray]) -> np.ndarray:
    """Picture sheet: one row a moment, one column a panel of the side-by-side pictures (2H, 2W, 3) uint8."""
    rows = []
    for index, picture in enumerate(pictures):
        h, w = picture.shape[0] // 2, picture.shape[1] // 2
        panels = [picture[y : y + h, x : x + w] for y in (0, h) for x in (0, w)]
        height = round(_SHEET_PANEL_WIDTH * h / w)
        panels = [cv2.resize(p, (_SHEET_PANEL_WIDTH, height), interpolation=cv2.INTER_AREA) for p in panels]
        if index == 0:
            panels = [captioned(p, name) for p, name in zip(panels, _PANELS)]
        rows.append(np.hstack(panels))
    return np.vstack(rows)


def fit(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scales (h, w, 3) uint8 into (height, width, 3), proportions kept, black around it."""
    if rgb.shape[:2] == (height, width):
        return rgb
    factor = min(width / rgb.shape[1], height / rgb.shape[0])
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    out = np.zeros((height, width, 3), np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    out[top : top + size[1], left : left + size[0]] = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return out


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Arguments after those of ROS were taken out."""
    parser = argparse.ArgumentParser(prog="fusion_recorder", description="Records what a fusion node publishes.")
    parser.add_argument("--out", required=True, help="folder to write into")
    parser.add_argument("--rate", type=float, default=10.0, help="frames a second of the video (default: %(default)s)")
    parser.add_argument("--node", default="/fusion", help="full name of the fusion node (default: %(default)s)")
    parser.add_argument("--reference-info", default="rgb/camera_info", help="camera_info of the reference (default: %(default)s)")
    return parser.parse_args(argv)


def main(args: list[str] | None = None) -> int:
    """Records until SIGINT or SIGTERM, then writes; returns the exit status."""
    argv = sys.argv if args is None else ["fusion_recorder", *args]
    options = parse_arguments(remove_ros_args(argv)[1:])
    rclpy.init(args=argv)
    recorder = FusionRecorder(options)
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        recorder.finish()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
