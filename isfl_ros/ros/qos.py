"""Subscriptions whose reliability follows their publishers.

A best-effort subscription loses most large images on a default Fast DDS; a reliable one gets nothing from a best-effort
camera. So `auto` asks for reliable when every publisher of the topic offers it, and for best effort otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

RELIABILITY_CHOICES = ("auto", "reliable", "best_effort")


def choose_reliability(
    requested: str, offered: Sequence[ReliabilityPolicy], current: ReliabilityPolicy | None
) -> ReliabilityPolicy:
    """What to subscribe with.

    Args:
        requested: one of `RELIABILITY_CHOICES`.
        offered: what each known publisher of the topic offers.
        current: what the subscription has now; stays while no publisher is known. None before the first one.
    """
    if requested != "auto":
        return ReliabilityPolicy[requested.upper()]
    if not offered:
        return ReliabilityPolicy.BEST_EFFORT if current is None else current
    reliable = all(policy == ReliabilityPolicy.RELIABLE for policy in offered)
    return ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT


class AdaptiveSubscription:
    """A subscription that is made anew whenever `choose_reliability` says something else. Call `update` regularly.

    Args:
        node: the node that subscribes.
        message_type, topic, callback: as for `Node.create_subscription`.
        reliability: one of `RELIABILITY_CHOICES`.
        depth: queue depth.
    """

    def __init__(
        self, node: Node, message_type: type, topic: str, callback: Callable, *, reliability: str, depth: int
    ):
        self.topic = node.resolve_topic_name(topic)
        self.incompatible: str | None = None
        """The last policy over which a publisher and this subscription disagreed, by name."""
        self._node = node
        self._requested = reliability
        self._depth = depth
        self._arguments = (message_type, topic, callback)
        self._subscription: Subscription | None = None
        self._publishers: list[TopicEndpointInfo] = []
        self.update()

    @property
    def publishers(self) -> int:
        """Publishers of the topic at the last update."""
        return len(self._publishers)

    @property
    def reliability(self) -> str:
        """What the subscription asks for now, in lower case."""
        return self._subscription.qos_profile.reliability.name.lower()

    def update(self) -> None:
        """Look at the publishers, and subscribe anew if that changes the choice."""
        self._publishers = self._node.get_publishers_info_by_topic(self.topic)
        offered = [publisher.qos_profile.reliability for publisher in self._publishers]
        current = None if self._subscription is None else self._subscription.qos_profile.reliability
        chosen = choose_reliability(self._requested, offered, current)
        if current is not None and all(reliability == current for reliability in offered):
            self.incompatible = None  # whoever did not fit has gone or changed
        if chosen == current:
            return
        self.close()
        self._subscription = self._node.create_subscription(
            *self._arguments,
            QoSProfile(depth=self._depth, reliability=chosen),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
        )

    def incompatibility(self) -> str | None:
        """Requested and offered QoS in words, where a publisher cannot reach this subscription; None where all can."""
        if self.incompatible is None:
            return None
        field = self.incompatible
        requested = getattr(self._subscription.qos_profile, field, None)
        words = [f"incompatible QoS on {self.topic}: {field}"]
        if requested is not None:
            offers = [
                f"{getattr(p.qos_profile, field).name.lower()} by {p.node_namespace.rstrip('/')}/{p.node_name}"
                for p in self._publishers
                if getattr(p.qos_profile, field) != requested
            ]
            words.append(f"requested {requested.name.lower()}, offered {', '.join(offers) or 'unknown'}")
        return " ".join(words)

    def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        self.incompatible = None

    def _on_incompatible(self, event: QoSRequestedIncompatibleQoSInfo) -> None:
        self.incompatible = qos_policy_name_from_kind(event.last_policy_kind).removesuffix("_QOS_POLICY").lower()
