"""The fused kernels of the pooled cross-attention against the reference in float64.

In Triton's interpreter, or on a GPU with ISFL_TEST_DEVICE=cuda. The interpreter rounds to float16 and bfloat16 as a GPU
does but not to tf32, so the tf32 case proves more on a GPU. Every buffer that the launcher hands out is poisoned with
NaN.

Tolerance: twice the error that the plain reference has in the same precision, and a few units in the last place.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from isfl_ros.errors import InputError
from isfl_ros.ops import pooled_cross_attention as op
from isfl_ros.ops import triton_support
from isfl_ros.ops.pooled_cross_attention import fused

pytest.importorskip("triton")

LAYOUTS = [torch.contiguous_format, torch.channels_last]
NCHW, NHWC = LAYOUTS
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# (batch, channels, height, width, grid)
CASES = [
    (1, 32, 33, 47, 8),  # the shipped width and grid, odd sizes
    (2, 16, 12, 16, 3),  # a multiple of 16 pixels, few tokens, batch
    (1, 20, 13, 19, 10),  # padded channels, 100 tokens: online softmax with padded tokens
    (1, 64, 7, 63, 12),  # widest, 144 tokens, r > H
    (3, 1, 2, 63, 1),  # one channel, one token
    (1, 5, 1, 1, 9),  # one pixel, 81 equal tokens
]


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    honest = fused._uninitialised

    def poisoned(*arguments, **keywords):
        return honest(*arguments, **keywords).fill_(float("nan"))

    monkeypatch.setattr(fused, "_uninitialised", poisoned)


_SWITCHES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)


def _allow_tf32(allowed):
    for switch in _SWITCHES:
        switch.fp32_precision = "tf32" if allowed else "ieee"


@pytest.fixture(autouse=True)
def _ieee():
    """PyTorch's own convolutions round to tf32 on a GPU unless told not to, and would make every tolerance loose."""
    before = [switch.fp32_precision for switch in _SWITCHES]
    _allow_tf32(False)
    yield
    for switch, value in zip(_SWITCHES, before, strict=True):
        switch.fp32_precision = value


