"""The network against golden values, against a plain second formulation, and against its own contract."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from isfl_ros.errors import InputError
from isfl_ros.network import cfi
from isfl_ros.network.checkpoint import load_model
from isfl_ros.network.config import ARCHITECTURES, IsflConfig
from isfl_ros.network.decoder import AffineHead
from isfl_ros.network.model import IsflNet, for_inference, mean_gate
from isfl_ros.network.plain import plain_forward, shape_of
from isfl_ros.network.release import read_release
from isfl_ros.resources import resolve_model

SIZES = [(32, 32), (33, 47), (101, 147), (64, 80)]


def random_network(config: IsflConfig, dtype=torch.float64) -> IsflNet:
    """A network with running statistics and affine parameters that a forgotten fold would not survive."""
    network = IsflNet(config)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # maps of what is invalid weigh nothing at first
            with torch.no_grad():
                module.weight[module.weight == 0] = 0.1 * torch.randn(int((module.weight == 0).sum()))
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval().to(dtype)


def pair(size, dtype=torch.float64, batch=1):
    return [torch.rand((batch, 1, *size), dtype=dtype) for _ in range(2)]


def relative(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "config",
    [
        ARCHITECTURES["isfl-release"],
        ARCHITECTURES["isfl"],
        ARCHITECTURES["isfl-edge"],
        IsflConfig(head="affine", reduction=2),
        IsflConfig(head="affine", reduction=4),
        IsflConfig(head="affine", reduction=4, subpixel=True),
    ],
    ids=["release", "isfl", "edge", "reduction 2", "reduction 4", "reduction 4, subpixel"],
)
def test_inference_form_equals_plain_formulation(config, size, dtype, bound):
    network = random_network(config)
    visible, infrared = pair(size)
    valid = [torch.rand((1, 1, *size)) < 0.8 for _ in range(2)]
    for masks in ((None, None), valid):
        zeroed = [picture if mask is None else picture * mask for picture, mask in zip((visible, infrared), masks)]
        wanted, wanted_gates = plain_forward(network.state_dict(), *zeroed, **shape_of(config), valid=masks)
        with torch.inference_mode():
            fused, gates = for_inference(network.to(dtype))(
                visible.to(dtype), infrared.to(dtype), valid_visible=masks[0], valid_infrared=masks[1], return_gates=True
            )
        network.double()
        assert fused.shape == visible.shape
        assert relative(fused, wanted) <= bound
        for got, want in zip(gates, wanted_gates, strict=True):
            assert relative(got, want) <= bound


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("shape", [{"reduction": 2, "subpixel": True}, {"reduction": 4}, {}], ids=str)
def test_validity_input_tells_a_missing_modality_from_a_black_one(shape, siamese):
    config = IsflConfig(head="affine", width=8, validity_input=True, siamese=siamese, **shape)
    black, infrared = torch.zeros(1, 1, 45, 71, dtype=torch.float64), torch.rand(1, 1, 45, 71, dtype=torch.float64)
    nowhere = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    fresh = IsflNet(config).double().eval()
    with torch.inference_mode():
        missing = fresh(black, infrared, valid_visible=nowhere)
        assert torch.equal(missing, fresh(black, infrared)), "before any training it does not look"
    network = random_network(config)
    with torch.inference_mode():
        upside = network(infrared, black), network(infrared, black, valid_infrared=nowhere)
        assert float((upside[0] - upside[1]).abs().max()) > 1e-6
        seen, missing = network(black, infrared), network(black, infrared, valid_visible=nowhere)
        assert float((seen - missing).abs().max()) > 1e-6, "a map that nobody reads would change nothing at all"
        assert torch.equal(seen, network(black, infrared, valid_visible=~nowhere)), "no mask means valid everywhere"
    without = random_network(dataclasses.replace(config, validity_input=False))
    with torch.inference_mode():
        assert torch.equal(without(black, infrared), without(black, infrared, valid_visible=nowhere))


@pytest.mark.parametrize("attention", ["reference", "folded"])
def test_release_reproduces_golden_values(reference_values, attention):
    network, _ = read_release(reference_values / "isfuse_release.safetensors")
    network.set_implementation(attention)
    golden = np.load(reference_values / "isfuse_release_golden.npz")
    for form in (network, for_inference(network)):
        for index in range(3):
            visible, infrared = (
                torch.from_numpy(golden[f"{index}_{name}"]).reshape(1, 1, *golden[f"{index}_fused"].shape[-2:])
                for name in ("visible_luma", "infrared")
            )
            with torch.inference_mode():
                fused, gates = form(visible, infrared, return_gates=True)
            for got, name in zip([fused, *gates], ["fused", "gate_coarse", "gate_middle", "gate_fine"], strict=True):
                wanted = torch.from_numpy(golden[f"{index}_{name}"]).reshape(got.shape)
                assert float((got - wanted).abs().max()) <= 1e-4, (index, name)


@pytest.mark.parametrize(
    "config",
    [
        IsflConfig(siamese=True),
        IsflConfig(decoder_order="conv_then_add", head_kernel=1, gate_width=0, refine=False),
        IsflConfig(scales=2, width=8, grid=12),
        IsflConfig(cfi=False),
    ],
    ids=["siamese", "paper decoder", "small", "without CFI"],
)
def test_every_configuration_runs_and_folds(config):
    network = random_network(config)
    visible, infrared = pair((45, 70), batch=2)
    with torch.inference_mode():
        wanted, gates = network(visible, infrared, return_gates=True)
        got = for_inference(network)(visible, infrared)
    assert got.shape == (2, 1, 45, 70)
    assert relative(got, wanted) <= 1e-10
    assert len(gates) == (config.scales if config.cfi else 0)
    assert network.has_gates == bool(gates)


@pytest.mark.parametrize("subpixel", [False, True])
def test_affine_head_brings_the_grey_levels_of_the_pictures_back(subpixel):
    network = random_network(IsflConfig(head="affine", reduction=2, subpixel=subpixel))
    with torch.no_grad():
        network.head.conv.weight.zero_()
    visible, infrared = pair((45, 70))
    for coefficients, wanted in (
        ((1.0, 0.0, 0.0), visible),
        ((0.0, 1.0, 0.0), infrared),
        ((0.5, 0.5, 0.1), 0.5 * (visible + infrared) + 0.1),
        ((2.0, 0.0, 0.0), 2 * visible),
    ):
        with torch.no_grad():
            network.head.conv.bias.copy_(torch.tensor(coefficients).repeat_interleave(4 if subpixel else 1))
            fused = network(visible, infrared)
        assert torch.allclose(fused, wanted.clamp(0, 1), atol=1e-12)


def test_affine_head_starts_near_the_average():
    torch.manual_seed(0)
    network = IsflNet(ARCHITECTURES["isfl"]).eval()
    visible, infrared = pair((45, 70), dtype=torch.float32)
    with torch.no_grad():
        assert float((network(visible, infrared) - 0.5 * (visible + infrared)).abs().mean()) < 0.1


def test_affine_head_out_of_range_still_learns():
    network = IsflNet(IsflConfig(width=4, head="affine")).train()
    with torch.no_grad():
        network.head.conv.bias.copy_(torch.tensor([3.0, 3.0, 1.0]))
    fused = network(*pair((40, 40), dtype=torch.float32))
    assert float(fused.detach().max()) <= 1.0 + 1e-6
    fused.sum().backward()
    assert float(network.head.conv.bias.grad[2]) == pytest.approx(40 * 40)


def test_size_of_the_default_architecture():
    network = IsflNet(ARCHITECTURES["isfl"])
    assert sum(p.numel() for p in network.parameters()) <= 240_000
    shared = IsflNet(IsflConfig(siamese=True))
    assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in network.parameters())


def test_multiply_accumulates_of_the_default_architecture():
    from torch.utils.flop_counter import FlopCounterMode

    network = for_inference(IsflNet(ARCHITECTURES["isfl"]))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 480, 640), torch.zeros(1, 1, 480, 640))
    assert counter.get_total_flops() / 2 <= 28e9


@pytest.mark.parametrize("size", [(40, 50), (41, 51)], ids=str)
def test_masked_pixels_do_not_reach_the_network(size):
    network = for_inference(random_network(ARCHITECTURES["isfl"]))
    visible, infrared = pair(size)
    valid = torch.rand(1, 1, *size) > 0.3
    with torch.inference_mode():
        wanted = network(visible, torch.where(valid, infrared, 0.0), valid_infrared=valid)
        for poison in (torch.nan, torch.inf, 1.0):
            got = network(visible, torch.where(valid, infrared, poison), valid_infrared=valid)
            assert torch.equal(got, wanted)


def test_gates_are_asked_for_and_cost_no_change():
    network = random_network(ARCHITECTURES["isfl-release"])
    visible, infrared = pair((36, 52))
    with torch.inference_mode():
        fused, gates = network(visible, infrared, return_gates=True)
        assert torch.equal(network(visible, infrared), fused)
    assert [tuple(g.shape[-2:]) for g in gates] == [(9, 13), (18, 26), (36, 52)]
    gate = mean_gate(gates, (36, 52))
    assert gate.shape == (1, 1, 36, 52) and 0 < float(gate.min()) and float(gate.max()) < 1
    # The finest gate is already at full size, so it enters the mean as it is.
    others = mean_gate(gates[:2], (36, 52))
    assert torch.allclose(gate, (others * 2 + gates[2].float()) / 3)


def test_the_two_modalities_are_not_interchanged():
    network = random_network(ARCHITECTURES["isfl"])
    visible, infrared = pair((40, 40))
    with torch.inference_mode():
        assert not torch.allclose(network(visible, infrared), network(infrared, visible))


@pytest.mark.parametrize(
    ("visible", "infrared", "message"),
    [((1, 1, 31, 64), (1, 1, 31, 64), "too small"), ((1, 1, 64, 64), (1, 1, 64, 65), "one shape"), ((1, 3, 64, 64),) * 2 + ("one shape",)],
)
def test_unusable_inputs_are_refused(visible, infrared, message):
    with pytest.raises(InputError, match=message):
        IsflNet(IsflConfig())(torch.zeros(visible), torch.zeros(infrared))


@pytest.mark.parametrize(
    "values", [{"width": 0}, {"scales": 5}, {"grid": 0}, {"decoder_order": "up"}, {"head_kernel": 2}, {"cfi": 1}, {"head": "tanh"}, {"reduction": 2}, {"subpixel": True}, {"subpixel": "no"}]
)
def test_configuration_is_checked(values):
    with pytest.raises(InputError, match=f"network.{next(iter(values))} out of range"):
        IsflConfig(**values)


@pytest.mark.parametrize(("precision", "most", "mean"), [("fp16", 2.0, 0.2), ("bf16", 4.0, 1.0)])
def test_half_precision_on_the_golden_crops(reference_values, precision, most, mean):
    """Weights and feature maps in 16 bits, in grey levels of the fused picture. Torch on a CPU stands in for a GPU here."""
    release, _ = read_release(reference_values / "isfuse_release.safetensors")
    shipped, _ = load_model(resolve_model("isfl"))
    golden = np.load(reference_values / "isfuse_release_golden.npz")
    for network in (release, shipped):
        exact, rough = for_inference(network), for_inference(network, precision=precision)
        for index in range(3):
            visible, infrared = (
                torch.from_numpy(golden[f"{index}_{name}"]).reshape(1, 1, *golden[f"{index}_fused"].shape[-2:])
                for name in ("visible_luma", "infrared")
            )
            with torch.inference_mode():
                difference = 255 * (rough(visible, infrared) - exact(visible, infrared)).abs()
            assert 0 < float(difference.max()) <= most and float(difference.mean()) <= mean


@pytest.mark.parametrize("implementation", ["reference", "folded", "triton"])
def test_prepared_network_runs_in_every_implementation(implementation, kernel_device, monkeypatch):
    """Triton runs in its interpreter here, at a size of a few tiles."""
    if implementation == "triton":
        pytest.importorskip("triton", reason="Triton is an optional dependency: pip install triton")
    blends = []
    original = cfi.gated_blend
    monkeypatch.setattr(cfi, "gated_blend", lambda *a, **k: (blends.append(k["implementation"]), original(*a, **k))[1])
    config = IsflConfig(width=16, grid=4, gate_width=8, head="affine", reduction=2)
    network = random_network(config, torch.float32).to(kernel_device)
    visible, infrared = (x.to(kernel_device) for x in pair((33, 47), torch.float32))
    wanted, wanted_gates = plain_forward(network.state_dict(), visible, infrared, **shape_of(network.config))
    with torch.inference_mode():
        fused, gates = for_inference(network, implementation=implementation)(visible, infrared, return_gates=True)
    assert relative(fused, wanted) <= 1e-5
    for got, want in zip(gates, wanted_gates, strict=True):
        assert relative(got, want) <= 1e-5
    assert blends == (["triton"] * 3 if implementation == "triton" else []), "the gate and blend of each scale"


def test_pixels_beyond_the_range_are_pulled_back_and_not_pushed_on():
    head = AffineHead(IsflConfig(width=2, head="affine")).train()
    picture = torch.full((1, 1, 4, 6), 0.5)
    with torch.no_grad():
        head.conv.weight.zero_()
        head.conv.bias.zero_()
    for offset, push, felt in ((1.5, -1.0, 0.0), (1.5, 1.0, 1.0), (-0.5, 1.0, 0.0), (-0.5, -1.0, -1.0), (0.4, 1.0, 1.0), (0.4, -1.0, -1.0)):
        with torch.no_grad():
            head.conv.bias[2] = offset
        head.zero_grad()
        fused = head(torch.zeros(1, 2, 4, 6), picture, picture)
        assert torch.equal(fused, torch.full_like(fused, min(max(offset, 0.0), 1.0)))
        (push * fused).sum().backward()  # descent moves the picture against the sign of push
        assert float(head.conv.bias.grad[2]) == pytest.approx(felt * fused.numel())
