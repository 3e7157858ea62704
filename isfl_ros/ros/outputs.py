"""What the node publishes about a fused pair, each only where somebody listens."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from isfl_ros.pipeline import FusionResult
from isfl_ros.ros.messages import gate_pixels, image_message
from isfl_ros.visualization import overlay, side_by_side


@dataclass(frozen=True, kw_only=True)
class Output:
    """One topic of the node."""

    topic: str
    message: type
    shows_gate: bool = False
    """The gate has to be computed for it."""
    is_gate: bool = False
    """Makes no sense for a model without gates."""


TABLE: dict[str, Output] = {
    "fused": Output(topic="~/fused/image", message=Image),
    "camera_info": Output(topic="~/fused/camera_info", message=CameraInfo),
    "gate": Output(topic="~/gate/image", message=Image, shows_gate=True, is_gate=True),
    "overlay": Output(topic="~/gate/overlay", message=Image, shows_gate=True, is_gate=True),
    "status": Output(topic="~/fused/status", message=DiagnosticArray),
    "side_by_side": Output(topic="~/debug/side_by_side", message=Image, shows_gate=True),
}


class Outputs:
    """The publishers of `TABLE`; reliable with depth 1, which `qos_overrides` parameters change.

    Args:
        node: its lifecycle switches the publishers on and off.
        gates: whether the model has gates; without, the gate topics do not exist.
    """

    def __init__(self, node: LifecycleNode, *, gates: bool):
        self._node = node
        self._gates = gates
        self._publishers = {
            name: node.create_lifecycle_publisher(
                output.message,
                output.topic,
                QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for name, output in TABLE.items()
            if gates or not output.is_gate
        }

    def wanted(self) -> frozenset[str]:
        """Names of the outputs that have a subscriber now."""
        return frozenset(name for name, p in self._publishers.items() if p.get_subscription_count() > 0)

    def needs_gate(self, wanted: frozenset[str]) -> bool:
        """Whether one of `wanted` shows the gate."""
        return self._gates and any(TABLE[name].shows_gate for name in wanted)

    def possible(self, result: FusionResult) -> frozenset[str]:
        """Names of the outputs for which `result` has what they show."""
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
        if "fused" in wanted:
            pixels = result.luma if output_encoding == "mono8" else result.rgb
            self._publish("fused", image_message(pixels, encoding=output_encoding, header=header))
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
            pixels = side_by_side(result.thermal8, result.visible8, result.rgb, result.gate)
            self._publish("side_by_side", image_message(pixels, encoding="rgb8", header=header))

    def close(self) -> None:
        """Take the topics away."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def _publish(self, name: str, message: Image | CameraInfo | DiagnosticArray) -> None:
        self._publishers[name].publish(message)