def make(case, device, *, layout=torch.contiguous_format):
    b, c, h, w, grid = case
    generator = torch.Generator().manual_seed(1)

    def rand(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    features = [rand(b, c, h, w).contiguous(memory_format=layout) for _ in range(2)]
    projections = [op.Projections(*[t for _ in range(3) for t in (rand(c, c) / c**0.25, rand(c))]) for _ in range(2)]
    return features, projections, grid


def cast(features, projections, dtype, weight_dtype):
    # Values that both precisions hold exactly, so that the error is that of the operation and not of its input.
    return [f.to(dtype) for f in features], [op.Projections(*[t.to(weight_dtype) for t in p]) for p in projections]


def run(features, projections, grid, implementation):
    return op.pooled_cross_attention(*features, *projections, grid=grid, implementation=implementation)


def error(value, exact):
    return float((value.detach().double() - exact.detach()).abs().max())


def unit(got):
    """Rounding of the arithmetic. On a GPU plain PyTorch may, but need not, round to tf32: its error alone is no measure."""
    rounded = got.is_cuda and got.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return 2.0**-10 if rounded else torch.finfo(got.dtype).eps


def check(got, plain, exact, dtype, what=""):
    """The tolerance rule; a NaN anywhere fails it."""
    scale = float(exact.detach().abs().max())
    allowed = 2 * error(plain, exact) + 4 * unit(got) * scale
    assert error(got, exact) <= allowed, f"{what}: {error(got, exact) / scale:.2e} against {allowed / scale:.2e}"


def label(value):
    return {NCHW: "nchw", NHWC: "nhwc"}.get(value) if isinstance(value, torch.memory_format) else str(value)


# Everything for the first two cases; the others once in either layout (the interpreter takes seconds for 144 tokens).
FORWARD = [(case, layout, precision) for case in CASES[:2] for layout in LAYOUTS for precision in PRECISIONS]
FORWARD += [(case, *how) for case in CASES[2:] for how in ((NCHW, "fp32"), (NHWC, "fp16"))]
TRAINING = [(CASES[0], NCHW, "fp32"), *((CASES[0], NHWC, precision) for precision in ("fp32", "fp16", "bf16"))]
TRAINING += [(case, *how) for case in CASES[1:4] for how in ((NHWC, "fp32"), (NCHW, "fp16"))]


@pytest.mark.parametrize(("case", "layout", "precision"), FORWARD, ids=label)
def test_forward(case, layout, precision, kernel_device):
    dtype = PRECISIONS[precision]
    _allow_tf32(precision == "tf32")
    features, projections, grid = make(case, kernel_device, layout=layout)
    features, projections = cast(features, projections, dtype, dtype)
    exact = run(*cast(features, projections, torch.float64, torch.float64), grid, "reference")
    plain = run(features, projections, grid, "reference")
    got = run(features, projections, grid, "triton")
    assert got.dtype == dtype and got.shape == exact.shape
    assert got.is_contiguous(memory_format=layout)
    check(got, plain, exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_weights_for_low_precision_features(dtype, kernel_device):
    features, projections, grid = make(CASES[0], kernel_device)
    features, projections = cast(features, projections, dtype, torch.float32)
    exact = run(*cast(features, projections, torch.float64, torch.float64), grid, "reference")
    plain = run(*cast(features, projections, dtype, dtype), grid, "reference")
    check(run(features, projections, grid, "triton"), plain, exact, dtype)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((33, 47), 3), ((33, 47), 1), ((12, 16), 4), ((5, 63), 7), ((1, 1), 3), ((2, 3), 8), ((7, 160), 2), ((101, 9), 2)],
    ids=str,
)
def test_pooling_and_its_gradient(size, grid, layout, kernel_device):
    """Bins as in adaptive_avg_pool2d: overlapping where the grid does not divide, repeated where it is larger."""
    maps = [torch.randn(2, 5, *size).to(kernel_device).contiguous(memory_format=layout) for _ in range(2)]
    mine = [m.clone().requires_grad_() for m in maps]
    pooled = fused._Pool.apply(*mine, fused.Setting.of(mine[0], grid))
    assert pooled.dtype == torch.float32
    exact = [m.double().requires_grad_() for m in maps]
    wanted = torch.stack([F.adaptive_avg_pool2d(m, grid).flatten(2).transpose(1, 2) for m in exact], dim=1)
    assert torch.allclose(pooled.double(), wanted, rtol=1e-6, atol=1e-6)
    weights = torch.randn(pooled.shape).to(kernel_device)
    pooled.backward(weights)
    wanted.backward(weights.double())
    for m, e in zip(mine, exact):
        assert torch.allclose(m.grad.double(), e.grad, rtol=1e-6, atol=1e-6)


def gradients(features, projections, grid, implementation):
    """Gradients of all 14 inputs by name, for an output gradient with no symmetry."""
    features = [f.detach().clone().requires_grad_() for f in features]
    projections = [op.Projections(*[t.detach().clone().requires_grad_() for t in p]) for p in projections]
    result = run(features, projections, grid, implementation)
    ramp = torch.linspace(-1, 1, result.numel(), dtype=torch.float64, device=result.device).reshape(result.shape)
    result.backward(torch.sin(7 * ramp).to(result.dtype))
    named = {"visible": features[0].grad, "infrared": features[1].grad}
    for modality, p in zip(("visible", "infrared"), projections):
        named |= {f"{modality}.{field}": t.grad for field, t in p._asdict().items()}
    return result, named


