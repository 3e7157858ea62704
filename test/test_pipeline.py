"""The seam: numpy in, numpy out, optional dependencies really optional."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from isfl_ros.backends.choice import openvino_is_installed
from isfl_ros.errors import InputError
from isfl_ros.images import GainControl, GainControlConfig, split_luma, to_uint8
from isfl_ros.network.checkpoint import load_model
from isfl_ros.network.model import mean_gate
from isfl_ros.pipeline import FusionPipeline, PipelineConfig
from isfl_ros.resources import resolve_model

RNG = np.random.default_rng(0)
SIZE = (61, 75)


@pytest.fixture(scope="module")
def pipeline():
    return FusionPipeline(PipelineConfig(device="cpu"))


def thermal(dtype=np.uint8):
    top = 256 if dtype == np.uint8 else 30000
    return RNG.integers(0, top, SIZE).astype(dtype)


def rgb():
    return RNG.integers(0, 256, (*SIZE, 3)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_fused_picture_is_the_network_s(pipeline, dtype):
    t, v = thermal(dtype), rgb()
    result = pipeline.fuse(t, v, gate=True)
    network, _ = load_model(resolve_model("isfl"))
    infrared, _ = GainControl(GainControlConfig()).apply(t)
    luma, _ = split_luma(v)
    with torch.inference_mode():
        fused, gates = network(
            torch.from_numpy(luma / np.float32(255))[None, None], torch.from_numpy(infrared)[None, None], return_gates=True
        )
    wanted = fused[0, 0].numpy() * 255
    assert np.abs(result.luma - wanted).max() <= 0.5 + 1e-2
    np.testing.assert_allclose(result.gate, mean_gate(gates, SIZE)[0, 0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(result.thermal8, to_uint8(infrared))
    assert result.rgb.shape == (*SIZE, 3) and result.valid is None
    assert result.valid_fraction == {"thermal": 1.0, "rgb": 1.0}
    assert set(result.stages_ms) == {"preprocess", "network", "postprocess"}


def test_gate_only_when_asked_for(pipeline):
    assert pipeline.fuse(thermal(), rgb()).gate is None


def test_grey_visible_picture(pipeline):
    grey = RNG.integers(0, 256, SIZE).astype(np.uint8)
    result = pipeline.fuse(thermal(), grey)
    np.testing.assert_array_equal(result.rgb, result.luma[:, :, None].repeat(3, axis=2))


def test_missing_pixels(pipeline):
    t, v = thermal(np.float32), rgb()
    t_valid, v_valid = np.ones(SIZE, bool), np.ones(SIZE, bool)
    t_valid[:20], v_valid[10:30] = False, False
    poisoned = t.copy()
    poisoned[~t_valid] = np.nan
    result = pipeline.fuse(poisoned, v, rgb_valid=v_valid)
    again = pipeline.fuse(t, v, thermal_valid=t_valid, rgb_valid=v_valid)
    np.testing.assert_array_equal(result.luma, again.luma)
    np.testing.assert_array_equal(result.valid, t_valid | v_valid)
    assert (result.luma[10:20] == 0).all() and (result.rgb[10:20] == 0).all(), "nothing is known there"
    np.testing.assert_array_equal(result.rgb[22, :, 0], result.luma[22])  # chroma is neutral where RGB is missing
    assert result.valid_fraction["thermal"] == pytest.approx(41 / 61)


@pytest.mark.parametrize("missing", ["thermal", "rgb"])
def test_one_modality_missing(pipeline, missing):
    t, v = thermal(), rgb()
    result = pipeline.fuse(None if missing == "thermal" else t, None if missing == "rgb" else v)
    assert result.valid is None or result.valid.all()
    assert result.valid_fraction[missing] == 0.0
    as_mask = pipeline.fuse(
        t, v, **{f"{missing}_valid": np.zeros(SIZE, bool)}
    )
    np.testing.assert_array_equal(result.luma, as_mask.luma)


@pytest.mark.parametrize(
    ("t", "v", "message"),
    [
        (np.zeros((40, 40), np.uint8), np.zeros((40, 41, 3), np.uint8), "sizes differ.*thermal 40x40, rgb 41x40"),
        (np.zeros((31, 40), np.uint8), np.zeros((31, 40, 3), np.uint8), "too small"),
        (None, None, "both modalities are missing"),
        (np.zeros((40, 40), np.int32), np.zeros((40, 40, 3), np.uint8), "thermal of unsupported kind.*uint8 or uint16 or float32"),
        (np.zeros((40, 40), np.uint8), np.zeros(1600, np.uint8), "rgb of unsupported kind"),
        (np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3), np.uint16), "rgb of unsupported kind.*uint8"),
        (np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8), "rgb of unsupported kind.*3 channels"),
    ],
)
def test_unusable_pictures_are_refused(pipeline, t, v, message):
    with pytest.raises(InputError, match=message):
        pipeline.fuse(t, v)


@pytest.mark.parametrize("name", ["auto", "reference", "folded", "openvino"])
def test_the_implementation_asked_for_is_reported_and_runs(name, monkeypatch):
    """Spies on all of them; OpenVINO's own spy replaces the network it would compile, so torch must stay silent after it."""
    from isfl_ros.ops import pooled_cross_attention as op

    ran = []

    def spy(key, function):
        return lambda *a, **k: (ran.append(key), function(*a, **k))[1]

    if name == "openvino" and not openvino_is_installed():
        pytest.skip("OpenVINO is an optional dependency: pip install openvino")
    if openvino_is_installed():
        from isfl_ros.backends.openvino_network import OpenVinoNetwork

        monkeypatch.setattr(OpenVinoNetwork, "__call__", spy("openvino", OpenVinoNetwork.__call__))
    p = FusionPipeline(PipelineConfig(device="cpu", implementation=name))
    monkeypatch.setitem(op.IMPLEMENTATIONS, "reference", spy("reference", op.IMPLEMENTATIONS["reference"]))
    for key, function in list(op.FOLDED_IMPLEMENTATIONS.items()):
        monkeypatch.setitem(op.FOLDED_IMPLEMENTATIONS, key, spy(key, function))
    p.fuse(thermal(), rgb())
    assert set(ran) == {p.description["implementation"]}
    assert name == "auto" or set(ran) == {name}
    assert all(p.description[f"{key}_reason"] for key in ("device", "implementation", "precision"))


