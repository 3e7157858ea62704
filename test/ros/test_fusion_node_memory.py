"""Heaps of the node's process."""

import ctypes
import os
import subprocess
import sys

import pytest

_COUNT = """
import ctypes, os, sys, tempfile, threading
from isfl_ros.ros.fusion_node import limit_arenas
limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
barrier = threading.Barrier(6)
def take():
    barrier.wait()
    libc.malloc(100_000)
    barrier.wait()  # a heap whose thread has ended is handed to the next one
threads = [threading.Thread(target=take) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
@pytest.mark.parametrize(("chosen", "expected"), [(None, 2), ("5", 5)])
def test_threads_share_two_heaps_unless_somebody_chose(chosen, expected):
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    if chosen is not None:
        environment["MALLOC_ARENA_MAX"] = chosen
    done = subprocess.run(
        [sys.executable, "-c", _COUNT], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) == expected
