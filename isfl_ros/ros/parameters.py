"""Every parameter of the fusion node, once: declared, checked, documented and read from the table below.

Defaults of the pipeline and of the gain control are those of their own config classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from isfl_ros.backends.choice import IMPLEMENTATION_CHOICES, PRECISION_CHOICES
from isfl_ros.device import DEVICES
from isfl_ros.errors import InputError
from isfl_ros.images import GAIN_MODES, GainControlConfig
from isfl_ros.network.config import MINIMUM_SIZE
from isfl_ros.pipeline import PipelineConfig
from isfl_ros.registration import MODES as REGISTRATION_MODES
from isfl_ros.ros.compressed import FORMATS, TRANSPORTS
from isfl_ros.ros.degraded import MODES as DEGRADED_MODES
from isfl_ros.ros.degraded import DegradedConfig
from isfl_ros.ros.messages import MAX_PIXELS, MAX_SIDE, NANOSECONDS
from isfl_ros.ros.qos import RELIABILITY_CHOICES
from isfl_ros.ros.registrar import TRANSFORM_SOURCES, RegistrationConfig
from isfl_ros.ros.sync import STREAMS
from isfl_ros.ros.sync_message_filters import MATCHER_CHOICES, check_slop

Value = bool | int | float | str

_PIPELINE = PipelineConfig()
_GAIN = _PIPELINE.gain
_DEGRADED = DegradedConfig()
_REGISTRATION = RegistrationConfig()


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One row of the table. The type is that of the default."""

    name: str
    default: Value
    description: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    live: bool = False
    """Takes effect at run time; read-only otherwise."""

    @property
    def type_name(self) -> str:
        """Type as ROS names it."""
        return {bool: "bool", int: "integer", float: "double", str: "string"}[type(self.default)]

    @property
    def constraint(self) -> str:
        """What a value must be, in words; empty where any value of the type is allowed."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.minimum is not None and isinstance(self.default, int):
            return f"{self.minimum} to {self.maximum}"  # every digit
        if self.minimum is not None:
            return f"{self.minimum:g} to {self.maximum:g}"
        return ""

    def check(self, value: object) -> Value:
        """`value` in the type of this parameter; a whole number is a fine value for a double.

        Raises:
            InputError: wrong type, not one of the choices, or out of range.
        """
        if isinstance(self.default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(self.default):
            raise InputError(f"parameter {self.name}", expected=f"a value of type {self.type_name}", got=repr(value))
        if self.choices and value not in self.choices:
            raise InputError(f"parameter {self.name}", expected=self.constraint, got=repr(value))
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"parameter {self.name}", expected="a finite number", got=repr(value))
        if self.minimum is not None and not self.minimum <= value <= self.maximum:
            raise InputError(f"parameter {self.name}", expected=self.constraint, got=repr(value))
        return value

    def descriptor(self) -> ParameterDescriptor:
        """The row as ROS tools show it."""
        descriptor = ParameterDescriptor(
            description=self.description, additional_constraints=self.constraint, read_only=not self.live
        )
        if isinstance(self.default, float):
            # a static type would refuse `slop_ms: 50` for want of a decimal point; `check` looks after the type
            descriptor.dynamic_typing = True
        if self.minimum is not None and isinstance(self.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=self.minimum, to_value=self.maximum)]
        elif self.minimum is not None:
            descriptor.integer_range = [IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum))]
        return descriptor


TABLE: tuple[Parameter, ...] = (
    Parameter(
        name="model",
        default=_PIPELINE.model,
        description="Name of a shipped model, or the path of a model folder.",
    ),
    Parameter(
        name="device",
        default=_PIPELINE.device,
        description="Where the network runs; auto takes CUDA where there is one.",
        choices=DEVICES,
    ),
    Parameter(
        name="implementation",
        default=_PIPELINE.implementation,
        description="Who computes the network: equations in torch (reference), exact algebra in torch (folded), fused"
        " kernels on CUDA (triton), compiled as a whole for the CPU (openvino); auto takes the fastest that runs here.",
        choices=IMPLEMENTATION_CHOICES,
    ),
    Parameter(
        name="precision",
        default=_PIPELINE.precision,
        description="Arithmetic of the network; auto is fp32 on the CPU and fp16 on CUDA where the chip has it.",
        choices=PRECISION_CHOICES,
    ),
    Parameter(
        name="threads",
        default=_PIPELINE.threads,
        description="CPU threads of torch; 0 leaves torch's own choice.",
        minimum=0,
        maximum=256,
    ),
    Parameter(
        name="reference",
        default="rgb",
        description="The camera whose stamp, frame_id and camera_info the fused picture carries.",
        choices=("rgb", "thermal"),
    ),
    Parameter(
        name="autostart",
        default=True,
        description="Configure and activate at start; false leaves that to a lifecycle manager.",
    ),
    Parameter(
        name="warmup.width",
        default=640,
        description="Width in pixels of the pictures the model is warmed up with; 0 for no warm-up.",
        minimum=0,
        maximum=MAX_SIDE,
    ),
    Parameter(
        name="warmup.height",
        default=480,
        description="Height in pixels of the pictures the model is warmed up with; 0 for no warm-up.",
        minimum=0,
        maximum=MAX_SIDE,
    ),
    Parameter(
        name="thermal.transport",
        default="raw",
        description="How thermal images come: sensor_msgs/Image (raw), or sensor_msgs/CompressedImage on the topic with"
        " /compressed appended to its name (PNG, with 16 bits too; JPEG).",
        choices=TRANSPORTS,
    ),
    Parameter(
        name="rgb.transport",
        default="raw",
        description="How RGB images come: sensor_msgs/Image (raw), or sensor_msgs/CompressedImage on the topic with"
        " /compressed appended to its name (JPEG, PNG).",
        choices=TRANSPORTS,
    ),
    Parameter(
        name="input.max_pixels",
        default=8_388_608,
        description="Pixels of the largest picture that is taken from either camera; larger ones are dropped as"
        " bad_size. The network needs about 0.7 GB of memory a megapixel on the CPU: raise it only where that is there.",
        minimum=MINIMUM_SIZE**2,
        maximum=MAX_PIXELS,
    ),
    Parameter(
        name="sync.matcher",
        default=MATCHER_CHOICES[0],
        description="Who finds pairs: the node's own matcher (builtin: closest partner wins, slop inclusive), or the"
        " approximate time synchroniser of message_filters (first partner wins, slop exclusive).",
        choices=MATCHER_CHOICES,
    ),
    Parameter(
        name="sync.slop_ms",
        default=50.0,
        description="Largest distance in milliseconds of two stamps that make a pair, inclusive.",
        minimum=0.0,
        maximum=10_000.0,
        live=True,
    ),
    Parameter(
        name="sync.thermal_offset_ms",
        default=0.0,
        description="Milliseconds added to thermal stamps before they are compared: a known clock offset.",
        minimum=-4e12,  # a camera that counts from when it was started, beside one that knows the date: 1.8e12
        maximum=4e12,
        live=True,
    ),
    Parameter(
        name="degraded.mode",
        default=_DEGRADED.mode,
        description="What happens while one camera is missing or frozen: the other is fused alone (single), the last"
        " fused picture is published again with its old stamp (hold), or nothing is published (stop).",
        choices=DEGRADED_MODES,
        live=True,
    ),
    Parameter(
        name="degraded.timeout_ms",
        default=_DEGRADED.timeout_ns * 1e-6,
        description="Milliseconds without a new picture after which a camera is given up.",
        minimum=20.0,
        maximum=60_000.0,
        live=True,
    ),
    Parameter(
        name="degraded.identical_bytes",
        default=_DEGRADED.identical_bytes,
        description="Whether a thermal camera that repeats one picture byte for byte (not all pixels equal) is frozen;"
        " false for simulated or still pictures.",
        live=True,
    ),
    Parameter(
        name="registration.mode",
        default=_REGISTRATION.mode,
        description="How the other camera's pictures are warped into the frame of the reference camera: not at all, they"
        " are aligned (none); by a 3x3 matrix from a file (homography); by both camera_infos, the transform between the"
        " cameras, and the distance of what is looked at (calibrated).",
        choices=REGISTRATION_MODES,
    ),
    Parameter(
        name="registration.homography_file",
        default=_REGISTRATION.homography_file,
        description="Path of the YAML file with the matrix, for homography; read at configure.",
    ),
    Parameter(
        name="registration.plane_depth_m",
        default=_REGISTRATION.plane_depth_m,
        description="Metres in front of the reference camera at which the pictures coincide, for calibrated.",
        minimum=0.1,
        maximum=1e6,
        live=True,
    ),
    Parameter(
        name="registration.transform.source",
        default=_REGISTRATION.transform_source,
        description="Where calibrated has the transform between the cameras' optical frames from: TF (/tf, /tf_static),"
        " or the parameters below.",
        choices=TRANSFORM_SOURCES,
    ),
    *(
        Parameter(
            name=f"registration.transform.{axis}",
            default=value,
            description=f"Metres: {axis} of the thermal camera in the optical frame of the RGB camera ({direction}).",
            minimum=-100.0,
            maximum=100.0,
            live=True,
        )
        for axis, direction, value in zip("xyz", ("right", "down", "forward"), _REGISTRATION.translation)
    ),
    *(
        Parameter(
            name=f"registration.transform.q{axis}",
            default=value,
            description=f"How the thermal camera is turned there: {axis} of a unit quaternion; change all four at once.",
            minimum=-1.0,
            maximum=1.0,
            live=True,
        )
        for axis, value in zip("xyzw", _REGISTRATION.quaternion)
    ),
    Parameter(
        name="qos.reliability",
        default="auto",
        description="Reliability of the subscriptions; auto asks for what every publisher of the topic offers.",
        choices=RELIABILITY_CHOICES,
    ),
    Parameter(
        name="qos.depth",
        default=2,
        description="Queue depth of the subscriptions.",
        minimum=1,
        maximum=100,
    ),
    Parameter(
        name="agc.mode",
        default=_GAIN.mode,
        description="Gain control of thermal pictures deeper than 8 bits: limits per picture, limits that follow"
        " in time, or fixed.",
        choices=GAIN_MODES,
        live=True,
    ),
    Parameter(
        name="agc.low",
        default=_GAIN.low,
        description="Black in fixed mode, in counts after scale and offset.",
        live=True,
    ),
    Parameter(
        name="agc.high",
        default=_GAIN.high,
        description="White in fixed mode, in counts after scale and offset.",
        live=True,
    ),
    Parameter(
        name="agc.low_percentile",
        default=_GAIN.low_percentile,
        description="Percentile of the valid pixels that becomes black in the percentile modes.",
        minimum=0.0,
        maximum=100.0,
        live=True,
    ),
    Parameter(
        name="agc.high_percentile",
        default=_GAIN.high_percentile,
        description="Percentile of the valid pixels that becomes white in the percentile modes.",
        minimum=0.0,
        maximum=100.0,
        live=True,
    ),
    Parameter(
        name="agc.time_constant_s",
        default=_GAIN.time_constant_s,
        description="Seconds in which the limits of percentile_smoothed cover 63 % of a step.",
        minimum=0.001,
        maximum=3600.0,
        live=True,
    ),
    Parameter(
        name="agc.scale",
        default=_GAIN.scale,
        description="Units per count; with a radiometric camera, degrees Celsius per count.",
        live=True,
    ),
    Parameter(
        name="agc.offset",
        default=_GAIN.offset,
        description="Units at count 0.",
        live=True,
    ),
    Parameter(
        name="output.encoding",
        default="rgb8",
        description="Encoding of ~/fused/image: the fused luma with the RGB camera's colour, or the luma alone.",
        choices=("rgb8", "mono8"),
        live=True,
    ),
    Parameter(
        name="output.compressed",
        default="none",
        description="How ~/fused/image/compressed is compressed; none: that topic does not exist.",
        choices=("none", *FORMATS),  # "off" would be a bool in YAML and on the command line
        live=True,
    ),
    Parameter(
        name="output.max_rate_hz",
        default=0.0,
        description="Most pictures fused a second; 0 for no limit. What comes too soon is dropped, not decoded.",
        minimum=0.0,
        maximum=1000.0,
        live=True,
    ),
    Parameter(
        name="gate.encoding",
        default="mono8",
        description="Encoding of ~/gate/image: 0 to 255, or 0 to 1.",
        choices=("mono8", "32FC1"),
        live=True,
    ),
    Parameter(
        name="debug.max_rate_hz",
        default=0.0,
        description="Most pictures a second on ~/gate/overlay and ~/debug/side_by_side; 0 for no limit.",
        minimum=0.0,
        maximum=1000.0,
        live=True,
    ),
    Parameter(
        name="diagnostics.rate_hz",
        default=1.0,
        description="How often /diagnostics is published.",
        minimum=0.1,
        maximum=10.0,
    ),
)

BY_NAME: Mapping[str, Parameter] = {parameter.name: parameter for parameter in TABLE}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The parameters as the node uses them; durations are whole nanoseconds."""

    pipeline: PipelineConfig
    reference: str
    autostart: bool
    warmup_size: tuple[int, int] | None
    """(height, width), or None for no warm-up."""
    transport: Mapping[str, str]
    """Stream -> one of `TRANSPORTS`."""
    max_pixels: int
    """Of the largest picture that is taken."""
    matcher: str
    slop_ns: int
    thermal_offset_ns: int
    degraded: DegradedConfig
    registration: RegistrationConfig
    qos_reliability: str
    qos_depth: int
    output_encoding: str
    output_compressed: str | None
    """One of `FORMATS`, or None where the compressed picture is not published."""
    output_max_rate_hz: float
    """0: no limit."""
    gate_encoding: str
    debug_max_rate_hz: float
    """0: no limit."""
    diagnostics_period_s: float

    @property
    def other(self) -> str:
        """The stream that is not the reference."""
        return STREAMS[1 - STREAMS.index(self.reference)]


