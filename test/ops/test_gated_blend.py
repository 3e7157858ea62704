"""The gated blend: reference against the equations, fused kernel against float64, routing, bad input."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.ops import triton_support
from isfl_ros.ops.gated_blend import (
    IMPLEMENTATIONS,
    MAX_CHANNELS,
    MAX_GATE_CHANNELS,
    NEGATIVE_SLOPE,
    GateWeights,
    fused,
    gated_blend,
    prepare_weights,
)

# B, C, H, W, G: tiles are 4 x 16 pixels and channels are padded to 16, 32 or 64.
AWKWARD = [
    (2, 32, 33, 47, 16),  # nothing divides
    (1, 32, 1, 1, 16),  # every tap but one is padding
    (1, 3, 63, 2, 1),  # tall, narrower than a tile; channels and gate padded
    (3, 16, 8, 32, 24),  # whole tiles only
    (1, 48, 5, 18, 32),  # padded to 64
    (1, 64, 3, 33, 5),
    (1, 1, 2, 3, 2),  # one channel: both memory layouts at once
]
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def random_weights(channels: int, gate_width: int, device: str) -> GateWeights:
    """Such that the hidden values have both signs and the gate uses its range."""
    return GateWeights(
        torch.randn(gate_width, channels, 3, 3, device=device) / (9 * channels) ** 0.5,
        torch.randn(gate_width, device=device),
        2 * torch.randn(gate_width, device=device) / gate_width**0.5,
        torch.randn(1, device=device),
    )


def random_features(shape: tuple, dtype: torch.dtype, device: str, layout=torch.channels_last) -> list[Tensor]:
    return [torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout) for _ in range(3)]


def exact(features: list[Tensor], weights: GateWeights) -> tuple[Tensor, Tensor]:
    return gated_blend(*(f.double() for f in features), weights, implementation="reference")


def unit(got: Tensor) -> float:
    """Rounding of the arithmetic. On a GPU plain PyTorch may, but need not, round to tf32: its error alone is no measure."""
    rounded = got.is_cuda and got.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return 2.0**-10 if rounded else torch.finfo(got.dtype).eps


def assert_as_good_as_plain(got: Tensor, plain: Tensor, truth: Tensor) -> None:
    """At most twice the error of plain PyTorch in the same dtype, and four units in the last place of the largest."""
    assert got.dtype == plain.dtype and got.shape == truth.shape
    error = (got.double() - truth).abs().max()
    allowed = 2 * (plain.double() - truth).abs().max() + 4 * unit(got) * truth.abs().max()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"  # NaN fails too


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a precision, with PyTorch's switches for tf32 set to it."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if request.param == "tf32" else "ieee"
    yield request.param
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory handed to the kernel, and around it, is full of NaN: what is not written shows, and what is besides."""
    margin = 1 << 16  # elements, more than a tile's rows of any picture here
    buffers = []

    def poison(shape: tuple[int, ...], like: Tensor, layout: torch.memory_format) -> Tensor:
        b, c, h, w = shape
        buffer = torch.full((b * c * h * w + 2 * margin,), float("nan"), dtype=like.dtype, device=like.device)
        buffers.append(buffer)
        inner = buffer[margin:-margin]
        return inner.view(b, h, w, c).permute(0, 3, 1, 2) if layout == torch.channels_last else inner.view(shape)

    monkeypatch.setattr(fused, "_uninitialised", poison)
    yield
    assert buffers
    for buffer in buffers:
        assert buffer[:margin].isnan().all() and buffer[-margin:].isnan().all(), "written outside of the output"


def test_reference_is_the_equations_written_out():
    b, c, h, w, g = 2, 3, 4, 5, 6
    features = random_features((b, c, h, w), torch.float64, "cpu")
    weights = GateWeights(*(t.double() for t in random_weights(c, g, "cpu")))
    blended, gate = gated_blend(*features, weights, implementation="reference")
    complementary, visible, infrared = features
    for i_b in range(b):
        for y in range(h):
            for x in range(w):
                logit = weights.point_bias[0].clone()
                for i_g in range(g):
                    hidden = weights.conv_bias[i_g].clone()
                    for dy in (-1, 0, 1):
                        for dx in (-1, 0, 1):
                            if 0 <= y + dy < h and 0 <= x + dx < w:  # outside is zero
                                kernel = weights.conv_weight[i_g, :, dy + 1, dx + 1]
                                hidden += (kernel * complementary[i_b, :, y + dy, x + dx]).sum()
                    logit += weights.point_weight[i_g] * (hidden if hidden > 0 else 0.01 * hidden)
                expected = 1 / (1 + torch.exp(-logit))
                local = visible[i_b, :, y, x] + infrared[i_b, :, y, x]
                torch.testing.assert_close(gate[i_b, 0, y, x], expected)
                torch.testing.assert_close(
                    blended[i_b, :, y, x], expected * complementary[i_b, :, y, x] + (1 - expected) * local
                )
    assert NEGATIVE_SLOPE == 0.01


