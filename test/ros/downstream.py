"""A consumer of the node's outputs as a detector would be, in a process of its own; run as a script by the tests.

Pairs fused/image, fused/camera_info, gate/image and fused/status of /fusion by exact stamp. Says `ready` once it knows
the publishers of all four; then, for every message, a line of JSON:
`{"topic": .., "stamp": ns, "frame_id": .., "first": first byte of a picture}`, and `{"complete": ns}` when a stamp has
all four.
"""

from __future__ import annotations

import json
import sys

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image

TOPICS = {"fused/image": Image, "fused/camera_info": CameraInfo, "gate/image": Image, "fused/status": DiagnosticArray}


class Downstream(Node):
    def __init__(self):
        super().__init__("downstream")
        self.found: dict[int, set[str]] = {}
        self.heard = [
            self.create_subscription(
                kind, f"/fusion/{topic}", lambda message, topic=topic: self.take(topic, message), QoSProfile(depth=10)
            )
            for topic, kind in TOPICS.items()
        ]
        self.looking = self.create_timer(0.05, self.look)

    def look(self):
        if all(subscription.get_publisher_count() for subscription in self.heard):
            self.looking.cancel()
            print("ready", flush=True)

    def take(self, topic, message):
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        first = int(message.data[0]) if isinstance(message, Image) else None
        say({"topic": topic, "stamp": stamp, "frame_id": message.header.frame_id, "first": first})
        topics = self.found.setdefault(stamp, set())
        topics.add(topic)
        if topics == set(TOPICS):
            say({"complete": stamp})


def say(line):
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    rclpy.init()
    executor = SingleThreadedExecutor()
    executor.add_node(Downstream())
    try:
        while rclpy.ok():  # not spin(): it can miss a signal that comes between two waits, and then waits for ever
            executor.spin_once(timeout_sec=0.5)
    except (KeyboardInterrupt, ExternalShutdownException):
        sys.exit(0)