def settings_from(values: Mapping[str, object]) -> Settings:
    """Check parameter values, one by one and together.

    Args:
        values: name -> value, for every row of the table; other names are ignored.

    Raises:
        InputError: a value is refused.
    """
    checked = {parameter.name: parameter.check(values[parameter.name]) for parameter in TABLE}
    gain = GainControlConfig(**{n.removeprefix("agc."): v for n, v in checked.items() if n.startswith("agc.")})
    slop_ns = _nanoseconds(checked["sync.slop_ms"])
    if checked["sync.matcher"] == "message_filters":
        check_slop(slop_ns)
    return Settings(
        pipeline=PipelineConfig(**{n: checked[n] for n in ("model", "device", "implementation", "precision", "threads")}, gain=gain),
        reference=checked["reference"],
        autostart=checked["autostart"],
        warmup_size=_warmup_size(checked["warmup.height"], checked["warmup.width"], checked["input.max_pixels"]),
        transport={stream: checked[f"{stream}.transport"] for stream in STREAMS},
        max_pixels=checked["input.max_pixels"],
        matcher=checked["sync.matcher"],
        slop_ns=slop_ns,
        thermal_offset_ns=_nanoseconds(checked["sync.thermal_offset_ms"]),
        degraded=DegradedConfig(
            timeout_ns=_nanoseconds(checked["degraded.timeout_ms"]),
            mode=checked["degraded.mode"],
            identical_bytes=checked["degraded.identical_bytes"],
        ),
        registration=RegistrationConfig(
            mode=checked["registration.mode"],
            homography_file=checked["registration.homography_file"],
            plane_depth_m=checked["registration.plane_depth_m"],
            transform_source=checked["registration.transform.source"],
            translation=tuple(checked[f"registration.transform.{axis}"] for axis in "xyz"),
            quaternion=tuple(checked[f"registration.transform.q{axis}"] for axis in "xyzw"),
        ),
        qos_reliability=checked["qos.reliability"],
        qos_depth=checked["qos.depth"],
        output_encoding=checked["output.encoding"],
        output_compressed=None if checked["output.compressed"] == "none" else checked["output.compressed"],
        output_max_rate_hz=checked["output.max_rate_hz"],
        gate_encoding=checked["gate.encoding"],
        debug_max_rate_hz=checked["debug.max_rate_hz"],
        diagnostics_period_s=1.0 / checked["diagnostics.rate_hz"],
    )


