"""The launch file with a detector: what it says, and what the real launch makes of it where launch is installed.

The executables are scripts that write down how they were started, and the launch file of yolo_ros is a few lines with
the arguments of the real one.
"""

from __future__ import annotations

import importlib.util
import json
import stat
import sys
import typing
from pathlib import Path

import pytest

from isfl_ros.errors import InputError
from isfl_ros.resources import shared_directory
from isfl_ros.ros.degraded import Supervisor

SHARED = shared_directory()
LAUNCH_FILE = SHARED / "launch" / "detection.launch.py"

EXECUTABLE = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
fast_dds = os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE", "")
with open(os.path.join({folder!r}, name + ".json"), "w") as out:
    json.dump({{"argv": sys.argv[1:], "fast_dds": fast_dds}}, out)
"""

YOLO_LAUNCH_FILE = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

DEFAULTS = {"model": "of yolo", "device": "of yolo", "namespace": "of_yolo", "input_image_topic": "/of_yolo",
            "image_reliability": "2", "threshold": "0.5"}


def run(context):
    values = {name: LaunchConfiguration(name) for name in ("model", "device", "threshold", "image_reliability")}
    node = Node(package="yolo_ros", executable="yolo_node", namespace=LaunchConfiguration("namespace"),
                parameters=[values], remappings=[("image_raw", LaunchConfiguration("input_image_topic"))])
    return [*(DeclareLaunchArgument(name, default_value=value) for name, value in DEFAULTS.items()), node]


def generate_launch_description():
    return LaunchDescription([OpaqueFunction(function=run)])
"""


