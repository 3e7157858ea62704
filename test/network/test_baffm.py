"""The BAFFM network: its contract, its ablation, its inference form, its place in the pipeline."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isfl_ros.errors import InputError
from isfl_ros.network.baffm import BaffmNet
from isfl_ros.network.checkpoint import ModelInfo, load_model, save_model
from isfl_ros.network.config import ARCHITECTURES, BaffmConfig
from isfl_ros.network.dictionary import DictionaryRecord, digest_of
from isfl_ros.network.model import for_inference
from isfl_ros.pipeline import FusionPipeline, PipelineConfig

SMALL = BaffmConfig(width=6, prototypes=5, entries=4, query=3, gate_width=3)


def random_network(config: BaffmConfig, dtype=torch.float64) -> BaffmNet:
    """With dictionaries, and with running statistics that a forgotten fold would not survive."""
    network = BaffmNet(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    if config.needs_dictionary:
        network.set_dictionaries(*torch.randn(2, config.prototypes, config.entries))
    return network.eval().to(dtype)


def pair(size, dtype=torch.float64, batch=1):
    return [torch.rand((batch, 1, *size), dtype=dtype) for _ in range(2)]


def record_of(network: BaffmNet) -> DictionaryRecord:
    config = network.config
    return DictionaryRecord(
        backbone="none", backbone_sha256="0", backbone_width=9, regions=2, prototypes=config.prototypes,
        entries=config.entries, images=30, seed=0, explained_variance={}, members={},
        sha256=digest_of(network.adjust_visible.dictionary, network.adjust_infrared.dictionary),
    )


def saved(folder, network: BaffmNet):
    record = dataclasses.asdict(record_of(network)) if network.config.needs_dictionary else {}
    info = ModelInfo(
        name=folder.name, model="baffm", architecture="baffm", recipe="test", config=network.config, dictionary=record
    )
    save_model(folder, network, info)
    return folder


def plain_forward(network: BaffmNet, visible, infrared):
    """Figure 4 once more from the table of tensors, in evaluation mode; no code of the package."""
    p, config = network.state_dict(), network.config

    def unit(name, x):
        x = F.conv2d(x, p[f"{name}.conv.weight"], p[f"{name}.conv.bias"], padding=1)
        mean, var = p[f"{name}.norm.running_mean"], p[f"{name}.norm.running_var"]
        x = F.batch_norm(x, mean, var, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"], eps=1e-5)
        return F.leaky_relu(x, 0.01)

    def encode(name, x):
        name = "encoder" if config.siamese else f"encoder_{name}"
        features = []
        for k in range(config.scales):
            x = unit(f"{name}.blocks.{k}.1", unit(f"{name}.blocks.{k}.0", F.max_pool2d(x, 2) if k else x))
            features.append(x)
        total = features.pop()
        while features:
            finer = features.pop()
            total = finer + F.interpolate(total, size=finer.shape[-2:], mode="bilinear", align_corners=False)
        return total

    def adjust(name, x):
        w = {part: p[f"adjust_{name}.{part}.weight"] for part in ("feature", "prototype", "query", "key")}
        at = "bchw,oc->bohw"
        if not config.needs_dictionary:
            hidden = F.leaky_relu(torch.einsum(at, x, w["query"]), 0.01)
            hidden = F.leaky_relu(torch.einsum(at, hidden, w["key"]), 0.01)
            return torch.einsum(at, x, w["feature"]) + torch.einsum(at, hidden, w["prototype"]), None
        z = p[f"adjust_{name}.dictionary"]
        n = len(z)
        query = torch.einsum(at, x, w["query"])
        scores = torch.einsum("bdhw,nd->bnhw", query, z @ w["key"].T) / math.sqrt(config.query)
        importance = scores.softmax(1)
        expectation = torch.einsum("bnhw,ne->behw", importance, z) / n
        entropy = -(importance * importance.log()).sum(1, keepdim=True) / math.log(n)
        return torch.einsum(at, x, w["feature"]) + torch.einsum(at, expectation, n * w["prototype"]), entropy

    x_v, x_i = encode("visible", visible), encode("infrared", infrared)
    (a_v, e_v), (a_i, e_i) = adjust("visible", x_v), adjust("infrared", x_i)
    maps = [] if e_v is None else [(e_v + e_i) / 2]
    if config.gate:
        gate = F.conv2d(unit("gate.layers.0", a_v + a_i), p["gate.layers.1.weight"], p["gate.layers.1.bias"]).sigmoid()
        a_v, a_i = gate * a_v + (1 - gate) * x_v, gate * a_i + (1 - gate) * x_i
        maps = [gate]
    joined = torch.cat([a_v, a_i], dim=1)
    for k in range(config.mixing):
        joined = unit(f"mixing.{k}", joined)
    last = F.conv2d(joined, p["head.conv.weight"], p["head.conv.bias"], padding=1)
    return (last.tanh() + 1) / 2, maps


CONFIGS = {
    "baffm": BaffmConfig(),
    "as the paper says": BaffmConfig(mixing=0, siamese=True),
    "without the adjustment": BaffmConfig(adjustment="conventional", width=8),
    "gate": BaffmConfig(gate=True, width=8, mixing=2),
    "small": SMALL,
}


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (61, 75)], ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_inference_form_equals_plain_formulation(config, size, dtype, bound):
    network = random_network(config)
    visible, infrared = pair(size, batch=2)
    wanted, wanted_maps = plain_forward(network, visible, infrared)
    pictures = visible.to(dtype), infrared.to(dtype)
    with torch.inference_mode():
        for implementation in ("folded", "reference"):
            form = for_inference(copy.deepcopy(network).to(dtype), implementation=implementation)
            fused, maps = form(*pictures, return_gates=True)
            assert fused.shape == visible.shape and 0 <= float(fused.min()) and float(fused.max()) <= 1
            assert float((fused - wanted).abs().max()) <= bound
            for got, want in zip(maps, wanted_maps, strict=True):
                assert got.shape == want.shape == visible.shape and float((got - want).abs().max()) <= 10 * bound
            assert torch.equal(form(*pictures), fused), "asking for the maps must not change the picture"
        trained = network(visible, infrared)
    assert float((trained - wanted).abs().max()) <= 1e-10


def test_what_it_shows():
    assert (BaffmNet(SMALL).shows, BaffmNet(SMALL).has_gates) == ("entropy", False)
    gated = BaffmNet(dataclasses.replace(SMALL, gate=True))
    assert (gated.shows, gated.has_gates) == ("gate", True)
    without = BaffmNet(dataclasses.replace(SMALL, adjustment="conventional"))
    assert (without.shows, without.has_gates) == (None, False)


@pytest.mark.parametrize(
    "config", [SMALL, BaffmConfig(), BaffmConfig(query=17, entries=40, width=9)], ids=["small", "default", "odd"]
)
def test_with_and_without_the_adjustment_have_the_same_number_of_parameters(config):
    def shapes(adjustment):
        network = BaffmNet(dataclasses.replace(config, adjustment=adjustment))
        return sorted(tuple(sorted(p.shape)) for p in network.parameters())

    assert shapes("backdoor") == shapes("conventional")
    assert sum(math.prod(s) for s in shapes("backdoor")) <= 300_000


def test_the_same_seed_gives_both_variants_the_same_encoders():
    """Three seeds of a comparison then differ in what is compared, not in where the rest began."""
    networks = []
    for adjustment in ("backdoor", "conventional"):
        torch.manual_seed(4)
        networks.append(BaffmNet(dataclasses.replace(SMALL, adjustment=adjustment)))
    ours, theirs = (n.encoder_infrared.state_dict() for n in networks)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_cost_of_the_default_architecture():
    from torch.utils.flop_counter import FlopCounterMode

    network = for_inference(random_network(ARCHITECTURES["baffm"], torch.float32))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(*torch.zeros(2, 1, 1, 480, 640))
    assert counter.get_total_flops() / 2 == pytest.approx(4.5e9, rel=0.01), "what docs/baffm.md says"
    assert sum(p.numel() for p in BaffmNet(ARCHITECTURES["baffm"]).parameters()) == 33_313


def test_masked_pixels_do_not_reach_the_network():
    network = for_inference(random_network(SMALL))
    visible, infrared = pair((40, 51))
    valid = torch.rand(1, 1, 40, 51) > 0.3
    with torch.inference_mode():
        wanted = network(torch.where(valid, visible, torch.zeros_like(visible)), torch.zeros_like(infrared))
        poisoned = torch.where(valid, visible, torch.nan), torch.full_like(infrared, torch.nan)
        got = network(*poisoned, valid_visible=valid, valid_infrared=torch.zeros(1, 1, 1, 1, dtype=torch.bool))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("visible", "infrared", "message"),
    [((1, 1, 31, 64), (1, 1, 31, 64), "too small"), ((1, 1, 64, 64), (1, 1, 64, 65), "one shape")],
)
def test_unusable_inputs_are_refused(visible, infrared, message):
    with pytest.raises(InputError, match=message):
        random_network(SMALL)(torch.zeros(visible), torch.zeros(infrared))


@pytest.mark.parametrize(
    "values",
    [
        {"width": 0}, {"scales": 5}, {"adjustment": "none"}, {"prototypes": 1}, {"entries": 0}, {"query": True},
        {"mixing": 4}, {"gate": 1}, {"siamese": "no"}, {"gate_width": 0},
    ],
)
def test_configuration_is_checked(values):
    with pytest.raises(InputError, match=f"network.{next(iter(values))} out of range"):
        BaffmConfig(**values)


def test_every_parameter_learns_but_the_dictionary_does_not():
    network = random_network(dataclasses.replace(SMALL, gate=True), torch.float32).train()
    before = network.adjust_visible.dictionary.clone()
    fused = network(*pair((40, 44), torch.float32, batch=2))
    (fused * torch.rand_like(fused)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    assert not network.adjust_visible.dictionary.requires_grad
    assert torch.equal(network.adjust_visible.dictionary, before)


@pytest.mark.parametrize(("precision", "most"), [("fp16", 2.0), ("bf16", 8.0)])
def test_half_precision(precision, most):
    network = random_network(BaffmConfig(gate=True), torch.float32)
    pictures = pair((61, 75), torch.float32)
    with torch.inference_mode():
        exact = for_inference(network)(*pictures)
        difference = 255 * (for_inference(network, precision=precision)(*pictures) - exact).abs()
    assert 0 < float(difference.max()) <= most


# -- dictionaries -----------------------------------------------------------------------------------------------------


def test_without_dictionaries_nothing_can_be_made_of_it(tmp_path):
    network = BaffmNet(SMALL)
    with pytest.raises(InputError, match="no confounder dictionary; train it"):
        for_inference(network)
    assert not torch.isfinite(network.eval()(*pair((32, 32), torch.float32))).any()
    for values in (torch.zeros(5, 3), torch.zeros(4, 4), torch.full((5, 4), torch.nan)):
        with pytest.raises(InputError, match=r"the infrared dictionary does not fit; expected \(5, 4\)"):
            network.set_dictionaries(torch.zeros(5, 4), values)
    without = BaffmNet(dataclasses.replace(SMALL, adjustment="conventional"))
    with pytest.raises(InputError, match="takes no dictionary"):
        without.set_dictionaries(torch.zeros(5, 4), torch.zeros(5, 4))


def test_round_trip(tmp_path):
    network = random_network(SMALL, torch.float32)
    loaded, info = load_model(saved(tmp_path / "m", network))
    assert info.dictionary == dataclasses.asdict(record_of(network)) and info.config == SMALL
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    without = random_network(dataclasses.replace(SMALL, adjustment="conventional"), torch.float32)
    assert load_model(saved(tmp_path / "w", without))[1].dictionary == {}


# -- pipeline ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("models") / "baffm", random_network(SMALL, torch.float32))


@pytest.mark.parametrize("implementation", ["folded", "reference", "openvino"])
def test_pipeline_runs_it_and_shows_entropy_in_place_of_the_gate(folder, implementation):
    if implementation == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is an optional dependency")
    rng = np.random.default_rng(0)
    thermal, rgb = rng.integers(0, 256, (45, 70), np.uint8), rng.integers(0, 256, (45, 70, 3), np.uint8)
    pipeline = FusionPipeline(PipelineConfig(model=str(folder), device="cpu", implementation=implementation))
    try:
        assert not pipeline.has_gates and pipeline.description["gates"] == "no"
        assert "entropy" in pipeline.description["in_place_of_the_gate"]
        result = pipeline.fuse(thermal, rgb, gate=True)
        assert result.gate is None and result.entropy.shape == (45, 70)
        network = load_model(folder)[0]
        luma = torch.from_numpy(cv2_luma(rgb))[None, None].float() / 255
        with torch.inference_mode():
            fused, (entropy,) = network(luma, torch.from_numpy(thermal)[None, None].float() / 255, return_gates=True)
        assert np.abs(result.luma - 255 * fused[0, 0].numpy()).max() <= 0.51
        assert np.abs(result.entropy - entropy[0, 0].numpy()).max() <= 1e-4
        plain = pipeline.fuse(thermal, rgb)
        assert plain.gate is None and plain.entropy is None and np.array_equal(plain.luma, result.luma)
        alone = pipeline.fuse(None, rgb, gate=True)
        assert alone.luma.shape == (45, 70) and np.isfinite(alone.entropy).all()
        left = np.arange(70) < 35
        valid = np.broadcast_to(left, (45, 70)).copy()
        both_invalid = pipeline.fuse(thermal, rgb, thermal_valid=valid, rgb_valid=valid)
        assert not both_invalid.luma[:, 35:].any() and both_invalid.luma[:, :35].any()
        assert np.array_equal(both_invalid.valid, valid)
    finally:
        pipeline.close()


def cv2_luma(rgb):
    from isfl_ros.images import split_luma

    return split_luma(rgb)[0]


def test_a_network_with_the_gate_has_gates_like_isfl(tmp_path):
    torch.manual_seed(0)
    gated = saved(tmp_path / "gated", random_network(dataclasses.replace(SMALL, gate=True), torch.float32))
    pipeline = FusionPipeline(PipelineConfig(model=str(gated), device="cpu", implementation="folded"))
    result = pipeline.fuse(np.full((40, 40), 9, np.uint8), np.full((40, 40, 3), 70, np.uint8), gate=True)
    assert pipeline.has_gates and "in_place_of_the_gate" not in pipeline.description
    assert result.entropy is None and result.gate.shape == (40, 40) and 0 < result.gate.min() <= result.gate.max() < 1
    pipeline.close()


def test_triton_is_refused_in_words(folder):
    network, _ = load_model(folder)
    assert "no fused kernels" in network.why_not("triton") and network.why_not("folded") is None