_NOT_OURS = ("use_sim_time", "start_type_description_service", "qos_overrides.")
"""Parameters that rclpy declares by itself."""


def declare(node: Node) -> Settings:
    """Declare the table on `node`, take in what the user set, and return it.

    Raises:
        InputError: a value set by the user is refused.
        rclpy.exceptions.ParameterException: its type or range was refused by rclpy already.
    """
    unknown = sorted(name for name in node._parameter_overrides if name not in BY_NAME and not name.startswith(_NOT_OURS))
    if unknown:
        raise InputError(f"unknown parameter {unknown[0]}", expected="one that docs/node.md lists", do="correct or remove it")
    for parameter in TABLE:
        node.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
    return settings_from(values_of(node))


def values_of(node: Node) -> dict[str, object]:
    """The values in force."""
    return {parameter.name: node.get_parameter(parameter.name).value for parameter in TABLE}


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * (NANOSECONDS // 1000))


def _warmup_size(height: int, width: int, max_pixels: int) -> tuple[int, int] | None:
    if height == 0 or width == 0:
        return None
    if min(height, width) < MINIMUM_SIZE:
        raise InputError(
            "parameters warmup.width and warmup.height",
            expected=f"at least {MINIMUM_SIZE}, or 0 for no warm-up",
            got=f"{width} and {height}",
        )
    if height * width > max_pixels:
        raise InputError(
            "parameters warmup.width and warmup.height",
            expected=f"a picture that is taken, of at most {max_pixels} pixels (parameter input.max_pixels)",
            got=f"{width} and {height}",
        )
    return height, width
