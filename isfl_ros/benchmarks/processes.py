"""Other processes, seen from outside through /proc (Linux), and the DDS graph that they share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from isfl_ros.errors import InputError
from isfl_ros.resources import shared_directory

_STOPPING_S = 20.0
_MEMORY = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "files", "RssShmem": "shared"}


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """One process at one instant."""

    memory_bytes: dict[str, int]
    """``resident`` in all, of that ``anonymous``, mapped ``files``, and memory ``shared`` with other processes."""
    threads: Counter[str]
    """Name -> how many."""
    files: Counter[str]
    """What is open -> how many times; kind alone (``socket``) where the system numbers them."""
    cpu_s: float
    """Processor time used up to now, of all threads."""


def process_state(pid: int) -> ProcessState:
    """Of a process of the same user.

    Raises:
        ProcessLookupError: there is no such process.
    """
    folder = Path("/proc") / str(pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        # the name of a program may hold blanks: what follows it is counted from its closing bracket
        clock = (folder / "stat").read_text().rpartition(")")[2].split()
        return ProcessState(
            memory_bytes={name: int(status[key].split()[0]) * 1024 for key, name in _MEMORY.items() if key in status},
            threads=Counter(_each(folder / "task", lambda task: (task / "comm").read_text().strip())),
            files=Counter(_each(folder / "fd", lambda entry: os.readlink(entry).partition(":[")[0])),
            cpu_s=(int(clock[11]) + int(clock[12])) / os.sysconf("SC_CLK_TCK"),
        )
    except (FileNotFoundError, PermissionError):  # the latter: it has ended, and its parent has not noticed yet
        raise ProcessLookupError(f"no process {pid}") from None


def busy_seconds() -> float:
    """Processor time that the whole machine has used up to now, of all processes and the kernel."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]  # the last of the eight is what the machine's host took away
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def _each(folder: Path, read) -> list[str]:
    """What `read` finds in every entry; an entry that vanishes meanwhile is left out."""
    found = []
    for entry in folder.iterdir():
        try:
            found.append(read(entry))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def require_proc() -> None:
    """Refuse a system that does not tell about its processes.

    Raises:
        InputError: there is no /proc with the memory of this process.
    """
    try:
        found = process_state(os.getpid()).memory_bytes
    except (OSError, KeyError, ValueError):
        found = {}
    if len(found) < len(_MEMORY):
        raise InputError("this system does not tell the memory of a process", expected="/proc as Linux has it")


def dds_environment() -> dict[str, str]:
    """Environment of processes on a graph of their own: this machine only, another domain, room for images."""
    profile = str(shared_directory() / "config" / "fastdds_images.xml")
    # Set whatever the user's own are: played pictures must never reach a vehicle's live graph.
    foreign = ("ROS_DISCOVERY_SERVER", "ROS_STATIC_PEERS", "ROS_LOCALHOST_ONLY")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    taken = {"0", os.environ.get("ROS_DOMAIN_ID", "0")}
    domain = next(d for d in (str(1 + (os.getpid() + k) % 101) for k in range(3)) if d not in taken)
    return environment | {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": domain,
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
    }


def stop(process: subprocess.Popen) -> int:
    """Ctrl-C and the exit status; a process that does not answer within the limit is killed and reported as such."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(timeout=_STOPPING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
