"""What brings the pictures of both cameras into one frame, found from parameters and messages. Knows no rclpy.

`Registrar` collects, for `registration.mode: calibrated`, what the cameras and TF say, has the map made in another
thread (up to half a second at 1920x1080) and yields the `Registration`, or in words why there is none yet. While a new
map is made the old one stays in force, except where what it was made from turned out to be unusable, or a picture came
in another frame: its camera may stand elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from sensor_msgs.msg import CameraInfo

from isfl_ros.errors import InputError
from isfl_ros.registration import (
    MODES,
    CalibratedPlane,
    Calibration,
    Homography,
    Registration,
    Transform,
    read_homography,
)
from isfl_ros.ros import camera_info
from isfl_ros.ros.sync import STREAMS

TRANSFORM_SOURCES = ("tf", "parameters")
"""Where the transform between the cameras comes from."""

SAME_ANGLE = 1e-4
"""Radians, and metres at a distance of one metre, by which a transform of TF may move before a new map is made of it:
a tenth of a pixel at a focal length of 1000 pixels."""

STEADY_S = 1.0
"""Seconds. When frame_id or calibration of a camera change twice within it, no map is made of them before they have
stayed the same for as long: two publishers on one topic would have maps made for ever."""


@dataclass(frozen=True, kw_only=True)
class RegistrationConfig:
    """The parameters `registration.*`.

    Raises:
        InputError: on construction, when they contradict each other.
    """

    mode: str = MODES[0]
    """One of `MODES`."""
    homography_file: str = ""
    """What `homography` reads."""
    plane_depth_m: float = 20.0
    """Metres along the reference camera's axis at which `calibrated` makes the pictures coincide, > 0. With 20, what is
    10 m away is off as far as what is infinitely far away, and everything between less."""
    transform_source: str = TRANSFORM_SOURCES[0]
    """One of `TRANSFORM_SOURCES`."""
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Metres: where the thermal camera is in the optical frame of the RGB camera."""
    quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    """(x, y, z, w): how the thermal camera is turned there. Which camera is the reference does not matter to either."""

    def __post_init__(self) -> None:
        if self.mode == Homography.mode and not self.homography_file:
            raise InputError(
                "parameter registration.homography_file",
                expected="a file, with registration.mode homography",
                got="none",
            )
        if self.mode == CalibratedPlane.mode and self.transform_source == "parameters":
            self.transform("rgb")

    def transform(self, reference: str) -> Transform:
        """From the frame of the reference camera (`rgb` or `thermal`) to the other's, by the parameters."""
        try:
            thermal_in_rgb = Transform.from_quaternion(self.quaternion, self.translation)
        except InputError:
            raise InputError(
                "parameters registration.transform.qx, qy, qz and qw",
                expected="a quaternion of length 1",
                got=", ".join(f"{value:g}" for value in self.quaternion),
                do="change all four at once",
            ) from None
        return thermal_in_rgb if reference == "thermal" else thermal_in_rgb.inverse()


class NoTransform(LookupError):
    """TF does not know how two frames lie to each other, or not yet; the text says why."""


class Transforms(Protocol):
    """Where transforms come from."""

    def lookup(self, *, target: str, source: str) -> Transform:
        """The latest: p_target = rotation p_source + translation.

        Raises:
            NoTransform: it is not known.
        """


def at_once(work: Callable[[], Registration]) -> Future[Registration]:
    """Does the work in the calling thread."""
    future: Future[Registration] = Future()
    try:
        future.set_result(work())
    except Exception as error:  # where the work is done must not matter to who asks for the result
        future.set_exception(error)
    return future


@dataclass(frozen=True)
class _Camera:
    """What a camera_info said."""

    said: tuple[tuple, str]
    """Fingerprint and frame_id."""
    calibration: Calibration | None
    fault: str
    """Why there is no calibration."""