@pytest.mark.parametrize("name", ["reference", "folded", "openvino"])
def test_all_implementations_give_one_picture(name):
    if name == "openvino" and not openvino_is_installed():
        pytest.skip("OpenVINO is an optional dependency: pip install openvino")
    t, v = thermal(), rgb()
    wanted = FusionPipeline(PipelineConfig(device="cpu", implementation="folded")).fuse(t, v, gate=True)
    got = FusionPipeline(PipelineConfig(device="cpu", implementation=name)).fuse(t, v, gate=True)
    assert np.abs(got.luma.astype(int) - wanted.luma).max() <= 1  # a value between two grey levels may round either way
    np.testing.assert_allclose(got.gate, wanted.gate, atol=1e-5)


def test_a_failing_device_is_reported_and_the_cpu_goes_on(monkeypatch):
    """The device is pretended: its backend runs out of memory at the second picture."""
    from isfl_ros import backends, pipeline as module
    from isfl_ros.backends.choice import Plan
    from isfl_ros.backends.fallback import FallbackBackend
    from isfl_ros.backends.host import HostBackend

    made = []

    class Device(HostBackend):
        def fuse(self, frame, *, gate):
            if made:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            made.append(1)
            return super().fuse(frame, gate=gate)

    def make(plan, network):
        on_cpu = lambda: backends.make_backend(backends.choose("cpu", "folded", "auto", network), network)  # noqa: E731
        return FallbackBackend(lambda: Device(on_cpu()._network, plan), on_cpu())

    monkeypatch.setattr(module, "make_backend", make)
    reasons = {f"{key}_reason": "pretended" for key in ("device", "implementation", "precision")}
    monkeypatch.setattr(
        module, "choose", lambda *a: Plan(device="cuda", implementation="folded", precision="fp32", **reasons)
    )
    p = FusionPipeline(PipelineConfig())
    t, v = thermal(), rgb()
    first = p.fuse(t, v)
    assert p.description["device"] == "cuda"
    second = p.fuse(t, v)
    np.testing.assert_array_equal(first.luma, second.luma)
    assert second.device == "cpu" and p.description["device"] == "cpu"
    assert "out of memory" in p.description["device_reason"]


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="no model 'nope'.*isfl"):
        FusionPipeline(PipelineConfig(model="nope"))
    with pytest.raises(InputError, match="unknown device"):
        FusionPipeline(PipelineConfig(device="tpu"))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device cuda asked for"):
            FusionPipeline(PipelineConfig(device="cuda"))


def test_closed_pipeline_says_so():
    p = FusionPipeline(PipelineConfig(device="cpu"))
    p.close()
    with pytest.raises(InputError, match="closed"):
        p.fuse(thermal(), rgb())


def test_fuses_where_ros_and_triton_cannot_be_imported():
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rclpy", "triton", "openvino", "sensor_msgs", "cv_bridge", "message_filters", "matplotlib", "tensorboard", "sklearn"):
            raise ImportError(f"{name} is refused")
sys.meta_path.insert(0, Refuse())
import numpy as np
import isfl_ros.pipeline as p
pipeline = p.FusionPipeline(p.PipelineConfig(device="cpu"))
result = pipeline.fuse(np.full((40, 50), 9, np.uint8), np.full((40, 50, 3), 9, np.uint8), gate=True)
assert result.luma.shape == (40, 50) and result.gate.shape == (40, 50)
assert not {"rclpy", "triton", "openvino"} & set(sys.modules)
assert pipeline.description["implementation"] == "folded" and "pip install openvino" in pipeline.description["implementation_reason"]
print("fused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "fused", done.stderr
