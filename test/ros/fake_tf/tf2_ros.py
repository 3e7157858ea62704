"""As much of tf2_ros as isfl_ros uses, for tests where no ROS distribution is: no chains of frames, no inversion, and the
topic carries bare geometry_msgs/TransformStamped.
"""

from __future__ import annotations

from geometry_msgs.msg import TransformStamped
from rclpy.qos import DurabilityPolicy, QoSProfile


class TransformException(Exception):
    pass


class Buffer:
    def __init__(self):
        self._known = {}

    def set_transform_static(self, message):
        self._known[message.header.frame_id, message.child_frame_id] = message

    def clear(self):
        """Forgets what moves; nothing here does."""

    def lookup_transform(self, target_frame, source_frame, time):
        assert time.nanoseconds == 0, "the latest"
        if (target_frame, source_frame) not in self._known:
            raise TransformException(f'"{target_frame}" passed to lookupTransform argument\ntarget_frame does not exist. ')
        return self._known[target_frame, source_frame]


class TransformListener:
    def __init__(self, buffer, node, *, spin_thread):
        assert not spin_thread
        self._node = node
        self._subscription = node.create_subscription(
            TransformStamped,
            "/tf_static",
            buffer.set_transform_static,
            QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        )

    def unregister(self):
        self._node.destroy_subscription(self._subscription)
