from __future__ import annotations

import logging

import pytest

from isfl_ros.ros.logging_bridge import AGAIN_AFTER_S, MOST_CAUSES, OnceLog, RosLogHandler


class Logger:
    """Notes what a ROS logger would say."""

    def __init__(self):
        self.said = []

    def __getattr__(self, severity):
        return lambda text: self.said.append((severity, text))


@pytest.mark.parametrize(
    "level, severity",
    [
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (logging.WARNING, "warning"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "error"),
    ],
)
def test_severities(level, severity):
    ros = Logger()
    log = logging.Logger("package")
    log.addHandler(RosLogHandler(ros))
    log.log(level, "%d pictures", 3)
    assert ros.said == [(severity, "3 pictures")]


def test_a_real_ros_logger_takes_every_severity_from_the_bridge(capfd):
    """rclpy refuses two severities from one line of code."""
    from rclpy.logging import get_logger

    log = logging.Logger("package")
    log.addHandler(RosLogHandler(get_logger("bridge_test")))
    log.info("one")
    log.error("two")
    log.warning("three")
    said = capfd.readouterr().err
    assert [word in said for word in ("one", "two", "three")] == [True] * 3


@pytest.mark.parametrize("severity", ["info", "warning", "error"])
def test_once_per_cause(severity):
    ros = Logger()
    once = OnceLog(ros)
    for cause, text in (("a", "first"), ("a", "again"), ("b", "other")):
        getattr(once, severity)(cause, text)
    assert ros.said == [(severity, "first"), (severity, "other")]


def test_again_when_the_text_changed_but_not_soon():
    ros, now = Logger(), [100.0]
    once = OnceLog(ros, now_s=lambda: now[0])
    for seconds, text in (
        (0.0, "1 px"),
        (AGAIN_AFTER_S - 0.1, "2 px"),
        (AGAIN_AFTER_S, "1 px"),
        (AGAIN_AFTER_S, "3 px"),
        (2 * AGAIN_AFTER_S - 0.1, "4 px"),
        (9 * AGAIN_AFTER_S, "3 px"),
    ):
        now[0] = 100.0 + seconds
        once.error("size", text)
    assert [text for _, text in ros.said] == ["1 px", "3 px"]


def test_what_was_said_is_forgotten_before_it_fills_the_memory():
    ros = Logger()
    once = OnceLog(ros)
    for number in range(3 * MOST_CAUSES):
        once.info(f"cause {number}", "text")
        once.info(f"cause {number}", "text")
    assert len(ros.said) == 3 * MOST_CAUSES
    assert len(once._said) == MOST_CAUSES
