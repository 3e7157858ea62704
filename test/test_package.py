"""What the package promises about itself: imports, versions, layout."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import isfl_ros

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "isfl_ros"
ROS = {"rclpy", "sensor_msgs", "std_msgs", "diagnostic_msgs", "rcl_interfaces", "builtin_interfaces", "geometry_msgs", "tf2_ros", "lifecycle_msgs", "cv_bridge", "message_filters", "launch", "launch_ros"}
# Folder -> parts of the package that it may import besides itself and the leaves.
LEAVES = {"errors", "images", "device", "resources", "visualization", "io", "__init__", "registration"}
ALLOWED = {
    "ops": set(),
    "network": {"ops"},
    "backends": {"ops", "network"},
    "pipeline": {"network", "backends"},
    "training": {"network"},
    "evaluation": {"pipeline", "network"},
    "benchmarks": {"ops", "network", "backends", "pipeline", "training"},
    "cli": {"pipeline", "network", "backends", "training", "evaluation", "benchmarks"},
    "ros": {"pipeline", "network", "backends"},
    "io": set(),
    "images": set(),
    "registration": set(),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "isfl_ros":
                found.update(f"isfl_ros.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in ROS or part == "ros", f"{name}: only ros/ imports ROS"
        if top == "isfl_ros" and "." in name and part in ALLOWED:
            other = name.split(".")[1]
            known = other in LEAVES or other == part or other in ALLOWED[part] or other == "__version__"
            assert known, f"{part} must not import {name}"


def test_every_module_of_the_package_imports_without_work():
    modules = [
        ".".join(("isfl_ros", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for p in sorted(PACKAGE.rglob("*.py"))
    ]
    for optional, needing in (("triton", ".kernels"), ("openvino", ".openvino_network")):
        if importlib.util.find_spec(optional) is None:
            modules = [module for module in modules if not module.endswith(needing)]
    program = "import sys, importlib\nfor m in sys.argv[1:]: importlib.import_module(m)"
    done = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == "", "importing says and does nothing"


def test_one_version():
    assert ElementTree.parse(ROOT / "package.xml").findtext("version") == isfl_ros.__version__
    assert f'version="{isfl_ros.__version__}"' in (ROOT / "setup.py").read_text()
    assert f"\n{isfl_ros.__version__} (" in (ROOT / "CHANGELOG.rst").read_text()


def test_manifest_names_what_the_code_imports():
    tree = ElementTree.parse(ROOT / "package.xml")
    assert tree.getroot().get("format") == "3"
    named = {e.text for e in tree.getroot() if e.tag.endswith("depend")}
    assert {"rclpy", "sensor_msgs", "std_msgs", "diagnostic_msgs", "cv_bridge", "message_filters", "launch", "launch_ros"} <= named
    used = {name.split(".")[0] for path in (PACKAGE / "ros").rglob("*.py") for name in imports(path)} & ROS
    used = {"tf2_ros_py" if name == "tf2_ros" else name for name in used}  # a package that is not called like its module
    assert used <= named, f"used but not named: {used - named}"


def test_no_pickled_weights_and_no_lenient_loading():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "strict=False" not in text, path
        assert "torch.save(" not in text, path
        assert "torch.load(" not in text or "weights_only=True" in text, path


def test_links_of_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("folder", sorted(p.parent for p in ROOT.glob("models/*/model.json")), ids=lambda p: p.name)
def test_shipped_models_load_and_have_a_card(folder):
    from isfl_ros.network.checkpoint import load_model

    network, info = load_model(folder)
    assert sum(p.numel() for p in network.parameters()) <= 240_000
    card = (folder / "CARD.md").read_text()
    assert info.recipe in card and str(info.training["steps"]) in card and f"{info.training['pairs']} real pairs" in card


def test_the_project_speaks_of_itself_alone():
    """No machine paths and no hosts of package registries in anything that is shipped."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    words = re.compile(r"/work/|/root/|/home/\w|pypi\.org|files\.pythonhosted|download\.pytorch")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".png", ".safetensors") or path == Path(__file__).resolve() or not path.is_file():
            continue
        found = words.search(path.read_text(errors="replace"))
        assert not found, f"{name}: {found[0]}"
