"""Python `logging` of the package into the node's ROS log, and things that are said only once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from rclpy.impl.rcutils_logger import RcutilsLogger

AGAIN_AFTER_S = 10.0
"""How long `OnceLog` keeps silent about a cause for which it has something new to say: messages decide about its words,
and a damaged driver may send different ones each time."""

MOST_CAUSES = 256
"""Causes that `OnceLog` remembers; the node has a few dozen."""


class RosLogHandler(logging.Handler):
    """Forwards records to a ROS logger, so that code that knows no ROS is heard on /rosout."""

    def __init__(self, logger: RcutilsLogger):
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # rclpy ties a severity to the line of the call: each needs a line of its own
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)


class OnceLog:
    """Says each thing once, however often it happens; the counters in /diagnostics say how often. From any thread.

    Args:
        logger: says it.
        now_s: a clock that never goes back.
    """

    def __init__(self, logger: RcutilsLogger, *, now_s: Callable[[], float] = time.monotonic):
        self._logger = logger
        self._now_s = now_s
        self._lock = threading.Lock()
        self._said: dict[str, tuple[str, float]] = {}
        """Cause -> the last text for it, and when; the oldest first."""

    def info(self, cause: str, text: str) -> None:
        """Log `text` unless it was the last one for `cause`, or that was less than `AGAIN_AFTER_S` ago.

        `cause` is one of a few: a kind and perhaps a stream, nothing that a message can make up.
        """
        if self._is_new(cause, text):
            self._logger.info(text)

    def warning(self, cause: str, text: str) -> None:
        """As `info`, as a warning."""
        if self._is_new(cause, text):
            self._logger.warning(text)

    def error(self, cause: str, text: str) -> None:
        """As `info`, as an error."""
        if self._is_new(cause, text):
            self._logger.error(text)

    def _is_new(self, cause: str, text: str) -> bool:
        now_s = self._now_s()
        with self._lock:
            before = self._said.get(cause)
            if before is not None and (before[0] == text or now_s - before[1] < AGAIN_AFTER_S):
                return False
            self._said.pop(cause, None)
            self._said[cause] = text, now_s
            if len(self._said) > MOST_CAUSES:
                del self._said[next(iter(self._said))]
            return True
