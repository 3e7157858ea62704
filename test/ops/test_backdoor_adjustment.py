"""Both implementations against equations 4 to 6 written out pixel by pixel in float64."""

from __future__ import annotations

import math

import pytest
import torch

from isfl_ros.errors import InputError
from isfl_ros.ops import backdoor_adjustment as op
from isfl_ros.ops.backdoor_adjustment import folded
from isfl_ros.ops.pooled_cross_attention.folded import whole_frame

# (batch, channels, height, width, prototypes, entries, query)
CASES = [(1, 16, 7, 11, 25, 32, 32), (2, 5, 3, 9, 2, 1, 3), (1, 8, 1, 1, 30, 4, 6)]


def make(case, dtype=torch.float64, requires_grad=False, scale=1.0):
    b, c, h, w, n, entries, d = case
    generator = torch.Generator().manual_seed(3)

    def rand(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_(requires_grad)

    weights = op.AdjustmentWeights(rand(c, c), rand(c, entries), rand(d, c), rand(d, entries))
    return rand(b, c, h, w), rand(n, entries), weights


def oracle(features, dictionary, weights):
    """Loops over pixels and prototypes: adjusted features and the entropy of lambda over log N."""
    f, z = features.tolist(), dictionary.tolist()
    w_h, w_g, w_q, w_k = (matrix.tolist() for matrix in weights)

    def times(matrix, vector):
        return [sum(a * b for a, b in zip(row, vector)) for row in matrix]

    keys = [times(w_k, prototype) for prototype in z]
    adjusted, entropy = torch.zeros_like(features), torch.zeros_like(features[:, :1])
    b, c, h, w = features.shape
    for sample in range(b):
        for row in range(h):
            for column in range(w):
                x = [f[sample][channel][row][column] for channel in range(c)]
                query = times(w_q, x)
                scores = [sum(a * k for a, k in zip(query, key)) / math.sqrt(len(query)) for key in keys]
                largest = max(scores)
                powers = [math.exp(s - largest) for s in scores]
                lambdas = [p / sum(powers) for p in powers]
                expectation = [sum(l * p[e] for l, p in zip(lambdas, z)) / len(z) for e in range(len(z[0]))]
                pixel = [a + g for a, g in zip(times(w_h, x), times(w_g, expectation))]
                adjusted[sample, :, row, column] = torch.tensor(pixel, dtype=torch.float64)
                bits = -sum(l * math.log(l) for l in lambdas if l > 0) / math.log(len(z))
                entropy[sample, 0, row, column] = bits
    return adjusted, entropy


@pytest.mark.parametrize("implementation", ["reference", "folded"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equations_4_to_6(case, implementation):
    features, dictionary, weights = make(case)
    wanted, wanted_entropy = oracle(features, dictionary, weights)
    adjusted, entropy = op.backdoor_adjustment(
        features, dictionary, weights, entropy=True, implementation=implementation
    )
    assert adjusted.shape == features.shape and entropy.shape == (case[0], 1, *case[2:4])
    assert torch.allclose(adjusted, wanted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(entropy, wanted_entropy, rtol=1e-9, atol=1e-12)
    alone, nothing = op.backdoor_adjustment(features, dictionary, weights, implementation=implementation)
    assert nothing is None and torch.equal(alone, adjusted)


def test_the_dictionary_term_is_what_the_prototypes_say():
    """With one prototype far ahead, lambda is 1 there: W_h x + W_g z / N, and no entropy."""
    features, dictionary, weights = make((1, 4, 2, 3, 6, 4, 4))
    features = torch.ones_like(features)
    dictionary = 100.0 * torch.nn.functional.one_hot(torch.arange(6) % 4, 4).double() * torch.arange(1, 7)[:, None]
    weights = weights._replace(query=torch.eye(4).double(), key=torch.eye(4).double())
    adjusted, entropy = op.backdoor_adjustment(features, dictionary, weights, entropy=True)
    wanted = weights.feature.sum(1) + weights.prototype @ dictionary[5] / 6
    assert torch.allclose(adjusted[0, :, 1, 2], wanted) and float(entropy.max()) < 1e-12


def test_equal_prototypes_have_entropy_1():
    features, dictionary, weights = make((1, 4, 2, 3, 7, 4, 4))
    _, entropy = op.backdoor_adjustment(features, dictionary[:1].expand(7, 4), weights, entropy=True)
    assert torch.allclose(entropy, torch.ones_like(entropy))


def test_every_gradient_equals_the_reference():
    gradients = {}
    for name in ("reference", "folded"):
        features, dictionary, weights = make((2, 6, 5, 4, 7, 3, 8), requires_grad=True)
        adjusted, _ = op.backdoor_adjustment(features, dictionary, weights, implementation=name)
        ramp = torch.linspace(-1, 1, adjusted.numel(), dtype=adjusted.dtype).reshape(adjusted.shape)
        (adjusted * ramp).sum().backward()
        gradients[name] = {"features": features.grad, "dictionary": dictionary.grad}
        gradients[name] |= {field: t.grad for field, t in weights._asdict().items()}
    assert len(gradients["reference"]) == 6
    for name, wanted in gradients["reference"].items():
        assert torch.allclose(gradients["folded"][name], wanted, rtol=1e-9, atol=1e-12), name


def test_chunks_of_inference_are_the_whole_frame(monkeypatch):
    features, dictionary, weights = make((2, 6, 13, 9, 7, 3, 8))
    monkeypatch.setattr(folded, "_SCORES_AT_A_TIME", 7 * 10)  # ten pixels, of 234: the last chunk is smaller
    original = torch.empty
    features = features.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        with whole_frame():
            wanted = op.backdoor_adjustment(features, dictionary, weights, entropy=True)

        def poisoned(self, size, *, dtype=None):
            return original(size, dtype=dtype or self.dtype).fill_(torch.nan)

        monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
        got = op.backdoor_adjustment(features, dictionary, weights, entropy=True)
    for a, b in zip(got, wanted):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_loses_what_that_precision_loses(dtype):
    case = (1, 16, 24, 25, 25, 32, 32)
    exact, exact_entropy = op.backdoor_adjustment(*make(case, scale=0.3), entropy=True, implementation="reference")
    features, dictionary, weights = make(case, dtype, scale=0.3)
    plain, plain_entropy = op.backdoor_adjustment(features, dictionary, weights, entropy=True, implementation="reference")
    got, entropy = op.backdoor_adjustment(features, dictionary, weights, entropy=True)
    assert got.dtype == dtype and entropy.dtype == torch.float32
    error, of_plain = (float((x.double() - exact).abs().max()) for x in (got, plain))
    assert error <= 3 * of_plain + 1e-6
    error, of_plain = (float((x.double() - exact_entropy).abs().max()) for x in (entropy, plain_entropy))
    assert error <= 3 * of_plain + 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(16, 4, 4)}, "features have the wrong shape"),
        ({"dictionary": torch.zeros(1, 32)}, "dictionary has the wrong shape"),
        ({"dictionary": torch.zeros(25, 31)}, r"weights.prototype has the wrong shape; expected \(16, 31\)"),
        ({"features": torch.zeros(1, 15, 4, 4)}, r"weights.feature has the wrong shape; expected \(15, 15\)"),
        ({"implementation": "triton"}, "unknown implementation.*expected one of reference, folded"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    features, dictionary, weights = make(CASES[0])
    arguments = {"features": features, "dictionary": dictionary, "weights": weights} | change
    with pytest.raises(InputError, match=message):
        op.backdoor_adjustment(**arguments)
