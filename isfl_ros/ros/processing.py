"""From a pair of messages to published pictures: what the worker's thread does with each pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from isfl_ros.pipeline import FusionPipeline, FusionResult
from isfl_ros.registration import Registration, SizeMismatch
from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.camera_info import picture_size
from isfl_ros.ros.inputs import CameraImage, Refusals
from isfl_ros.ros.jobs import Frame, HoldJob, Job, PairJob
from isfl_ros.ros.latency import Latency
from isfl_ros.ros.logging_bridge import OnceLog
from isfl_ros.ros.messages import NANOSECONDS, MalformedImage, stamp_nanoseconds
from isfl_ros.ros.outputs import COSTLY, Outputs
from isfl_ros.ros.parameters import Settings
from isfl_ros.ros.rates import Rates
from isfl_ros.ros.registrar import Registrar
from isfl_ros.ros.sync import STREAMS

Frames = Mapping[str, Frame[CameraImage]]
"""By stream."""


@dataclass(frozen=True)
class Published:
    """What was published last, to be published again in hold mode."""

    result: FusionResult
    header: Header
    stamp_ns: int
    """As in the header, but not clamped to what a header can hold."""
    arrived_ns: int
    """When the newest of its messages arrived; monotonic clock."""
    camera_info: CameraInfo | None
    skew_ms: float | None
    epoch: int
    """See `PairJob`."""


class PairProcessor:
    """Decodes, fuses and publishes one pair at a time, and enters its fate in the ledger.

    Args:
        pipeline: fuses; only the worker's thread uses it.
        outputs: the topics.
        ledger: where the fate of both messages is entered.
        refusals: where messages go that turn out to be no pictures.
        registrar: knows how the pictures come into one frame; may get to know it, or something else, at any time.
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
        refusals: Refusals,
        registrar: Registrar,
        settings: Settings,
        now_ns: Callable[[], int],
        log: OnceLog,
    ):
        self.settings = settings
        self.camera_infos: dict[str, CameraInfo] = {}
        """Latest ones, by stream."""
        self.frame_id: str | None = None
        """Of the latest image of the reference camera."""
        self.published: Published | None = None
        """Reset at activation."""
        self.latency = Latency()
        self.size_mismatch: str | None = None
        """Sizes of the last picture in words, where they differed, or did not fit the registration."""
        self.failure: str | None = None
        """Why a pair could not be fused, the last time that happened."""
        self._shown = False
        """Something of the job that is being done may have been published."""
        self._pipeline = pipeline
        self._outputs = outputs
        self._ledger = ledger
        self._refusals = refusals
        self._registrar = registrar
        self._in_force: Registration | None = None
        """What the pipeline was given; None where it warps nothing."""
        self._now_ns = now_ns
        self._log = log
        self.start_session()

    def start_session(self) -> None:
        """Forget what an earlier activation left behind."""
        self.camera_infos = {}
        self.frame_id = self.published = self._reference_size = None
        self.info_misfits: dict[str, str] = {}
        """Stream -> in words, that its camera_info is for another size than the last picture that it belongs to."""
        self.age_s: float | None = None
        """Of the last picture that was new, when it was published."""
        self._rates = Rates(COSTLY)
        """By the stamps of the pictures: how fast they come out of a queue does not matter."""
        self._hold_rates = Rates(COSTLY)
        """By the monotonic clock: a held picture has its old stamp."""

    def process(self, job: Job) -> None:
        """Fuse and publish a pair or a single message, or drop it: nobody listens, it came too soon, it is no picture.

        Of a pair that fails, the reference is tried alone, where one camera may be fused alone.

        Raises:
            Exception: whatever it failed with; `failed` accounts for that.
        """
        if isinstance(job, HoldJob):
            self._publish_again()
            return
        self._shown, self._misfit = False, None
        try:
            self._process(job, job.frames, self._registrar.registration)
        except Exception as error:
            left = self._without_failed(job)
            if not left:
                raise
            self._say_failure(error)
            # nothing is to be warped: what the pipeline has need not be changed, which may be what failed
            self._process(job, left, self._in_force)
        if self._shown or self._misfit is not None:
            self.size_mismatch = self._misfit

    def _without_failed(self, job: PairJob | SingleJob) -> Frames:
        """What may still be shown of a job that failed; the other camera's message is dropped then."""
        reference = job.frames.get(self.settings.reference)
        other = job.frames.get(self.settings.other)
        if self.settings.degraded.mode != "single" or self._shown or reference is None or other is None:
            return {}
        if not self._ledger.is_open(reference.ticket, other.ticket):
            return {}  # one of them it was that failed, alone
        self._ledger.drop("failed", other.ticket)
        return {self.settings.reference: reference}

    def _process(self, job: PairJob | SingleJob, frames: Frames, registration: Registration | None) -> None:
        """`process` for what is left of a job."""
        started = time.monotonic_ns()
        settings = self.settings
        wanted = self._outputs.wanted()
        if not wanted:
            self._ledger.drop("no_subscriber", *job.tickets)
            return
        if self.published is not None and job.epoch != self.published.epoch:
            self._rates = Rates(COSTLY)
        wanted = self._due(wanted, self._stamp_ns(*self._source(frames)), self._rates)
        if not wanted:
            self._ledger.drop("rate_limited", *job.tickets)
            return
        frames = self._in_one_frame(frames, registration)
        if not frames:
            return
        frames, pixels = self._decode(frames)
        if not frames:
            return
        decoded = time.monotonic_ns()

        source, picture = self._source(frames)
        stamp_ns = self._stamp_ns(source, picture)
        if self._is_outdated(stamp_ns, job.epoch):
            self._ledger.drop("outdated", *(frame.ticket for frame in frames.values()))
            return
        if source != settings.reference and registration is not None and registration.mode == "none":
            if self._reference_size not in (None, (picture.width, picture.height)):
                registration = None  # whatever the cameras share, it is not their pixels
        how = {"gate": self._outputs.needs_gate(wanted), "stamp_s": stamp_ns * 1e-9}
        try:
            result = self._fuse(frames, pixels, registration, **how)
        except SizeMismatch as error:
            frames, registration = self._without_misfit(frames, registration, error)
            if not frames:
                return
            result = self._fuse(frames, pixels, registration, **how)
        fused = time.monotonic_ns()
        tickets = [frame.ticket for frame in frames.values()]
        both = len(frames) == len(STREAMS)
        mode, skew_ms = ("pair", job.pair.skew_ns * 1e-6) if both else (f"{next(iter(frames))}_only", None)
        if not self._ledger.is_open(*tickets):
            return  # given up while it was being fused: what comes of it now would be a stale picture

        header = self._header(source, picture, registration)
        age_ms = (self._now_ns() - stamp_ns) * 1e-6
        arrivals = [frame.arrived_ns for frame in frames.values()]
        self._shown = True
        self._outputs.publish(
            wanted,
            result,
            header=header,
            output_encoding=settings.output_encoding,
            gate_encoding=settings.gate_encoding,
            camera_info=(info := self._camera_info_for(source, registration, result)),
            status=self._status(header, result, max(arrivals), mode=mode, skew_ms=skew_ms, age_ms=age_ms),
        )
        self.published = Published(result, header, stamp_ns, max(arrivals), info, skew_ms, job.epoch)
        self.age_s = age_ms * 1e-3
        self._note(wanted, stamp_ns, self._rates)
        published = time.monotonic_ns()

        self._ledger.fuse(*tickets)
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

    def _in_one_frame(self, frames: Frames, registration: Registration | None) -> Frames:
        """What is to be fused of these frames: all, if the pictures can be brought into one frame, or there is but one."""
        if len(frames) < len(STREAMS):
            return frames
        if registration is None:
            why = self._registrar.missing
            if why is not None:  # else the executor's thread is changing both just now: the next pair says it
                self._log.warning("unregistered", f"cameras not registered: {why}")
            return self._without_other(frames, "unregistered")
        if registration.mode == "none":
            self._misfit = _size_mismatch(*(frames[name].message for name in STREAMS))
            if self._misfit is not None:
                self._log.error("size_mismatch", self._misfit)
                return self._without_other(frames, "size_mismatch")
        return frames

    def _decode(self, frames: Frames) -> tuple[Frames, dict[str, np.ndarray]]:
        """What is to be fused of these frames, and its pixels by stream. A message that turns out to be no picture is dropped.

        Its camera brings no pictures, and that is treated as if it brought no messages, from the first one on: whoever
        is seen by the other camera must not wait until it is given up. It never is, as its messages look good.
        """
        thermal = frames.get("thermal")
        if thermal is not None and thermal.message.palettised:
            text = f"thermal images are {thermal.message.encoding}: palettised, their luma is taken"
            self._log.info("palettised", text)
        pixels = {}
        for name, frame in frames.items():
            try:
                pixels[name] = frame.message.decode()
            except MalformedImage as error:
                self._refusals.add(name, frame.ticket, error)
        if pixels.keys() == frames.keys():
            return frames, pixels
        return self._alone({name: frames[name] for name in pixels}, "partner_malformed"), pixels

    def _without_other(self, frames: Frames, reason: str) -> Frames:
        """What is to be fused of a pair that cannot be brought into one frame: the reference alone, if anything.

        Fused one over the other, the pictures would show everybody twice, and in the wrong place once.
        """
        left = dict(frames)
        self._ledger.drop(reason, left.pop(self.settings.other).ticket)
        return self._alone(left, reason)

    def _alone(self, left: Frames, reason: str) -> Frames:
        """What is left of a pair, where one camera may be fused alone; else it is dropped for `reason`."""
        if self.settings.degraded.mode == "single":
            return left
        self._ledger.drop(reason, *(frame.ticket for frame in left.values()))
        if self.settings.degraded.mode == "hold" and left:
            self._publish_again()
        return {}

    def _without_misfit(
        self, frames: Frames, registration: Registration, error: SizeMismatch
    ) -> tuple[Frames, Registration | None]:
        """What is to be fused, and how, where the other camera's picture does not fit the registration."""
        self._misfit = f"size mismatch: {error}"
        self._log.error("size_mismatch", self._misfit)
        if len(frames) == len(STREAMS):
            return self._without_other(frames, "size_mismatch"), registration
        return frames, None  # nothing else is there to be seen: as it is, then

    def _fuse(
        self,
        frames: Frames,
        pixels: Mapping[str, np.ndarray],
        registration: Registration | None,
        **how,
    ) -> FusionResult:
        """Fuse the pixels of these frames.

        Raises:
            SizeMismatch: they do not fit the registration.
        """
        if registration is not None and registration.mode == "none":
            registration = None
        if registration is not self._in_force:
            self._pipeline.set_registration(registration, reference=self.settings.reference)
            self._in_force = registration
        return self._pipeline.fuse(*(pixels[name] if name in frames else None for name in STREAMS), **how)

    def _source(self, frames: Frames) -> tuple[str, CameraImage]:
        """The stream, and its picture, that the fused picture takes its stamp and calibration from."""
        settings = self.settings
        name = settings.reference if settings.reference in frames else settings.other
        return name, frames[name].message

    def _stamp_ns(self, source: str, picture: CameraImage) -> int:
        """Stamp of `picture` on the clock of the reference camera; may be negative."""
        offset_ns = 0
        if source != self.settings.reference:
            offset_ns = self.settings.thermal_offset_ns if source == "thermal" else -self.settings.thermal_offset_ns
        return stamp_nanoseconds(picture.header.stamp) + offset_ns

    def _due(self, wanted: frozenset[str], at_ns: int, rates: Rates) -> frozenset[str]:
        settings = self.settings
        return rates.due(
            wanted, at_ns, max_hz=settings.output_max_rate_hz, costly_max_hz=settings.debug_max_rate_hz
        )

    def _note(self, shown: frozenset[str], at_ns: int, rates: Rates) -> None:
        settings = self.settings
        rates.note(shown, at_ns, max_hz=settings.output_max_rate_hz, costly_max_hz=settings.debug_max_rate_hz)

    def _header(self, source: str, picture: CameraImage, registration: Registration | None) -> Header:
        """Stamp of `picture` on the clock of the reference camera, in whose frame the fused picture is.

        A picture of the other camera alone, without a registration, is in its own frame.
        """
        if source == self.settings.reference:
            self.frame_id, self._reference_size = picture.header.frame_id, (picture.width, picture.height)
            return Header(stamp=picture.header.stamp, frame_id=picture.header.frame_id)
        # a header holds no time before 1970
        seconds, rest = divmod(max(0, self._stamp_ns(source, picture)), NANOSECONDS)
        stamp = Time(sec=seconds, nanosec=rest)
        if registration is None:
            return Header(stamp=stamp, frame_id=picture.header.frame_id)
        if self.frame_id is not None:
            return Header(stamp=stamp, frame_id=self.frame_id)
        info = self.camera_infos.get(self.settings.reference)
        if info is not None:
            return Header(stamp=stamp, frame_id=info.header.frame_id)
        # aligned cameras share what they see; of a warped picture the frame is not known yet
        return Header(stamp=stamp, frame_id=picture.header.frame_id if registration.mode == "none" else "")

    def _is_outdated(self, stamp_ns: int, epoch: int) -> bool:
        """Whether a newer picture was published already, and time did not jump back since."""
        last = self.published
        return last is not None and epoch == last.epoch and stamp_ns <= last.stamp_ns

    def _publish_again(self) -> None:
        """Publish the last picture once more, as what it is: old."""
        held, now_ns = self.published, time.monotonic_ns()
        wanted = self._due(self._outputs.wanted(), now_ns, self._hold_rates)
        if held is None or not wanted:
            return
        self._note(wanted, now_ns, self._hold_rates)
        age_ms = (self._now_ns() - held.stamp_ns) * 1e-6
        self._outputs.publish(
            wanted & self._outputs.possible(held.result),
            held.result,
            header=held.header,
            output_encoding=self.settings.output_encoding,
            gate_encoding=self.settings.gate_encoding,
            camera_info=held.camera_info,
            status=self._status(
                held.header, held.result, held.arrived_ns, mode="held", skew_ms=held.skew_ms, age_ms=age_ms
            ),
        )

    def _camera_info_for(
        self, source: str, registration: Registration | None, result: FusionResult
    ) -> CameraInfo | None:
        stream = source if registration is None else self.settings.reference
        info = self.camera_infos.get(stream)
        height, width = result.luma.shape
        if info is None or (info.width, info.height) == (0, 0) or picture_size(info) == (width, height):
            self.info_misfits.pop(stream, None)
            return info
        expected = picture_size(info)
        text = (
            f"camera_info is for {expected[0]}x{expected[1]}, the image is {width}x{height}:"
            " ~/fused/camera_info is not published"
        )
        self.info_misfits[stream] = text
        self._log.warning(f"{stream} camera_info size", text)
        return None

    def _status(
        self, header: Header, result: FusionResult, arrived_ns: int, *, mode: str, skew_ms: float | None, age_ms: float
    ) -> DiagnosticArray:
        """What ~/fused/status says of a picture whose newest message arrived at `arrived_ns`."""
        delay_ms = (time.monotonic_ns() - arrived_ns) * 1e-6
        values = {
            "mode": mode,
            "valid_fraction.thermal": f"{result.valid_fraction['thermal']:.4f}",
            "valid_fraction.rgb": f"{result.valid_fraction['rgb']:.4f}",
            "stamp_skew_ms": "none" if skew_ms is None else f"{skew_ms:.3f}",
            "age_ms": f"{age_ms:.3f}",
            "delay_ms": f"{delay_ms:.3f}",
        }
        late = delay_ms > self.settings.degraded.timeout_ns * 1e-6
        level = DiagnosticStatus.OK if mode == "pair" and not late else DiagnosticStatus.WARN
        status = DiagnosticStatus(level=level, name="fusion: picture", message=mode)
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        return DiagnosticArray(header=header, status=[status])

    def failed(self, job: Job, error: Exception) -> None:
        """Account for a pair that `process` could not finish; the next one is tried all the same."""
        self._ledger.drop("failed", *job.tickets)
        self._say_failure(error)

    def _say_failure(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
        self._log.error(f"failed {type(error).__name__}", f"a pair could not be fused: {self.failure}")


def _size_mismatch(thermal: CameraImage, rgb: CameraImage) -> str | None:
    if (thermal.width, thermal.height) == (rgb.width, rgb.height):
        return None
    return (
        f"size mismatch: thermal is {thermal.width}x{thermal.height}, rgb is {rgb.width}x{rgb.height};"
        " expected aligned images of one size"
    )
