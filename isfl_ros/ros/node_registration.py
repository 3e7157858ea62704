"""The registration of a running node: the registrar, TF where it is asked, the thread that makes maps, and the log."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from isfl_ros.registration import CalibratedPlane
from isfl_ros.ros.parameters import Settings
from isfl_ros.ros.registrar import Registrar, RegistrationConfig, at_once
from isfl_ros.ros.sync import STREAMS
from isfl_ros.ros.tf_adapter import TfTransforms


class NodeRegistration:
    """From configuration to cleanup; all calls come from the executor's thread.

    Args:
        node: subscribes to TF, and says what becomes of the registration.
        settings: the parameters.

    Raises:
        InputError: on construction, when the homography file cannot be used or tf2_ros is missing.
    """

    def __init__(self, node: Node, settings: Settings):
        config = settings.registration
        calibrated = config.mode == CalibratedPlane.mode
        self._logger = node.get_logger()
        self._cameras = {"reference": settings.reference, "other": settings.other}
        self._tf = TfTransforms(node) if calibrated and config.transform_source == "tf" else None
        # a map takes longer than a camera's period: the executor would miss pictures meanwhile
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="registration") if calibrated else None
        self.registrar = Registrar(
            config,
            reference=settings.reference,
            info_topics={stream: node.resolve_topic_name(f"{stream}/camera_info") for stream in STREAMS},
            transforms=self._tf,
            submit=at_once if self._maker is None else self._maker.submit,
        )
        self._told = None
        self._tell()

    def start(self) -> None:
        """Begin a session: whatever was known may be wrong by now."""
        self.registrar.forget()
        self._told = self.registrar.registration
        if self._tf is not None:
            self._tf.start()

    def stop(self) -> None:
        """End the session."""
        if self._tf is not None:
            self._tf.stop()

    def time_jumped(self) -> None:
        """Say that a simulated clock was set back."""
        if self._tf is not None:
            self._tf.forget()

    def close(self) -> None:
        """End the thread."""
        if self._maker is not None:
            self._maker.shutdown(wait=False, cancel_futures=True)

    def configure(self, config: RegistrationConfig) -> None:
        """See `Registrar.configure`."""
        self.registrar.configure(config)
        self._tell()

    def take_info(self, stream: str, message: CameraInfo) -> None:
        """See `Registrar.take_info`."""
        self.registrar.take_info(stream, message)
        self._tell()

    def take_frame_id(self, stream: str, frame_id: str) -> None:
        """See `Registrar.take_frame_id`; call it for every picture: a map that is ready serves the next one."""
        self.registrar.take_frame_id(stream, frame_id)
        if self.registrar.busy:
            self.registrar.update()
        self._tell()

    def update(self) -> None:
        """See `Registrar.update`."""
        self.registrar.update()
        self._tell()

    def _tell(self) -> None:
        registration = self.registrar.registration
        if registration is self._told:
            return
        self._told = registration
        if registration is None:
            self._logger.warning(f"cameras no longer registered: {self.registrar.missing}")
        elif registration.mode != "none":
            self._logger.info(
                f"cameras registered ({registration.mode}): the {self._cameras['other']} camera covers"
                f" {registration.overlap:.0%} of the {self._cameras['reference']} camera's picture"
            )
            for concern in registration.concerns:
                self._logger.warning(f"the registration looks wrong: {concern}")
