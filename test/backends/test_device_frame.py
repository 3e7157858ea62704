"""The program of a device against the host's numpy and OpenCV, byte by byte. It is torch, so it runs on a CPU too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from isfl_ros.backends.device_frame import DeviceFrame
from isfl_ros.backends.fallback import FallbackBackend
from isfl_ros.backends.frame import FusedFrame, Layout, RawFrame
from isfl_ros.backends.host import HostBackend, TorchNetwork
from isfl_ros.images import (
    GainControl,
    GainControlConfig,
    join_chroma,
    luma_tensor,
    mask_invalid,
    recolour_tensor,
    split_luma,
)
from isfl_ros.network.baffm import BaffmNet
from isfl_ros.network.config import BaffmConfig, IsflConfig
from isfl_ros.network.model import IsflNet, for_inference
from isfl_ros.registration import Homography, Registration

SIZE = (41, 53)


def random_frame(rng, thermal=np.uint8, *, grey=False, masks=(None, None), missing=None, layout=Layout(SIZE)):
    top = {np.uint8: 256, np.uint16: 65536, np.float32: 400}[thermal]
    raw = rng.uniform(0, top, layout.shape("thermal")).astype(thermal)
    if thermal == np.float32:
        raw[3:9, 5], raw[12, 5], raw[13, 5] = np.nan, np.finfo(np.float32).max, -np.finfo(np.float32).max
    shape = layout.shape("rgb")
    rgb = rng.integers(0, 256, shape if grey else (*shape, 3)).astype(np.uint8)
    thermal_valid, rgb_valid = masks
    black, white, thermal_valid = GainControl(GainControlConfig()).limits(raw, valid=thermal_valid)
    return RawFrame(
        thermal=None if missing == "thermal" else raw,
        black=black,
        white=white,
        thermal_valid=None if missing == "thermal" else thermal_valid,
        rgb=None if missing == "rgb" else rgb,
        rgb_valid=None if missing == "rgb" else rgb_valid,
        warped=layout.warped,
        grid=layout.grid,
    )


@pytest.fixture(scope="module", params=["isfl", "baffm"])
def network(request):
    """A network with gates, and one that shows the entropy of its weights in their place."""
    torch.manual_seed(0)
    if request.param == "isfl":
        return for_inference(IsflNet(IsflConfig(width=8, grid=4, gate_width=4, validity_input=True)))
    network = BaffmNet(BaffmConfig(width=4, prototypes=5, entries=3, query=3))
    network.set_dictionaries(*torch.randn(2, 5, 3))
    return for_inference(network)


def run(program, frame, gate=True):
    program.stage(frame)
    program.upload()
    with torch.inference_mode():
        program.compute()
    program.download(gate=gate)
    return program.result(gate=gate)


def masks(rng, layout=Layout(SIZE)):
    """Squares and single pixels are missing: a map that shrinks leaves little of a picture with many of the latter."""

    def mask(shape):
        squares = (rng.random((shape[0] // 8 + 1, shape[1] // 8 + 1)) > 0.3).repeat(8, axis=0).repeat(8, axis=1)
        return squares[: shape[0], : shape[1]] & (rng.random(shape) > 0.01)

    return tuple(mask(layout.shape(modality)) for modality in ("thermal", "rgb"))


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
    luma, rgb, gate = run(DeviceFrame(network, Layout(SIZE), device=torch.device("cpu")), frame)
    np.testing.assert_array_equal(luma, wanted.luma)
    np.testing.assert_array_equal(rgb, wanted.rgb)
    np.testing.assert_array_equal(gate, wanted.gate)
    assert luma.std() > 0


def test_nothing_of_one_picture_stays_for_the_next(network):
    """One program serves every kind. Masks stay on the device while they are unchanged; a change must be noticed."""
    rng = np.random.default_rng(2)
    program = DeviceFrame(network, Layout(SIZE), device=torch.device("cpu"))
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


# One picture warped. (h, w) of thermal and of rgb.
SHAPES = {"odd": ((41, 53), (61, 75)), "quarter": ((60, 80), (120, 160)), "one size": (SIZE, SIZE)}


def registered(warped, shapes):
    """The map between pictures of these sizes, of which about two thirds overlap."""
    shapes = dict(zip(("thermal", "rgb"), shapes))
    (h, w), (to_h, to_w) = shapes.pop(warped), *shapes.values()
    matrix = np.diag([to_w / w, to_h / h, 1.0]) @ [[0.95, 0.05, 4.0], [-0.04, 0.9, 3.0], [3e-4, -2e-4, 1.0]]
    registration = Registration(Homography(matrix=matrix, from_size=(w, h), to_size=(to_w, to_h)))
    return Layout((to_h, to_w), warped, registration.grid((h, w), (to_h, to_w)))


def assert_close(got, wanted):
    """Warped floats are equal to rounding, so that a value between two grey levels may fall either way."""
    luma, rgb, gate = got
    for a, b in ((luma, wanted.luma), (rgb, wanted.rgb)):
        difference = np.abs(a.astype(int) - b)
        assert difference.max() <= 1 and difference.mean() < 1e-3
    if gate is not None:
        np.testing.assert_allclose(gate, wanted.gate, atol=1e-5)
    assert luma.std() > 0


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("warped", ["thermal", "rgb"])
def test_a_device_warps_as_the_host_does(network, warped, case, masked, shapes):
    rng = np.random.default_rng(5)
    layout = registered(warped, SHAPES[shapes])
    given = masks(rng, layout) if masked else (None, None)
    frame = random_frame(rng, **CASES[case], masks=given, layout=layout)
    wanted = HostBackend(TorchNetwork(network), None).fuse(frame, gate=True)
    got = run(DeviceFrame(network, layout, device=torch.device("cpu")), frame)
    assert got[0].shape == wanted.luma.shape == layout.size == frame.size
    assert_close(got, wanted)
    if frame.valid is not None:
        assert frame.valid.mean() > 0.1
        assert (got[0][~frame.valid] == 0).all() and (got[1][~frame.valid] == 0).all()
    if "rgb" in frame.masks and warped == "rgb":
        no_colour = got[1][~frame.masks["rgb"]]
        assert (no_colour == no_colour[:, :1]).all()


class Inputs(torch.nn.Module):
    """Stands for a network: what it was given comes out, the visible picture as fused luma, the thermal one as gate."""

    has_gates = True
    shows = "gate"

    def forward(self, visible, infrared, *, valid_visible, valid_infrared, return_gates):
        self.masks = {"rgb": valid_visible[0, 0].numpy().copy(), "thermal": valid_infrared[0, 0].numpy().copy()}
        return mask_invalid(visible, valid_visible), [mask_invalid(infrared, valid_infrared)]


@pytest.mark.parametrize("case", ["8 bits", "16 bits", "float with NaN", "no rgb"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("warped", ["thermal", "rgb"])
def test_a_network_is_given_the_same_on_a_device(warped, case, masked):
    """Invalid is exactly 0 in both, and nowhere else."""
    rng = np.random.default_rng(6)
    layout = registered(warped, SHAPES["odd"])
    frame = random_frame(rng, **CASES[case], masks=masks(rng, layout) if masked else (None, None), layout=layout)
    inputs = Inputs()
    luma, _, infrared = run(DeviceFrame(inputs, layout, device=torch.device("cpu")), frame)
    np.testing.assert_allclose(infrared, frame.infrared, atol=1e-6)
    np.testing.assert_array_equal(infrared == 0, frame.infrared == 0)
    on_host = {}

    def network(visible, infrared, valid, gate):
        on_host.update(zip(("rgb", "thermal"), valid))
        return visible, None

    wanted = HostBackend(network, None).fuse(frame, gate=False)
    assert np.abs(luma.astype(int) - wanted.luma).max() <= (1 if warped == "rgb" else 0)
    for modality, mask in inputs.masks.items():
        expected = np.ones(layout.size, bool) if on_host[modality] is None else on_host[modality]
        np.testing.assert_array_equal(mask, expected, err_msg=modality)


def test_nothing_of_one_warped_picture_stays_for_the_next(network):
    rng = np.random.default_rng(7)
    layout = registered("thermal", SHAPES["odd"])
    program, host = DeviceFrame(network, layout, device=torch.device("cpu")), HostBackend(TorchNetwork(network), None)
    kinds = [{}, {"masks": masks(rng, layout)}, {}, {"missing": "thermal"}, {}, {"missing": "rgb"}]
    kinds += [{"thermal": np.float32}, {}]
    for kind in kinds:
        frame = random_frame(rng, **kind, layout=layout)
        assert_close(run(program, frame, gate=False), host.fuse(frame, gate=False))


def test_a_warped_picture_is_finished_on_the_cpu(network):
    """The device is pretended; what it had begun is given to the CPU as it came."""

    class Device:
        plan, trouble, fused = None, None, 0

        def fuse(self, frame, *, gate):
            if self.fused:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.fused += 1
            luma, rgb, mean = run(DeviceFrame(network, frame.layout, device=torch.device("cpu")), frame, gate)
            return FusedFrame(luma=luma, rgb=rgb, gate=mean, stages_ms={}, device="cuda")

        def close(self):
            pass

    for warped in ("thermal", "rgb"):
        rng = np.random.default_rng(8)
        layout = registered(warped, SHAPES["odd"])
        frame = random_frame(rng, np.float32, masks=masks(rng, layout), layout=layout)
        backend = FallbackBackend(Device, HostBackend(TorchNetwork(network), None), probe=lambda: None)
        first, second = backend.fuse(frame, gate=True), backend.fuse(frame, gate=True)
        assert (first.device, second.device) == ("cuda", "cpu")
        assert_close((first.luma, first.rgb, first.gate), second)


def test_a_program_is_for_one_size_of_both_pictures_and_one_map():
    """Two layouts that are one to a cache of programs would warp by the wrong map."""
    a, b = (registered("thermal", SHAPES["odd"]) for _ in range(2))
    assert a == a._replace() and len({a, b, registered("rgb", SHAPES["odd"]), Layout(a.size), a._replace()}) == 4


def test_results_belong_to_the_caller(network):
    rng = np.random.default_rng(3)
    program = DeviceFrame(network, Layout(SIZE), device=torch.device("cpu"))
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
        DeviceFrame(network, Layout(SIZE), device=torch.device("cpu")).stage(frame)
