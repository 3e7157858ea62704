"""From a pair of messages to published pictures: what the worker's thread does with each pair."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from isfl_ros.pipeline import FusionPipeline, FusionResult
from isfl_ros.ros.accounting import Ledger, Ticket
from isfl_ros.ros.logging_bridge import OnceLog
from isfl_ros.ros.messages import THERMAL_ENCODINGS, decode_rgb, decode_thermal, stamp_nanoseconds
from isfl_ros.ros.outputs import Outputs
from isfl_ros.ros.parameters import Settings
from isfl_ros.ros.sync import Pair

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


@dataclass(frozen=True)
class Frame:
    """A received image message on its way through the node."""

    ticket: Ticket
    message: Image
    arrived_ns: int
    """Monotonic clock."""


@dataclass(frozen=True)
class Job:
    """A pair that is ready to be fused."""

    pair: Pair[Frame]
    paired_ns: int
    """Monotonic clock."""

    @property
    def tickets(self) -> tuple[Ticket, Ticket]:
        """Of both messages."""
        return self.pair.thermal.ticket, self.pair.rgb.ticket


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


class PairProcessor:
    """Decodes, fuses and publishes one pair at a time, and enters its fate in the ledger.

    Args:
        pipeline: fuses; only the worker's thread uses it.
        outputs: the topics.
        ledger: where the fate of both messages is entered.
        settings: replaced as a whole when a parameter changes.
        now_ns: ROS time.
        log: says a palettised thermal camera and each failure once.
    """

    def __init__(
        self,
        *,
        pipeline: FusionPipeline,
        outputs: Outputs,
        ledger: Ledger,
        settings: Settings,
        now_ns: Callable[[], int],
        log: OnceLog,
    ):
        self.settings = settings
        self.camera_info: CameraInfo | None = None
        """Latest one of the reference camera."""
        self.latency = Latency()
        self.size_mismatch: str | None = None
        """Sizes of the last pair in words, where they differed."""
        self.failure: str | None = None
        """Why a pair could not be fused, the last time that happened."""
        self._pipeline = pipeline
        self._outputs = outputs
        self._ledger = ledger
        self._now_ns = now_ns
        self._log = log

    def process(self, job: Job) -> None:
        """Fuse and publish a pair, or drop it where nobody listens or its sizes differ."""
        started = time.monotonic_ns()
        settings = self.settings
        wanted = self._outputs.wanted()
        if not wanted:
            self._ledger.drop("no_subscriber", *job.tickets)
            return
        thermal, rgb = job.pair.thermal.message, job.pair.rgb.message
        self.size_mismatch = _size_mismatch(thermal, rgb)
        if self.size_mismatch is not None:
            self._ledger.drop("size_mismatch", *job.tickets)
            self._log.error("size_mismatch", self.size_mismatch)
            return

        if THERMAL_ENCODINGS[thermal.encoding].convert is not None:
            self._log.info("palettised", f"thermal images are {thermal.encoding}: palettised, their luma is taken")
        thermal_pixels, rgb_pixels = decode_thermal(thermal), decode_rgb(rgb)
        decoded = time.monotonic_ns()

        reference = rgb if settings.reference == "rgb" else thermal
        stamp_ns = stamp_nanoseconds(reference.header.stamp)
        result = self._pipeline.fuse(
            thermal_pixels, rgb_pixels, gate=self._outputs.needs_gate(wanted), stamp_s=stamp_ns * 1e-9
        )
        fused = time.monotonic_ns()
        if not self._ledger.is_open(*job.tickets):
            return  # given up while it was being fused: what comes of it now would be a stale picture

        header = Header(stamp=reference.header.stamp, frame_id=reference.header.frame_id)
        age_ms = (self._now_ns() - stamp_ns) * 1e-6
        self._outputs.publish(
            wanted,
            result,
            header=header,
            output_encoding=settings.output_encoding,
            gate_encoding=settings.gate_encoding,
            camera_info=self._camera_info_for(reference),
            status=_status(header, result, skew_ms=job.pair.skew_ns * 1e-6, age_ms=age_ms),
        )
        published = time.monotonic_ns()

        self._ledger.fuse(*job.tickets)
        arrivals = (job.pair.thermal.arrived_ns, job.pair.rgb.arrived_ns)
        self.latency.add(
            {
                "wait_for_pair": (job.paired_ns - min(arrivals)) * 1e-6,
                "wait_for_worker": (started - job.paired_ns) * 1e-6,
                "decode": (decoded - started) * 1e-6,
                **result.stages_ms,
                "publish": (published - fused) * 1e-6,
                "total": (published - max(arrivals)) * 1e-6,
                "age": age_ms,
            }
        )

    def _camera_info_for(self, reference: Image) -> CameraInfo | None:
        info = self.camera_info
        if info is None or (info.width, info.height) in ((0, 0), (reference.width, reference.height)):
            return info
        self._log.warning(
            "camera_info size",
            f"camera_info is for {info.width}x{info.height}, the image is {reference.width}x{reference.height}:"
            " ~/fused/camera_info is not published",
        )
        return None

    def failed(self, job: Job, error: Exception) -> None:
        """Account for a pair that `process` could not finish; the next one is tried all the same."""
        self._ledger.drop("failed", *job.tickets)
        self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
        self._log.error(f"failed {type(error).__name__}", f"a pair could not be fused: {self.failure}")


def _size_mismatch(thermal: Image, rgb: Image) -> str | None:
    if (thermal.width, thermal.height) == (rgb.width, rgb.height):
        return None
    return (
        f"size mismatch: thermal is {thermal.width}x{thermal.height}, rgb is {rgb.width}x{rgb.height};"
        " expected aligned images of one size"
    )


def _status(header: Header, result: FusionResult, *, skew_ms: float, age_ms: float) -> DiagnosticArray:
    values = {
        "mode": "pair",
        "valid_fraction.thermal": f"{result.valid_fraction['thermal']:.4f}",
        "valid_fraction.rgb": f"{result.valid_fraction['rgb']:.4f}",
        "stamp_skew_ms": f"{skew_ms:.3f}",
        "age_ms": f"{age_ms:.3f}",
    }
    status = DiagnosticStatus(level=DiagnosticStatus.OK, name="fusion: picture", message="pair")
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticArray(header=header, status=[status])
