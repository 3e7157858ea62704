"""Choice of the device, with its reason."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from isfl_ros.errors import InputError

DEVICES = ("auto", "cpu", "cuda")
UNKNOWN = "unknown"
"""What a measurement says of what cannot be found out."""


@dataclass(frozen=True)
class DeviceChoice:
    """A torch device string and why it was taken."""

    device: str
    reason: str


def choose_device(requested: str) -> DeviceChoice:
    """Turns ``auto``, ``cpu`` or ``cuda`` into a device.

    Raises:
        InputError: the name is unknown, or CUDA was asked for by name where there is none.
    """
    if requested not in DEVICES:
        raise InputError("unknown device", expected=f"one of {', '.join(DEVICES)}", got=repr(requested))
    if requested == "cpu":
        return DeviceChoice("cpu", "asked for by name")
    why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
    if torch.cuda.is_available():
        try:
            name = _start_device()
        except RuntimeError as error:
            why = f"the CUDA device does not start: {str(error).splitlines()[0]}"
        else:
            reason = "asked for by name" if requested == "cuda" else "auto: a CUDA device is present"
            return DeviceChoice("cuda", f"{reason} ({name})")
    if requested == "cuda":
        raise InputError("device cuda asked for", got=why, do="choose auto or cpu, or install a CUDA build of torch")
    return DeviceChoice("cpu", f"auto: {why}")


def _start_device() -> str:
    """Name of the CUDA device. Raises RuntimeError where it is listed but busy, or too new for its driver."""
    torch.empty(1, device="cuda")
    return torch.cuda.get_device_name()


def cpu_name() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not a Linux
    return platform.processor() or UNKNOWN
