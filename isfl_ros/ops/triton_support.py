"""What Triton needs on this machine, in words, and how a kernel launch is described for the ahead-of-time proof.

Triton itself is optional and is never imported here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import torch

from isfl_ros.errors import InputError

TRITON_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""The dtypes that the fused kernels take, with Triton's names for them."""

LEAST_CAPABILITY = 75
"""Compute capability, as one number, below which the kernels are neither compiled nor tested."""

INSTALL_TRITON = "pip install triton"

# What the launch code assumes where Triton's interpreter runs the kernels: a Hopper chip, but few programs at once, so
# that one program handles several tiles even in a small picture.
_INTERPRETED_CAPABILITY = 90
_INTERPRETED_MULTIPROCESSORS = 1


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One compiled variant of one kernel, as the launcher would ask for it.

    Fields:
        name: readable and unique within one list of cases, for example ``attend fp16 channels-last``.
        kernel: the ``@triton.jit`` function. ``fused.py`` imports its ``kernels.py`` inside the function that makes the
            case.
        signature: every argument of the kernel in its order: ``*fp16``, ``*fp32``, ``i32``, ``i64``, ``fp32`` or
            ``constexpr``.
        constants: value of every ``constexpr`` argument.
        divisible_by_16: names of the pointer and integer arguments that the launcher's values make divisible by 16.
            An integer argument that is 1 at run time is a constant to Triton (list it as ``constexpr`` with the value
            1), unless the kernel says ``do_not_specialize``.
        options: ``num_warps`` and ``num_stages``, and others of Triton's where a kernel needs them.
    """

    name: str
    kernel: object
    signature: dict[str, str]
    constants: dict[str, object]
    divisible_by_16: tuple[str, ...] = ()
    options: dict[str, int] = field(default_factory=dict)


def interpreter_is_on() -> bool:
    """Whether Triton runs kernels in its interpreter, on any device (``TRITON_INTERPRET``, read at its import)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def require_triton() -> None:
    """Raises InputError where Triton is not installed."""
    missing = _triton_missing()
    if missing:
        raise InputError("the fused kernels need Triton", got="it is not installed", do=INSTALL_TRITON)


def check_triton(device: torch.device | str) -> str | None:
    """What keeps Triton's kernels from running on ``device``: one line with the command that mends it, or None.

    A C compiler (Triton builds its launcher with it), Python's headers and a writable cache are asked for only where
    the cache is not filled already (:func:`cache_is_filled`).
    """
    missing = _triton_missing()
    if missing:
        return missing
    if interpreter_is_on():
        return None
    device = torch.device(device)
    if device.type != "cuda":
        return f"Triton needs a CUDA device, not {device.type}: choose another implementation"
    if not torch.cuda.is_available():
        return "no CUDA device is visible to PyTorch: check `nvidia-smi` and that PyTorch was built with CUDA"
    major, minor = torch.cuda.get_device_capability(device)
    if major * 10 + minor < LEAST_CAPABILITY:
        least = f"{LEAST_CAPABILITY // 10}.{LEAST_CAPABILITY % 10}"
        return f"compute capability {major}.{minor} is below {least}: choose another implementation"
    directory = cache_directory()
    if cache_is_filled(directory):
        return None
    return _cannot_compile() or _cannot_write(directory)


def cache_directory() -> Path:
    """Where Triton caches: ``$TRITON_CACHE_DIR``, or ``.triton/cache`` in ``$TRITON_HOME`` or the home."""
    named = os.environ.get("TRITON_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"


def cache_is_filled(directory: Path) -> bool:
    """Whether ``directory`` holds Triton's compiled launcher and at least one compiled kernel, usable where it is.

    Triton notes absolute paths, so a cache that was moved or copied elsewhere counts as empty, as it does to Triton.
    Whether the kernels are those that a given model needs is only known when they are asked for.
    """
    if not any(directory.glob("*/cuda_utils*.so")):
        return False
    for group in directory.glob("*/__grp__*.json"):
        try:
            paths = json.loads(group.read_text())["child_paths"].values()
        except (OSError, ValueError, KeyError):  # half-written or foreign: not a usable kernel
            continue
        if all(os.path.exists(path) for path in paths):
            return True
    return False


def capability(device: torch.device) -> int:
    """Compute capability as one number, 90 for 9.0; in Triton's interpreter on a CPU tensor that of a Hopper chip."""
    if device.type != "cuda":
        return _INTERPRETED_CAPABILITY
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def require_device(operation: str, features: torch.Tensor, *, otherwise: str) -> None:
    """Refuses features that no kernel of an operation can take where they are.

    Args:
        operation: its name in the message, for example ``fused blend``.
        features: of a supported dtype.
        otherwise: the implementation that takes them.

    Raises:
        InputError: not on a CUDA device, or bfloat16 on a chip without it.
    """
    device = features.device
    if device.type != "cuda" and not interpreter_is_on():
        raise InputError(
            f"the {operation} runs on a CUDA device",
            expected="cuda",
            got=str(device),
            do=f"move the features there or choose the implementation {otherwise!r}",
        )
    chip = capability(device)
    if features.dtype == torch.bfloat16 and chip < 80:
        raise InputError(
            "bfloat16 needs compute capability 8.0", got=f"{chip // 10}.{chip % 10}", do="use float16 or float32"
        )


def dense(features: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """The features without gaps in ``layout``, beginning at a multiple of 16 bytes; themselves where they already are so."""
    features = features.contiguous(memory_format=layout)
    return features if features.data_ptr() % 16 == 0 else features.clone(memory_format=layout)


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; 1 in Triton's interpreter on a CPU tensor."""
    if device.type != "cuda":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def tf32_allowed(dtype: torch.dtype) -> bool:
    """Whether products of this dtype may be rounded to tf32: the switch that PyTorch's own matrix products obey.

    That is ``torch.backends.cuda.matmul.fp32_precision``, which also shows what was set through the older
    ``allow_tf32`` and ``torch.set_float32_matmul_precision``; reading ``allow_tf32`` fails where the newer one was set.
    """
    return dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed: {INSTALL_TRITON}"
    return None


def _cannot_compile() -> str | None:
    # The same places in the same order as Triton itself, which looks for nothing named plain `cc`.
    named = os.environ.get("CC")
    if named is not None and shutil.which(named) is None:
        return f"$CC names {named!r}, which is not there, and Triton needs a C compiler: unset CC, sudo apt install gcc"
    if named is None and not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler and finds neither gcc nor clang: sudo apt install gcc"
    headers = _include_directory()
    if not (headers / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"Triton needs Python.h, which is not in {headers}: sudo apt install python{version}-dev"
    return None


def _include_directory() -> Path:
    # Debian's own scheme names a folder below /usr/local; the headers, and Triton's search, are in the plain one.
    scheme = sysconfig.get_default_scheme()
    return Path(sysconfig.get_paths(scheme="posix_prefix" if scheme == "posix_local" else scheme)["include"])


def _cannot_write(directory: Path) -> str | None:
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    return (
        f"Triton's cache {directory} is neither writable nor filled: "
        "export TRITON_CACHE_DIR=<a folder that is, see isfl_ros/ops/README.md>"
    )
