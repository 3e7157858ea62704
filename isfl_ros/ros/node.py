"""The fusion node: parameters, life cycle, subscriptions and timers, wired to the objects that do the work."""

from __future__ import annotations

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.timer import Timer
from sensor_msgs.msg import CameraInfo

from isfl_ros.errors import InputError
from isfl_ros.pipeline import FusionPipeline, PipelineConfig
from isfl_ros.ros import diagnostics, parameters
from isfl_ros.ros.accounting import Ledger, StreamCounts
from isfl_ros.ros.cv_bridge_adapter import ColourConverter, colour_converter
from isfl_ros.ros.degraded import Event
from isfl_ros.ros.inputs import CameraImage, CameraInput, Refusals
from isfl_ros.ros.jobs import Frame, Job
from isfl_ros.ros.logging_bridge import OnceLog, RosLogHandler
from isfl_ros.ros.node_registration import NodeRegistration
from isfl_ros.ros.outputs import Outputs
from isfl_ros.ros.processing import PairProcessor
from isfl_ros.ros.router import Router
from isfl_ros.ros.sync import STREAMS, TIME_JUMP_NS
from isfl_ros.ros.sync_message_filters import make_matcher
from isfl_ros.ros.worker import LatestWorker

UPKEEP_PERIOD_S = 0.5
"""How often publishers are looked at, and a pair held back for a closer partner may be let go."""

REPORT_WINDOW_NS = 900_000_000
"""Reports judge at least this much time, so that frequent ones do not miss the message of a slow camera."""

INTERNAL_ERROR_SHOWN_NS = 5_000_000_000
"""How long reports mention an internal error: whoever looks once a second sees it."""

STOP_TIMEOUT_S = 3.0
"""How long deactivation waits for the pair that is being fused."""


@dataclass(frozen=True)
class Past:
    """Counts at one instant, for what happened since."""

    at_ns: int
    counts: Mapping[str, StreamCounts]
    paired: int


