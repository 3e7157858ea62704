"""The CUDA backend on a real device: ISFL_TEST_DEVICE=cuda. Its program is tested without one in test_device_frame.py."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from isfl_ros.backends.choice import Plan
from isfl_ros.backends.frame import Layout, RawFrame
from isfl_ros.backends.host import HostBackend, TorchNetwork
from isfl_ros.backends.trial import GREY_LEVELS
from isfl_ros.network.checkpoint import load_model
from isfl_ros.network.model import for_inference
from isfl_ros.registration import Homography, Registration
from isfl_ros.resources import resolve_model


@pytest.fixture(autouse=True)
def _needs_a_device(kernel_device):
    if kernel_device != "cuda" or not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and ISFL_TEST_DEVICE=cuda")


@pytest.fixture(scope="module")
def shipped():
    return load_model(resolve_model("isfl"))[0]


def make(shipped, precision="fp32", implementation="triton"):
    from isfl_ros.backends.cuda import CudaBackend

    network = for_inference(shipped, implementation=implementation, precision=precision, device="cuda")
    reasons = {f"{key}_reason": "asked for by the test" for key in ("device", "implementation", "precision")}
    return CudaBackend(network, Plan(device="cuda", implementation=implementation, precision=precision, **reasons))


def frame(size, seed=0, **masks):
    rng = np.random.default_rng(seed)
    return RawFrame(
        thermal=rng.integers(0, 256, size).astype(np.uint8),
        black=0.0,
        white=255.0,
        thermal_valid=masks.get("thermal_valid"),
        rgb=rng.integers(0, 256, (*size, 3)).astype(np.uint8),
        rgb_valid=masks.get("rgb_valid"),
    )


# By how much the gate may differ from the CPU in float32.
GATE_BOUNDS = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 1e-1}


@pytest.mark.parametrize("implementation", ["triton", "folded", "reference"])
@pytest.mark.parametrize("precision", GATE_BOUNDS)
def test_fuses_as_the_cpu_does(shipped, implementation, precision):
    if precision in ("tf32", "bf16") and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this chip has neither tf32 nor bf16")
    host = HostBackend(TorchNetwork(for_inference(shipped)), None)
    device = make(shipped, precision, implementation)
    levels, gate = GREY_LEVELS[precision], GATE_BOUNDS[precision]
    for seed, size in enumerate([(120, 160), (61, 75), (120, 160), (480, 640)]):
        mask = np.random.default_rng(seed).random(size) > 0.2
        for masks in ({}, {"thermal_valid": mask}, {"rgb_valid": mask, "thermal_valid": ~mask}):
            wanted = host.fuse(frame(size, seed, **masks), gate=True)
            got = device.fuse(frame(size, seed, **masks), gate=True)
            assert np.abs(got.luma.astype(int) - wanted.luma).max() <= levels
            assert np.abs(got.gate - wanted.gate).max() <= gate
            assert got.device == "cuda" and got.stages_ms["network"] > 0


def registered(warped, size):
    """A picture of half the size, and the map that takes it into one of ``size``."""
    h, w = size[0] // 2, size[1] // 2
    matrix = np.diag([2.0, 2.0, 1.0]) @ [[0.95, 0.05, 4.0], [-0.04, 0.9, 3.0], [3e-4, -2e-4, 1.0]]
    registration = Registration(Homography(matrix=matrix, from_size=(w, h), to_size=size[::-1]))
    kinds = {"thermal": ((h, w), np.float32), "rgb": ((h, w, 3), np.uint8)}
    shape, dtype = kinds[warped]
    picture = np.random.default_rng(9).uniform(0, 256, shape).astype(dtype)
    mask = np.random.default_rng(10).random((h, w)) > 0.05
    return {warped: picture, f"{warped}_valid": mask, "warped": warped, "grid": registration.grid((h, w), size)}


@pytest.mark.parametrize("warped", ["thermal", "rgb"])
def test_warps_as_the_cpu_does(shipped, warped):
    host, device = HostBackend(TorchNetwork(for_inference(shipped)), None), make(shipped)
    whole = dataclasses.replace(frame((240, 320)), **registered(warped, (240, 320)))
    another = dataclasses.replace(whole, **registered(warped, (240, 320)))
    alone = dataclasses.replace(whole, **{warped: None, f"{warped}_valid": None})
    unmasked = dataclasses.replace(whole, **{f"{warped}_valid": None, "thermal_valid": None})
    for pair in (whole, another, unmasked, alone, frame((240, 320)), whole):
        wanted, got = (backend.fuse(pair, gate=True) for backend in (host, device))
        assert np.abs(got.luma.astype(int) - wanted.luma).max() <= GREY_LEVELS["fp32"]
        assert np.abs(got.gate - wanted.gate).max() <= GATE_BOUNDS["fp32"]
    # One graph a map; none for a dead camera.
    assert device._captured.keys() == [another.layout, Layout((240, 320)), whole.layout]


def test_a_graph_is_captured_once_a_size_and_few_are_kept(shipped):
    from isfl_ros.backends.cuda import GRAPHS_KEPT

    device = make(shipped)
    sizes = [(40 + k, 48) for k in range(GRAPHS_KEPT + 1)]
    for size in sizes:
        device.fuse(frame(size), gate=False)
    assert device._captured.keys() == [Layout(size) for size in sizes[1:]]
    graph = device._captured[device._captured.keys()[-1]].graph
    device.fuse(frame(sizes[-1], 5), gate=False)
    assert device._captured[device._captured.keys()[-1]].graph is graph


def test_memory_does_not_grow_and_is_freed(shipped):
    make(shipped).close()  # libraries take their workspaces once a process
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    device = make(shipped)
    for seed in range(3):
        device.fuse(frame((240, 320), seed), gate=True)
    held = torch.cuda.memory_reserved()
    for seed in range(30):
        device.fuse(frame((240, 320), seed), gate=True)
    assert torch.cuda.memory_reserved() == held
    device.close()
    del device
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 1 << 20
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - reserved < 32 << 20


def test_out_of_memory_is_finished_on_the_cpu(shipped):
    from isfl_ros.pipeline import FusionPipeline, PipelineConfig

    pipeline = FusionPipeline(PipelineConfig(device="cuda"))
    pair = frame((240, 320))
    wanted = pipeline.fuse(pair.thermal, pair.rgb)
    larger = frame((480, 640))
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        torch.cuda.empty_cache()
        got = pipeline.fuse(larger.thermal, larger.rgb)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert wanted.device == "cuda" and got.device == "cpu"
    assert "out of memory" in pipeline.description["device_reason"]


def test_a_lost_device_does_not_take_the_process_with_it(tmp_path):
    """In a process of its own: a kernel that traps, then two more pictures, then an orderly end of the node's kind."""
    program = """
import os, numpy as np, torch
from isfl_ros.backends.fallback import device_was_lost
from isfl_ros.pipeline import FusionPipeline, PipelineConfig
pipeline = FusionPipeline(PipelineConfig(device="cuda"))
thermal, rgb = np.full((64, 80), 90, np.uint8), np.full((64, 80, 3), 60, np.uint8)
assert pipeline.fuse(thermal, rgb).device == "cuda"
torch.cuda._sleep(1)
try:
    torch.zeros(4, device="cuda")[torch.full((1,), 10**6, device="cuda")].cpu()  # index out of range: an assertion in the kernel
except RuntimeError:
    pass
assert pipeline.fuse(thermal, rgb).device == "cpu" and pipeline.fuse(thermal, rgb).device == "cpu"
assert device_was_lost() and "lost" in pipeline.description["device_reason"]
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