class Registrar:
    """See the module. One thread (the executor's) makes all calls; any may read `registration`.

    Args:
        config: the parameters.
        reference: `rgb` or `thermal`.
        info_topics: names of the camera_info topics, by stream.
        transforms: where TF is asked, for `transform_source: tf`.
        submit: has work done by a thread; it never gets a second piece of work before it has done the first.
        clock: seconds, monotonic.

    Raises:
        InputError: on construction, when the homography file cannot be used.
    """

    def __init__(
        self,
        config: RegistrationConfig,
        *,
        reference: str,
        info_topics: Mapping[str, str],
        transforms: Transforms | None = None,
        submit: Callable[[Callable[[], Registration]], Future[Registration]] = at_once,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.registration: Registration | None = None
        """None while there is none: then pictures of both cameras must not be fused."""
        self.missing: str | None = None
        """Why there is none, in words."""
        self._config = config
        self._reference, self._other = reference, next(stream for stream in STREAMS if stream != reference)
        self._info_topics = info_topics
        self._transforms = transforms
        self._submit = submit
        self._clock = clock
        self._residual_px: float | None = None
        if config.mode == Homography.mode:
            homography = read_homography(config.homography_file)
            self.registration, self._residual_px = Registration(homography), homography.residual_px
        elif config.mode != CalibratedPlane.mode:
            self.registration = Registration()
        self.forget()

    @property
    def concern(self) -> str | None:
        """What looks wrong with it but need not be, in words."""
        if self.registration is None:
            return None
        restless = self._restless_camera()
        return "; ".join([*self.registration.concerns, *([] if restless is None else [restless])]) or None

    @property
    def busy(self) -> bool:
        """Whether a map is being made: then `update` is worth calling."""
        return self._building is not None

    @property
    def description(self) -> dict[str, str]:
        """For people: the mode, and how much and how well the pictures overlap."""
        if self._config.mode not in (Homography.mode, CalibratedPlane.mode):
            return {"registration": self._config.mode}
        return {
            "registration": self._config.mode,
            "registration.overlap": "unknown" if self.registration is None else f"{self.registration.overlap:.4f}",
            "registration.residual_px": "unknown" if self._residual_px is None else f"{self._residual_px:.2f}",
        }

    def forget(self) -> None:
        """Forget what cameras and TF said: they may be others when the node is active again."""
        self._cameras: dict[str, _Camera] = {}
        self._frame_ids: dict[str, str] = {}
        self._transform: Transform | None = None
        self._transform_frames: tuple[str, str] | None = None
        self._building: tuple[tuple | None, Future[Registration]] | None = None
        """What a map is being made from, None where it is not wanted any more."""
        self._built: tuple | None = None
        """What the latest map was made from, or could not be made from."""
        self._fault = ""
        self._changed_s: dict[str, float] = {}
        """When frame_id or calibration last changed."""
        self._restless: set[str] = set()
        self.update()

    def configure(self, config: RegistrationConfig) -> None:
        """Take in what can change at run time: the depth of the plane, and the transform where parameters give it."""
        before, self._config = self._config, config
        if (before.translation, before.quaternion) != (config.translation, config.quaternion) and not self._asks_tf:
            self._transform = None
        self.update()

    def take_info(self, stream: str, message: CameraInfo) -> None:
        """Take in a calibration; one that says nothing new costs nothing."""
        if self._config.mode != CalibratedPlane.mode:
            return
        said, known = (camera_info.fingerprint(message), message.header.frame_id), self._cameras.get(stream)
        frame_id = self.frame_id(stream)
        if known is not None and known.said == said:
            return
        if known is not None and known.said[0] == said[0]:
            camera = replace(known, said=said)
        else:
            try:
                camera = _Camera(said, camera_info.calibration(message, f"{stream} camera"), "")
            except InputError as error:
                camera = _Camera(said, None, str(error))
        self._cameras[stream] = camera
        calibrations = (None if known is None else known.calibration), camera.calibration
        self._note_change(stream, frame_id, recalibrated=None not in calibrations and said[0] != known.said[0])
        self.update()

    def take_frame_id(self, stream: str, frame_id: str) -> None:
        """Take in the frame of a picture; it counts more than that of a camera_info."""
        if self._frame_ids.get(stream) != frame_id:
            before, self._frame_ids[stream] = self.frame_id(stream), frame_id
            self._note_change(stream, before)
            self.update()

    def frame_id(self, stream: str) -> str:
        """Frame of a camera, as far as it is known; else empty."""
        known = self._cameras.get(stream)
        return self._frame_ids.get(stream) or ("" if known is None else known.said[1])

    def update(self) -> None:
        """Look for what is there by now, and have a map made of it where it is new. Call it regularly."""
        if self._config.mode != CalibratedPlane.mode:
            return
        self._take_built()
        self.missing = self._missing_calibration() or self._missing_transform()
        if self.missing is not None:
            self._drop()
            return
        parts = (
            self._cameras[self._reference].calibration,
            self._cameras[self._other].calibration,
            self._transform,
            self._config.plane_depth_m,
        )
        restless = self._restless_camera()
        if self._building is None and self._built != parts and restless is None:
            self._building = parts, self._submit(lambda: _make(*parts))
            self._take_built()
        if self.registration is None:
            self.missing = restless or self._fault or "the map between the pictures is being made"

    def _drop(self) -> None:
        """Have neither the map in force nor one that is being made: they are for something else."""
        self.registration = self._built = None
        self._fault = ""
        if self._building is not None:
            self._building = None, self._building[1]  # it goes on, and the next one waits for it

    def _note_change(self, stream: str, frame_id: str, *, recalibrated: bool = False) -> None:
        """Remember when what the map is made from changed.

        Args:
            stream: of the camera.
            frame_id: its frame before, as far as it was known.
            recalibrated: it has another calibration.
        """
        moved = self._asks_tf and frame_id not in ("", self.frame_id(stream))
        if moved or recalibrated:
            now = self._clock()
            if now - self._changed_s.get(stream, -math.inf) < STEADY_S:
                self._restless.add(stream)
            self._changed_s[stream] = now

    def _restless_camera(self) -> str | None:
        """Which camera does not stay the same, in words."""
        now = self._clock()
        self._restless = {stream for stream in self._restless if now - self._changed_s[stream] < STEADY_S}
        if not self._restless:
            return None
        return (
            f"frame_id or calibration of the {' and the '.join(sorted(self._restless))} camera keeps changing;"
            " is there more than one publisher?"
        )

    def _take_built(self) -> None:
        if self._building is None or not self._building[1].done():
            return
        (parts, future), self._building = self._building, None
        if parts is None:
            return
        self._built = parts
        error = future.exception()
        self.registration = future.result() if error is None else None
        if error is not None:
            text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            self._fault = " ".join(text.split())

    @property
    def _asks_tf(self) -> bool:
        return self._config.transform_source == "tf"

    def _missing_calibration(self) -> str | None:
        streams = (self._reference, self._other)
        silent = [self._info_topics[stream] for stream in streams if stream not in self._cameras]
        if silent:
            return f"no camera_info on {' and '.join(silent)}"
        faults = [self._cameras[stream].fault for stream in streams if self._cameras[stream].calibration is None]
        return " and ".join(faults) or None

    def _missing_transform(self) -> str | None:
        """Looks the transform up; says why there is none."""
        if not self._asks_tf:
            if self._transform is None:
                self._transform = self._config.transform(self._reference)
            return None
        frames = source, target = self.frame_id(self._reference), self.frame_id(self._other)
        for stream, frame in zip((self._reference, self._other), frames):
            if not frame:
                return f"the messages of the {stream} camera have no frame_id"
        if source == target:
            return f"both cameras have the frame_id {source}, which must differ; set them in the drivers"
        try:
            found = self._transforms.lookup(target=target, source=source)
        except NoTransform as error:
            if self._transform is not None and self._transform_frames == frames:
                return None  # the last one stays in force
            return f"no transform from {source} to {target} on /tf, /tf_static: {error}"
        except InputError as error:
            return f"transform from {source} to {target} on /tf, /tf_static: {error}"
        if self._transform is None or self._transform_frames != frames:
            self._drop()
            self._transform, self._transform_frames = found, frames
        elif self._moved(found):
            self._transform = found
        return None

    def _moved(self, found: Transform) -> bool:
        """Whether a transform differs visibly from the one in use."""
        turned = np.abs(found.rotation - self._transform.rotation).max()
        shifted = np.abs(found.translation - self._transform.translation).max()
        return turned > SAME_ANGLE or shifted > SAME_ANGLE * self._config.plane_depth_m


def _make(reference: Calibration, other: Calibration, transform: Transform, plane_depth_m: float) -> Registration:
    return Registration(
        CalibratedPlane(reference=reference, other=other, transform=transform, plane_depth_m=plane_depth_m)
    )
