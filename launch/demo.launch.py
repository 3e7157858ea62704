"""The fusion node with a player instead of cameras, and rviz.

    ros2 launch isfl_ros demo.launch.py
    ros2 launch isfl_ros demo.launch.py pairs:=/data/drive rate:=5
"""

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from isfl_ros.resources import shared_directory

FUSION = shared_directory() / "launch" / "fusion.launch.py"

ARGUMENTS = [
    DeclareLaunchArgument(
        "pairs", default_value="", description="Folder of pairs (ir/ and vi/, or thermal/ and rgb/); empty: the night drive."
    ),
    DeclareLaunchArgument("rate", default_value="5.0", description="Pairs a second."),
    DeclareLaunchArgument("seed", default_value="0", description="Seed of the night drive."),
    DeclareLaunchArgument("model", default_value="", description="Name of a shipped model, or path of a model folder."),
    DeclareLaunchArgument(
        "device", default_value="", choices=["", "auto", "cpu", "cuda"], description="Where the network runs."
    ),
    DeclareLaunchArgument("rviz", default_value="true", choices=["true", "false"], description="Show it in rviz."),
]


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    # The included file comes first: it sets the Fast DDS profile that the player needs, too.
    fusion = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(FUSION)))
    return LaunchDescription([*ARGUMENTS, fusion, OpaqueFunction(function=make_player)])


def make_player(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The player, once the arguments have their values."""
    value = context.launch_configurations
    source = ["--pairs", value["pairs"]] if value["pairs"] else ["--seed", value["seed"]]
    return [
        Node(
            package="isfl_ros",
            executable="pair_player",
            arguments=[*source, "--rate", value["rate"]],
            output="screen",
        )
    ]
