"""The network that OpenVINO compiled against torch, at sizes it was not converted at."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import load_model
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet, for_inference, mean_gate
from isfl_ros.network.plain import plain_forward, shape_of
from isfl_ros.resources import resolve_model

from isfl_ros.backends.choice import openvino_is_installed

if not openvino_is_installed():
    pytest.skip("OpenVINO is an optional dependency: pip install openvino", allow_module_level=True)
from isfl_ros.backends import openvino_network  # noqa: E402
from isfl_ros.backends.openvino_network import OpenVinoNetwork  # noqa: E402

RNG = np.random.default_rng(0)
NOTHING_MASKED = (None, None)


@pytest.fixture(scope="module")
def shipped():
    return load_model(resolve_model("isfl"))[0]


@pytest.fixture(scope="module")
def compiled(shipped):
    return OpenVinoNetwork(for_inference(shipped), precision="fp32", threads=2)


def pair(size):
    return [RNG.random(size, dtype=np.float32) for _ in range(2)]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 80), (101, 147), (120, 161), (240, 320)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_equals_the_plain_formulation(shipped, compiled, size, masked):
    visible, infrared = pair(size)
    pictures = (torch.from_numpy(x)[None, None] for x in (visible, infrared))
    masks = valid = NOTHING_MASKED
    if masked:
        masks = tuple(RNG.random(size) < 0.7 for _ in range(2))
        valid = tuple(torch.from_numpy(mask)[None, None] for mask in masks)
        pictures = [picture * mask for picture, mask in zip(pictures, valid)]
    wanted, gates = plain_forward(shipped.state_dict(), *pictures, **shape_of(shipped.config), valid=valid)
    fused, gate = compiled(visible, infrared, masks, True)
    assert fused.shape == size and fused.dtype == np.float32
    np.testing.assert_allclose(fused, wanted[0, 0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(gate, mean_gate(gates, size)[0, 0].detach().numpy(), atol=1e-5)
    assert compiled(visible, infrared, NOTHING_MASKED, False)[1] is None


def test_networks_that_differ_in_no_tensor_have_their_own_graph():
    torch.manual_seed(0)
    first = IsflNet(IsflConfig(width=8, head="affine", reduction=2, grid=4)).eval()
    second = IsflNet(IsflConfig(width=8, head="affine", reduction=4, grid=8)).eval()
    second.load_state_dict(first.state_dict())
    visible, infrared = pair((67, 90))
    pictures = [torch.from_numpy(x)[None, None] for x in (visible, infrared)]
    for network in (first, second):
        wanted, _ = plain_forward(network.state_dict(), *pictures, **shape_of(network.config))
        fused, _ = OpenVinoNetwork(for_inference(network), precision="fp32", threads=1)(visible, infrared, NOTHING_MASKED, False)
        np.testing.assert_allclose(fused, wanted[0, 0].detach().numpy(), atol=1e-5)


def test_authors_golden_values(reference_values):
    from isfl_ros.network.release import read_release

    network, _ = read_release(reference_values / "isfuse_release.safetensors")
    compiled = OpenVinoNetwork(for_inference(network), precision="fp32", threads=2)
    golden = np.load(reference_values / "isfuse_release_golden.npz")
    for index in range(3):
        size = golden[f"{index}_fused"].shape[-2:]
        visible, infrared = (golden[f"{index}_{name}"].reshape(size) for name in ("visible_luma", "infrared"))
        fused, *gates = compiled.run(visible, infrared)
        for got, name in zip([fused, *gates], ["fused", "gate_coarse", "gate_middle", "gate_fine"], strict=True):
            assert np.abs(got.reshape(-1) - golden[f"{index}_{name}"].reshape(-1)).max() <= 1e-4, (index, name)


def test_results_belong_to_the_caller(compiled):
    first, gate = compiled(*pair((40, 48)), NOTHING_MASKED, True)
    kept = first.copy(), gate.copy()
    compiled(*pair((40, 48)), NOTHING_MASKED, True)
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(gate, kept[1])


def test_few_sizes_are_kept(compiled, monkeypatch):
    sizes = [(32 + k, 40) for k in range(openvino_network.SIZES_KEPT + 2)]
    for size in sizes:
        compiled(*pair(size), NOTHING_MASKED, False)
    assert compiled._requests.keys() == sizes[-openvino_network.SIZES_KEPT :]
    request = compiled._requests[sizes[-2]]
    compiled(*pair(sizes[-2]), NOTHING_MASKED, False)
    assert compiled._requests[sizes[-2]] is request, "a size that comes back is not compiled again"
    assert compiled._requests.keys()[-1] == sizes[-2], "and is the last to go"


def test_memory_does_not_grow_with_frames(compiled):
    def resident_mb():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    visible, infrared = pair((240, 320))
    for _ in range(10):
        compiled(visible, infrared, NOTHING_MASKED, True)
    before = resident_mb()
    for _ in range(60):
        compiled(visible, infrared, NOTHING_MASKED, True)
    assert resident_mb() - before < 15, "60 frames of 0.3 MB each, and 10 MB of scratch a frame, would show"


def test_network_without_gates():
    network = IsflNet(IsflConfig(cfi=False, width=8)).eval()
    compiled = OpenVinoNetwork(for_inference(network), precision="fp32", threads=1)
    assert compiled(*pair((40, 50)), NOTHING_MASKED, True)[1] is None


def test_wrong_arithmetic_is_refused(shipped, monkeypatch):
    monkeypatch.setattr(openvino_network, "_TOLERANCE", {"fp32": 1e-9})
    with pytest.raises(InputError, match="does not compute what torch computes.*choose implementation folded"):
        OpenVinoNetwork(for_inference(shipped), precision="fp32", threads=2)


def test_bfloat16(shipped):
    core = openvino_network.openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(InputError, match="no bfloat16"):
            OpenVinoNetwork(for_inference(shipped), precision="bf16", threads=2)
        return
    torch.manual_seed(0)
    network = for_inference(IsflNet(IsflConfig()).eval())
    visible, infrared = pair((96, 128))
    rough = OpenVinoNetwork(network, precision="bf16", threads=2)(visible, infrared, NOTHING_MASKED, False)[0]
    with torch.inference_mode():
        exact = network(*(torch.from_numpy(x)[None, None] for x in (visible, infrared)))[0, 0].numpy()
    assert 1e-6 < np.abs(rough - exact).max() <= 4 / 255


def test_bfloat16_that_is_too_rough_is_refused(shipped, monkeypatch):
    core = openvino_network.openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16 arithmetic")
    monkeypatch.setitem(openvino_network._TOLERANCE, "bf16", 1e-7)
    with pytest.raises(InputError, match="does not compute what torch computes.*choose implementation folded"):
        OpenVinoNetwork(for_inference(shipped), precision="bf16", threads=2)


def test_nothing_is_reported_over_the_network(tmp_path):
    """A fresh interpreter with a home folder of its own, which OpenVINO's reporter would write a user number into."""
    program = """
import numpy as np
from isfl_ros.pipeline import FusionPipeline, PipelineConfig
pipeline = FusionPipeline(PipelineConfig(device="cpu", implementation="openvino"))
pipeline.fuse(np.full((40, 50), 9, np.uint8), np.full((40, 50, 3), 9, np.uint8))
import sys
import weakref
assert sys.modules["openvino_telemetry"] is None, "the reporter was imported"
"""
    environment = {key: value for key, value in os.environ.items() if key != "CI"}  # the reporter is silent in CI
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=120, env=environment | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists()


def test_its_memory_goes_with_it():
    """Nothing waits for the garbage collector: at 640x480 that would be hundreds of megabytes."""
    model = IsflNet(IsflConfig()).eval()
    compiled = OpenVinoNetwork(for_inference(model), precision="fp32", threads=1)
    compiled(*pair((40, 48)), NOTHING_MASKED, False)
    requests = weakref.ref(compiled._requests)
    gc.collect()
    gc.disable()
    try:
        del compiled
        assert requests() is None
    finally:
        gc.enable()


def test_a_network_is_converted_once_and_another_one_again(monkeypatch):
    converted = []
    convert = openvino_network.openvino.convert_model

    def spy(*args, **kwargs):
        converted.append(1)
        return convert(*args, **kwargs)

    monkeypatch.setattr(openvino_network.openvino, "convert_model", spy)
    torch.manual_seed(5)
    first, second = IsflNet(IsflConfig()).eval(), IsflNet(IsflConfig()).eval()
    for model, count in ((first, 1), (first, 1), (second, 2), (second, 2)):
        OpenVinoNetwork(for_inference(model), precision="fp32", threads=1)
        assert len(converted) == count
