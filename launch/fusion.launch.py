"""The fusion node beside two camera drivers, and rviz on request.

    ros2 launch isfl_ros fusion.launch.py thermal_topic:=/flir/image_raw rgb_topic:=/front/image_raw rviz:=true
"""

import os

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import Node

from isfl_ros.resources import shared_directory

SHARED = shared_directory()
PARAMETERS = SHARED / "config" / "fusion_node.yaml"
FASTDDS_PROFILE = SHARED / "config" / "fastdds_images.xml"
RVIZ = SHARED / "config" / "rviz" / "fusion.rviz"

YES_NO = ["true", "false"]

ARGUMENTS = [
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and of relative topics."),
    DeclareLaunchArgument("params_file", default_value=str(PARAMETERS), description="YAML file with parameters."),
    DeclareLaunchArgument(
        "thermal_topic",
        default_value="thermal/image_raw",
        description="Images of the thermal camera; its camera_info is taken from beside them.",
    ),
    DeclareLaunchArgument(
        "rgb_topic",
        default_value="rgb/image_raw",
        description="Images of the RGB camera; its camera_info is taken from beside them.",
    ),
    DeclareLaunchArgument(
        "model",
        default_value="",
        description="Name of a shipped model, or path of a model folder; empty: params_file's.",
    ),
    DeclareLaunchArgument(
        "device",
        default_value="",
        choices=["", "auto", "cpu", "cuda"],
        description="Where the network runs; empty: params_file's.",
    ),
    DeclareLaunchArgument("rviz", default_value="false", choices=YES_NO, description="Show inputs and result in rviz."),
    DeclareLaunchArgument(
        "use_sim_time", default_value="", choices=["", *YES_NO], description="Take the time from /clock; empty: params_file's."
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="Least severity that is logged.",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="",
        choices=["", *YES_NO],
        description="Configure and activate at start; false leaves that to a lifecycle manager; empty: params_file's.",
    ),
    DeclareLaunchArgument(
        "enclave",
        default_value="",
        description="Security enclave of the node, see docs/security.md; empty: none of its own.",
    ),
]


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    # Fast DDS loses large images without the profile; a user's own choice stands.
    profiles = [
        SetEnvironmentVariable(name, str(FASTDDS_PROFILE))
        for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
        if name not in os.environ
    ]
    return LaunchDescription([*ARGUMENTS, *profiles, OpaqueFunction(function=make_nodes)])


def make_nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The nodes, once the arguments have their values."""
    value = context.launch_configurations
    # What is not given stays with params_file.
    parameters = {name: value[name] == "true" for name in ("use_sim_time", "autostart") if value[name]}
    parameters.update({name: value[name] for name in ("model", "device") if value[name]})
    remappings = []
    for stream in ("thermal", "rgb"):
        topic = value[f"{stream}_topic"]
        remappings += [(f"{stream}/image_raw", topic), (f"{stream}/camera_info", beside(topic, "camera_info"))]
    enclave = ["--enclave", value["enclave"]] if value["enclave"] else []
    nodes = [
        Node(
            package="isfl_ros",
            executable="fusion_node",
            name="fusion",
            namespace=value["namespace"],
            parameters=[value["params_file"], parameters],
            remappings=remappings,
            ros_arguments=["--log-level", value["log_level"], *enclave],
            output="screen",
        )
    ]
    if value["rviz"] == "true":
        shown = {f"/{stream}/image_raw": value[f"{stream}_topic"] for stream in ("thermal", "rgb")}
        shown |= {f"/fusion/{topic}": f"fusion/{topic}" for topic in ("fused/image", "gate/overlay")}
        nodes.append(
            Node(
                package="rviz2",
                executable="rviz2",
                arguments=["-d", str(RVIZ)],
                parameters=[{"use_sim_time": parameters.get("use_sim_time", False)}],
                remappings=[(topic, absolute(value["namespace"], target)) for topic, target in shown.items()],
            )
        )
    return nodes


def beside(topic: str, name: str) -> str:
    """The topic `name` in the namespace of `topic`."""
    namespace, slash, _ = topic.rpartition("/")
    return namespace + slash + name


def absolute(namespace: str, topic: str) -> str:
    """`topic` as seen from `namespace`, with its full name."""
    return topic if topic.startswith("/") else "/" + "/".join(filter(None, (namespace.strip("/"), topic)))
