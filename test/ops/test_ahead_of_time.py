"""Every kernel compiles for every chip, without a GPU: no spills, and within the chip's shared memory.

``pytest -m kernels`` compiles the whole grid of widths and pooled grids; what spills there is listed, not refused.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton")

_spec = importlib.util.spec_from_file_location("ahead_of_time", Path(__file__).with_name("ahead_of_time.py"))
ahead_of_time = importlib.util.module_from_spec(_spec)
sys.modules["ahead_of_time"] = ahead_of_time  # dataclasses look their module up
_spec.loader.exec_module(ahead_of_time)
CAPABILITIES, Request, compile_all = ahead_of_time.CAPABILITIES, ahead_of_time.Request, ahead_of_time.compile_all

ATTENTION = "isfl_ros.ops.pooled_cross_attention.fused"
BLEND = "isfl_ros.ops.gated_blend.fused"
FORWARD_KERNELS = {"partial_pool_kernel", "finish_tokens_kernel", "attend_kernel", "gated_blend_kernel"}
TRAINING_CAPABILITIES = (80, 90)


def shipped_shapes() -> list[tuple[int, int, int]]:
    """(width, grid, gate_width) of every shipped model that the kernels compute."""
    shapes = set()
    for path in (ahead_of_time.REPOSITORY / "models").glob("*/model.json"):
        config = json.loads(path.read_text())["config"]
        if config.get("cfi") and config.get("gate_width"):
            shapes.add((config["width"], config["grid"], config["gate_width"]))
    return sorted(shapes)


def requests_for(
    channels: int, grid: int, gate_width: int, capability: int, *, channels_last: bool = True, training: bool = False
) -> Iterator[Request]:
    """Both operations in every precision of the chip."""
    for precision in ahead_of_time.precisions(capability):
        for module, further in (
            (ATTENTION, (("channels_last", channels_last), ("training", training))),
            (BLEND, (("channels_last", channels_last), ("gate_width", gate_width))),
        ):
            yield Request(
                module=module, channels=channels, grid=grid, precision=precision, capability=capability, further=further
            )


@pytest.fixture(scope="module")
def shipped() -> list:
    """Forward kernels of every shipped model for every chip; contiguous features and training on some."""
    requests = []
    for channels, grid, gate_width in shipped_shapes():
        for capability in CAPABILITIES:
            training = capability in TRAINING_CAPABILITIES
            requests += requests_for(channels, grid, gate_width, capability, training=training)
        requests += requests_for(channels, grid, gate_width, 90, channels_last=False)
    return compile_all(requests)


def test_a_model_is_shipped():
    assert (32, 8, 16) in shipped_shapes()


def assert_none(results: list) -> None:
    assert not results, "\n" + ahead_of_time.table(results)


def test_everything_compiles(shipped):
    assert_none([result for result in shipped if result.error])


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_shipped_models_do_not_spill(shipped, capability):
    ours = [result for result in shipped if result.capability == capability]
    assert {result.kernel for result in ours} >= FORWARD_KERNELS
    forward = [result for result in ours if result.kernel in FORWARD_KERNELS]
    expected = len(FORWARD_KERNELS) * len(ahead_of_time.precisions(capability)) * len(shipped_shapes())
    assert len(forward) >= expected
    assert all(result.registers for result in forward)
    assert_none([result for result in forward if result.spilled])


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_shipped_models_fit_in_shared_memory(shipped, capability):
    assert_none([result for result in shipped if result.capability == capability and not result.fits])


def test_training_kernels_are_among_them(shipped):
    for capability in TRAINING_CAPABILITIES:
        assert [result for result in shipped if result.capability == capability and result.backward]


@pytest.mark.kernels
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_whole_grid(capability, capsys):
    requests = [
        request
        for channels in (16, 32, 48, 64)
        for grid in (4, 8, 12, 16)
        for request in requests_for(channels, grid, channels // 2, capability, training=True)
        if request.module == ATTENTION or grid == 8  # the blend does not depend on the grid
    ]
    results = compile_all(requests)
    spilling = [result for result in results if result.spilled]
    with capsys.disabled():
        print(f"\ncompute capability {capability}: {len(results)} kernels, {len(spilling)} of them spill")
        print(ahead_of_time.table(results))
    assert_none([result for result in results if result.error or not result.fits])


# --- That the proof can fail -----------------------------------------------------------------------------------------

BROKEN = '''
import triton
import triton.language as tl
from isfl_ros.ops.triton_support import KernelCase


@triton.jit
def square_kernel(p_x, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Large: IEEE operands do not stay in registers, those of tensor cores not in shared memory."""
    o_x = tl.arange(0, SIZE)
    p_block = p_x + o_x[:, None] * SIZE + o_x[None, :]
    b_x = tl.load(p_block)
    tl.store(p_block, tl.dot(b_x, b_x, input_precision=PRECISION))


