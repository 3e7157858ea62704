"""Subscriptions whose reliability follows their publishers, and who cannot reach whom because their QoS does not fit.

A best-effort subscription loses most large images on a default Fast DDS; a reliable one gets nothing from a best-effort
camera. So `auto` asks for reliable when every publisher of the topic offers it, and for best effort otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rclpy.duration import Duration
from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    LivelinessPolicy,
    QoSPolicyEnum,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

RELIABILITY_CHOICES = ("auto", "reliable", "best_effort")

_LEVELS: dict[str, tuple[QoSPolicyEnum, ...]] = {
    "reliability": (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE),
    "durability": (DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL),
    "liveliness": (LivelinessPolicy.AUTOMATIC, LivelinessPolicy.MANUAL_BY_TOPIC),
}
"""Policy -> its values, each fulfilling what the ones before it ask for."""

_LIMITS = ("deadline", "liveliness_lease_duration")
"""Policies that are a duration: what is offered must not be longer than what is requested."""

UPDATES_TO_EXPLAIN = 3
"""The graph may hear of an endpoint later than the event about it: until then a reported conflict stays unexplained."""


def conflicting_policies(offered: QoSProfile, requested: QoSProfile) -> list[str]:
    """Names of the policies for which a publisher offers less than a subscription requests (DDS 1.4, 2.2.3).

    `rclpy.qos.qos_check_compatible` is no help: it takes the default duration (0) of a profile of this process to be
    shorter than the one that the graph reports for it (infinite), and does not look at the kind of liveliness.
    """
    names = []
    for name, values in _LEVELS.items():
        levels = [_value(name, profile) for profile in (offered, requested)]
        # what the middleware keeps to itself is not judged
        if all(level in values for level in levels) and values.index(levels[0]) < values.index(levels[1]):
            names.append(name)
    return names + [name for name in _LIMITS if _length(name, offered) > _length(name, requested)]


def policy_text(name: str, profile: QoSProfile) -> str:
    """The value of one policy, in words."""
    if name in _LIMITS:
        nanoseconds = _length(name, profile)
        return "infinite" if nanoseconds == _INFINITE else f"{nanoseconds * 1e-6:g} ms"
    return _value(name, profile).name.lower()


def endpoint_name(endpoint: TopicEndpointInfo) -> str:
    """Full name of the node that an endpoint belongs to."""
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


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


class Conflicts:
    """Who cannot reach one publisher or subscription of this node.

    The middleware tells by an event that somebody cannot, and over which policy; who it is, the graph knows.

    Args:
        topic: full name.
        offers: this is a publisher; a subscription otherwise.
    """

    def __init__(self, topic: str, *, offers: bool):
        self.text: str | None = None
        """Policies and nodes in one line; None where everybody can."""
        self._topic = topic
        self._offers = offers
        self._reported: str | None = None
        self._updates_left = 0

    def report(self, event: QoSRequestedIncompatibleQoSInfo) -> None:
        """Take in the event of the middleware."""
        policy = qos_policy_name_from_kind(event.last_policy_kind).removesuffix("_QOS_POLICY").lower()
        self._reported, self._updates_left = policy, UPDATES_TO_EXPLAIN
        if self.text is None:
            self.text = f"incompatible QoS on {self._topic}: {policy}"

    def update(self, own: QoSProfile, others: Sequence[TopicEndpointInfo]) -> None:
        """Find out who it is, and forget who has gone.

        Args:
            own: QoS of this node's endpoint.
            others: the opposite endpoints of the topic.
        """
        found: dict[str, list[str]] = {}
        for other in others:
            profiles = (own, other.qos_profile) if self._offers else (other.qos_profile, own)
            for policy in conflicting_policies(*profiles):
                text = f"{policy_text(policy, other.qos_profile)} by {endpoint_name(other)}"
                found.setdefault(policy, []).append(text)
        if found:
            mine, theirs = ("offered", "requested") if self._offers else ("requested", "offered")
            words = [f"{p} {mine} {policy_text(p, own)}, {theirs} {', '.join(names)}" for p, names in found.items()]
            self._reported, self.text = None, f"incompatible QoS on {self._topic}: {'; '.join(words)}"
            return
        # a policy that is not compared here is believed as long as there is somebody whom it may concern
        if not others or self._reported in (None, *_LEVELS, *_LIMITS):
            self._updates_left -= 1
        if self._reported is None or self._updates_left <= 0:
            self._reported = self.text = None


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
        self._node = node
        self._requested = reliability
        self._depth = depth
        self._arguments = (message_type, topic, callback)
        self._conflicts: Conflicts
        self._subscription: Subscription | None = None
        self._publishers: list[TopicEndpointInfo] = []
        self.update()

    @property
    def publishers(self) -> tuple[str, ...]:
        """Nodes of the publishers of the topic at the last update, one for each publisher."""
        return tuple(sorted(map(endpoint_name, self._publishers)))

    @property
    def reliability(self) -> str:
        """What the subscription asks for now, in lower case."""
        return self._subscription.qos_profile.reliability.name.lower()

    @property
    def incompatibility(self) -> str | None:
        """Requested and offered QoS in words, where a publisher cannot reach this subscription; None where all can."""
        return self._conflicts.text

    def update(self) -> None:
        """Look at the publishers, and subscribe anew if that changes the choice."""
        self._publishers = self._node.get_publishers_info_by_topic(self.topic)
        offered = [publisher.qos_profile.reliability for publisher in self._publishers]
        current = None if self._subscription is None else self._subscription.qos_profile.reliability
        chosen = choose_reliability(self._requested, offered, current)
        if chosen != current:
            self.close()
            self._conflicts = Conflicts(self.topic, offers=False)
            self._subscription = self._node.create_subscription(
                *self._arguments,
                QoSProfile(depth=self._depth, reliability=chosen),
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._conflicts.report),
            )
        self._conflicts.update(self._subscription.qos_profile, self._publishers)

    def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None


_INFINITE = 2**63 - 1
"""Nanoseconds of a duration that does not end, as the graph reports it."""


def _value(name: str, profile: QoSProfile) -> QoSPolicyEnum:
    value = getattr(profile, name)
    return LivelinessPolicy.AUTOMATIC if value == LivelinessPolicy.SYSTEM_DEFAULT and name == "liveliness" else value


def _length(name: str, profile: QoSProfile) -> int:
    duration: Duration = getattr(profile, name)
    return duration.nanoseconds or _INFINITE
