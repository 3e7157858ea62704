"""What the node publishes about a fused pair, each only where somebody listens."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.event_handler import PublisherEventCallbacks, QoSOfferedIncompatibleQoSInfo
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from isfl_ros.pipeline import FusionResult
from isfl_ros.ros.compressed import compressed_message, transport_topic
from isfl_ros.ros.messages import gate_pixels, image_message
from isfl_ros.ros.qos import Conflicts
from isfl_ros.visualization import overlay, side_by_side


@dataclass(frozen=True, kw_only=True)
class Output:
    """One topic of the node."""

    topic: str
    message: type
    shows_gate: bool = False
    """The gate, or what a model without gates shows in its place, has to be computed for it."""
    is_gate: bool = False
    """Makes no sense for a model without gates."""
    is_costly: bool = False
    """For people, and made for them alone: has a rate limit of its own."""
    is_compressed: bool = False
    """There only when it is asked for; its topic is that of the uncompressed one with a suffix."""


TABLE: dict[str, Output] = {
    "fused": Output(topic="~/fused/image", message=Image),
    "fused_compressed": Output(topic="~/fused/image", message=CompressedImage, is_compressed=True),
    "camera_info": Output(topic="~/fused/camera_info", message=CameraInfo),
    "gate": Output(topic="~/gate/image", message=Image, shows_gate=True, is_gate=True),
    "overlay": Output(topic="~/gate/overlay", message=Image, shows_gate=True, is_gate=True, is_costly=True),
    "status": Output(topic="~/fused/status", message=DiagnosticArray),
    "side_by_side": Output(topic="~/debug/side_by_side", message=Image, shows_gate=True, is_costly=True),
}

COSTLY = frozenset(name for name, output in TABLE.items() if output.is_costly)
"""Names of the outputs that `debug.max_rate_hz` limits."""


class Outputs:
    """The publishers of `TABLE`; reliable with depth 1, which `qos_overrides` parameters change.

    The worker publishes while the executor's thread makes and takes away the compressed one: a lock is between them.

    Args:
        node: its lifecycle switches the publishers on and off.
        gates: whether the model has gates; without, the gate topics do not exist.
        stand_in: whether a model without gates has something to show in their place side by side.
    """

    def __init__(self, node: LifecycleNode, *, gates: bool, stand_in: bool = False):
        self._node = node
        self._shows = gates or stand_in
        self._lock = threading.Lock()
        self._compression: str | None = None
        self._conflicts: dict[str, Conflicts] = {}
        self._publishers: dict[str, LifecyclePublisher] = {}
        for name, output in TABLE.items():
            if (gates or not output.is_gate) and not output.is_compressed:
                self._publishers[name] = self._advertise(name)

    def set_compressed(self, compression: str | None) -> None:
        """Compress ~/fused/image as well, as `jpeg` or `png`, or stop that (None); at any time."""
        with self._lock:
            self._compression = compression
            if compression is None:
                self._withdraw("fused_compressed")
            elif "fused_compressed" not in self._publishers:
                publisher = self._advertise("fused_compressed")
                if self._publishers["fused"].is_activated:
                    publisher.on_activate(None)
                self._publishers["fused_compressed"] = publisher

    def update(self) -> None:
        """Look for subscribers that cannot be reached; call it regularly."""
        for name, conflicts in self._conflicts.items():
            publisher = self._publishers[name]
            others = self._node.get_subscriptions_info_by_topic(publisher.topic_name)
            conflicts.update(publisher.qos_profile, others)

    def unreachable(self) -> str | None:
        """Offered and requested QoS in words, where subscribers cannot be reached; None where all can."""
        texts = [conflicts.text for conflicts in self._conflicts.values() if conflicts.text is not None]
        return "; ".join(texts) or None

    def wanted(self) -> frozenset[str]:
        """Names of the outputs that have a subscriber now."""
        with self._lock:
            return frozenset(name for name, p in self._publishers.items() if p.get_subscription_count() > 0)

    def needs_gate(self, wanted: frozenset[str]) -> bool:
        """Whether one of `wanted` shows the gate, or what a model without gates has in its place."""
        return self._shows and any(TABLE[name].shows_gate for name in wanted)

    def possible(self, result: FusionResult) -> frozenset[str]:
        """Names of the outputs for which `result` has what they show."""
        with self._lock:
            return frozenset(name for name in self._publishers if result.gate is not None or not TABLE[name].is_gate)

    def publish(
        self,
        wanted: frozenset[str],
        result: FusionResult,
        *,
        header: Header,
        output_encoding: str,
        gate_encoding: str,
        camera_info: CameraInfo | None,
        status: DiagnosticArray,
    ) -> None:
        """Publish the outputs named in `wanted`, all with the stamp and frame of `header`."""
        fused = result.luma if output_encoding == "mono8" else result.rgb
        if "fused" in wanted:
            self._publish("fused", image_message(fused, encoding=output_encoding, header=header))
        if "fused_compressed" in wanted and (compression := self._compression) is not None:
            packed = compressed_message(fused, encoding=output_encoding, header=header, format=compression)
            self._publish("fused_compressed", packed)
        if "camera_info" in wanted and camera_info is not None:
            info = copy.copy(camera_info)
            info.header = header
            self._publish("camera_info", info)
        if "status" in wanted:
            self._publish("status", status)
        if "gate" in wanted:
            pixels = gate_pixels(result.gate, gate_encoding)
            self._publish("gate", image_message(pixels, encoding=gate_encoding, header=header))
        if "overlay" in wanted:
            pixels = overlay(result.rgb, result.gate)
            self._publish("overlay", image_message(pixels, encoding="rgb8", header=header))
        if "side_by_side" in wanted:
            shown = result.entropy if result.gate is None else result.gate
            pixels = side_by_side(result.thermal8, result.visible8, result.rgb, shown)
            self._publish("side_by_side", image_message(pixels, encoding="rgb8", header=header))

    def close(self) -> None:
        """Take the topics away."""
        with self._lock:
            for name in list(self._publishers):
                self._withdraw(name)

    def _advertise(self, name: str) -> LifecyclePublisher:
        output = TABLE[name]
        topic = transport_topic(self._node, output.topic, "compressed" if output.is_compressed else "raw")
        conflicts = self._conflicts[name] = Conflicts(self._node.resolve_topic_name(topic), offers=True)

        def report(event: QoSOfferedIncompatibleQoSInfo) -> None:
            conflicts.report(event)
            self._node.get_logger().warning(f"{conflicts.text}: a subscriber gets nothing")

        return self._node.create_lifecycle_publisher(
            output.message,
            topic,
            QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            event_callbacks=PublisherEventCallbacks(incompatible_qos=report),
        )

    def _withdraw(self, name: str) -> None:
        publisher = self._publishers.pop(name, None)
        if publisher is not None:
            del self._conflicts[name]
            self._node.destroy_lifecycle_publisher(publisher)

    def _publish(self, name: str, message: Image | CompressedImage | CameraInfo | DiagnosticArray) -> None:
        with self._lock:
            publisher = self._publishers.get(name)  # the compressed one may be gone by now
            if publisher is not None:
                publisher.publish(message)
