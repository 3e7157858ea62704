"""From a pair of messages to published pictures: what the worker's thread does with each pair."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from isfl_ros.pipeline import FusionPipeline, FusionResult
from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.jobs import HoldJob, Job, PairJob
from isfl_ros.ros.logging_bridge import OnceLog
from isfl_ros.ros.messages import NANOSECONDS, THERMAL_ENCODINGS, decode_rgb, decode_thermal, stamp_nanoseconds
from isfl_ros.ros.outputs import Outputs
from isfl_ros.ros.parameters import Settings
from isfl_ros.ros.sync import STREAMS, TIME_JUMP_NS

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
class Published:
    """What was published last, to be published again in hold mode."""

    result: FusionResult
    header: Header
    camera_info: CameraInfo | None
    skew_ms: float | None


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
        self.frame_id: str | None = None
        """Of the latest image of the reference camera."""
        self.published: Published | None = None
        """Reset at activation."""
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

    def start_session(self) -> None:
        """Forget what an earlier activation left behind."""
        self.camera_info = self.frame_id = self.published = None

    def process(self, job: Job) -> None:
        """Fuse and publish a pair or a single message, or drop it where nobody listens or sizes differ."""
        if isinstance(job, HoldJob):
            self._publish_again()
            return
        started = time.monotonic_ns()
        settings = self.settings
        wanted = self._outputs.wanted()
        if not wanted:
            self._ledger.drop("no_subscriber", *job.tickets)
            return
        frames, paired = job.frames, isinstance(job, PairJob)
        mode, skew_ms = ("pair", job.pair.skew_ns * 1e-6) if paired else (f"{job.stream}_only", None)
        thermal, rgb = (frames[name].message if name in frames else None for name in STREAMS)
        self.size_mismatch = _size_mismatch(thermal, rgb) if paired else None
        if self.size_mismatch is not None:
            self._ledger.drop("size_mismatch", *job.tickets)
            self._log.error("size_mismatch", self.size_mismatch)
            return

        if thermal is not None and THERMAL_ENCODINGS[thermal.encoding].convert is not None:
            self._log.info("palettised", f"thermal images are {thermal.encoding}: palettised, their luma is taken")
        thermal_pixels = None if thermal is None else decode_thermal(thermal)
        rgb_pixels = None if rgb is None else decode_rgb(rgb)
        decoded = time.monotonic_ns()

        source = settings.reference if settings.reference in frames else settings.other
        picture = frames[source].message
        header = self._header(source, picture)
        stamp_ns = stamp_nanoseconds(header.stamp)
        if self._is_outdated(stamp_ns):
            self._ledger.drop("outdated", *job.tickets)
            return
        result = self._pipeline.fuse(
            thermal_pixels, rgb_pixels, gate=self._outputs.needs_gate(wanted), stamp_s=stamp_ns * 1e-9
        )
        fused = time.monotonic_ns()
        if not self._ledger.is_open(*job.tickets):
            return  # given up while it was being fused: what comes of it now would be a stale picture

        age_ms = (self._now_ns() - stamp_ns) * 1e-6
        self._outputs.publish(
            wanted,
            result,
            header=header,
            output_encoding=settings.output_encoding,
            gate_encoding=settings.gate_encoding,
            camera_info=(info := self._camera_info_for(picture)),
            status=_status(header, result, mode=mode, skew_ms=skew_ms, age_ms=age_ms),
        )
        self.published = Published(result, header, info, skew_ms)
        published = time.monotonic_ns()

        self._ledger.fuse(*job.tickets)
        arrivals = [frame.arrived_ns for frame in frames.values()]
        self.latency.add(
            {
                "wait_for_pair": (job.ready_ns - min(arrivals)) * 1e-6,
                "wait_for_worker": (started - job.ready_ns) * 1e-6,
                "decode": (decoded - started) * 1e-6,
                **result.stages_ms,
                "publish": (published - fused) * 1e-6,
                "total": (published - max(arrivals)) * 1e-6,
                "age": age_ms,
            }
        )

    def _header(self, source: str, picture: Image) -> Header:
        """Stamp of `picture` on the clock of the reference camera, in whose frame the fused picture is."""
        if source == self.settings.reference:
            self.frame_id = picture.header.frame_id
            return Header(stamp=picture.header.stamp, frame_id=picture.header.frame_id)
        offset_ns = self.settings.thermal_offset_ns if source == "thermal" else -self.settings.thermal_offset_ns
        # a stamp holds no time before 1970
        seconds, rest = divmod(max(0, stamp_nanoseconds(picture.header.stamp) + offset_ns), NANOSECONDS)
        return Header(
            stamp=Time(sec=seconds, nanosec=rest),
            frame_id=picture.header.frame_id if self.frame_id is None else self.frame_id,
        )

    def _is_outdated(self, stamp_ns: int) -> bool:
        """Whether a newer picture was published already, and time did not jump back since."""
        if self.published is None:
            return False
        last_ns = stamp_nanoseconds(self.published.header.stamp)
        return last_ns - TIME_JUMP_NS <= stamp_ns <= last_ns

    def _publish_again(self) -> None:
        """Publish the last picture once more, as what it is: old."""
        held, wanted = self.published, self._outputs.wanted()
        if held is None or not wanted:
            return
        age_ms = (self._now_ns() - stamp_nanoseconds(held.header.stamp)) * 1e-6
        self._outputs.publish(
            wanted & self._outputs.possible(held.result),
            held.result,
            header=held.header,
            output_encoding=self.settings.output_encoding,
            gate_encoding=self.settings.gate_encoding,
            camera_info=held.camera_info,
            status=_status(held.header, held.result, mode="held", skew_ms=held.skew_ms, age_ms=age_ms),
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


def _status(header: Header, result: FusionResult, *, mode: str, skew_ms: float | None, age_ms: float) -> DiagnosticArray:
    values = {
        "mode": mode,
        "valid_fraction.thermal": f"{result.valid_fraction['thermal']:.4f}",
        "valid_fraction.rgb": f"{result.valid_fraction['rgb']:.4f}",
        "stamp_skew_ms": "none" if skew_ms is None else f"{skew_ms:.3f}",
        "age_ms": f"{age_ms:.3f}",
    }
    level = DiagnosticStatus.OK if mode == "pair" else DiagnosticStatus.WARN
    status = DiagnosticStatus(level=level, name="fusion: picture", message=mode)
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticArray(header=header, status=[status])
