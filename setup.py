from pathlib import Path

from setuptools import find_packages, setup

package_name = "isfl_ros"


def shared(folder):
    """(destination, files) rows for every file below a folder, its layout kept."""
    rows = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            rows.setdefault(f"share/{package_name}/{path.parent.as_posix()}", []).append(path.as_posix())
    return sorted(rows.items())


setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(include=["isfl_ros", "isfl_ros.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        *shared("launch"),
        *shared("config"),
        *shared("models"),
    ],
    python_requires=">=3.10,<3.13",
    install_requires=[
        "numpy",
        "opencv-python-headless>=4.8,<5",  # 5 renumbers the type codes on which cv_bridge relies
        "safetensors",
        "torch>=2.11",
        "tqdm",
        "pyyaml",
    ],
    extras_require={
        # ROS 2 from the Python package index, for machines without a ROS installation.
        "ros": [
            "ros-jazzy-rclpy",
            "ros-jazzy-rmw-fastrtps-cpp",
            "ros-jazzy-sensor-msgs",
            "ros-jazzy-std-msgs",
            "ros-jazzy-std-srvs",
            "ros-jazzy-diagnostic-msgs",
        ],
        "demo": ["matplotlib"],
        "train": ["tensorboard", "scikit-learn"],  # the second for the dictionaries of the model baffm
        # The network compiled for the CPU: twice as fast as torch there, and the only way to bfloat16.
        "openvino": ["openvino>=2026"],
        # Fused kernels. A CUDA build of torch brings the release it was built with, which pip then keeps.
        "triton": ["triton>=3.6"],
        "test": ["pytest>=8,<9", "pytest-xdist", "hypothesis"],  # colcon's pytest step stops at 8
        "colcon": [
            "colcon-core",
            "colcon-ros",
            "colcon-python-setup-py",
            "colcon-bash",
            "colcon-output",
            "colcon-library-path",
            "colcon-metadata",
            "colcon-package-selection",
            "colcon-package-information",
            "colcon-recursive-crawl",
            "colcon-test-result",
            "colcon-defaults",
            "setuptools<80",
            "empy<4",
        ],
    },
    zip_safe=True,
    maintainer="isfl_ros maintainers",
    maintainer_email="maintainers@isfl-ros.example",
    description="Fuses thermal and RGB cameras into one picture and a gate map, live as a ROS 2 node and offline.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "isfl = isfl_ros.cli.main:main",
            "fusion_node = isfl_ros.ros.fusion_node:main",
            "pair_player = isfl_ros.ros.pair_player:main",
            "fusion_recorder = isfl_ros.ros.recorder:main",
        ],
    },
)
