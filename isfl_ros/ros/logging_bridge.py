"""Python `logging` of the package into the node's ROS log, and things that are said only once."""

from __future__ import annotations

import logging

from rclpy.impl.rcutils_logger import RcutilsLogger


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
    """Says each thing once, however often it happens; the counters in /diagnostics say how often."""

    def __init__(self, logger: RcutilsLogger):
        self._logger = logger
        self._said: set[str] = set()

    def info(self, cause: str, text: str) -> None:
        """Log `text` unless something was logged for `cause` before."""
        if self._is_new(cause):
            self._logger.info(text)

    def warning(self, cause: str, text: str) -> None:
        """Log `text` as a warning unless something was logged for `cause` before."""
        if self._is_new(cause):
            self._logger.warning(text)

    def error(self, cause: str, text: str) -> None:
        """Log `text` as an error unless something was logged for `cause` before."""
        if self._is_new(cause):
            self._logger.error(text)

    def _is_new(self, cause: str) -> bool:
        if cause in self._said:
            return False
        self._said.add(cause)
        return True
