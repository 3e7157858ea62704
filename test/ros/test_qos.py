from __future__ import annotations

from types import SimpleNamespace

import pytest
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy

from isfl_ros.ros.qos import UPDATES_TO_EXPLAIN, Conflicts, choose_reliability, conflicting_policies

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


@pytest.mark.parametrize(
    "requested, offered, current, expected",
    [
        ("auto", [], None, BEST_EFFORT),
        ("auto", [], RELIABLE, RELIABLE),
        ("auto", [RELIABLE], BEST_EFFORT, RELIABLE),
        ("auto", [RELIABLE, RELIABLE], None, RELIABLE),
        ("auto", [RELIABLE, BEST_EFFORT], RELIABLE, BEST_EFFORT),
        ("auto", [BEST_EFFORT], RELIABLE, BEST_EFFORT),
        ("reliable", [BEST_EFFORT], None, RELIABLE),
        ("best_effort", [RELIABLE], RELIABLE, BEST_EFFORT),
    ],
)
def test_choice(requested, offered, current, expected):
    assert choose_reliability(requested, offered, current) == expected


def profile(**policies) -> QoSProfile:
    return QoSProfile(depth=1, **policies)


SHORT, LONG, INFINITE = Duration(seconds=0.1), Duration(seconds=1), Duration(nanoseconds=2**63 - 1)
TRANSIENT_LOCAL, MANUAL = DurabilityPolicy.TRANSIENT_LOCAL, LivelinessPolicy.MANUAL_BY_TOPIC
STRICT = {
    "reliability": ({"reliability": BEST_EFFORT}, {"reliability": RELIABLE}),
    "durability": ({}, {"durability": TRANSIENT_LOCAL}),
    "liveliness": ({"liveliness": LivelinessPolicy.AUTOMATIC}, {"liveliness": MANUAL}),
    "deadline": ({"deadline": LONG}, {"deadline": SHORT}),
    "liveliness_lease_duration": ({"liveliness_lease_duration": INFINITE}, {"liveliness_lease_duration": SHORT}),
}
"""Policy -> less and more of it."""


@pytest.mark.parametrize("policy", STRICT)
def test_a_publisher_that_offers_less_is_in_conflict_and_no_other(policy):
    less, more = (profile(**policies) for policies in STRICT[policy])
    assert conflicting_policies(less, more) == [policy]
    assert conflicting_policies(more, less) == conflicting_policies(less, less) == conflicting_policies(more, more) == []


def test_defaults_of_this_process_and_as_the_graph_reports_them_agree():
    graph = profile(deadline=INFINITE, liveliness_lease_duration=INFINITE, liveliness=LivelinessPolicy.AUTOMATIC)
    assert conflicting_policies(profile(), graph) == conflicting_policies(graph, profile()) == []
    assert conflicting_policies(profile(), profile(liveliness=MANUAL)) == ["liveliness"]
    assert conflicting_policies(profile(), profile(deadline=SHORT)) == ["deadline"]


def test_what_is_unknown_is_not_judged():
    unknown = profile(reliability=ReliabilityPolicy.UNKNOWN, durability=DurabilityPolicy.UNKNOWN)
    assert conflicting_policies(unknown, profile(reliability=RELIABLE, durability=TRANSIENT_LOCAL)) == []
    assert conflicting_policies(profile(reliability=BEST_EFFORT), unknown) == []


def endpoint(name, namespace="/", **policies):
    return SimpleNamespace(node_name=name, node_namespace=namespace, qos_profile=profile(**policies))


def event(kind):
    return SimpleNamespace(last_policy_kind=kind)


@pytest.mark.parametrize(
    "policies, words",
    [
        ({"durability": TRANSIENT_LOCAL}, "durability offered volatile, requested transient_local by /front/rviz"),
        ({"deadline": SHORT}, "deadline offered infinite, requested 100 ms by /front/rviz"),
        ({"liveliness": MANUAL}, "liveliness offered automatic, requested manual_by_topic by /front/rviz"),
        (
            {"liveliness_lease_duration": SHORT},
            "liveliness_lease_duration offered infinite, requested 100 ms by /front/rviz",
        ),
        (
            {"durability": TRANSIENT_LOCAL, "deadline": SHORT},
            "durability offered volatile, requested transient_local by /front/rviz;"
            " deadline offered infinite, requested 100 ms by /front/rviz",
        ),
    ],
)
def test_a_conflict_of_a_publisher_in_words(policies, words):
    conflicts = Conflicts("/fused", offers=True)
    conflicts.update(profile(), [endpoint("good"), endpoint("rviz", "/front", **policies)])
    assert conflicts.text == f"incompatible QoS on /fused: {words}"
    conflicts.update(profile(), [endpoint("good")])
    assert conflicts.text is None


def test_a_conflict_of_a_subscription_in_words():
    conflicts = Conflicts("/rgb", offers=False)
    conflicts.update(profile(), [endpoint("a", reliability=BEST_EFFORT), endpoint("b", reliability=BEST_EFFORT)])
    assert conflicts.text == (
        "incompatible QoS on /rgb: reliability requested reliable, offered best_effort by /a, best_effort by /b"
    )


def test_an_event_counts_until_the_graph_explains_it_or_has_had_time_to():
    conflicts = Conflicts("/rgb", offers=False)
    conflicts.report(event(QoSPolicyKind.RELIABILITY))
    good = [endpoint("good")]
    for _ in range(UPDATES_TO_EXPLAIN - 1):
        conflicts.update(profile(), good)
        assert conflicts.text == "incompatible QoS on /rgb: reliability"
    conflicts.update(profile(), good)
    assert conflicts.text is None
    conflicts.report(event(QoSPolicyKind.RELIABILITY))
    conflicts.update(profile(), [endpoint("bad", reliability=BEST_EFFORT)])
    assert conflicts.text.endswith("offered best_effort by /bad")
    conflicts.update(profile(), good)
    assert conflicts.text is None, "the bad one has gone"


def test_an_event_about_a_policy_that_is_not_compared_stays_while_somebody_is_there():
    conflicts = Conflicts("/rgb", offers=False)
    conflicts.report(event(QoSPolicyKind.LIFESPAN))
    for _ in range(UPDATES_TO_EXPLAIN + 2):
        conflicts.update(profile(), [endpoint("odd")])
        assert conflicts.text == "incompatible QoS on /rgb: lifespan"
    for _ in range(UPDATES_TO_EXPLAIN):
        conflicts.update(profile(), [])
    assert conflicts.text is None
