"""What Triton needs, said in words; and that nothing needs Triton to be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isfl_ros.ops import triton_support
from isfl_ros.ops.triton_support import cache_directory, cache_is_filled, check_triton, interpreter_is_on


@pytest.fixture
def vehicle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which nothing is missing, whatever this one is; its cache folder, which is not there yet."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 7))
    programs = tmp_path / "bin"
    programs.mkdir()
    make_program(programs / "gcc")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CC", raising=False)
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.setattr(triton_support, "_include_directory", lambda: headers)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def fill(cache: Path) -> Path:
    """What Triton leaves after a first run; the path of a compiled kernel."""
    (cache / "LAUNCHER").mkdir(parents=True)
    (cache / "LAUNCHER" / "cuda_utils.cpython-311-aarch64-linux-gnu.so").touch()
    (cache / "KERNEL").mkdir()
    cubin = cache / "KERNEL" / "gated_blend_kernel.cubin"
    cubin.touch()
    group = {"child_paths": {"gated_blend_kernel.cubin": str(cubin)}}
    (cache / "KERNEL" / "__grp__gated_blend_kernel.json").write_text(json.dumps(group))
    return cubin


def test_nothing_is_missing(vehicle):
    assert check_triton("cuda") is None
    assert check_triton(torch.device("cuda:0")) is None


def test_triton_is_missing(vehicle, monkeypatch):
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: None)
    assert check_triton("cuda") == "Triton is not installed: pip install triton"


def test_no_cuda_device_is_asked_for(vehicle):
    assert check_triton("cpu") == "Triton needs a CUDA device, not cpu: choose another implementation"


def test_no_cuda_device_is_there(vehicle, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device is visible" in check_triton("cuda")
    assert "nvidia-smi" in check_triton("cuda")


@pytest.mark.parametrize(("capability", "fine"), [((7, 0), False), ((7, 2), False), ((7, 5), True), ((12, 0), True)])
def test_old_chips(vehicle, monkeypatch, capability, fine):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    expected = f"compute capability {capability[0]}.{capability[1]} is below 7.5: choose another implementation"
    assert check_triton("cuda") == (None if fine else expected)


class TestCompiler:
    def test_none(self, vehicle, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert "neither gcc nor clang: sudo apt install gcc" in check_triton("cuda")

    def test_plain_cc_is_not_what_triton_looks_for(self, vehicle, monkeypatch, tmp_path):
        make_program(tmp_path / "cc")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "neither gcc nor clang" in check_triton("cuda")
        monkeypatch.setenv("CC", "cc")  # unless it is told to
        assert check_triton("cuda") is None

    def test_clang_will_do(self, vehicle, monkeypatch, tmp_path):
        make_program(tmp_path / "clang")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert check_triton("cuda") is None

    def test_the_named_one_is_not_there(self, vehicle, monkeypatch):
        monkeypatch.setenv("CC", "aarch64-gcc-13")  # Triton takes it without looking further, so gcc does not help
        assert "'aarch64-gcc-13'" in check_triton("cuda") and "unset CC" in check_triton("cuda")

    def test_headers(self, vehicle, monkeypatch, tmp_path):
        monkeypatch.setattr(triton_support, "_include_directory", lambda: tmp_path)
        message = check_triton("cuda")
        assert f"Python.h, which is not in {tmp_path}" in message
        assert f"sudo apt install python{sys.version_info.major}.{sys.version_info.minor}-dev" in message

    def test_headers_are_looked_for_where_triton_looks(self):
        pytest.importorskip("triton")
        from triton.runtime import build

        asked = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build.subprocess, "check_call", lambda command, **_: asked.extend(command))
            patch.setenv("CC", "gcc")
            build._build("x", "x.c", "/", [], [], [], [])
        assert f"-I{triton_support._include_directory()}" in asked


class TestCache:
    def test_directory(self, monkeypatch, tmp_path):
        monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
        monkeypatch.delenv("TRITON_HOME", raising=False)
        monkeypatch.setenv("HOME", "/srv/driver")
        assert cache_directory() == Path("/srv/driver/.triton/cache")
        monkeypatch.setenv("TRITON_HOME", str(tmp_path))
        assert cache_directory() == tmp_path / ".triton" / "cache"
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
        assert cache_directory() == tmp_path / "kernels"

    @pytest.mark.parametrize(
        "variables", [{}, {"TRITON_HOME": "/opt/a"}, {"TRITON_HOME": "/opt/a", "TRITON_CACHE_DIR": "/opt/b"}]
    )
    def test_directory_is_tritons(self, variables, monkeypatch):
        pytest.importorskip("triton")
        for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        from triton import knobs

        assert Path(knobs.cache.dir) == cache_directory()

    def test_neither_writable_nor_filled(self, vehicle, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
        message = check_triton("cuda")
        assert f"cache {tmp_path / 'file' / 'cache'} is neither writable nor filled" in message
        assert "export TRITON_CACHE_DIR=" in message

    def test_read_only(self, vehicle, monkeypatch):
        vehicle.mkdir()
        monkeypatch.setattr(triton_support.os, "access", lambda path, mode: Path(path) != vehicle)
        assert "neither writable nor filled" in check_triton("cuda")
        fill(vehicle)
        assert check_triton("cuda") is None

    def test_a_filled_one_needs_no_compiler(self, vehicle, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(triton_support, "_include_directory", lambda: tmp_path)
        assert check_triton("cuda") is not None
        fill(vehicle)
        assert check_triton("cuda") is None

    def test_filled(self, tmp_path):
        cache = tmp_path / "cache"
        assert not cache_is_filled(cache)
        cubin = fill(cache)
        assert cache_is_filled(cache)
        cubin.unlink()
        assert not cache_is_filled(cache)

    def test_a_moved_one_is_empty(self, tmp_path):
        fill(tmp_path / "there")
        (tmp_path / "there").rename(tmp_path / "here")
        assert not cache_is_filled(tmp_path / "here")

    def test_without_the_launcher_it_is_not_filled(self, tmp_path):
        fill(tmp_path)
        next(tmp_path.glob("*/cuda_utils*")).unlink()
        assert not cache_is_filled(tmp_path)

    @pytest.mark.parametrize("text", ["", "{}", "[1"])
    def test_broken_notes(self, tmp_path, text):
        fill(tmp_path)
        next(tmp_path.glob("*/__grp__*")).write_text(text)
        assert not cache_is_filled(tmp_path)


@pytest.mark.parametrize(("value", "on"), [(None, False), ("0", False), ("", False), ("1", True), ("true", True)])
def test_interpreter(monkeypatch, value, on):
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    assert interpreter_is_on() is on
    if value:  # Triton reads an empty value as an unset one, in other words
        pytest.importorskip("triton")
        from triton import knobs

        assert knobs.runtime.interpret is on


def test_the_interpreter_needs_nothing_else(vehicle, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PATH", "")
    assert check_triton("cpu") is None


@pytest.mark.parametrize(
    ("dtype", "precision", "allowed"),
    [(torch.float32, "tf32", True), (torch.float32, "ieee", False), (torch.float16, "tf32", False)],
)
def test_tf32_follows_pytorchs_switch(dtype, precision, allowed):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        assert triton_support.tf32_allowed(dtype) is allowed
    finally:
        matmul.fp32_precision = before


def run_python(source: str) -> None:
    subprocess.run([sys.executable, "-c", source], check=True, timeout=120, cwd=Path(__file__).parent.parent.parent)


def test_tf32_follows_pytorchs_older_switch():
    """In a process of its own: torch refuses a mixture of both switches from then on."""
    run_python(
        "import torch\n"
        "from isfl_ros.ops.triton_support import tf32_allowed\n"
        "for allowed in (True, False):\n"
        "    torch.backends.cuda.matmul.allow_tf32 = allowed\n"
        "    assert tf32_allowed(torch.float32) is allowed"
    )


def test_importing_the_operations_does_not_import_triton():
    run_python(
        "import sys, isfl_ros.ops.gated_blend, isfl_ros.ops.pooled_cross_attention, isfl_ros.ops.triton_support\n"
        "assert 'triton' not in sys.modules"
    )


def test_without_triton_the_operations_work_and_say_what_is_missing():
    run_python(
        """
import os, sys
sys.modules["triton"] = None  # as if it were not installed
os.environ["TRITON_INTERPRET"] = "1"
import torch
from isfl_ros.errors import InputError
from isfl_ros.ops.gated_blend import GateWeights, gated_blend
from isfl_ros.ops.triton_support import check_triton

weights = GateWeights(torch.zeros(4, 8, 3, 3), torch.zeros(4), torch.zeros(4), torch.zeros(1))
features = [torch.ones(1, 8, 5, 6)] * 3
blended, gate = gated_blend(*features, weights, implementation="reference")
assert (gate == 0.5).all() and (blended == 1.5).all()
assert check_triton("cuda") == "Triton is not installed: pip install triton"
try:
    gated_blend(*features, weights, implementation="triton")
except InputError as error:
    assert "pip install triton" in str(error), error
else:
    raise AssertionError("no error")
"""
    )