@pytest.mark.parametrize(("case", "layout", "precision"), TRAINING, ids=label)
def test_every_gradient_by_name(case, layout, precision, kernel_device):
    dtype = PRECISIONS[precision]
    features, projections, grid = make(case, kernel_device, layout=layout)
    features, projections = cast(features, projections, dtype, dtype)
    exact_out, exact = gradients(*cast(features, projections, torch.float64, torch.float64), grid, "reference")
    _, plain = gradients(features, projections, grid, "reference")
    out, got = gradients(*cast(features, projections, dtype, torch.float32), grid, "triton")
    assert len(got) == 14
    check(out, run(features, projections, grid, "reference"), exact_out, dtype, "output")
    for name, wanted in exact.items():
        assert got[name].dtype == (torch.float32 if "." in name else dtype)
        if name.endswith("key_bias"):
            # Shifts all scores of a pixel alike: no gradient but rounding, measured against that of the key weight.
            weight = name.replace("bias", "weight")
            allowed = 2 * error(plain[name], wanted) + 4 * torch.finfo(dtype).eps * float(exact[weight].abs().max())
            assert error(got[name], wanted) <= allowed, name
            continue
        check(got[name], plain[name], wanted, dtype, name)


def test_only_the_gradients_that_are_asked_for(kernel_device):
    features, projections, grid = make((1, 8, 13, 9, 3), kernel_device)
    features, projections = cast(features, projections, torch.float32, torch.float32)
    _, every = gradients(features, projections, grid, "triton")

    features[1].requires_grad_()
    run(features, projections, grid, "triton").backward(
        torch.sin(7 * torch.linspace(-1, 1, features[0].numel(), dtype=torch.float64)).reshape(features[0].shape)
        .to(kernel_device, torch.float32)
    )
    assert features[0].grad is None and all(t.grad is None for p in projections for t in p)
    assert torch.equal(features[1].grad, every["infrared"])

    features = [f.detach() for f in features]
    projections[0].value_weight.requires_grad_()
    run(features, projections, grid, "triton").sum().backward()
    assert features[0].grad is None and projections[0].value_weight.grad is not None
    assert projections[1].value_weight.grad is None


def test_one_map_in_both_places_and_elsewhere(kernel_device):
    """The gradients of all uses add up."""
    (feature, _), projections, grid = make((1, 8, 13, 9, 3), kernel_device)
    results = {}
    for name, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        x = feature.detach().clone().to(dtype).requires_grad_()
        weights = [op.Projections(*[t.to(dtype) for t in p]) for p in projections]
        (run((x, x), weights, grid, name) * x).sum().backward()
        results[name] = x.grad.double()
    assert error(results["triton"], results["reference"]) <= 1e-5 * float(results["reference"].abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_under_autocast(dtype, kernel_device):
    """As in training: a layer under autocast makes the features, the weights stay float32."""
    features, projections, grid = make((2, 16, 13, 11, 3), kernel_device)
    features, projections = cast(features, projections, torch.float32, torch.float32)
    layer = torch.eye(16, device=kernel_device)[:, :, None, None].requires_grad_()
    weights = [op.Projections(*[t.requires_grad_() for t in p]) for p in projections]
    with torch.autocast(kernel_device, dtype):
        low = [F.conv2d(f, layer) for f in features]
        assert low[0].dtype == dtype
        result = run(low, weights, grid, "triton")
        assert result.dtype == dtype
        # The folding itself is not rounded to the low precision.
        assert op.fold_projections(*weights).matrix.dtype == torch.float32
    result.float().square().sum().backward()
    grads = {"layer": layer.grad} | {f"{i}.{n}": t.grad for i, p in enumerate(weights) for n, t in p._asdict().items()}
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in grads.values())

    layer64 = layer.detach().double().requires_grad_()
    weights64 = [op.Projections(*[t.detach().double().requires_grad_() for t in p]) for p in projections]
    exact = run([F.conv2d(f.to(dtype).double(), layer64) for f in features], weights64, grid, "reference")
    exact.square().sum().backward()
    for wanted, got in ((exact, result), (layer64.grad, layer.grad), (weights64[0][4].grad, weights[0][4].grad)):
        assert error(got, wanted) <= 16 * torch.finfo(dtype).eps * float(wanted.abs().max())


