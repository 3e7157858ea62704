"""What a measurement was made on. What cannot be found out is ``unknown``."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from isfl_ros import __version__
from isfl_ros.device import UNKNOWN, cpu_name
from isfl_ros.errors import InputError
from isfl_ros.resources import shared_directory

COMMIT_VARIABLE = "ISFL_COMMIT"
"""Environment variable that names the commit where the source tree came without its history."""
_PACKAGES = ("torch", "numpy", "opencv-python-headless", "triton", "openvino")


def describe_environment() -> dict:
    """Date, source, hardware, versions and threads, ready for JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **describe_source(),
        "cpu": {"name": cpu_name(), "cores": os.cpu_count() or UNKNOWN, "usable_cores": _usable_cores()},
        "gpu": _describe_gpu(),
        "threads": torch.get_num_threads(),
        "versions": {
            "isfl_ros": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "cuda": torch.version.cuda or "none",
            "cudnn": torch.backends.cudnn.version() or "none",
            **{name: _version(name) for name in _PACKAGES},
        },
    }


def describe_source() -> dict:
    """``commit`` and ``dirty`` (whether files differ from it) of the source tree that runs."""
    named = {"commit": os.environ.get(COMMIT_VARIABLE, UNKNOWN), "dirty": UNKNOWN}
    try:
        root = shared_directory()
    except InputError:
        return named
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():  # not ours: an install inside another project
        return named
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return named if commit is None else {"commit": commit, "dirty": UNKNOWN if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    return _output("git", "-C", str(root), *arguments)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _usable_cores() -> int | str:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else UNKNOWN


def _describe_gpu() -> dict | None:
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "l2_bytes": getattr(found, "L2_cache_size", UNKNOWN),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or UNKNOWN,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
