"""The fusion node, and a detector that looks at ~/fused/image: an example of what comes after the fusion.

With yolo_ros (https://github.com/mgonzs13/yolo_ros), whose yolo_bringup/launch/yolo.launch.py is included; every
argument of that file can be given here too (threshold, imgsz_width, use_tracking, use_3d ...), but for `model`,
`device` and `namespace`, which belong to the fusion node:

    ros2 launch isfl_ros detection.launch.py thermal_topic:=/flir/image_raw rgb_topic:=/front/image_raw
    ros2 launch isfl_ros detection.launch.py detector_model:=yolo11m.pt detector_device:=cpu use_tracking:=False

Detections are then on /yolo/detections, the picture with boxes on /yolo/debug_image. yolo_ros installs its Python
packages itself, with `uv sync` whenever its launch file runs: the first time takes a while and a network connection.

With any other node that subscribes to a sensor_msgs/Image:

    ros2 launch isfl_ros detection.launch.py detector_package:=my_detector detector_executable:=detector_node \
        detector_image_topic:=image detector_params_file:=/path/to/detector.yaml

When to believe a detection. Every fused picture comes with one message on ~/fused/status (diagnostic_msgs/
DiagnosticArray) with exactly its stamp; gate on that, not on whether a picture came:
- Join picture (or detections, where the detector keeps the header, as yolo_ros does) and status by exact stamp:
  `message_filters.TimeSynchronizer([detections, status], 10)`. Nearest stamps would pair a picture with its
  neighbour's status. Subscribe to both reliably, or half of a pair may be lost.
- `mode`: `pair` shows both cameras. In `thermal_only` and `rgb_only` one camera is dead: the picture is good, but lower
  the trust where that camera was needed (people at night without thermal, signs and lamps without RGB). `held` repeats
  an old picture with its old stamp: nothing in it is a new observation, drop what has a stamp you have seen.
- `valid_fraction.thermal` and `valid_fraction.rgb`: the part of the picture for which that camera has pixels; elsewhere
  it rests on the other camera alone. Aligned cameras have 1.0, registered ones their overlap: a value below the usual
  one of your cameras means that something is wrong.
- `age_ms`: how old the picture was when it was published; what the detector needs comes on top. `delay_ms`: how much of
  that passed in the fusion node; the level is WARN where it is more than `degraded.timeout_ms`. `stamp_skew_ms`: a
  thing that crosses the picture at 10 m/s in 10 m distance is 3 degrees off at 50 ms skew.
"""

import posixpath
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from isfl_ros.errors import InputError
from isfl_ros.resources import shared_directory

FUSION = shared_directory() / "launch" / "fusion.launch.py"
YOLO = "yolo_ros"

ARGUMENTS = [
    DeclareLaunchArgument(
        "detector_package",
        default_value=YOLO,
        description=f"Package of the detector; {YOLO} is started through its own launch file.",
    ),
    DeclareLaunchArgument(
        "detector_executable", default_value="", description=f"Executable of the detector; not for {YOLO}."
    ),
    DeclareLaunchArgument(
        "detector_image_topic",
        default_value="image_raw",
        description=f"Name under which the detector subscribes to its images; not for {YOLO}.",
    ),
    DeclareLaunchArgument(
        "detector_info_topic",
        default_value="camera_info",
        description=f"Name under which the detector subscribes to their calibration, if it does; not for {YOLO}.",
    ),
    DeclareLaunchArgument(
        "detector_params_file",
        default_value="",
        description=f"YAML file with parameters of the detector, or empty; not for {YOLO}.",
    ),
    DeclareLaunchArgument(
        "detector_namespace",
        default_value="yolo",
        description="Namespace of the detector, below that of the fusion node.",
    ),
    DeclareLaunchArgument(
        "detector_model", default_value="yolov8m.pt", description=f"Model of {YOLO}: a name or a path."
    ),
    DeclareLaunchArgument(
        "detector_device", default_value="cuda:0", description=f"Where {YOLO} computes, for example cuda:0 or cpu."
    ),
]


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    # A detector that is not there ends the launch before anything was started. The included file comes before the
    # detector: it declares `namespace` and `use_sim_time`, and sets the Fast DDS profile that the detector needs, too.
    fusion = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(FUSION)))
    return LaunchDescription(
        [*ARGUMENTS, OpaqueFunction(function=check_detector), fusion, OpaqueFunction(function=make_detector)]
    )


def check_detector(context: LaunchContext) -> None:
    """Whether the detector that was asked for can be started.

    Raises:
        InputError: a package is not installed, or an argument or a file is missing.
    """
    value = context.launch_configurations
    package, executable, parameters = (value[f"detector_{name}"] for name in ("package", "executable", "params_file"))
    if package == YOLO:
        yolo_launch_file()
        return
    _share(package, "install it, or correct detector_package:=")
    if not executable:
        raise InputError(f"no executable of {package}", expected="one", do="add detector_executable:=NAME")
    if parameters and not Path(parameters).is_file():
        raise InputError("detector_params_file", expected="a YAML file", got=parameters)


def yolo_launch_file() -> Path:
    """The launch file of yolo_ros.

    Raises:
        InputError: it is not installed.
    """
    install = (
        "clone https://github.com/mgonzs13/yolo_ros into src/ of the workspace, run `rosdep install --from-paths src"
        " --ignore-src`, `colcon build` and `source install/setup.bash` (it needs uv, too: its README says how); or"
        " name another detector with detector_package:= and detector_executable:="
    )
    _share(YOLO, install)
    file = _share("yolo_bringup", install) / "launch" / "yolo.launch.py"
    if not file.is_file():
        raise InputError("the launch file of yolo_ros is missing", expected=str(file), do=install)
    return file


def make_detector(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The detector, once the arguments have their values."""
    value = context.launch_configurations
    namespace = posixpath.join("/", value["namespace"])
    image, info = (posixpath.join(namespace, "fusion/fused", name) for name in ("image", "camera_info"))
    if value["detector_package"] == YOLO:
        arguments = {
            "input_image_topic": image,
            "image_reliability": "1",  # reliable, as the fused picture is offered
            # the fusion launch file has arguments of these names
            "namespace": posixpath.join(namespace, value["detector_namespace"]),
            "model": value["detector_model"],
            "device": value["detector_device"],
        }
        source = PythonLaunchDescriptionSource(str(yolo_launch_file()))
        return [IncludeLaunchDescription(source, launch_arguments=arguments.items())]
    parameters = [value["detector_params_file"]] if value["detector_params_file"] else []
    if value["use_sim_time"]:
        parameters.append({"use_sim_time": value["use_sim_time"] == "true"})
    return [
        Node(
            package=value["detector_package"],
            executable=value["detector_executable"],
            namespace=posixpath.join(namespace, value["detector_namespace"]),
            parameters=parameters,
            remappings=[(value["detector_image_topic"], image), (value["detector_info_topic"], info)],
            output="screen",
        )
    ]


def _share(package: str, do: str) -> Path:
    try:
        return Path(get_package_share_directory(package))
    except (PackageNotFoundError, ValueError):  # the latter: not a name of a package
        raise InputError(f"package {package!r} is not installed", expected="a detector", do=do) from None
