from __future__ import annotations

import pytest
from rclpy.qos import ReliabilityPolicy

from isfl_ros.ros.qos import choose_reliability

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
