"""``python -m isfl_ros.ros.soak.listener``: writes down what a fusion node says, and how long its input travels.

One JSON array a line, the kind first; times are nanoseconds of the system clock, which stamps and ages share:
``["ready", now]`` once it hears the node, ``["picture", heard, stamp]``, ``["status", heard, stamp, mode, age_ms]``,
``["input", heard, stamp]`` (the RGB camera's pictures), ``["report", heard, {entry: {key: value}}]`` (/diagnostics).

Pictures are not decoded: their stamp is at the beginning of the serialised message.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import Image

from isfl_ros.ros.messages import NANOSECONDS, stamp_nanoseconds

_DEPTH = 20


def serialised_stamp(message: bytes) -> int:
    """Stamp in nanoseconds of a serialised message that begins with a std_msgs/Header (CDR, either byte order)."""
    seconds, rest = struct.unpack_from("<iI" if message[1] & 1 else ">iI", message, 4)
    return seconds * NANOSECONDS + rest


class SoakListener(Node):
    """Subscribes to the outputs that a soak looks at, and to one input."""

    def __init__(self, options: argparse.Namespace, write):
        super().__init__("soak_listener")
        self._write = write
        self._node_name = options.node
        reliable = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        # not to slow the camera down where this process is late: the node alone may do that
        best_effort = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._heard = [
            self.create_subscription(Image, f"{options.node}/fused/image", self._on_picture, reliable, raw=True),
            self.create_subscription(DiagnosticArray, f"{options.node}/fused/status", self._on_status, reliable),
            self.create_subscription(DiagnosticArray, "/diagnostics", self._on_report, reliable),
        ]
        self.create_subscription(Image, options.input, self._on_input, best_effort, raw=True)
        self._waiting = self.create_timer(0.1, self._look)

    def _look(self) -> None:
        if all(subscription.get_publisher_count() for subscription in self._heard):
            self._waiting.cancel()
            self._write(["ready", time.time_ns()])

    def _on_picture(self, message: bytes) -> None:
        self._write(["picture", time.time_ns(), serialised_stamp(message)])

    def _on_input(self, message: bytes) -> None:
        self._write(["input", time.time_ns(), serialised_stamp(message)])

    def _on_status(self, message: DiagnosticArray) -> None:
        values = {value.key: value.value for value in message.status[0].values}
        stamp_ns = stamp_nanoseconds(message.header.stamp)
        self._write(["status", time.time_ns(), stamp_ns, values["mode"], float(values["age_ms"])])

    def _on_report(self, message: DiagnosticArray) -> None:
        entries = {
            entry.name: {value.key: value.value for value in entry.values} | {"message": entry.message}
            for entry in message.status
            if entry.hardware_id == self._node_name
        }
        if entries:
            self._write(["report", time.time_ns(), entries])


def main(args: list[str] | None = None) -> int:
    """Listens until SIGINT."""
    argv = sys.argv if args is None else ["soak_listener", *args]
    parser = argparse.ArgumentParser(
        prog="python -m isfl_ros.ros.soak.listener", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--node", default="/fusion", help="full name of the node (default: %(default)s)")
    parser.add_argument("--input", default="/rgb/image_raw", help="topic of the RGB camera (default: %(default)s)")
    parser.add_argument("--out", required=True, help="file to write")
    options = parser.parse_args(remove_ros_args(argv)[1:])
    rclpy.init(args=argv)
    # a line at a time: somebody reads along
    with open(options.out, "w", buffering=1, encoding="utf-8") as file:
        node = SoakListener(options, lambda line: file.write(json.dumps(line) + "\n"))
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            executor.spin()
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        finally:
            rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