class FusionNode(LifecycleNode):
    """Managed node `fusion`: two cameras in, fused pictures out. See docs/node.md for topics and parameters.

    Args:
        make_pipeline: makes the object that fuses (tests hand in a small one).
        **kwargs: as for `rclpy.node.Node`.

    Raises:
        InputError: a parameter was refused.
    """

    def __init__(self, *, make_pipeline: Callable[[PipelineConfig], FusionPipeline] = FusionPipeline, **kwargs):
        super().__init__("fusion", **kwargs)
        self._make_pipeline = make_pipeline
        self.settings = parameters.declare(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

        self._log = OnceLog(self.get_logger())
        self._log_handler = RosLogHandler(self.get_logger())
        package_log = logging.getLogger("isfl_ros")
        package_log.setLevel(logging.DEBUG)  # what is shown is decided by --log-level
        package_log.addHandler(self._log_handler)

        self._ledger = Ledger(STREAMS)
        matcher, reason = make_matcher(
            self.settings.matcher, slop_ns=self.settings.slop_ns, thermal_offset_ns=self.settings.thermal_offset_ns
        )
        self._about_matching = {"matcher": self.settings.matcher, "matcher_reason": reason}
        self._router: Router[CameraImage] = Router(
            matcher, self._ledger, reference=self.settings.reference, say=self._say
        )
        self._refusals = Refusals(self._ledger, self._log)
        self._pipeline: FusionPipeline | None = None
        self._registration: NodeRegistration | None = None
        self._outputs: Outputs | None = None
        self._processor: PairProcessor | None = None
        self._worker: LatestWorker[Job] | None = None
        self._decode_rgb: ColourConverter | None = None
        self._about_colour = ""
        self._inputs: dict[str, CameraInput] = {}
        self._abandoned: list[LatestWorker[Job]] = []
        self._internal_error: tuple[str, int] | None = None
        """In words, and when; monotonic clock."""
        self._deadline: int | None = None
        """When the watch timer will run; None while it does not."""

        self._past: deque[Past] = deque([Past(time.monotonic_ns(), self._ledger.snapshot(), 0)])
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # steady time: a paused simulation must not silence the diagnostics
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._report_timer = self._every(self.settings.diagnostics_period_s, self._report)
        self._upkeep_timer = self._every(UPKEEP_PERIOD_S, self._upkeep)
        self._watch_timer = self._every(UPKEEP_PERIOD_S, self._on_watch)
        self._watch_timer.cancel()
        self._jump = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-TIME_JUMP_NS), on_clock_change=False),
            post_callback=lambda jump: self._time_jumped(),
        )

    # life cycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and warm it up."""
        try:
            self._registration = NodeRegistration(self, self.settings)
            self._pipeline = self._make_pipeline(self.settings.pipeline)
            self._warm_up()
            about = self._pipeline.description
            self._outputs = Outputs(
                self, gates=about.get("gates") != "no", stand_in="in_place_of_the_gate" in about
            )
            self._outputs.set_compressed(self.settings.output_compressed)
            self._decode_rgb, self._about_colour = colour_converter()
        except InputError as error:
            self._free()
            return self._refuse("configure", str(error))
        except Exception as error:
            # rclpy would swallow it without a word
            self._free()
            return self._refuse("configure", f"{type(error).__name__}: {error}")
        self._processor = PairProcessor(
            pipeline=self._pipeline,
            outputs=self._outputs,
            ledger=self._ledger,
            refusals=self._refusals,
            registrar=self._registration.registrar,
            settings=self.settings,
            now_ns=lambda: self.get_clock().now().nanoseconds,
            log=self._log,
        )
        about = self._pipeline.description
        self.get_logger().info(
            f"model {about.get('model')} on {about.get('device')} ({about.get('device_reason')}),"
            f" {about.get('implementation')} ({about.get('implementation_reason')}),"
            f" {about.get('precision')} ({about.get('precision_reason')})"
        )
        if about.get("gates") == "no":
            self.get_logger().info("the model has no gates: ~/gate/image and ~/gate/overlay do not exist")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker and subscribe."""
        if self.work_abandoned:
            # The pipeline serves one thread at a time.
            return self._refuse("activate", "the pair that was being fused at deactivation is still not done; try again")
        result = super().on_activate(state)
        self._processor.start_session()
        self._registration.start()
        self._worker = LatestWorker(self._processor.process, self._processor.failed, name="fusion")
        self._worker.start()
        self._router.start(self._worker, self.settings.degraded)
        self._set_watch()
        try:
            for stream in STREAMS:
                self._inputs[stream] = CameraInput(
                    self,
                    stream,
                    settings=self.settings,
                    decode_rgb=self._decode_rgb,
                    ledger=self._ledger,
                    refusals=self._refusals,
                    on_image=self._on_image,
                    on_info=self._on_info,
                )
                self._inputs[stream].open()
        except Exception as error:
            self._halt()
            return self._refuse("activate", f"{type(error).__name__}: {error}")
        self.get_logger().info("active: waiting for pairs")
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, stop the worker, and account for what was under way."""
        self._halt()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and take the topics away."""
        if self.work_abandoned:
            return self._refuse("clean up", "the pair that was being fused at deactivation is still not done; try again")
        self._free()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state to the end."""
        self._halt()
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured after a transition that raised."""
        return self.on_shutdown(state)

    @property
    def finalized(self) -> bool:
        """Whether a lifecycle manager has shut the node down already."""
        return self._state_machine.current_state[1] == "finalized"

    @property
    def work_abandoned(self) -> bool:
        """Whether a pair is still being fused for which deactivation stopped waiting."""
        self._abandoned = [worker for worker in self._abandoned if worker.busy]
        return bool(self._abandoned)

    def note_internal_error(self, error: Exception) -> None:
        """Say that an exception ended a callback, in the log once per type and line, and in the next reports."""
        kind = type(error).__name__
        text = f"{kind}: {error}".splitlines()[0]
        self._internal_error = text, time.monotonic_ns()
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f"{frame.filename}:{frame.lineno}" for frame in place)
        self._log.error(
            f"internal error {kind} {where}",
            f"internal error: {text}\n{''.join(traceback.format_exception(error))}",
        )

    def destroy_node(self) -> None:
        """Take the node out of the graph."""
        logging.getLogger("isfl_ros").removeHandler(self._log_handler)
        self._jump.unregister()
        super().destroy_node()

    def _refuse(self, transition: str, text: str) -> TransitionCallbackReturn:
        self.get_logger().error(f"cannot {transition}: {' '.join(text.split())}")
        return TransitionCallbackReturn.FAILURE

    def _halt(self) -> None:
        if self._worker is None:
            return
        for camera in self._inputs.values():
            camera.close()
        self._inputs = {}
        self._registration.stop()
        self._watch_timer.cancel()
        self._deadline = None
        self._router.stop()
        for job in self._worker.stop(STOP_TIMEOUT_S):
            self._ledger.drop("shutdown", *job.tickets)
        if self._worker.busy:
            self._abandoned.append(self._worker)
        self._worker = None
        self._report(state="deactivating")

    def _warm_up(self) -> None:
        registration = self._registration.registrar.registration
        if self.settings.warmup_size is None:
            return
        if registration is None or registration.mode == "none":
            self._pipeline.warm_up(*self.settings.warmup_size)
        else:  # it says which sizes will come
            self._pipeline.set_registration(registration, reference=self.settings.reference)
            self._pipeline.warm_up(*registration.to_shape)

    def _free(self) -> None:
        self._processor = None
        if self._registration is not None:
            self._registration.close()
            self._registration = None
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        if self._pipeline is not None and not self.work_abandoned:  # else a thread is in it still, to the end of the process
            self._pipeline.close()
        self._pipeline = None

    # messages

    def _on_image(self, stream: str, stamp_ns: int, frame: Frame[CameraImage]) -> None:
        number = frame.message.fingerprint() if self._router.wants_fingerprint(stream) else None
        self._registration.take_frame_id(stream, frame.message.header.frame_id)
        self._router.offer(stream, stamp_ns, frame, number)
        self._set_watch()

    def _on_info(self, stream: str, message: CameraInfo) -> None:
        self._processor.camera_infos[stream] = message
        self._registration.take_info(stream, message)

    # streams that die and come back

    def _say(self, event: Event) -> None:
        # rclpy ties a severity to the line of the call
        if event.level == "warning":
            self.get_logger().warning(event.text)
        elif event.level == "info":
            self.get_logger().info(event.text)
        else:
            self.get_logger().debug(event.text)

    def _time_jumped(self) -> None:
        self._router.time_jumped()
        if self._registration is not None:
            self._registration.time_jumped()

    def _set_watch(self) -> None:
        """Come again when the next stream may die."""
        deadline = self._router.next_deadline_ns
        if deadline is not None and (self._deadline is None or deadline < self._deadline):
            # good messages only move a deadline back: then the timer comes early once, and is set anew
            self._deadline = deadline
            self._watch_timer.timer_period_ns = max(1, deadline - time.monotonic_ns())
            self._watch_timer.reset()

    def _on_watch(self) -> None:
        self._watch_timer.cancel()
        self._deadline = None
        self._router.watch()
        self._set_watch()

    # parameters

    def _check_parameters(self, changed: Iterable[Parameter]) -> SetParametersResult:
        try:
            parameters.settings_from(parameters.values_of(self) | {p.name: p.value for p in changed})
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, changed: Iterable[Parameter]) -> None:
        if not any(parameter.name in parameters.BY_NAME for parameter in changed):
            return  # a publisher that is being made declares the overrides of its QoS
        before, self.settings = self.settings, parameters.settings_from(parameters.values_of(self))
        if (before.slop_ns, before.thermal_offset_ns) != (self.settings.slop_ns, self.settings.thermal_offset_ns):
            self._router.configure_matching(
                slop_ns=self.settings.slop_ns, thermal_offset_ns=self.settings.thermal_offset_ns
            )
        if before.degraded != self.settings.degraded:
            self._router.configure_degraded(self.settings.degraded)
            self._set_watch()
        if self._outputs is not None:
            self._outputs.set_compressed(self.settings.output_compressed)
        if self._processor is not None:
            self._processor.settings = self.settings
            if before.pipeline.gain != self.settings.pipeline.gain:
                self._pipeline.set_gain(self.settings.pipeline.gain)
            if before.registration != self.settings.registration:
                self._registration.configure(self.settings.registration)

    # regular work

    def _upkeep(self) -> None:
        for camera in self._inputs.values():
            camera.update()
        if self._outputs is not None:
            self._outputs.update()
        if self._inputs:
            self._registration.update()
        self._router.release()

    def _report(self, state: str | None = None) -> None:
        now = Past(time.monotonic_ns(), self._ledger.snapshot(), self._router.paired)
        while len(self._past) > 1 and now.at_ns - self._past[1].at_ns >= REPORT_WINDOW_NS:
            self._past.popleft()
        before = self._past[0]
        since = {stream: diagnostics.difference(now.counts[stream], before.counts[stream]) for stream in STREAMS}
        closest = self._router.closest_miss_ns
        processor = self._processor
        busy_since_ns = None if self._worker is None else self._worker.busy_since_ns
        wanted = frozenset() if self._outputs is None else self._outputs.wanted()
        facts = diagnostics.Facts(
            node=self.get_fully_qualified_name(),
            state=state or self._state_machine.current_state[1],
            inputs=tuple(
                camera.facts(
                    counts=now.counts[stream],
                    since=since[stream],
                    info_wanted=stream == self.settings.reference and "camera_info" in wanted,
                    info_misfit=processor.info_misfits.get(stream) if "camera_info" in wanted else None,
                    condition=self._router.condition(stream),
                )
                for stream, camera in self._inputs.items()
            ),
            counts=now.counts,
            now_ns=now.at_ns,
            mode=self._mode(),
            consequence=self._router.consequence,
            unpaired=self._router.unpaired,
            matching=self._about_matching,
            interval_s=(now.at_ns - before.at_ns) * 1e-9,
            slop_ms=self.settings.slop_ns * 1e-6,
            thermal_offset_ms=self.settings.thermal_offset_ns * 1e-6,
            closest_miss_ms=None if closest is None else closest * 1e-6,
            size_mismatch=None if processor is None else processor.size_mismatch,
            failure=None if processor is None else processor.failure,
            internal_error=self._recent_internal_error(now.at_ns),
            busy_ms=None if busy_since_ns is None else (time.monotonic_ns() - busy_since_ns) * 1e-6,
            age_s=None if processor is None else processor.age_s,
            timeout_ms=self.settings.degraded.timeout_ns * 1e-6,
            registration={} if self._registration is None else self._registration.registrar.description,
            unregistered=None if self._registration is None else self._registration.registrar.missing,
            concern=None if self._registration is None else self._registration.registrar.concern,
            unreachable=None if self._outputs is None else self._outputs.unreachable(),
            paired_since=now.paired - before.paired,
            fused_since=max(counts.fused for counts in since.values()),
            latency={} if processor is None else processor.latency.summary(),
            pipeline={}
            if self._pipeline is None
            else {**self._pipeline.description, "colour_conversion": self._about_colour},
            trouble=None if self._pipeline is None else self._pipeline.trouble,
        )
        self._diagnostics.publish(diagnostics.report(facts, self.get_clock().now().to_msg()))
        self._past.append(now)

    def _recent_internal_error(self, now_ns: int) -> str | None:
        if self._internal_error is None or now_ns - self._internal_error[1] > INTERNAL_ERROR_SHOWN_NS:
            return None
        return self._internal_error[0]

    def _mode(self) -> str:
        """What is published now, or would be if somebody looked."""
        mode = self._router.mode
        unregistered = self._registration is not None and self._registration.registrar.registration is None
        misfit = self._processor is not None and self._processor.size_mismatch is not None
        if mode != "pair" or not (unregistered or misfit):
            return mode
        alone = {"single": f"{self.settings.reference}_only", "hold": "held", "stop": "none"}
        return alone[self.settings.degraded.mode]

    def _every(self, seconds: float, callback: Callable[[], None]) -> Timer:
        return self.create_timer(seconds, callback, clock=self._steady)