def _awkward(features, kind):
    visible, infrared = features
    if kind == "layouts differ":
        return visible.contiguous(memory_format=torch.channels_last), infrared.contiguous()
    if kind == "every other column":
        return tuple(f.repeat_interleave(2, dim=3)[:, :, :, ::2] for f in features)
    if kind == "transposed":
        return tuple(f.transpose(2, 3).contiguous().transpose(2, 3) for f in features)
    assert kind == "storage not at a multiple of 16 bytes"
    return tuple(
        torch.cat((f.new_zeros(1), f.flatten()))[1:].reshape(f.shape)
        for f in (visible.contiguous(), infrared.contiguous())
    )


@pytest.mark.parametrize(
    "kind", ["layouts differ", "every other column", "transposed", "storage not at a multiple of 16 bytes"]
)
def test_awkward_strides(kind, kernel_device):
    features, projections, grid = make((2, 16, 12, 16, 3), kernel_device)
    features, projections = cast(features, projections, torch.float32, torch.float32)
    wanted = run(features, projections, grid, "triton")
    awkward = _awkward(features, kind)
    assert all(torch.equal(a, f) for a, f in zip(awkward, features))
    got, grads = gradients(features, projections, grid, "triton")
    for use_gradients in (False, True):
        leaves = [a.detach().requires_grad_(use_gradients) for a in awkward]
        got = run(leaves, projections, grid, "triton")
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)
        assert got.is_contiguous(memory_format=torch.channels_last) == awkward[0].is_contiguous(
            memory_format=torch.channels_last
        )
    ramp = torch.linspace(-1, 1, got.numel(), dtype=torch.float64, device=got.device).reshape(got.shape)
    got.backward(torch.sin(7 * ramp).float())
    for leaf, name in zip(leaves, ("visible", "infrared")):
        assert torch.allclose(leaf.grad, grads[name], rtol=1e-4, atol=1e-4), name


def test_scores_far_apart_do_not_overflow(kernel_device):
    """Scores in the thousands: the softmax is one-hot, its running maximum keeps exp from overflowing."""
    for case in ((1, 16, 9, 10, 4), (1, 16, 9, 10, 12)):
        features, projections, grid = make(case, kernel_device)
        features = [30 * f for f in features]
        features, projections = cast(features, projections, torch.float32, torch.float32)
        exact = run(*cast(features, projections, torch.float64, torch.float64), grid, "reference")
        plain = run(features, projections, grid, "reference")
        check(run(features, projections, grid, "triton"), plain, exact, torch.float32)
        # Beyond the last pixel of the last tile there is no log-sum-exp to subtract: an offset alone must not overflow.
        projections = [p._replace(query_bias=100 * p.query_bias) for p in projections]
        _, grads = gradients(features, projections, grid, "triton")
        assert all(bool(grad.isfinite().all()) for grad in grads.values())