@triton.jit
def wrong_kernel(p_x):
    tl.store(p_x, undefined_name)


def ahead_of_time_cases(channels, grid, dtype, tf32, capability, *, kind):
    if kind == "dies":
        import os
        os._exit(3)
    constants = {"SIZE": {"spills": 64, "large": 128}.get(kind, 32), "PRECISION": "tf32" if kind == "large" else "ieee"}
    signature = {"p_x": "*fp32", "SIZE": "constexpr", "PRECISION": "constexpr"}
    case = {
        "name": kind,
        "kernel": wrong_kernel if kind == "wrong" else square_kernel,
        "signature": {"p_x": "*fp32"} if kind == "wrong" else signature,
        "constants": {} if kind in ("wrong", "no constant") else constants,
        "divisible_by_16": ("p_x",),
        "options": {"num_warps": 4},
    }
    if kind == "misspelt":
        case["signature"] = {"x": "*fp32", "SIZE": "constexpr", "PRECISION": "constexpr"}
    return [KernelCase(**case)]
'''


def broken_request(kind: str, capability: int = 90) -> Request:
    further = (("kind", kind),)
    return Request(
        module="broken_kernels", channels=1, grid=1, precision="fp32", capability=capability, further=further
    )


@pytest.fixture
def broken(tmp_path, monkeypatch):
    (tmp_path / "broken_kernels.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def compile_kinds(*kinds: tuple, cache: Path = tmp_path / "cache", **options) -> list:
        return compile_all([broken_request(*kind) for kind in kinds], cache=cache, **options)

    return compile_kinds


def test_it_notices(broken):
    """One worker, so that what comes after a death is answered by its successor."""
    spills, large, wrong, dies, no_constant, misspelt, fine = broken(
        ("spills", 75), ("large", 86), ("wrong",), ("dies",), ("no constant",), ("misspelt",), ("fine",), workers=1
    )
    assert spills.spilled > 0 and spills.fits and not spills.error
    assert large.shared > ahead_of_time.SHARED_LIMITS[86] and not large.fits and not large.error
    assert "undefined_name" in wrong.error
    assert "the compiling process died" in dies.error
    assert "constants [] are not ['PRECISION', 'SIZE']" in no_constant.error
    assert "signature ['x', 'SIZE', 'PRECISION']" in misspelt.error
    assert fine.fits and not fine.error and not fine.spilled and fine.registers > 0 and fine.shared > 0
    text = ahead_of_time.table([spills, large, wrong])
    assert f"SPILLS {spills.spilled} B" in text
    assert f"SHARED OVER {ahead_of_time.SHARED_LIMITS[86]} B" in text
    assert "ERROR CompilationError" in text


# --- The cache -------------------------------------------------------------------------------------------------------


def without_write_privilege() -> list[str]:
    """Prefix of a command that may not write where the permissions say so, even for root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root ignores permissions, and setpriv, which takes that from it, is not here")
    prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("root ignores permissions, and may not give that up here")
    return prefix


@pytest.fixture
def filled_read_only(tmp_path, broken) -> Iterator[Path]:
    cache = tmp_path / "cache"
    (first,) = broken(("fine",))
    assert not first.error
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o555)
    yield cache
    for folder, mode in zip(folders, modes, strict=True):
        folder.chmod(mode)


def test_a_filled_cache_can_be_read_only(filled_read_only, broken):
    """As on a vehicle: what was compiled is found, what was not is refused by the file system, nothing is written."""
    before = sorted(filled_read_only.rglob("*"))
    found, missing = broken(("fine",), ("fine", 80), prefix=without_write_privilege())
    assert not found.error and found.registers > 0
    assert "PermissionError" in missing.error
    assert sorted(filled_read_only.rglob("*")) == before


def test_a_moved_cache_is_compiled_anew(tmp_path, broken):
    """Triton notes absolute paths: a vehicle has to fill its cache where it will be."""
    (first,) = broken(("fine",))
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    (again,) = broken(("fine",), cache=tmp_path / "elsewhere")
    assert not again.error
    notes = [json.loads(path.read_text()) for path in (tmp_path / "elsewhere").rglob("__grp__*.json")]
    assert notes and all(str(tmp_path / "elsewhere") in path for note in notes for path in note["child_paths"].values())