class TestFused:
    """In Triton's interpreter, or on a GPU; the interpreter does not round to tf32, so there tf32 is fp32."""

    @pytest.fixture(autouse=True)
    def _needs_triton(self) -> None:
        pytest.importorskip("triton")

    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    @pytest.mark.parametrize("precision", DTYPES, indirect=True)
    @pytest.mark.parametrize("shape", AWKWARD, ids=lambda s: "x".join(map(str, s)))
    def test_against_float64(self, shape, precision, layout, kernel_device, poisoned):
        b, c, h, w, g = shape
        dtype = DTYPES[precision]
        features = random_features((b, c, h, w), dtype, kernel_device, layout)
        weights = random_weights(c, g, kernel_device)
        blended, gate = gated_blend(*features, weights, implementation="triton")
        plain_blended, plain_gate = gated_blend(*features, weights, implementation="reference")
        true_blended, true_gate = exact(features, weights)
        assert_as_good_as_plain(blended, plain_blended, true_blended)
        assert_as_good_as_plain(gate, plain_gate, true_gate)
        assert blended.is_contiguous(memory_format=layout)
        if g >= 16 and b * h * w > 100:  # the case exercises the gate, not only its ends
            assert true_gate.min() < 0.3 and true_gate.max() > 0.7

    def test_padding_is_zero_at_every_border(self, kernel_device):
        """With ones everywhere the logit counts the taps inside the picture: 4 in a corner, 6 at an edge, 9 inside."""
        features = [torch.ones(1, 16, 6, 35, device=kernel_device) for _ in range(3)]
        ones = GateWeights(*(torch.ones(s, device=kernel_device) for s in ((1, 16, 3, 3), (1,), (1,), (1,))))
        weights = GateWeights(ones.conv_weight / 16, -ones.conv_bias, ones.point_weight, -4 * ones.point_bias)
        _, gate = gated_blend(*features, weights, implementation="triton")
        rows = torch.tensor([2.0] + [3.0] * 4 + [2.0])
        columns = torch.tensor([2.0] + [3.0] * 33 + [2.0])
        torch.testing.assert_close(gate[0, 0].cpu(), torch.sigmoid(rows[:, None] * columns - 5))

    def test_any_strides(self, kernel_device, poisoned):
        """Each feature in a layout of its own, one of them beginning at an address that is not aligned."""
        b, c, h, w = 1, 8, 6, 21
        weights = random_weights(c, 4, kernel_device)
        complementary = torch.randn(b, c, h, 2 * w, device=kernel_device)[..., ::2]
        visible = torch.randn(b, h, w, c, device=kernel_device).permute(0, 3, 1, 2)
        infrared = torch.randn(b * c * h * w + 1, device=kernel_device)[1:].view(b, c, h, w)
        assert infrared.data_ptr() % 16
        features = [complementary, visible, infrared]
        blended, gate = gated_blend(*features, weights, implementation="triton")
        true_blended, true_gate = exact(features, weights)
        torch.testing.assert_close(blended.double(), true_blended, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gate.double(), true_gate, atol=1e-5, rtol=1e-5)
        assert blended.is_contiguous()

    def test_inputs_and_weights_are_left_alone(self, kernel_device):
        features = random_features((1, 16, 5, 17), torch.float32, kernel_device)
        weights = prepare_weights(random_weights(16, 16, kernel_device), torch.float32, kernel_device)
        watched = [*features, weights.taps, weights.head]
        before = [t.clone() for t in watched]
        gated_blend(*features, weights, implementation="triton")
        assert all(torch.equal(a, b) for a, b in zip(before, watched, strict=True))

    def test_repeats_bit_for_bit(self, kernel_device):
        features = random_features((1, 32, 9, 20), torch.float16, kernel_device)
        weights = random_weights(32, 16, kernel_device)
        first = gated_blend(*features, weights, implementation="triton")
        second = gated_blend(*features, weights, implementation="triton")
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_infinite_logits_saturate(self, kernel_device):
        features = random_features((1, 16, 4, 16), torch.float32, kernel_device)
        weights = random_weights(16, 16, kernel_device)
        for bias, expected in ((1e4, 1.0), (-1e4, 0.0)):
            extreme = weights._replace(point_bias=torch.full((1,), bias, device=kernel_device))
            blended, gate = gated_blend(*features, extreme, implementation="triton")
            assert (gate == expected).all()
            torch.testing.assert_close(blended, features[0] if expected else features[1] + features[2])

    def test_empty_batch(self, kernel_device):
        features = random_features((0, 16, 4, 4), torch.float32, kernel_device)
        blended, gate = gated_blend(*features, random_weights(16, 8, kernel_device), implementation="triton")
        assert blended.shape == (0, 16, 4, 4) and gate.shape == (0, 1, 4, 4)

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_prepared_weights_give_the_same(self, implementation, kernel_device):
        features = random_features((1, 16, 5, 7), torch.float16, kernel_device)
        weights = random_weights(16, 3, kernel_device)
        prepared = prepare_weights(weights, torch.float16, kernel_device)
        got = gated_blend(*features, prepared, implementation=implementation)
        expected = gated_blend(*features, weights, implementation=implementation)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    @pytest.mark.parametrize("precision", DTYPES, indirect=True)
    def test_what_is_proved_ahead_of_time_is_what_is_launched(self, precision, layout, kernel_device, monkeypatch):
        """Argument by argument: a constant, an option, a dtype or an alignment that differs would be another kernel."""
        from isfl_ros.ops.gated_blend import kernels

        launches = []

        class Spy:
            arg_names = kernels.gated_blend_kernel.arg_names

            def __getitem__(self, programs):
                return lambda *args, **kwargs: launches.append((programs, args, kwargs))

        monkeypatch.setattr(kernels, "gated_blend_kernel", Spy())
        dtype, channels, gate_width = DTYPES[precision], 32, 16
        features = random_features((2, channels, 40, 50), dtype, kernel_device, layout)
        shifted = torch.empty(features[2].numel() + 1, dtype=dtype, device=kernel_device)[1:]  # not aligned
        features[2] = shifted.as_strided(features[2].shape, features[2].stride(), 1).copy_(features[2])
        assert features[2].data_ptr() % 16
        gated_blend(*features, random_weights(channels, gate_width, kernel_device), implementation="triton")
        (case,) = fused.ahead_of_time_cases(
            channels,
            8,
            dtype,
            precision == "tf32",
            triton_support.capability(features[0].device),
            gate_width=gate_width,
            channels_last=layout == torch.channels_last,
        )
        ((programs, args, kwargs),) = launches
        bound = dict(zip(case.signature, args, strict=False)) | kwargs
        assert {name: bound[name] for name in case.constants} == case.constants
        assert {name: kwargs[name] for name in case.options} == case.options
        assert set(bound) == set(case.signature) | set(case.options)
        for name, kind in case.signature.items():
            if kind == "i32":
                assert isinstance(bound[name], int) and 0 <= bound[name] < 2**31
                assert name not in case.divisible_by_16
            elif kind != "constexpr":
                assert kind == f"*{triton_support.TRITON_TYPES[bound[name].dtype]}"
                assert name in case.divisible_by_16 and bound[name].data_ptr() % 16 == 0
        tiles = -(-40 // bound["TILE_HEIGHT"]) * -(-50 // bound["TILE_WIDTH"])
        assert programs[0] * bound["tiles_per_strip"] >= 2 * tiles  # no tile is left out
        assert (bound["PRECISION"] == "tf32") == (precision == "tf32")

    def test_integers_are_not_specialised_on(self):
        """Otherwise a picture 640 wide would run another kernel than the proved one."""
        from isfl_ros.ops.gated_blend import kernels

        source = inspect.getsource(kernels)
        (case,) = fused.ahead_of_time_cases(32, 8, torch.float16, False, 90)
        listed = source.split("do_not_specialize=[", 1)[1].split("]", 1)[0]
        integers = [name for name, kind in case.signature.items() if kind == "i32"]
        assert [name.strip(' "') for name in listed.split(",")] == integers

    @pytest.mark.parametrize(
        ("shape", "dtype", "message"),
        [
            ((1, MAX_CHANNELS + 1, 4, 4, 8), torch.float32, "expected 1 to 64; got 65"),
            ((1, 8, 4, 4, MAX_GATE_CHANNELS + 1), torch.float32, "expected 1 to 32; got 33"),
            ((1, 8, 4, 4, 8), torch.float64, "torch.float32, torch.float16, torch.bfloat16; got torch.float64"),
        ],
    )
    def test_unsupported_by_the_kernel(self, shape, dtype, message, kernel_device):
        b, c, h, w, g = shape
        features = random_features((b, c, h, w), dtype, kernel_device)
        with pytest.raises(InputError, match=message):
            gated_blend(*features, random_weights(c, g, kernel_device), implementation="triton")

    def test_bfloat16_before_capability_8(self, kernel_device, monkeypatch):
        monkeypatch.setattr(triton_support, "capability", lambda device: 75)
        features = random_features((1, 8, 4, 4), torch.bfloat16, kernel_device)
        with pytest.raises(InputError, match=r"bfloat16 needs compute capability 8\.0; got 7\.5"):
            gated_blend(*features, random_weights(8, 8, kernel_device), implementation="triton")

    def test_cpu_tensors_without_the_interpreter(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        features = random_features((1, 8, 4, 4), torch.float32, "cpu")
        with pytest.raises(InputError, match="expected cuda; got cpu"):
            gated_blend(*features, random_weights(8, 8, "cpu"), implementation="triton")

    def test_without_triton(self, kernel_device, monkeypatch):
        monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: None)
        features = random_features((1, 8, 4, 4), torch.float32, kernel_device)
        with pytest.raises(InputError, match="pip install triton"):
            gated_blend(*features, random_weights(8, 8, kernel_device), implementation="triton")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_named_implementation_runs_and_no_other(name, monkeypatch):
    ran = []
    for other in list(IMPLEMENTATIONS):
        monkeypatch.setitem(IMPLEMENTATIONS, other, lambda *args, other=other: ran.append(other) or args[:2])
    gated_blend(*random_features((1, 8, 4, 4), torch.float32, "cpu"), random_weights(8, 4, "cpu"), implementation=name)
    assert ran == [name]


class TestBadInput:
    @staticmethod
    def call(features=None, weights=None, implementation="reference"):
        features = features or random_features((1, 8, 4, 5), torch.float32, "cpu")
        return gated_blend(*features, weights or random_weights(8, 4, "cpu"), implementation=implementation)

    @pytest.mark.parametrize("position", range(3))
    def test_shapes_differ(self, position):
        features = random_features((1, 8, 4, 5), torch.float32, "cpu")
        features[position] = features[position][..., :4]
        with pytest.raises(InputError, match="one shape"):
            self.call(features)

    def test_not_four_dimensional(self):
        with pytest.raises(InputError, match="one shape"):
            self.call([torch.zeros(8, 4, 5)] * 3)

    @pytest.mark.parametrize("position", range(3))
    def test_dtypes_differ(self, position):
        features = random_features((1, 8, 4, 5), torch.float32, "cpu")
        features[position] = features[position].half()
        with pytest.raises(InputError, match="one dtype"):
            self.call(features)

    @pytest.mark.parametrize("position", range(3))
    def test_devices_differ(self, position):
        features = random_features((1, 8, 4, 5), torch.float32, "cpu")
        features[position] = features[position].to("meta")
        with pytest.raises(InputError, match="one device"):
            self.call(features)

    def test_integers(self):
        with pytest.raises(InputError, match="floating point"):
            self.call([torch.zeros(1, 8, 4, 5, dtype=torch.int32)] * 3)

    def test_unknown_implementation(self):
        with pytest.raises(InputError, match="expected one of reference, triton; got 'folded'"):
            self.call(implementation="folded")

    @pytest.mark.parametrize(
        ("field", "shape"),
        [("conv_weight", (4, 8, 1, 1)), ("conv_bias", (3,)), ("point_weight", (1, 4)), ("point_bias", ())],
    )
    def test_weight_shapes(self, field, shape):
        weights = random_weights(8, 4, "cpu")._replace(**{field: torch.zeros(shape)})
        with pytest.raises(InputError, match=f"gate {field} has the wrong shape"):
            self.call(weights=weights)

    def test_weights_for_other_channels(self):
        with pytest.raises(InputError, match="expected 8 input channels; got 9"):
            self.call(weights=random_weights(9, 4, "cpu"))

    def test_weights_prepared_for_another_dtype(self):
        prepared = prepare_weights(random_weights(8, 4, "cpu"), torch.float16, "cpu")
        with pytest.raises(InputError, match="torch.float32 on cpu; got torch.float16 on cpu; call prepare_weights"):
            self.call(weights=prepared)

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    @pytest.mark.parametrize("name", ["complementary", "visible", "infrared", *GateWeights._fields])
    def test_gradients_are_refused_and_named(self, name, implementation):
        names = ("complementary", "visible", "infrared")
        features = dict(zip(names, random_features((1, 8, 4, 5), torch.float32, "cpu"), strict=True))
        weights = random_weights(8, 4, "cpu")
        (features if name in features else weights._asdict())[name].requires_grad_()
        with pytest.raises(InputError, match=f"got {name} with requires_grad"):
            self.call(list(features.values()), weights, implementation)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_inference_takes_parameters(self, context):
        weights = random_weights(8, 4, "cpu")
        for tensor in weights:
            tensor.requires_grad_()
        with context():
            blended, gate = self.call(weights=weights)
        assert not blended.requires_grad and not gate.requires_grad
