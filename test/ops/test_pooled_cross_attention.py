"""Every implementation against the reference in float64, and the choice between them."""

from __future__ import annotations

import pytest
import torch

from isfl_ros.errors import InputError
from isfl_ros.ops import pooled_cross_attention as op
from isfl_ros.ops.pooled_cross_attention import folded as folded_module

# (batch, channels, height, width, grid): sizes that 8 does not divide, one pixel, r above the map.
CASES = [(1, 32, 33, 47, 8), (2, 16, 120, 161, 8), (1, 8, 8, 8, 12), (3, 4, 1, 1, 4), (1, 32, 130, 129, 16)]


def make(case, dtype=torch.float64, requires_grad=False):
    b, c, h, w, grid = case
    generator = torch.Generator().manual_seed(1)

    def rand(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)

    features = [rand(b, c, h, w), rand(b, c, h, w)]
    projections = [op.Projections(*[t for _ in range(3) for t in (rand(c, c), rand(c))]) for _ in range(2)]
    return features, projections, grid


def relative(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_folded_equals_reference_in_float64(case, layout):
    features, projections, grid = make(case)
    features = [f.contiguous(memory_format=layout) for f in features]
    wanted = op.pooled_cross_attention(*features, *projections, grid=grid, implementation="reference")
    got = op.pooled_cross_attention(*features, *projections, grid=grid, implementation="folded")
    assert got.shape == wanted.shape
    assert relative(got, wanted) <= 1e-10


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_folded_error_in_float32_is_that_of_plain_float32(case):
    features, projections, grid = make(case)
    exact = op.pooled_cross_attention(*features, *projections, grid=grid, implementation="reference")
    features32 = [f.float() for f in features]
    projections32 = [op.Projections(*[t.float() for t in p]) for p in projections]
    plain = op.pooled_cross_attention(*features32, *projections32, grid=grid, implementation="reference")
    folded = op.pooled_cross_attention(*features32, *projections32, grid=grid, implementation="folded")
    # Folding reorders sums; it may lose what reordering loses, not an order of magnitude.
    assert relative(folded, exact) <= 4 * relative(plain, exact) + 1e-6


def test_every_gradient_equals_the_reference():
    gradients = {}
    for name in ("reference", "folded"):
        features, projections, grid = make((2, 8, 13, 9, 4), requires_grad=True)
        result = op.pooled_cross_attention(*features, *projections, grid=grid, implementation=name)
        (result * torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape)).sum().backward()
        gradients[name] = {"visible": features[0].grad, "infrared": features[1].grad}
        for modality, p in zip(("visible", "infrared"), projections):
            gradients[name] |= {f"{modality}.{field}": t.grad for field, t in p._asdict().items()}
    assert len(gradients["reference"]) == 14
    for name, wanted in gradients["reference"].items():
        if name.endswith("key_bias"):
            # A key bias shifts all scores of a query alike only through q.b, which softmax does not cancel per key:
            # it is equal for all keys, so its gradient is zero up to rounding.
            assert float(gradients["folded"][name].abs().max()) < 1e-9, name
            continue
        assert relative(gradients["folded"][name], wanted) <= 1e-9, name


def test_chunks_do_not_show(monkeypatch):
    features, projections, grid = make((2, 8, 31, 29, 4))
    with torch.no_grad():
        whole = op.pooled_cross_attention(*features, *projections, grid=grid, implementation="folded")
        monkeypatch.setattr(folded_module, "_SCORES_AT_A_TIME", 100 * 16)  # 899 pixels: nine chunks, the last one short
        chunked = op.pooled_cross_attention(*features, *projections, grid=grid, implementation="folded")
        with folded_module.whole_frame():
            untouched = op.pooled_cross_attention(*features, *projections, grid=grid, implementation="folded")
    assert relative(chunked, whole) <= 1e-12
    assert relative(untouched, whole) <= 1e-12


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shape checks become constants
def test_whole_frame_traces_without_a_loop(monkeypatch):
    """Traced at one size, right at another: the loop over chunks would have bound it to the first."""
    monkeypatch.setattr(folded_module, "_SCORES_AT_A_TIME", 100 * 16)
    (visible, infrared), projections, grid = make((1, 8, 31, 29, 4), dtype=torch.float32)
    folded = (op.fold_projections(*projections), op.fold_projections(*projections[::-1]))

    def attend(a, b):
        return op.attend_folded(a, b, *folded, grid=grid, implementation="folded")

    with torch.no_grad(), folded_module.whole_frame():
        traced = torch.jit.trace(attend, (visible, infrared), check_trace=False)
    other = visible[:, :, :17, :23].contiguous(), infrared[:, :, :17, :23].contiguous()
    assert sum(node.kind() == "aten::softmax" for node in traced.graph.nodes()) == 2
    assert relative(traced(*other), attend(*other)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_features_and_float32_weights(dtype):
    features, projections, grid = make((1, 8, 13, 9, 4))
    exact = op.pooled_cross_attention(*features, *projections, grid=grid, implementation="reference")
    projections32 = [op.Projections(*[t.float() for t in p]) for p in projections]
    low = [f.to(dtype) for f in features]
    got = op.pooled_cross_attention(*low, *projections32, grid=grid, implementation="folded")
    assert got.dtype == dtype
    plain = op.pooled_cross_attention(
        *low, *[op.Projections(*[t.to(dtype) for t in p]) for p in projections], grid=grid, implementation="reference"
    )
    assert relative(got, exact) <= 2 * relative(plain, exact)
    # Under autocast float32 features are worked on in the low precision, chunked or not.
    features32 = [f.float() for f in features]
    with torch.no_grad(), torch.autocast("cpu", dtype):
        chunked = op.pooled_cross_attention(*features32, *projections32, grid=grid, implementation="folded")
    with torch.autocast("cpu", dtype):
        features32[0].requires_grad_()
        whole = op.pooled_cross_attention(*features32, *projections32, grid=grid, implementation="folded")
    assert chunked.dtype == whole.dtype == dtype
    assert relative(chunked, exact) <= 2 * relative(plain, exact)
    assert relative(whole, exact) <= 2 * relative(plain, exact)


def test_the_implementation_asked_for_is_the_one_that_runs(monkeypatch):
    ran = []
    for name in list(op.IMPLEMENTATIONS):
        monkeypatch.setitem(op.IMPLEMENTATIONS, name, lambda *a, _name=name: ran.append(_name) or a[0])
    features, projections, grid = make((1, 4, 4, 4, 2))
    for name in op.IMPLEMENTATIONS:
        op.pooled_cross_attention(*features, *projections, grid=grid, implementation=name)
    assert ran == list(op.IMPLEMENTATIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, p: ([f[0], f[1][:, :, :-1]], p), "one shape"),
        (lambda f, p: ([f[0], f[1].float()], p), "dtype"),
        (lambda f, p: (f, [p[0]._replace(key_bias=p[0].key_bias[:-1]), p[1]]), "visible key_bias"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    features, projections, grid = make((1, 4, 8, 8, 2))
    features, projections = change(features, projections)
    with pytest.raises(InputError, match=message):
        op.pooled_cross_attention(*features, *projections, grid=grid, implementation="folded")
