"""Ranges, colour, gain control and masks against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from isfl_ros.errors import InputError
from isfl_ros.images import (
    LARGEST_VALUE,
    GainControl,
    GainControlConfig,
    _percentiles,
    join_chroma,
    mask_invalid,
    normalise,
    normalise_tensor,
    per_unit,
    split_luma,
    to_uint8,
)

RNG = np.random.default_rng(0)


def counts(low=20000, high=30000, shape=(41, 53)):
    return RNG.integers(low, high, shape).astype(np.uint16)


def test_eight_bits_are_only_divided():
    raw = RNG.integers(0, 256, (33, 47)).astype(np.uint8)
    picture, valid = GainControl(GainControlConfig()).apply(raw)
    assert valid is None and picture.dtype == np.float32
    np.testing.assert_array_equal(to_uint8(picture), raw)
    np.testing.assert_allclose(picture, raw / 255.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_percentile_gain(dtype):
    raw = counts().astype(dtype)
    picture, _ = GainControl(GainControlConfig(low_percentile=2, high_percentile=95)).apply(raw)
    low, high = np.percentile(raw.astype(np.float64), (2, 95))
    np.testing.assert_allclose(picture, np.clip((raw.astype(np.float64) - low) / (high - low), 0, 1), atol=1e-5)


def test_fixed_gain_in_degrees():
    raw = np.array([[27315, 30315], [29315, 40000]], np.uint16)  # centikelvin: 0, 30, 20 and 126.85 degrees Celsius
    config = GainControlConfig(mode="fixed", low=0.0, high=40.0, scale=0.01, offset=-273.15)
    picture, _ = GainControl(config).apply(raw)
    np.testing.assert_allclose(picture, [[0.0, 0.75], [0.5, 1.0]], atol=1e-5)


def test_missing_pixels_neither_count_nor_show():
    raw = counts().astype(np.float32)
    raw[3, 4], raw[5, 6], raw[7, 8] = np.nan, np.inf, -np.inf
    given = np.ones(raw.shape, bool)
    given[20:30] = False
    raw[25, 25] = 1e9  # hidden by the mask, so it must not stretch the limits
    picture, valid = GainControl(GainControlConfig()).apply(raw, valid=given)
    wanted = given & np.isfinite(raw)
    np.testing.assert_array_equal(valid, wanted)
    low, high = np.percentile(raw[wanted].astype(np.float64), (1, 99))
    np.testing.assert_allclose(picture[wanted], np.clip((raw[wanted] - low) / (high - low), 0, 1), atol=1e-4)
    assert (picture[~wanted] == 0).all()
    assert given[3, 4], "the caller's mask is not written to"


@pytest.mark.parametrize("mode", ["percentile", "fixed"])
@pytest.mark.parametrize("share", [0.0002, 0.02, 0.4])
@pytest.mark.parametrize("signs", [(1,), (-1,), (1, -1)], ids=["high", "low", "both"])
def test_numbers_that_stand_for_missing_pixels_take_no_contrast(signs, share, mode):
    gain = GainControl(GainControlConfig(mode=mode, low=20000.0, high=30000.0))
    raw, wanted = counts(shape=(100, 100)).astype(np.float32), np.ones((100, 100), bool)
    for number, sign in enumerate(signs):
        places = np.random.default_rng(number).random(raw.shape) < share
        places[0, number] = True
        raw[places], wanted[places] = sign * np.finfo(np.float32).max, False
    raw[50, 50], raw[50, 51], wanted[50, 50:52] = 2 * LARGEST_VALUE, -2 * LARGEST_VALUE, False
    picture, valid = gain.apply(raw)
    np.testing.assert_array_equal(valid, wanted)
    np.testing.assert_array_equal(picture, gain.apply(np.where(wanted, raw, np.float32(np.nan)))[0])
    assert (picture[~wanted] == 0).all() and picture[wanted].std() > 0.25


def test_a_number_just_below_is_a_measurement():
    raw = np.array([[0.0, 1.0], [2.0, 0.99 * LARGEST_VALUE]], np.float32)
    picture, valid = GainControl(GainControlConfig(low_percentile=0, high_percentile=100)).apply(raw)
    assert valid is None and picture[1, 1] == 1.0


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_limits_come_from_valid_pixels_that_count(dtype):
    raw = counts().astype(dtype)
    raw[:5], raw[10:12] = 60000, 9
    counted, given_valid = np.ones(raw.shape, bool), np.ones(raw.shape, bool)
    counted[:5], given_valid[10:12] = False, False
    for valid in (given_valid, None):
        black, white, mask = GainControl(GainControlConfig()).limits(raw, valid=valid, counted=counted)
        assert mask is valid, "a pixel that does not count is valid all the same"
        seen = raw[counted if valid is None else counted & valid].astype(np.float64)
        np.testing.assert_allclose((black, white), np.percentile(seen, (1, 99)), rtol=1e-6)
    nothing = np.zeros(raw.shape, bool)
    black, white, _ = GainControl(GainControlConfig()).limits(raw, counted=nothing)
    assert black < white
    eight = (raw // 256).astype(np.uint8)
    assert GainControl(GainControlConfig()).limits(eight, counted=counted) == (0.0, 255.0, None)


EDGES = [0.0, -0.0, 1.0, 1e-45, -1e-45, 1.1754944e-38, 1e30, -1e30, 3.4028235e38, -3.4028235e38]
FINITE = st.sampled_from(EDGES) | st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(raw=hnp.arrays(np.float32, (3, 4), elements=FINITE), black=FINITE, white=FINITE)
@example(raw=np.full((3, 4), 3.4028235e38, np.float32), black=-3.4028235e38, white=3.4028235e38)
@example(raw=np.full((3, 4), 7.0, np.float32), black=7.0, white=7.0)
@example(raw=np.full((3, 4), 7.0, np.float32), black=7.0, white=float(np.nextafter(np.float32(7), np.float32(8))))
def test_no_finite_value_becomes_nan(raw, black, white):
    """Nor with limits that no gain control would choose; a device does the same to the bit."""
    torch.set_flush_denormal(False)
    try:
        for flush in (False, True):  # backends flush
            torch.set_flush_denormal(flush)
            picture = normalise(raw, black, white)
            assert picture.dtype == np.float32 and ((picture >= 0.0) & (picture <= 1.0)).all()  # false for NaN
            on_device = normalise_tensor(
                torch.from_numpy(raw),
                torch.tensor(black, dtype=torch.float32),
                torch.tensor(per_unit(black, white)),
                torch.ones(raw.shape, dtype=torch.bool),
            )
            bits, wanted = (values.view(np.int32) & 0x7FFFFFFF for values in (on_device.numpy(), picture))  # -0.0 is 0.0
            np.testing.assert_array_equal(bits, wanted)
    finally:
        torch.set_flush_denormal(False)
    if abs(white - black) > 1e-30 and max(abs(black), abs(white)) < 1e30:
        steps = np.clip((raw.astype(np.float64) - np.float32(black)) / (white - black), 0.0, 1.0)
        np.testing.assert_allclose(picture, steps, atol=1e-6)
    elif black == white:
        np.testing.assert_array_equal(picture > 0, (raw > np.float32(black)) & (picture > 0))


def test_flat_and_wholly_invalid_pictures():
    for raw in (np.full((32, 32), 7000, np.uint16), np.full((32, 32), 21.5, np.float32)):
        picture, _ = GainControl(GainControlConfig()).apply(raw)
        assert np.isfinite(picture).all()
    picture, valid = GainControl(GainControlConfig()).apply(np.full((32, 32), np.nan, np.float32))
    assert (picture == 0).all() and not valid.any()


def test_smoothed_limits_follow_with_their_time_constant():
    gain = GainControl(GainControlConfig(mode="percentile_smoothed", time_constant_s=2.0))
    dark, bright = counts(1000, 2000), counts(5000, 9000)
    gain.apply(dark, stamp_s=10.0)
    picture, _ = gain.apply(bright, stamp_s=12.0)
    a, b = np.percentile(dark, (1, 99)), np.percentile(bright, (1, 99))
    low, high = np.exp(-1) * a + (1 - np.exp(-1)) * b
    np.testing.assert_allclose(picture, np.clip((bright - low) / (high - low), 0, 1), atol=1e-5)
    again, _ = gain.apply(dark, stamp_s=1.0)  # time went back: start afresh
    np.testing.assert_allclose(again, np.clip((dark - a[0]) / (a[1] - a[0]), 0, 1), atol=1e-5)
    with pytest.raises(InputError, match="time of the picture"):
        gain.apply(dark)


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "auto"},
        {"low": 5.0, "high": 5.0},
        {"low_percentile": 60, "high_percentile": 40},
        {"time_constant_s": 0.0},
        {"scale": 0.0},
        {"offset": float("nan")},
    ],
)
def test_gain_configuration_is_checked(values):
    with pytest.raises(InputError, match="agc"):
        GainControlConfig(**values)


@pytest.mark.parametrize("raw", [np.zeros((4, 4), np.int16), np.zeros((4, 4, 1), np.uint8)])
def test_unsupported_thermal_pictures_are_named(raw):
    with pytest.raises(InputError, match="thermal picture of unsupported kind"):
        GainControl(GainControlConfig()).apply(raw)


def test_luma_is_bt601_and_chroma_comes_back():
    rgb = RNG.integers(0, 256, (31, 45, 3)).astype(np.uint8)
    luma, chroma = split_luma(rgb)
    wanted = rgb.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(luma - wanted).max() <= 0.51
    assert np.abs(join_chroma(luma, chroma).astype(int) - rgb).max() <= 2, "8-bit rounding both ways"


def test_chroma_is_neutral_where_rgb_is_invalid():
    rgb = RNG.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    luma, chroma = split_luma(rgb)
    valid = np.zeros((20, 20), bool)
    valid[:, :7] = True
    out = join_chroma(luma, chroma, valid=valid)
    np.testing.assert_array_equal(out[:, 7:], luma[:, 7:, None].repeat(3, axis=2))
    np.testing.assert_array_equal(out[:, :7], join_chroma(luma, chroma)[:, :7])


def test_grey_pictures_have_no_chroma():
    grey = RNG.integers(0, 256, (9, 11)).astype(np.uint8)
    luma, chroma = split_luma(grey)
    assert chroma is None
    np.testing.assert_array_equal(join_chroma(luma, None), grey[:, :, None].repeat(3, axis=2))
    with pytest.raises(InputError, match="visible picture of unsupported kind"):
        split_luma(grey.astype(np.uint16))


def test_rounding_to_bytes():
    np.testing.assert_array_equal(to_uint8(np.array([-0.1, 0.0, 0.5 / 255 + 1e-6, 1.0, 1.2], np.float32)), [0, 0, 1, 255, 255])


def test_masked_pixels_become_exact_zero():
    picture = torch.rand(1, 1, 6, 6)
    picture[0, 0, 2, 2] = torch.nan
    valid = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    valid[0, 0, 2] = False
    out = mask_invalid(picture, valid)
    assert (out[0, 0, 2] == 0).all() and torch.equal(out[0, 0, 3], picture[0, 0, 3])
    assert mask_invalid(picture, None) is picture


def test_histogram_percentiles_are_numpy_s():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(0, rng.integers(1, 65536), rng.integers(1, 500)).astype(np.uint16)
        percents = tuple(sorted(rng.uniform(0, 100, 2)))
        np.testing.assert_allclose(_percentiles(counts, percents), np.percentile(counts, percents), rtol=1e-12, atol=1e-9)
