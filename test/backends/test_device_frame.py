"""The program of a device against the host's numpy and OpenCV, byte by byte. It is torch, so it runs on a CPU too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from isfl_ros.backends.device_frame import DeviceFrame
from isfl_ros.backends.frame import RawFrame
from isfl_ros.backends.host import HostBackend, TorchNetwork
from isfl_ros.images import GainControl, GainControlConfig, join_chroma, luma_tensor, recolour_tensor, split_luma
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet, for_inference

SIZE = (41, 53)


def random_frame(rng, thermal=np.uint8, *, grey=False, masks=(None, None), missing=None):
    top = {np.uint8: 256, np.uint16: 65536, np.float32: 400}[thermal]
    raw = rng.uniform(0, top, SIZE).astype(thermal)
    if thermal == np.float32:
        raw[3:9, 5] = np.nan
    rgb = rng.integers(0, 256, SIZE if grey else (*SIZE, 3)).astype(np.uint8)
    thermal_valid, rgb_valid = masks
    black, white, thermal_valid = GainControl(GainControlConfig()).limits(raw, valid=thermal_valid)
    return RawFrame(
        thermal=None if missing == "thermal" else raw,
        black=black,
        white=white,
        thermal_valid=None if missing == "thermal" else thermal_valid,
        rgb=None if missing == "rgb" else rgb,
        rgb_valid=None if missing == "rgb" else rgb_valid,
    )


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return for_inference(IsflNet(IsflConfig(width=8, grid=4, gate_width=4)))


def run(program, frame, gate=True):
    program.stage(frame)
    program.upload()
    with torch.inference_mode():
        program.compute()
    program.download(gate=gate)
    return program.result(gate=gate)


def masks(rng):
    return tuple(rng.random(SIZE) > 0.3 for _ in range(2))


CASES = {
    "8 bits": {},
    "16 bits": {"thermal": np.uint16},
    "float with NaN": {"thermal": np.float32},
    "grey": {"grey": True},
    "no thermal": {"missing": "thermal"},
    "no rgb": {"missing": "rgb"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_device_program_gives_the_bytes_of_the_host(network, case, masked):
    rng = np.random.default_rng(1)
    frame = random_frame(rng, **CASES[case], masks=masks(rng) if masked else (None, None))
    wanted = HostBackend(TorchNetwork(network), None).fuse(frame, gate=True)
    luma, rgb, gate = run(DeviceFrame(network, SIZE, device=torch.device("cpu")), frame)
    np.testing.assert_array_equal(luma, wanted.luma)
    np.testing.assert_array_equal(rgb, wanted.rgb)
    np.testing.assert_array_equal(gate, wanted.gate)
    assert luma.std() > 0


def test_nothing_of_one_picture_stays_for_the_next(network):
    """One program serves every kind. Masks stay on the device while they are unchanged; a change must be noticed."""
    rng = np.random.default_rng(2)
    program = DeviceFrame(network, SIZE, device=torch.device("cpu"))
    host = HostBackend(TorchNetwork(network), None)
    kinds = [{}, {"masks": masks(rng)}, {"masks": masks(rng)}, {}, {}, {"missing": "rgb"}, {"missing": "thermal"}, {}]
    kinds += [{"masks": (None, masks(rng)[1])}, {"missing": "rgb", "masks": masks(rng)}, {}]
    kinds += [{"thermal": np.uint16}, {"grey": True}, {"thermal": np.float32}, {}]
    for kind in kinds:
        frame = random_frame(rng, **kind)
        luma, rgb, gate = run(program, frame, gate=False)
        wanted = host.fuse(frame, gate=False)
        np.testing.assert_array_equal(luma, wanted.luma)
        np.testing.assert_array_equal(rgb, wanted.rgb)
        assert gate is None and wanted.gate is None


def test_results_belong_to_the_caller(network):
    rng = np.random.default_rng(3)
    program = DeviceFrame(network, SIZE, device=torch.device("cpu"))
    first = run(program, random_frame(rng))
    kept = [array.copy() for array in first]
    run(program, random_frame(rng))
    for array, copy in zip(first, kept):
        np.testing.assert_array_equal(array, copy)


def test_colour_on_a_device_is_opencv_s_for_every_colour():
    """All 2^24 colours, each with a random fused luma."""
    ramp = np.arange(256, dtype=np.uint8)
    green, red = np.meshgrid(ramp, ramp, indexing="ij")
    everywhere = torch.ones(256, 256, dtype=torch.bool)
    rng = np.random.default_rng(0)
    for blue in range(256):
        rgb = np.stack([red, green, np.full_like(red, blue)], axis=-1)
        fused = rng.integers(0, 256, red.shape).astype(np.uint8)
        luma, chroma = split_luma(rgb)
        tensor = torch.from_numpy(rgb)
        got = luma_tensor(tensor)
        np.testing.assert_array_equal(got.numpy(), luma)
        recoloured = recolour_tensor(torch.from_numpy(fused), tensor, got, everywhere)
        np.testing.assert_array_equal(recoloured.numpy(), join_chroma(fused, chroma))


@pytest.mark.parametrize("rgb", [np.uint16, np.bool_, np.float32])
def test_pictures_of_another_kind_are_not_converted_silently(network, rgb):
    frame = dataclasses.replace(random_frame(np.random.default_rng(4)), rgb=np.ones((*SIZE, 3), rgb))
    with pytest.raises(TypeError):
        DeviceFrame(network, SIZE, device=torch.device("cpu")).stage(frame)
