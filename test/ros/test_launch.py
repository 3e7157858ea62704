"""The launch file: what can be checked without launch, and the real thing where launch is installed."""

from __future__ import annotations

import ast
import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from isfl_ros.resources import shared_directory
from isfl_ros.ros.outputs import TABLE

SHARED = shared_directory()
LAUNCH_FILE = SHARED / "launch" / "fusion.launch.py"
ARGUMENTS = {
    "namespace",
    "params_file",
    "thermal_topic",
    "rgb_topic",
    "model",
    "device",
    "rviz",
    "use_sim_time",
    "log_level",
    "autostart",
    "enclave",
}


def test_it_compiles_and_the_files_and_the_executable_it_names_are_there():
    text = LAUNCH_FILE.read_text()
    tree = ast.parse(text)
    compile(tree, str(LAUNCH_FILE), "exec")
    named = re.findall(r'SHARED((?: / "[^"]+")+)', text)
    files = [SHARED.joinpath(*re.findall(r'"([^"]+)"', parts)) for parts in named]
    assert len(files) == 3 and all(file.is_file() for file in files), files
    executables = re.findall(r'package="isfl_ros",\s*executable="(\w+)"', text)
    assert executables == ["fusion_node"]
    assert "fusion_node = isfl_ros.ros.fusion_node:main" in (Path(__file__).parents[2] / "setup.py").read_text()


def test_the_fastdds_profile_has_one_large_shared_memory_transport_beside_udp():
    root = ElementTree.parse(SHARED / "config" / "fastdds_images.xml").getroot()
    space = {"d": "http://www.eprosima.com"}
    transports = {
        t.findtext("d:transport_id", namespaces=space): t for t in root.findall(".//d:transport_descriptor", space)
    }
    kinds = {name: t.findtext("d:type", namespaces=space) for name, t in transports.items()}
    assert sorted(kinds.values()) == ["SHM", "UDPv4"]
    shared = next(t for name, t in transports.items() if kinds[name] == "SHM")
    assert shared.findtext("d:segment_size", namespaces=space) == "16777216"
    participant = root.find(".//d:participant", space)
    assert participant.get("is_default_profile") == "true"
    used = [t.text for t in participant.findall(".//d:userTransports/d:transport_id", space)]
    assert sorted(used) == sorted(transports)
    assert participant.findtext(".//d:useBuiltinTransports", namespaces=space) == "false"


def rviz_topics() -> set[str]:
    tree = yaml.safe_load((SHARED / "config" / "rviz" / "fusion.rviz").read_text())
    return {display["Topic"]["Value"] for display in tree["Visualization Manager"]["Displays"]}


def test_rviz_shows_topics_that_exist():
    topics = rviz_topics()
    assert topics >= {"/fusion/fused/image", "/fusion/gate/overlay", "/thermal/image_raw", "/rgb/image_raw"}
    outputs = {output.topic.replace("~", "/fusion") for output in TABLE.values()}
    assert {topic for topic in topics if topic.startswith("/fusion")} <= outputs


@pytest.fixture
def launch_module():
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution, not from the package index")
    spec = importlib.util.spec_from_file_location("fusion_launch", LAUNCH_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_argument_is_described_and_closed_ones_have_choices(launch_module):
    from launch.actions import DeclareLaunchArgument

    description = launch_module.generate_launch_description()
    arguments = {a.name: a for a in description.entities if isinstance(a, DeclareLaunchArgument)}
    assert set(arguments) == ARGUMENTS
    assert all(a.description and a.description != "no description given" for a in arguments.values())
    closed = {name for name, argument in arguments.items() if argument.choices}
    assert closed == {"device", "rviz", "use_sim_time", "log_level", "autostart"}


def test_the_nodes_it_makes(launch_module):
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument
    from launch.utilities import perform_substitutions

    context = LaunchContext()
    for entity in launch_module.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    assert [node.node_executable for node in launch_module.make_nodes(context)] == ["fusion_node"]
    context.launch_configurations.update({"rviz": "true", "namespace": "front", "thermal_topic": "/flir/image_raw"})
    _, rviz = launch_module.make_nodes(context)
    assert rviz.node_executable == "rviz2"
    pairs = [[perform_substitutions(context, list(side)) for side in rule] for rule in rviz._Node__remappings]
    assert dict(pairs) == {
        "/thermal/image_raw": "/flir/image_raw",
        "/rgb/image_raw": "/front/rgb/image_raw",
        "/fusion/fused/image": "/front/fusion/fused/image",
        "/fusion/gate/overlay": "/front/fusion/gate/overlay",
    }
    assert set(dict(pairs)) == rviz_topics()


def test_the_enclave_goes_to_the_node_and_to_nothing_else(launch_module):
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument

    context = LaunchContext()
    for entity in launch_module.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    (plain,) = launch_module.make_nodes(context)
    context.launch_configurations.update({"rviz": "true", "enclave": "/vehicle/fusion"})
    fusion, rviz = launch_module.make_nodes(context)
    assert "--enclave" not in plain._Node__ros_arguments and rviz._Node__ros_arguments is None
    arguments = fusion._Node__ros_arguments
    assert arguments[arguments.index("--enclave") + 1] == "/vehicle/fusion"


@pytest.mark.parametrize(
    "topic, expected",
    [("/flir/image_raw", "/flir/camera_info"), ("a/b/c", "a/b/camera_info"), ("images", "camera_info")],
)
def test_camera_info_lies_beside_the_images(launch_module, topic, expected):
    assert launch_module.beside(topic, "camera_info") == expected


def test_the_demo_adds_a_player_to_the_fusion_launch(launch_module):
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription

    spec = importlib.util.spec_from_file_location("demo_launch", LAUNCH_FILE.with_name("demo.launch.py"))
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    assert demo.FUSION == LAUNCH_FILE
    entities = demo.generate_launch_description().entities
    assert any(isinstance(entity, IncludeLaunchDescription) for entity in entities)
    context = LaunchContext()
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            assert entity.description
            entity.execute(context)
    (player,) = demo.make_player(context)
    assert (player.node_package, player.node_executable) == ("isfl_ros", "pair_player")


def test_the_demo_launch_compiles_and_is_installed():
    demo = LAUNCH_FILE.with_name("demo.launch.py")
    compile(demo.read_text(), str(demo), "exec")
    assert '*shared("launch")' in (SHARED / "setup.py").read_text()
