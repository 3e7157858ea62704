"""How long the stages of a picture took, over the last pictures."""

from __future__ import annotations

import statistics
import threading
from collections import deque

STAGES = (
    "wait_for_pair",
    "wait_for_worker",
    "decode",
    "preprocess",
    "network",
    "postprocess",
    "publish",
    "total",
    "age",
)
"""Latency stages in the order in which they happen; `total` and `age` span them (docs/node.md says from where)."""

WINDOW = 200
"""Pairs over which latencies are summed up."""


class Latency:
    """Milliseconds by stage over the last `WINDOW` pairs; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pairs: deque[dict[str, float]] = deque(maxlen=WINDOW)

    def add(self, stages_ms: dict[str, float]) -> None:
        """Take in one pair: a value for each of `STAGES`."""
        with self._lock:
            self._pairs.append(stages_ms)

    def summary(self) -> dict[str, tuple[float, float]]:
        """Stage -> (median, 95th percentile); empty before the first pair."""
        with self._lock:
            pairs = list(self._pairs)
        if not pairs:
            return {}
        columns = {stage: sorted(pair[stage] for pair in pairs) for stage in STAGES}
        return {
            stage: (statistics.median(values), values[min(len(values) - 1, int(0.95 * len(values)))])
            for stage, values in columns.items()
        }