def test_tiles_pixels_and_tokens_do_not_mix(kernel_device):
    """A picture in a batch gets what it gets alone, and a NaN pixel of one picture stays in that picture."""
    features, projections, grid = make((3, 16, 13, 21, 4), kernel_device)
    features, projections = cast(features, projections, torch.float32, torch.float32)
    whole = run(features, projections, grid, "triton")
    for i in range(3):
        alone = run([f[i : i + 1] for f in features], projections, grid, "triton")
        assert torch.allclose(whole[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    features[0][1, :, 5, 5] = float("nan")
    spoiled = run(features, projections, grid, "triton")
    assert torch.equal(spoiled[[0, 2]], whole[[0, 2]]) and bool(spoiled[1].isnan().any())


def test_the_same_input_gives_the_same_bits(kernel_device):
    features, projections, grid = make((2, 16, 33, 21, 4), kernel_device)
    features, projections = cast(features, projections, torch.float32, torch.float32)
    first, second = (gradients(features, projections, grid, "triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.skipif("ISFL_TEST_DEVICE" not in os.environ, reason="needs 14 GB of a GPU: set ISFL_TEST_DEVICE=cuda")
def test_more_than_two_to_the_31_elements(kernel_device):
    b, c, h, w = 5, 64, 2600, 2600
    features = [torch.randn(b, c, h, w, device=kernel_device, dtype=torch.float16) for _ in range(2)]
    assert features[0].numel() > 2**31
    _, projections, grid = make((1, c, 4, 4, 8), kernel_device)
    _, projections = cast([], projections, torch.float16, torch.float32)
    got = run(features, projections, grid, "triton")
    alone = run([f[-1:] for f in features], projections, grid, "triton")
    assert torch.allclose(got[-1:], alone, rtol=1e-2, atol=1e-2)


# --- What runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that were launched, with their arguments."""
    seen = []
    honest = fused._run

    def recorded(kernel, programs, setting, *arguments):
        seen.append((kernel, setting, arguments))
        honest(kernel, programs, setting, *arguments)

    monkeypatch.setattr(fused, "_run", recorded)
    return seen


@pytest.mark.parametrize("entry", ["pooled_cross_attention", "attend_folded"])
def test_inference_is_three_launches_of_the_kernels(entry, launches, kernel_device):
    features, projections, grid = make((1, 8, 12, 16, 3), kernel_device)
    features, projections = cast(features, projections, torch.float32, torch.float32)
    if entry == "attend_folded":
        folded = [op.fold_projections(*p) for p in (projections, projections[::-1])]
        got = op.attend_folded(*features, *folded, grid=grid, implementation="triton")
    else:
        got = run(features, projections, grid, "triton")
    assert [name for name, *_ in launches] == ["partial_pool", "finish_tokens", "attend"]
    assert torch.allclose(got, run(features, projections, grid, "folded"), rtol=1e-4, atol=1e-4)
    assert len(launches) == 3  # "folded" launched nothing
    # With weights that require gradients but none asked for, inference stays inference.
    launches.clear()
    learning = [op.Projections(*[t.clone().requires_grad_() for t in p]) for p in projections]
    with torch.no_grad():
        run(features, learning, grid, "triton")
    assert [name for name, *_ in launches] == ["partial_pool", "finish_tokens", "attend"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("size", [(13, 11), (12, 16)], ids=str)
def test_what_is_compiled_ahead_of_time_is_what_runs(layout, size, launches, kernel_device):
    """Every launch of inference and training has its case: same kernel, constants, options and argument types."""
    case = (1, 32, *size, 4)
    features, projections, grid = make(case, kernel_device, layout=layout)
    features, projections = cast(features, projections, torch.float16, torch.float32)
    run(features, projections, grid, "triton")
    gradients(features, projections, grid, "triton")
    assert len({name for name, *_ in launches}) == 7
    cases = fused.ahead_of_time_cases(
        32,
        4,
        torch.float16,
        False,
        triton_support.capability(features[0].device),
        channels_last=layout == torch.channels_last,
        aligned=layout == torch.contiguous_format and size == (12, 16),
        training=True,
    )
    types = {torch.float16: "*fp16", torch.float32: "*fp32"}
    for name, setting, arguments in launches:
        (proved,) = [c for c in cases if c.kernel is fused._kernel(name)]
        launch = fused.launch_configuration(setting, name)
        assert (proved.constants, proved.options) == (launch.constants, launch.options), name
        kinds = [types[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in arguments]
        assert kinds == [kind for kind in proved.signature.values() if kind != "constexpr"], name
        names = list(proved.signature)[: len(arguments)]
        for argument, value in zip(names, arguments):
            if argument in proved.divisible_by_16:
                assert value.data_ptr() % 16 == 0, (name, argument)


@pytest.mark.parametrize("width", [1, 16, 17, 64])
@pytest.mark.parametrize("grid", [1, 4, 8, 10, 16])
@pytest.mark.parametrize("capability", [75, 80, 90])
def test_every_block_of_tokens_holds_one_that_is_not_padding(width, grid, capability):
    """A block of padding only would leave the running maximum at -inf, and exp2(-inf + inf) is NaN."""
    for dtype in triton_support.TRITON_TYPES:
        setting = fused.Setting(
            channels=width, grid=grid, dtype=dtype, tf32=False, capability=capability, channels_last=True, aligned=False
        )
        for kernel in ("attend", "attend_backward_pixels", "attend_backward_tokens"):
            constants = fused.launch_configuration(setting, kernel).constants
            assert constants["TP"] % constants["BLOCK_T"] == 0
            assert constants["TP"] - constants["BLOCK_T"] < grid * grid <= constants["TP"]
            assert constants["C"] == width <= constants["CP"]


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(channels=65), "width not supported.*expected 1 to 64 channels.*got 65"),
        (dict(grid=17), "pooled grid not supported.*expected 1 to 16.*got 17"),
        (dict(dtype=torch.float64), "dtype of features not supported.*float32, float16, bfloat16.*got float64"),
        (dict(weight_dtype=torch.float64), "dtype of for_visible matrix not supported.*got float64"),
        (dict(height=0), "at least one pixel"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_the_kernels_do_not_support_is_named(change, message, kernel_device):
    a = dict(channels=8, grid=2, dtype=torch.float32, weight_dtype=torch.float32, height=8) | change
    c = a["channels"]
    features = [torch.zeros(1, c, a["height"], 8, dtype=a["dtype"], device=kernel_device) for _ in range(2)]
    weights = [torch.zeros(s, dtype=a["weight_dtype"], device=kernel_device) for _ in range(3) for s in ((c, c), (c,))]
    with pytest.raises(InputError, match=message):
        run(features, [op.Projections(*weights)] * 2, a["grid"], "triton")


def test_cpu_tensors_are_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(triton_support, "interpreter_is_on", lambda: False)
    features, projections, grid = make((1, 8, 8, 8, 2), "cpu")
    features, projections = cast(features, projections, torch.float32, torch.float32)
    with pytest.raises(InputError, match="runs on a CUDA device.*expected cuda.*got cpu.*'folded'"):
        run(features, projections, grid, "triton")


def test_bfloat16_is_refused_where_the_chip_has_none(monkeypatch, kernel_device):
    monkeypatch.setattr(triton_support, "capability", lambda device: 75)
    features, projections, grid = make((1, 8, 8, 8, 2), kernel_device)
    features, projections = cast(features, projections, torch.bfloat16, torch.float32)
    with pytest.raises(InputError, match="bfloat16 needs compute capability 8.0.*got 7.5"):
        run(features, projections, grid, "triton")


def test_attend_folded_names_what_does_not_fit(kernel_device):
    features, projections, grid = make((1, 8, 8, 8, 2), kernel_device)
    features, projections = cast(features, projections, torch.float32, torch.float32)
    folded = op.fold_projections(*projections)
    with pytest.raises(InputError, match=r"for_infrared matrix has the wrong shape.*\(17, 8\).*\(16, 8\)"):
        op.attend_folded(
            *features, folded, folded._replace(matrix=folded.matrix[1:]), grid=grid, implementation="triton"
        )
    with pytest.raises(InputError, match="one of folded, triton.*'reference'"):
        op.attend_folded(*features, folded, folded, grid=grid, implementation="reference")


def test_without_triton_everything_else_works_and_the_missing_package_is_named():
    program = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else real(name, *rest)
import torch
from isfl_ros.errors import InputError
from isfl_ros.ops import pooled_cross_attention as op
x, w, b = torch.ones(1, 4, 8, 8), torch.eye(4), torch.zeros(4)
p = op.Projections(w, b, w, b, w, b)
op.pooled_cross_attention(x, x, p, p, grid=2, implementation="folded")
try:
    op.pooled_cross_attention(x, x, p, p, grid=2, implementation="triton")
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "need Triton" in done.stdout and "pip install triton" in done.stdout