def test_its_advice_names_every_key_and_mode_of_the_status():
    text = LAUNCH_FILE.read_text()
    compile(text, str(LAUNCH_FILE), "exec")
    advice = text.split('"""')[1]
    row = next(line for line in (SHARED / "docs" / "node.md").read_text().splitlines() if "`~/fused/status`" in line)
    keys = {part for part in row.split("`")[1::2] if part.replace(".", "_").isidentifier()}
    assert len(keys) >= 5 and all(f"`{key}`" in advice for key in keys), keys
    modes = set(typing.get_args(typing.get_type_hints(Supervisor.mode.fget)["return"])) - {"none"}
    assert len(modes) >= 4 and all(f"`{mode}`" in advice for mode in modes), modes


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a folder of installed packages and returns what starts one there."""
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution, not from the package index")

    def add(package: str, *executables: str) -> Path:
        index = tmp_path / "share" / "ament_index" / "resource_index" / "packages"
        index.mkdir(parents=True, exist_ok=True)
        (index / package).touch()
        folder = tmp_path / "share" / package
        folder.mkdir(exist_ok=True)
        for name in executables:
            program = tmp_path / "lib" / package / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(EXECUTABLE.format(python=sys.executable, folder=str(tmp_path)))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return folder

    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(name, raising=False)
    add("isfl_ros", "fusion_node")
    return add


@pytest.fixture
def install_yolo(install):
    """Installs what stands for yolo_ros."""
    install("yolo_ros", "yolo_node")
    folder = install("yolo_bringup") / "launch"
    folder.mkdir()
    (folder / "yolo.launch.py").write_text(YOLO_LAUNCH_FILE)


@pytest.fixture
def launch(tmp_path, install):
    """Launches the file with arguments, waits for its processes, and returns (status, how each was started)."""

    def run(**arguments: str):
        from launch import LaunchDescription, LaunchService
        from launch.actions import IncludeLaunchDescription
        from launch.launch_description_sources import PythonLaunchDescriptionSource

        service = LaunchService(noninteractive=True)
        include = IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(LAUNCH_FILE)), launch_arguments=arguments.items()
        )
        service.include_launch_description(LaunchDescription([include]))
        status = service.run()
        return status, {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}

    return run


@pytest.fixture
def module(install):
    spec = importlib.util.spec_from_file_location("detection_launch", LAUNCH_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rules(started: dict) -> set[str]:
    """Remappings with which a process was started."""
    argv = started["argv"]
    return {value for flag, value in zip(argv, argv[1:]) if flag in ("-r", "--remap")}


def parameters(started: dict) -> str:
    """Parameter files with which a process was started, one after the other."""
    argv = started["argv"]
    return "".join(Path(value).read_text() for flag, value in zip(argv, argv[1:]) if flag == "--params-file")


def test_every_argument_is_described(module):
    from launch.actions import DeclareLaunchArgument

    entities = module.generate_launch_description().entities
    arguments = {entity.name: entity for entity in entities if isinstance(entity, DeclareLaunchArgument)}
    assert set(arguments) == {argument.name for argument in module.ARGUMENTS}
    assert all(a.description and a.description != "no description given" for a in arguments.values())
    fusion = importlib.util.spec_from_file_location("fusion_launch", module.FUSION)
    names = importlib.util.module_from_spec(fusion)
    fusion.loader.exec_module(names)
    assert not set(arguments) & {argument.name for argument in names.ARGUMENTS}


def test_yolo_gets_the_fused_picture_and_its_own_model_and_device(launch, install_yolo):
    status, started = launch(
        namespace="front", model="isfl", device="cpu", thermal_topic="/flir/image_raw", threshold="0.25"
    )
    assert status == 0
    fusion, yolo = started["fusion_node"], started["yolo_node"]
    assert {"__ns:=/front", "thermal/image_raw:=/flir/image_raw"} <= rules(fusion)
    assert {"__ns:=/front/yolo", "image_raw:=/front/fusion/fused/image"} <= rules(yolo)
    said = parameters(yolo)
    assert "yolov8m.pt" in said and "cuda:0" in said and "0.25" in said and "of yolo" not in said
    assert "isfl" not in said and "device: cpu" in parameters(fusion)
    assert yolo["fast_dds"] == fusion["fast_dds"] == str(SHARED / "config" / "fastdds_images.xml")


def test_without_arguments_the_fused_picture_has_its_usual_name(launch, install_yolo):
    _, started = launch()
    assert {"__ns:=/yolo", "image_raw:=/fusion/fused/image"} <= rules(started["yolo_node"])


def test_any_detector_that_subscribes_to_an_image(launch, install, tmp_path):
    install("my_detector", "eyes")
    file = tmp_path / "eyes.yaml"
    file.write_text("/**:\n  ros__parameters:\n    threshold: 0.75\n")
    status, started = launch(
        detector_package="my_detector",
        detector_executable="eyes",
        detector_image_topic="picture",
        detector_namespace="seen",
        detector_params_file=str(file),
        namespace="/front",
        use_sim_time="true",
    )
    assert status == 0
    eyes = started["eyes"]
    assert rules(eyes) >= {
        "__ns:=/front/seen",
        "picture:=/front/fusion/fused/image",
        "camera_info:=/front/fusion/fused/camera_info",
    }
    said = parameters(eyes)
    assert "threshold: 0.75" in said and "use_sim_time: true" in said
    assert eyes["fast_dds"] and "fusion_node" in started


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, ["'yolo_ros' is not installed", "colcon build", "detector_package:="]),
        ({"detector_package": "my_detector"}, ["'my_detector' is not installed"]),
        ({"detector_package": "no name"}, ["'no name' is not installed"]),
        ({"detector_package": "isfl_ros"}, ["no executable of isfl_ros", "detector_executable:="]),
        (
            {"detector_package": "isfl_ros", "detector_executable": "x", "detector_params_file": "gone.yaml"},
            ["detector_params_file", "gone.yaml"],
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(module, arguments, words):
    from launch import LaunchContext

    context = LaunchContext()
    for argument in module.ARGUMENTS:
        argument.execute(context)
    context.launch_configurations.update(arguments)
    with pytest.raises(InputError) as caught:
        module.check_detector(context)
    text = str(caught.value)
    assert "\n" not in text and "expected" in text and all(word in text for word in words), text


def test_yolo_ros_without_its_launch_file_is_named(module, install):
    install("yolo_ros")
    folder = install("yolo_bringup")
    with pytest.raises(InputError, match="launch file of yolo_ros is missing") as caught:
        module.yolo_launch_file()
    assert str(folder / "launch" / "yolo.launch.py") in str(caught.value)


def test_nothing_is_started_where_the_detector_is_missing(launch):
    status, started = launch()
    assert status == 1 and started == {}
