"""Warping against plain loops, OpenCV's camera models and exact shifts; masks pixel by pixel; what users get wrong."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from isfl_ros.errors import InputError
from isfl_ros.registration import (
    MAX_PIXELS,
    CalibratedPlane,
    Calibration,
    GridTensors,
    Homography,
    Registration,
    Transform,
    calibrated_map,
    parse_homography,
    read_homography,
    warp_tensor,
    write_homography,
)
from isfl_ros.registration.lenses import PolynomialLens

FROM, TO = (53, 41), (61, 47)  # (width, height)
GENERAL = [[0.93, 0.07, 3.3], [-0.05, 1.08, 1.7], [4e-4, -3e-4, 1.0]]
KINDS = {"8 bits": (np.uint8, ()), "16 bits": (np.uint16, ()), "float": (np.float32, ()), "rgb": (np.uint8, (3,))}


def homography(matrix=GENERAL, from_size=FROM, to_size=TO, **fields):
    return Homography(matrix=matrix, from_size=from_size, to_size=to_size, **fields)


def picture(kind="8 bits", size=FROM, seed=0):
    dtype, channels = KINDS[kind]
    top = {np.uint8: 256, np.uint16: 65536, np.float32: 400.0}[dtype]
    return np.random.default_rng(seed).uniform(0, top, (*size[::-1], *channels)).astype(dtype)


def everywhere(valid, shape):
    return np.ones(shape, bool) if valid is None else valid


def plain_warp(raw, valid, place, to_size, interpolation="linear"):
    """The contract, a pixel at a time in float64.

    Args:
        place: (x, y) of the reference to (u, v) of the picture, or None where there is none.

    Returns:
        The picture in float64, its mask, and where the position is so near a limit of two steps that rounding decides.
    """
    height, width = raw.shape[:2]
    steps = 32 if interpolation == "linear" else 1
    out = np.zeros((to_size[1], to_size[0], *raw.shape[2:]))
    mask, doubtful = np.zeros(out.shape[:2], bool), np.zeros(out.shape[:2], bool)
    for y in range(to_size[1]):
        for x in range(to_size[0]):
            position = place(x, y)
            if position is None:
                continue
            u, v = (p * steps + 0.5 for p in position)
            doubtful[y, x] = min(abs(u - round(u)), abs(v - round(v))) < 1e-6
            u, v = math.floor(u) / steps, math.floor(v) / steps
            good, total = True, np.zeros(raw.shape[2:])
            for j in (math.floor(v), math.floor(v) + 1):
                for i in (math.floor(u), math.floor(u) + 1):
                    weight = (1 - abs(u - i)) * (1 - abs(v - j))
                    if weight == 0.0:
                        continue
                    if not (0 <= i < width and 0 <= j < height and valid[j, i] and np.isfinite(raw[j, i]).all()):
                        good = False
                        continue
                    total = total + weight * raw[j, i].astype(np.float64)
            mask[y, x] = good
            if good:
                out[y, x] = total
    return out, mask, doubtful


def by_homography(matrix):
    matrix = np.array(matrix, np.float64)

    def place(x, y):
        u, v, w = np.linalg.solve(matrix, [x, y, 1.0])
        return u / w, v / w

    return place


def assert_close(got, wanted, *, within=1.0):
    """Integers: half a step of rounding, and as much for OpenCV's own code; float32: rounding."""
    if got.dtype == np.float32:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
    else:
        assert np.abs(got.astype(np.float64) - wanted).max(initial=0.0) <= within


# Warping


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("kind", KINDS)
def test_identity_gives_the_bytes_back(kind, interpolation):
    raw = picture(kind)
    registration = Registration(homography(np.eye(3), to_size=FROM))
    warped, valid = registration.warp(raw, interpolation=interpolation)
    assert valid is None and registration.overlap == 1.0 and registration.mode == "homography"
    assert warped.dtype == raw.dtype
    np.testing.assert_array_equal(warped, raw)


@pytest.mark.parametrize("factor", [1.0, -0.37], ids=["", "of another factor"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dx, dy", [(5, 3), (-7, 2), (0, -4), (FROM[0] - 1, 0)])
def test_whole_shifts_give_shifted_bytes(dx, dy, kind, interpolation, factor):
    """Pixel (x, y) of the other camera is (x + dx, y + dy) of the reference; a homography has no factor."""
    raw = picture(kind)
    matrix = factor * np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]])
    registration = Registration(homography(matrix))
    warped, valid = registration.warp(raw, interpolation=interpolation)
    wanted, mask = np.zeros((TO[1], TO[0], *raw.shape[2:]), raw.dtype), np.zeros(TO[::-1], bool)
    for y in range(TO[1]):
        for x in range(TO[0]):
            if 0 <= x - dx < FROM[0] and 0 <= y - dy < FROM[1]:
                wanted[y, x], mask[y, x] = raw[y - dy, x - dx], True
    np.testing.assert_array_equal(warped, wanted)
    np.testing.assert_array_equal(valid, mask)
    assert registration.overlap == mask.mean()


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_general_homography_against_a_plain_loop(kind, masked, interpolation):
    raw, given_valid = picture(kind), None
    if masked:
        given_valid = np.random.default_rng(3).random(FROM[::-1]) > 0.1
    if kind == "float":
        raw[7, 11], raw[0, :], raw[30, 20:24] = np.nan, np.inf, -np.inf
    warped, valid = Registration(homography()).warp(raw, valid=given_valid, interpolation=interpolation)
    loop_valid = everywhere(given_valid, raw.shape[:2])
    wanted, mask, doubtful = plain_warp(raw, loop_valid, by_homography(GENERAL), TO, interpolation)
    assert not doubtful.any() and 0.3 < mask.mean() < 0.95
    np.testing.assert_array_equal(valid, mask)
    assert (warped[~mask] == 0).all()
    assert_close(warped, wanted, within=0.5 if interpolation == "linear" and raw.dtype == np.uint8 else 1.0)


near_identity = st.tuples(
    *(st.floats(-0.4, 0.4) for _ in range(4)), st.floats(-30, 30), st.floats(-30, 30), *(st.floats(-3e-3, 3e-3),) * 2
)


@settings(max_examples=40, deadline=None)
@given(
    near_identity,
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from(["linear", "nearest"]),
    st.sampled_from(list(KINDS)),
    st.integers(0, 99),
)
def test_any_homography_any_size_any_mask(numbers, from_size, to_size, interpolation, kind, seed):
    a, b, c, d, tx, ty, p, q = numbers
    matrix = np.array([[1 + a, b, tx], [c, 1 + d, ty], [p, q, 1]])
    rng = np.random.default_rng(seed)
    raw = picture(kind, from_size, seed)
    mask_in = rng.random(from_size[::-1]) > 0.2
    if kind == "float":
        raw[rng.random(raw.shape) < 0.1] = np.nan
    try:
        registration = Registration(homography(matrix, from_size, to_size))
    except InputError as error:
        # Refused for a reason that the loop sees, too, or because the matrix is none of a picture.
        if "lands in the reference frame" in str(error):
            ones = np.ones(from_size[::-1], bool)
            _, mask, doubtful = plain_warp(np.ones(from_size[::-1]), ones, by_homography(matrix), to_size)
            assert not (mask & ~doubtful).any()
        return
    warped, valid = registration.warp(raw, valid=mask_in, interpolation=interpolation)
    side = 1 if matrix[2] @ [(from_size[0] - 1) / 2, (from_size[1] - 1) / 2, 1] > 0 else -1
    assert side == 1, "these matrices are positive in the picture, or refused"

    def place(x, y):
        u, v, w = np.linalg.solve(matrix, [x, y, 1.0])
        return (u / w, v / w) if w > 0 else None

    wanted, mask, doubtful = plain_warp(raw, mask_in, place, to_size, interpolation)
    valid = everywhere(valid, mask.shape)
    np.testing.assert_array_equal(valid[~doubtful], mask[~doubtful])
    assert (warped[~valid] == 0).all()
    assert_close(warped[mask & ~doubtful], wanted[mask & ~doubtful])
    tensor_warped, tensor_valid = on_tensors(registration, raw, mask_in, to_size, interpolation)
    np.testing.assert_array_equal(tensor_valid, valid)
    assert_close(tensor_warped, warped.astype(np.float64))


def test_positions_are_true_to_a_64th_of_a_pixel():
    """A ramp shows where each pixel came from."""
    height, width = FROM[1], FROM[0]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    registration = Registration(homography())
    (u, valid), (v, _) = registration.warp(x), registration.warp(y)
    place = by_homography(GENERAL)
    for j, i in zip(*np.nonzero(valid)):
        assert np.abs(np.array([u[j, i], v[j, i]]) - place(i, j)).max() <= 1 / 64 + 1e-4


def test_invalid_neighbours_without_weight_do_not_leak():
    """On whole positions only the pixel itself counts, also at the last row and column and beside NaN."""
    raw = picture("float")
    raw[10, 10] = np.nan
    warped, valid = Registration(homography(np.eye(3), to_size=FROM)).warp(raw)
    wanted = np.isfinite(raw)
    np.testing.assert_array_equal(valid, wanted)
    np.testing.assert_array_equal(warped, np.where(wanted, raw, 0))
    half = Registration(homography([[1, 0, 0.5], [0, 1, 0], [0, 0, 1]], to_size=FROM))
    _, valid = half.warp(raw)
    assert not valid[10, 10] and not valid[10, 11] and valid[9:12, 9].all() and valid[[9, 11], 10].all()
    assert not valid[:, 0].any(), "half a pixel to the left of the picture"


def test_the_least_weight_of_an_invalid_pixel_is_seen():
    shift = 1 / 32
    registration = Registration(homography([[1, 0, -shift], [0, 1, -shift], [0, 0, 1]], to_size=FROM))
    for kind in KINDS:
        raw, mask = picture(kind), np.ones(FROM[::-1], bool)
        mask[20, 30] = False
        _, valid = registration.warp(raw, valid=mask)
        assert not valid[19:21, 29:31].any()
        valid[19:21, 29:31] = True
        assert valid[:-1, :-1].all(), "and nothing else"


def test_memory_around_a_picture_is_not_read():
    """The same picture inside poison, as rows with padding are."""
    registration = Registration(homography())
    for kind in KINDS:
        raw = picture(kind)
        poison = np.nan if kind == "float" else np.iinfo(raw.dtype).max
        around = np.full((FROM[1] + 9, FROM[0] + 9, *raw.shape[2:]), poison, raw.dtype)
        inside = around[4:-5, 4:-5]
        inside[:] = raw
        for got, wanted in zip(registration.warp(inside), registration.warp(raw)):
            np.testing.assert_array_equal(got, wanted)


def test_there_and_back():
    x, y = np.meshgrid(np.arange(FROM[0]), np.arange(FROM[1]))
    raw = (120 + 60 * np.sin(x / 9) + 50 * np.cos(y / 7)).astype(np.float32)
    there = homography()
    warped, valid = Registration(there).warp(raw)
    back, both = Registration(there.inverse()).warp(warped, valid=valid)
    assert both.mean() > 0.5 and back.shape == raw.shape
    assert np.abs(back - raw)[both].max() < 1.5
    np.testing.assert_allclose(
        there.inverse().inverse().matrix / there.inverse().inverse().matrix[2, 2], np.array(GENERAL), atol=1e-12
    )


def test_masks_and_pictures_of_the_caller_are_left_alone():
    raw, mask = picture("float"), np.random.default_rng(0).random(FROM[::-1]) > 0.2
    raw[3, 3] = np.nan
    before = raw.copy(), mask.copy()
    registration = Registration(homography())
    first = registration.warp(raw, valid=mask)
    kept = [array.copy() for array in first]
    registration.warp(picture("float", seed=7), valid=~mask)
    np.testing.assert_array_equal(raw, before[0])
    np.testing.assert_array_equal(mask, before[1])
    for array, copy in zip(first, kept):
        np.testing.assert_array_equal(array, copy)
    shared = registration.warp(picture())[1]
    with pytest.raises(ValueError, match="read-only"):
        shared[0, 0] = True


def test_mode_none_costs_nothing():
    registration = Registration()
    raw, mask = picture("float"), np.zeros(FROM[::-1], bool)
    assert registration.mode == "none" and registration.overlap == 1.0 and registration.concerns == ()
    assert registration.grid(raw.shape, raw.shape) is None
    warped, valid = registration.warp(raw, valid=mask)
    assert warped is raw and valid is mask
    assert registration.warp(raw)[1] is None
    with pytest.raises(InputError, match="sizes differ.*registration.mode"):
        registration.warp(raw, to_shape=(99, 99))


def test_unsupported_pictures_are_named():
    for registration in (Registration(), Registration(homography())):
        for raw in (np.zeros((41, 53), np.int16), np.zeros((41, 53, 1), np.uint8), np.zeros((41, 53), ">u2")):
            with pytest.raises(InputError, match="picture of unsupported kind"):
                registration.warp(raw)
        with pytest.raises(InputError, match="mask of unsupported kind"):
            registration.warp(picture(), valid=np.ones(FROM[::-1], np.uint8))
        with pytest.raises(InputError, match="unknown interpolation.*linear, nearest.*'cubic'"):
            registration.warp(picture(), interpolation="cubic")


def test_maps_are_made_once_for_each_size_and_not_kept_for_ever():
    registration = Registration(homography())
    first = registration.grid(FROM[::-1], TO[::-1])
    assert registration.grid(FROM[::-1], TO[::-1]) is first
    assert registration.grid(FROM[::-1], TO[::-1], "nearest") is not first
    for factor in range(2, 6):
        registration.grid(FROM[::-1], (TO[1] * factor, TO[0] * factor))
    assert registration.grid(FROM[::-1], TO[::-1]) is not first


def test_used_pixels_are_those_that_make_a_difference():
    thrice = np.diag([1.0, 1.0, 3.1]) @ GENERAL
    for matrix, interpolation in ((GENERAL, "linear"), (GENERAL, "nearest"), (thrice, "linear")):
        grid = Registration(homography(matrix)).grid(FROM[::-1], TO[::-1], interpolation)
        assert grid.used.shape == FROM[::-1] and grid.used is grid.used and 0.3 < grid.used.mean() < 1.0
        blank = np.zeros(FROM[::-1], np.float32)
        for y in range(FROM[1]):
            for x in range(FROM[0]):
                blank[y, x] = 1.0
                assert grid.resample(blank, grid.valid).any() == grid.used[y, x], (x, y)
                blank[y, x] = 0.0


# Shrinking


LARGE = (159, 125)  # (width, height): no multiple of 3


def shrinking(scale):
    """(map, matrix) from a LARGE picture to one of TO that shows most of it, smaller by ``scale`` on the whole."""
    matrix = np.diag([1.0, 1.0, scale]) @ [[0.96, 0.05, 2.0], [-0.04, 1.04, 3.0], [1e-4, -1e-4, 1.0]]
    return homography(matrix, from_size=LARGE), matrix


def means(raw, k):
    height, width = (side // k for side in raw.shape[:2])
    squares = raw[: height * k, : width * k].reshape(height, k, width, k, *raw.shape[2:])
    return squares.astype(np.float64).mean(axis=(1, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale, factor", [(1.3, 1), (1.7, 2), (3.3, 3)])
def test_strong_shrinking_is_interpolation_between_means(kind, scale, factor):
    """Host and device, against plain loops, with pixels missing at random."""
    raw = picture(kind, LARGE)
    given_valid = np.random.default_rng(3).random(LARGE[::-1]) > 0.01
    if kind == "float":
        raw[7, 11], raw[50, 60:64], raw[70, 9], raw[80, 9] = np.nan, np.inf, np.finfo(np.float32).max, -1.1e30
    geometry, matrix = shrinking(scale)
    registration = Registration(geometry)
    grid = registration.grid(LARGE[::-1], TO[::-1])
    assert grid.shrink == factor and grid.from_shape == LARGE[::-1]
    usable = given_valid & (abs(raw) <= 1e30) if kind == "float" else given_valid
    place = by_homography(matrix)

    def in_means(x, y):
        u, v = place(x, y)
        return (u + 0.5) / factor - 0.5, (v + 0.5) / factor - 0.5

    clean = np.where(usable.reshape(*usable.shape, *(1,) * (raw.ndim - 2)), raw, 0)
    wanted, mask, doubtful = plain_warp(means(clean, factor), means(usable, factor) == 1.0, in_means, TO)
    assert not doubtful.any() and 0.3 < mask.mean() < 1.0
    for got, covered in (registration.warp(raw, valid=given_valid), on_tensors(registration, raw, given_valid, TO)):
        np.testing.assert_array_equal(covered, mask)
        assert (got[~mask] == 0).all() and got.dtype == raw.dtype
        assert_close(got, wanted, within=1.5 if factor > 1 else 1.0)


def test_nothing_is_shrunk_that_has_no_mean():
    assert Registration(shrinking(3.3)[0]).grid(LARGE[::-1], TO[::-1], "nearest").shrink == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_factor_gives_opencv_s_means(kind):
    raw = picture(kind, (FROM[0] * 4, FROM[1] * 4))
    registration = Registration(homography(np.eye(3), to_size=FROM))
    got, valid = registration.warp(raw, to_shape=FROM[::-1])
    assert valid is None
    np.testing.assert_array_equal(got, cv2.resize(raw, FROM, interpolation=cv2.INTER_AREA))
    assert registration.grid(raw.shape[:2], FROM[::-1]).used.all()


def test_nobody_is_skipped_in_a_large_picture():
    """A person two pixels wide in a picture that is shrunk by nine shows with the same weight wherever she stands."""
    size, small = (1440, 1080), (160, 120)
    grid = Registration(homography(np.eye(3), size, size)).grid(size[::-1], small[::-1])
    for x in range(720, 738):
        raw = np.zeros(size[::-1], np.uint8)
        raw[:, x : x + 2] = 255
        warped, _ = grid.warp(raw)
        assert abs(int(warped[60].sum()) - 2 * 255 / 9) <= 1.5, x


@pytest.mark.parametrize("matrix, size", [
    (np.diag([0.005, 0.01, 1.0]), (1, 3)),
    (np.diag([0.2, 0.01, 1.0]), (40, 3)),
    ([[0.012, 0, 21.2], [0, 0.012, 33.3], [0, 0, 1]], (200, 150)),  # 3x4 pixels, which probes may miss
    ([[0.008, 0, 20.4], [0, 0.008, 33.3], [0, 0, 1]], (200, 150)),  # none lies between the centres of two means
])
def test_what_shrinks_to_next_to_nothing_is_still_shown(matrix, size):
    registration = Registration(homography(matrix, (200, 300), size))
    warped, valid = registration.warp(np.full((300, 200), 7, np.uint8))
    valid = everywhere(valid, warped.shape)
    assert valid.any() and (warped[valid] == 7).all() and not warped[~valid].any()


# On a device


def on_tensors(registration, raw, valid, to_size, interpolation="linear"):
    grid = registration.grid(raw.shape[:2], to_size[::-1], interpolation).tensors("cpu")
    bits = raw.view(np.int16) if raw.dtype == np.uint16 else raw
    warped, covered = warp_tensor(
        torch.from_numpy(bits.copy()), grid, valid=None if valid is None else torch.from_numpy(valid.copy())
    )
    warped = warped.numpy()
    return warped.view(np.uint16) if raw.dtype == np.uint16 else warped, covered.numpy()


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_give_what_the_host_gives(kind, masked, interpolation):
    raw = picture(kind)
    if kind == "float":
        raw[5, 5:9], raw[-1], raw[:, 0] = np.nan, np.inf, -np.inf
    mask = np.random.default_rng(5).random(FROM[::-1]) > 0.1 if masked else None
    registration = Registration(homography())
    wanted, valid = registration.warp(raw, valid=mask, interpolation=interpolation)
    got, covered = on_tensors(registration, raw, mask, TO, interpolation)
    np.testing.assert_array_equal(covered, valid)
    assert got.dtype == raw.dtype and got.shape == wanted.shape and (got[~covered] == 0).all()
    assert_close(got, wanted.astype(np.float64))
    if interpolation == "nearest" or kind == "8 bits":
        assert np.abs(got.astype(np.float64) - wanted).max() <= (0 if interpolation == "nearest" else 1)
    assert got[covered].std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_against_the_plain_loop(kind):
    raw = picture(kind)
    got, covered = on_tensors(Registration(homography()), raw, None, TO)
    wanted, mask, _ = plain_warp(raw, np.ones(FROM[::-1], bool), by_homography(GENERAL), TO)
    np.testing.assert_array_equal(covered, mask)
    assert_close(got, wanted, within=0.5)


@pytest.mark.parametrize("shrink", [1, 3])
def test_work_on_tensors_does_not_depend_on_what_they_hold(shrink):
    """What a CUDA graph needs: tensors without content go through, which any look at a value would stop."""
    matrix = np.diag([1.0, 1.0, shrink]) @ GENERAL
    grid = Registration(homography(matrix)).grid(FROM[::-1], TO[::-1]).tensors("cpu")
    with FakeTensorMode() as mode:
        parts = dict(vars(grid))
        assert parts.pop("shrink") == shrink
        fake = GridTensors(shrink=shrink, **{name: mode.from_tensor(tensor) for name, tensor in parts.items()})
        for shape, dtype in (
            ((41, 53), torch.uint8),
            ((41, 53), torch.int16),
            ((41, 53), torch.float32),
            ((41, 53, 3), torch.uint8),
        ):
            for valid in (None, torch.empty(41, 53, dtype=torch.bool)):
                warped, covered = warp_tensor(torch.empty(shape, dtype=dtype), fake, valid=valid)
                assert warped.shape == (47, 61, *shape[2:]) and warped.dtype == dtype
                assert covered.shape == (47, 61) and covered.dtype == torch.bool


# Sizes


def test_scaled_pictures_keep_their_outer_edges():
    """Whole numbers are pixel centres: a picture reaches from -0.5 to width - 0.5 at every scale."""
    h = homography()
    matrix = h.scaled((106, 82), (183, 141))

    def at(m, x, y):
        u, v, w = m @ [x, y, 1.0]
        return np.array([u / w, v / w])

    for x in (-0.5, 52.5, 17.0):
        for y in (-0.5, 40.5, 9.0):
            reference = at(h.matrix, x, y)
            scaled = at(matrix, (x + 0.5) * 2 - 0.5, (y + 0.5) * 2 - 0.5)
            np.testing.assert_allclose((scaled + 0.5) / 3 - 0.5, reference, atol=1e-9)


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarging_is_opencv_s_resize(factor):
    """OpenCV's resize has the same convention; half a pixel at the edges is extrapolation, which is invalid here."""
    raw = picture("float")
    registration = Registration(homography(np.eye(3), FROM, FROM))
    big = (FROM[1] * factor, FROM[0] * factor)
    warped, valid = registration.warp(raw, to_shape=big)
    wanted = cv2.resize(raw, big[::-1], interpolation=cv2.INTER_LINEAR)
    edge = factor // 2
    assert valid[edge:-edge, edge:-edge].all() and valid.sum() == (big[0] - 2 * edge) * (big[1] - 2 * edge)
    np.testing.assert_allclose(warped[valid], wanted[valid], atol=400 / 64 * 2 if factor == 3 else 1e-3)


def test_sizes_that_no_one_factor_explains_are_refused():
    registration = Registration(homography(np.eye(3), (640, 512), (1280, 960)))
    with pytest.raises(InputError, match=r"from_size does not fit.*640x512 \(width x height\).*640x480.*cropped"):
        registration.grid((480, 640), (960, 1280))
    with pytest.raises(InputError, match=r"from_size does not fit.*look swapped"):
        registration.grid((640, 512), (960, 1280))
    with pytest.raises(InputError, match=r"to_size does not fit.*look swapped"):
        registration.grid((512, 640), (1280, 960))
    with pytest.raises(InputError, match="cameras have changed roles.*640x512.*1280x960.*reference"):
        registration.grid((960, 1280), (512, 640))
    with pytest.raises(InputError, match="from_size does not fit"):
        registration.grid((512, 646), (960, 1280))
    assert registration.grid((256, 320), (240, 320)).shape == (240, 320)


@pytest.mark.parametrize(
    "declared, actual",
    [((1919, 1079), (960, 540)), ((641, 481), (320, 240)), ((160, 120), (643, 480)), ((100, 1920), (10, 200))],
)
def test_rounding_of_odd_sizes_is_no_crop(declared, actual):
    registration = Registration(homography(np.eye(3), declared, declared))
    assert registration.grid(actual[::-1], actual[::-1]).overlap == 1.0


# The matrix


ROTATED = [[0.0, -1.0, 45.0], [1.0, 0.0, -5.0], [0.0, 0.0, 1.0]]


def test_a_turned_camera_is_no_mirror():
    assert Registration(homography(ROTATED, (41, 41), (41, 41))).overlap > 0.5


BAD_MATRICES = {
    "zero": (np.zeros((3, 3)), "singular"),
    "flat": ([[1, 2, 0], [2, 4, 0], [0, 0, 1]], "singular"),
    "nearly flat": ([[1, 0, 0], [0, 1e-9, 0], [0, 0, 1]], "singular"),
    "NaN": ([[1, 0, 0], [0, np.nan, 0], [0, 0, 1]], "3x3 finite numbers"),
    "infinite": ([[1, 0, 0], [0, np.inf, 0], [0, 0, 1]], "3x3 finite numbers"),
    "2x3": ([[1, 0, 0], [0, 1, 0]], "3x3 finite numbers"),
    "text": ("identity", "3x3 finite numbers"),
    "mirrored": ([[-1, 0, 52], [0, 1, 0], [0, 0, 1]], "mirrors"),
    "x and y exchanged": ([[0, 1, 0], [1, 0, 0], [0, 0, 1]], "mirrors"),
    "mirrored, other factor": ([[2, 0, -104], [0, -2, 0], [0, 0, -2]], "mirrors"),
    "horizon": ([[1, 0, 0], [0, 1, 0], [-0.03, 0, 1]], "through infinity"),
    "transposed": ([[1, 0, 0], [0, 1, 0], [-30.0, 12.0, 1]], "through infinity.*transposed"),
    "nothing": ([[1, 0, 500], [0, 1, 0], [0, 0, 1]], "nothing of the other camera's picture.*check matrix"),
}


@pytest.mark.parametrize("case", BAD_MATRICES)
def test_matrices_that_are_none_are_refused(case):
    matrix, words = BAD_MATRICES[case]
    with pytest.raises(InputError, match=words):
        Registration(homography(matrix))


def test_the_other_direction_is_named():
    """A thermal picture in the middle of a larger one: matrix enlarges and shifts; the inverse puts it elsewhere."""
    true = np.array([[2.5, 0, 100.0], [0, 2.5, 60.0], [0, 0, 1]])
    sizes = {"from_size": (160, 120), "to_size": (640, 480)}
    assert Registration(homography(true, **sizes)).concerns == ()
    far = np.array([[2.5, 0, 420.0], [0, 2.5, 60.0], [0, 0, 1]])
    with pytest.raises(
        InputError, match="maps pixels of the other camera to the reference.*map the other way: invert it"
    ):
        Registration(homography(np.linalg.inv(far), **sizes))
    filling = Registration(homography(np.linalg.inv([[4, 0, 1.5], [0, 4, 1.5], [0, 0, 1]]), **sizes))
    (words,) = filling.concerns
    assert "covers 0.4% of the reference frame, with the inverse matrix it would be 100.0%" in words
    assert "other camera's pixels to the reference" in words


# The file


def test_a_file_keeps_every_digit(tmp_path):
    path = tmp_path / "new" / "homography.yaml"
    given_values = homography(residual_px=0.7351, frames=42, created="2025-03-01T10:20:30+00:00")
    write_homography(path, given_values)
    got = read_homography(path)
    np.testing.assert_array_equal(got.matrix, given_values.matrix)
    for name in ("from_size", "to_size", "residual_px", "frames", "created"):
        assert getattr(got, name) == getattr(given_values, name), name
    with pytest.raises(InputError, match="homography.yaml exists.*--overwrite"):
        write_homography(path, given_values)
    write_homography(path, homography(np.eye(3)), overwrite=True)
    got = read_homography(path)
    np.testing.assert_array_equal(got.matrix, np.eye(3))
    assert got.residual_px is None and got.frames is None and got.created is None
    assert [p.name for p in path.parent.iterdir()] == ["homography.yaml"]


def test_files_written_by_hand(tmp_path):
    path = tmp_path / "h.yaml"
    path.write_text(
        "matrix: [1, 0, 2.5,  0, 1, -3,  1e-05, 0, 1]\n"  # YAML takes 1e-05 for text
        "from_size: [640, 512]\nto_size: [1280, 1024]\ncreated: 2025-03-01 10:20:30\n"
    )
    got = read_homography(path)
    np.testing.assert_array_equal(got.matrix, [[1, 0, 2.5], [0, 1, -3], [1e-5, 0, 1]])
    assert got.from_size == (640, 512) and got.created == "2025-03-01T10:20:30"


EYE = "matrix: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]\n"
SIZES = "from_size: [640, 512]\nto_size: [640, 512]\n"
BAD_FILES = {
    "empty": ("", "is not a mapping"),
    "list": ("[1, 2]", "is not a mapping"),
    "no YAML": ("matrix: [1, 2", "is no YAML"),
    "no text": (b"\xff\xfe\x00", "is no YAML"),
    "code": ("matrix: !!python/object/apply:os.getcwd []\n" + SIZES, "is no YAML"),
    "absurd date": (EYE + SIZES + "created: 2025-99-99\n", "is no YAML"),
    "huge": (EYE + SIZES + "# " + "x" * 70000, "is no homography file"),
    "deep": ("[" * 20000, "is no YAML|is no homography"),
    "missing": (EYE + "from_size: [640, 512]\n", "expected from_size, matrix, to_size.*no to_size"),
    "unknown": (EYE + SIZES + "residual: 3\n", "unknown residual"),
    "8 numbers": ("matrix: [1, 0, 0, 0, 1, 0, 0, 0]\n" + SIZES, "matrix unusable.*9 numbers"),
    "ragged": ("matrix: [[1, 0, 0], [0, 1], [0, 0, 1]]\n" + SIZES, "matrix unusable"),
    "words": ("matrix: [[one, 0, 0], [0, 1, 0], [0, 0, 1]]\n" + SIZES, "no number; got 'one'"),
    "boolean": ("matrix: [[yes, 0, 0], [0, 1, 0], [0, 0, 1]]\n" + SIZES, "no number; got True"),
    "NaN": ("matrix: [[.nan, 0, 0], [0, 1, 0], [0, 0, 1]]\n" + SIZES, "matrix unusable.*finite"),
    "huge number": (f"matrix: [[1{'0' * 400}, 0, 0], [0, 1, 0], [0, 0, 1]]\n" + SIZES, "no number"),
    "size zero": (EYE + "from_size: [0, 512]\nto_size: [640, 512]\n", "from_size unusable"),
    "size of one": (EYE + "from_size: [640, 512]\nto_size: 640\n", "to_size unusable"),
    "size in parts": (EYE + "from_size: [640.5, 512]\nto_size: [640, 512]\n", "from_size unusable"),
    "size infinite": (EYE + "from_size: [.inf, 512]\nto_size: [640, 512]\n", "from_size unusable"),
    "size text": (EYE + "from_size: ['640', 512]\nto_size: [640, 512]\n", "from_size unusable"),
    "size absurd": (EYE + "from_size: [640, 512]\nto_size: [30000, 30000]\n", f"to_size unusable.*{MAX_PIXELS} pixels"),
    "residual": (EYE + SIZES + "residual_px: -1\n", "residual_px unusable"),
    "residual NaN": (EYE + SIZES + "residual_px: .nan\n", "residual_px unusable"),
    "frames": (EYE + SIZES + "frames: 2.5\n", "frames unusable"),
    "no frames": (EYE + SIZES + "frames: 0\n", "frames unusable"),
    "created": (EYE + SIZES + "created: 12\n", "created unusable"),
    "mirror": ("matrix: [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]\n" + SIZES, "mirrors"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_wrong_are_named_in_one_line(tmp_path, case):
    text, words = BAD_FILES[case]
    path = tmp_path / "h.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words) as caught:
        read_homography(path)
    message = str(caught.value)
    assert "h.yaml" in message and "\n" not in message and len(message) < 600


def nested(levels, width=10):
    rows = [1] * width
    for _ in range(levels):
        rows = [rows] * width
    return rows


@pytest.mark.parametrize("key", ["matrix", "from_size", "to_size", "residual_px", "frames", "created"])
@pytest.mark.parametrize(
    "value", [nested(9), nested(9)[:9], 1 << 40000, "x" * 60000], ids=["lists", "nine", "number", "text"]
)
def test_no_value_makes_a_message_of_any_length(key, value):
    """Ten lists of ten lists ...: 10^10 numbers, of which not all are to be written."""
    document = {"matrix": np.eye(3).tolist(), "from_size": [80, 60], "to_size": [80, 60], key: value}
    if key == "created" and isinstance(value, str) or key == "frames" and isinstance(value, int):
        assert parse_homography(document, "file").created == document.get("created")
        return
    with pytest.raises(InputError) as refused:
        parse_homography(document, "file")
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)
    with pytest.raises(InputError) as refused:
        parse_homography({1 << 40000: value, **document}, "file")
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("how", ["lists", "merged"])
def test_a_small_file_is_no_large_document(tmp_path, how):
    text = {
        "lists": "matrix: [&a0 [1, 1], "
        + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))
        + "]\nfrom_size: [80, 60]\nto_size: [80, 60]\n",
        "merged": "a0: &a0 {k: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)),
    }[how]
    (tmp_path / "h.yaml").write_text(text)
    with pytest.raises(InputError, match="h.yaml is no homography file; expected at most 16 aliases; got more"):
        read_homography(tmp_path / "h.yaml")
    (tmp_path / "h.yaml").write_text("matrix: [1, 0, 0, 0, 1, 0, 0, 0, 1]\nfrom_size: &size [80, 60]\nto_size: *size\n")
    assert read_homography(tmp_path / "h.yaml").to_size == (80, 60)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="h.yaml cannot be read.*No such file"):
        read_homography(tmp_path / "h.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_homography(tmp_path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {"matrix": anything, "from_size": anything, "to_size": anything},
        optional={"residual_px": anything, "frames": anything, "created": anything},
    )
    | anything
)
def test_documents_of_any_kind_are_refused_in_words_or_read(document):
    try:
        got = parse_homography(document, "file")
    except InputError as error:
        assert str(error).startswith("file")
    else:
        assert np.isfinite(got.matrix).all()


# Lenses

LENSES = {
    "none": ("plumb_bob", ()),
    "plumb_bob": ("plumb_bob", (-0.28, 0.09, 1.2e-3, -0.8e-3, -0.01)),
    "pincushion": ("plumb_bob", (0.15, 0.05, -1e-3, 2e-3, 0.0)),
    "rational": ("rational_polynomial", (0.35, 0.12, 6e-4, -4e-4, 0.01, 0.62, 0.21, 0.03)),
    "thin prism": ("rational_polynomial", (0.3, 0.1, 6e-4, -4e-4, 0.01, 0.5, 0.2, 0.03, 1e-3, -5e-4, -7e-4, 4e-4)),
    "equidistant": ("equidistant", (-0.02, 0.008, -0.003, 0.0004)),
}


def camera(lens="none", size=(97, 75), focal=60.0, **fields):
    model, distortion = LENSES[lens]
    matrix = [focal, 0, size[0] / 2 - 2.3, 0, focal * 1.02, size[1] / 2 + 1.1, 0, 0, 1]
    return Calibration(size=size, matrix=matrix, model=model, distortion=distortion, **fields)


def opencv_project(camera, points):
    """(N, 3) in the camera's frame to (N, 2) pixels."""
    zero = np.zeros(3)
    coefficients = np.zeros(max(4, len(camera.distortion)))
    coefficients[: len(camera.distortion)] = camera.distortion
    if camera.model == "equidistant":
        projected, _ = cv2.fisheye.projectPoints(points[:, None], zero, zero, camera.matrix.copy(), coefficients)
    else:
        projected, _ = cv2.projectPoints(points[:, None], zero, zero, camera.matrix.copy(), coefficients)
    return projected[:, 0]


TURN = Transform(rotation=cv2.Rodrigues(np.array([0.05, -0.09, 0.13]))[0], translation=[0.21, -0.08, 0.05])


@pytest.mark.parametrize("lens", LENSES)
def test_projection_is_opencv_s(lens):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-0.8, 0.8, (500, 2)), np.ones((500, 1))], axis=1)
    points[0, :2] = 0.0
    x, y, ok = camera(lens).project(points[:, 0], points[:, 1])
    assert ok.mean() > 0.9
    np.testing.assert_allclose(np.stack([x, y], -1)[ok], opencv_project(camera(lens), points)[ok], atol=1e-9)


@pytest.mark.parametrize("lens", LENSES)
def test_rays_lead_back_to_their_pixels(lens):
    """All pixels, and the corners of the picture beyond their centres, through OpenCV's projection."""
    cam = camera(lens)
    x, y = np.meshgrid(np.linspace(-0.5, 96.5, 98), np.linspace(-0.5, 74.5, 76))
    ray_x, ray_y, ok = cam.rays(x, y)
    assert ok.all()
    points = np.stack([ray_x, ray_y, np.ones_like(x)], -1).reshape(-1, 3)
    np.testing.assert_allclose(opencv_project(cam, points), np.stack([x, y], -1).reshape(-1, 2), atol=1e-6)


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("reference_lens", LENSES)
def test_calibrated_map_against_a_plain_loop(reference_lens, lens):
    """Ray by OpenCV's undistortion, plane, rigid transform, OpenCV's projection: a pixel at a time, in metres."""
    reference, other, depth = camera(reference_lens, (31, 23), 20.0), camera(lens, (45, 37), 33.0), 2.5
    u, v, ok = calibrated_map(reference, other, TURN, depth)
    assert u.shape == v.shape == ok.shape == (23, 31) and ok.mean() > 0.8
    coefficients, matrix = np.array(reference.distortion), reference.matrix.copy()
    precise = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-14)
    for y in range(23):
        for x in range(31):
            pixel = np.array([[[float(x), float(y)]]])
            if reference.model == "equidistant":
                ray = cv2.fisheye.undistortPoints(pixel, matrix, coefficients, criteria=precise)[0, 0]
            elif coefficients.size:
                ray = cv2.undistortPointsIter(pixel, matrix, coefficients, np.eye(3), np.eye(3), precise)[0, 0]
            else:
                ray = np.linalg.solve(matrix, [x, y, 1.0])[:2]
            point = TURN.rotation @ (depth * np.array([*ray, 1.0])) + TURN.translation
            if ok[y, x]:
                wanted = opencv_project(other, point[None])[0]
                np.testing.assert_allclose([u[y, x], v[y, x]], wanted, atol=1e-5)


@pytest.mark.parametrize("lens", ["plumb_bob", "rational"])
def test_undistorting_a_turned_camera_is_opencv_s_rectification(lens):
    reference, other = camera("none", (83, 61), 70.0), camera(lens)
    turn = Transform(rotation=TURN.rotation, translation=[0.0, 0.0, 0.0])
    u, v, ok = calibrated_map(reference, other, turn, math.inf)
    wanted_u, wanted_v = cv2.initUndistortRectifyMap(
        other.matrix.copy(),
        np.array(other.distortion),
        turn.rotation.T.copy(),
        reference.matrix.copy(),
        (83, 61),
        cv2.CV_32FC1,
    )
    assert ok.all()
    np.testing.assert_allclose(u, wanted_u, atol=1e-4)
    np.testing.assert_allclose(v, wanted_v, atol=1e-4)


def test_undistorting_a_turned_fisheye_is_opencv_s_rectification():
    reference, other = camera("none", (83, 61), 70.0), camera("equidistant")
    turn = Transform(rotation=TURN.rotation, translation=[0.0, 0.0, 0.0])
    u, v, ok = calibrated_map(reference, other, turn, math.inf)
    wanted_u, wanted_v = cv2.fisheye.initUndistortRectifyMap(
        other.matrix.copy(),
        np.array(other.distortion),
        turn.rotation.T.copy(),
        reference.matrix.copy(),
        (83, 61),
        cv2.CV_32FC1,
    )
    assert ok.all()
    np.testing.assert_allclose(u, wanted_u, atol=1e-4)
    np.testing.assert_allclose(v, wanted_v, atol=1e-4)


def test_a_plane_without_distortion_is_a_homography():
    """H = K (R + t n' / d) K^-1 from the reference to the other camera; the file holds its inverse."""
    reference, other, depth = camera("none", TO, 45.0), camera("none", FROM, 40.0), 1.7
    normal = np.array([0.0, 0.0, 1.0])
    to_other = (
        other.matrix @ (TURN.rotation + np.outer(TURN.translation, normal) / depth) @ np.linalg.inv(reference.matrix)
    )
    u, v, ok = calibrated_map(reference, other, TURN, depth)
    x, y = np.meshgrid(np.arange(TO[0]), np.arange(TO[1]))
    mapped = np.einsum("ij,jyx->iyx", to_other, np.stack([x, y, np.ones_like(x)]).astype(np.float64))
    assert ok.all()
    np.testing.assert_allclose([u, v], mapped[:2] / mapped[2], atol=1e-9)
    plane = Registration(CalibratedPlane(reference=reference, other=other, transform=TURN, plane_depth_m=depth))
    by_matrix = Registration(homography(np.linalg.inv(to_other)))
    assert plane.mode == "calibrated" and plane.overlap == by_matrix.overlap < 1.0
    for kind in KINDS:
        for got, wanted in zip(plane.warp(picture(kind)), by_matrix.warp(picture(kind))):
            np.testing.assert_array_equal(got, wanted)


def test_a_plane_seen_by_both_cameras_coincides():
    """Two pictures of one painted plane, each made pixel by pixel from its own camera: registration must join them."""
    reference, other, depth = camera("plumb_bob", (61, 47), 45.0), camera("equidistant", (53, 41), 40.0), 3.0

    def paint(point):  # metres on the plane
        return 100 + 40 * np.sin(1.9 * point[..., 0]) + 40 * np.cos(2.3 * point[..., 1])

    ray_x, ray_y, _ = reference.rays(*np.meshgrid(np.arange(61.0), np.arange(47.0)))
    seen_by_reference = paint(depth * np.stack([ray_x, ray_y], -1))
    back = TURN.inverse()
    ray_x, ray_y, _ = other.rays(*np.meshgrid(np.arange(53.0), np.arange(41.0)))
    rays = np.stack([ray_x, ray_y, np.ones_like(ray_x)], -1) @ back.rotation.T
    # From the other camera's place along each ray to z = depth of the reference.
    along = (depth - back.translation[2]) / rays[..., 2]
    seen_by_other = paint((back.translation + along[..., None] * rays)[..., :2]).astype(np.float32)
    plane = Registration(CalibratedPlane(reference=reference, other=other, transform=TURN, plane_depth_m=depth))
    warped, valid = plane.warp(seen_by_other)
    assert valid.mean() > 0.6
    assert np.abs(warped - seen_by_reference)[valid].max() < 1.5
    wrong = CalibratedPlane(reference=reference, other=other, transform=back, plane_depth_m=depth)
    warped, valid = Registration(wrong).warp(seen_by_other)
    assert np.abs(warped - seen_by_reference)[valid].max() > 10, "the other direction of the transform does not"


def test_there_and_back_between_calibrated_cameras():
    """At one distance from both: cameras side by side that look the same way share the plane."""
    left, right = camera("rational", (61, 47), 45.0), camera("plumb_bob", (53, 41), 40.0)
    side = Transform(rotation=np.eye(3), translation=[0.2, 0.05, 0.0])
    x, y = np.meshgrid(np.arange(53), np.arange(41))
    raw = (120 + 60 * np.sin(x / 9) + 50 * np.cos(y / 7)).astype(np.float32)
    there = Registration(CalibratedPlane(reference=left, other=right, transform=side, plane_depth_m=4.0))
    back = Registration(CalibratedPlane(reference=right, other=left, transform=side.inverse(), plane_depth_m=4.0))
    warped, valid = there.warp(raw)
    again, both = back.warp(warped, valid=valid)
    assert both.mean() > 0.5
    assert np.abs(again - raw)[both].max() < 1.5


def test_rays_that_a_lens_model_folds_back_are_not_seen():
    """Beyond its limit the polynomial sends far directions to pixels in the picture: ghosts."""
    reference = camera("none", (97, 75), 18.0)
    other = Calibration(size=(97, 75), matrix=[60, 0, 48, 0, 60, 37, 0, 0, 1], distortion=(-0.3,))
    _, _, ok = calibrated_map(reference, other, Transform(rotation=np.eye(3), translation=np.zeros(3)), math.inf)
    ray_x, ray_y, _ = reference.rays(*np.meshgrid(np.arange(97.0), np.arange(75.0)))
    radius = np.hypot(ray_x, ray_y)
    limit = 1 / math.sqrt(0.9)  # where r - 0.3 r^3 stops growing
    np.testing.assert_array_equal(ok, radius < limit)
    points = np.stack([ray_x, ray_y, np.ones_like(ray_x)], -1).reshape(-1, 3)
    place = opencv_project(other, points).reshape(75, 97, 2)
    inside = (place >= 0).all(-1) & (place[..., 0] <= 96) & (place[..., 1] <= 74)
    assert (inside & ~ok).any(), "OpenCV alone would have shown them"


def test_pixels_that_no_ray_reaches_have_none():
    """The radius r - 0.3 r^3 never exceeds that at the fold."""
    cam = Calibration(size=(97, 75), matrix=[30, 0, 48, 0, 30, 37, 0, 0, 1], distortion=(-0.3,))
    x, y = np.meshgrid(np.arange(97.0), np.arange(75.0))
    most = 2 / 3 / math.sqrt(0.9)
    ray_x, ray_y, ok = cam.rays(x, y)
    np.testing.assert_array_equal(ok, np.hypot(x - 48, y - 37) / 30 < most)
    assert ok.any() and not ok.all() and np.isfinite(ray_x).all() and np.isfinite(ray_y).all()


def test_tangential_distortion_folds_too():
    """x + 3 p2 x^2 along the axis: grows until x = 1 / (6 |p2|)."""
    cam = Calibration(size=(97, 75), matrix=[30, 0, 48, 0, 30, 37, 0, 0, 1], distortion=(0, 0, 0, -0.3))
    x = np.array([0.2, 0.54, 0.57, 0.9])
    np.testing.assert_array_equal(cam.project(x, np.zeros(4))[2], x < 1 / 1.8)


def test_slopes_of_the_lens_are_those_of_its_values():
    """Newton's method would find its way with slopes that are nearly right, slowly."""
    lens = PolynomialLens(np.array([0.3, 0.1, 0.02, -0.03, 0.01, 0.5, 0.2, 0.03, 0.02, -0.01, -0.03, 0.04]))
    x, y = np.random.default_rng(0).uniform(-0.8, 0.8, (2, 50))
    step = 1e-6
    _, _, *slopes = lens._evaluate(x, y)
    by_x = [(a - b) / (2 * step) for a, b in zip(lens._evaluate(x + step, y)[:2], lens._evaluate(x - step, y)[:2])]
    by_y = [(a - b) / (2 * step) for a, b in zip(lens._evaluate(x, y + step)[:2], lens._evaluate(x, y - step)[:2])]
    np.testing.assert_allclose(slopes, [by_x[0], by_y[0], by_x[1], by_y[1]], atol=1e-8)


@pytest.mark.parametrize("lens", ["plumb_bob", "equidistant"])
def test_points_behind_the_other_camera_are_invalid(lens):
    """The other camera has turned by 100 degrees: only what lies before it can be seen."""
    reference = camera("none", (97, 75), 20.0)
    turn = Transform(rotation=cv2.Rodrigues(np.array([0.0, math.radians(100), 0.0]))[0], translation=[0.1, 0.0, 0.0])
    _, _, ok = calibrated_map(reference, camera(lens, focal=20.0), turn, 5.0)
    for y in range(0, 75, 3):
        for x in range(97):
            point = turn.rotation @ (5.0 * np.linalg.solve(reference.matrix, [x, y, 1.0])) + turn.translation
            if point[2] <= 0.0:
                assert not ok[y, x]
    assert ok.any() and not ok.all()


def test_pixels_of_the_reference_without_a_ray_in_front_are_invalid():
    """A fisheye of more than 180 degrees: its rim never meets a plane before it."""
    reference = Calibration(
        size=(101, 101), matrix=[28, 0, 50, 0, 28, 50, 0, 0, 1], model="equidistant", distortion=(0, 0, 0, 0)
    )
    _, _, ok = calibrated_map(reference, camera(), Transform(rotation=np.eye(3), translation=np.zeros(3)), 5.0)
    x, y = np.meshgrid(np.arange(101) - 50, np.arange(101) - 50)
    np.testing.assert_array_equal(ok, np.hypot(x, y) / 28 < np.radians(89.9))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-0.5, 0.5),
    st.floats(-0.2, 0.2),
    st.floats(-5e-3, 5e-3),
    st.floats(-5e-3, 5e-3),
    st.sampled_from([0, 1, 2]),
)
def test_rays_are_right_or_invalid_for_any_lens(k1, k2, p1, p2, model):
    name = ("plumb_bob", "rational_polynomial", "equidistant")[model]
    distortion = {0: (k1, k2, p1, p2, 0.0), 1: (k1, k2, p1, p2, 0.0, k2, k1, 0.0), 2: (k1, k2, p1, p2)}[model]
    cam = Calibration(size=(97, 75), matrix=[60, 0, 48, 0, 60, 37, 0, 0, 1], model=name, distortion=distortion)
    x, y = np.meshgrid(np.arange(97.0), np.arange(75.0))
    ray_x, ray_y, ok = cam.rays(x, y)
    assert ok[37, 48] and np.isfinite(ray_x).all() and np.isfinite(ray_y).all()
    points = np.stack([ray_x, ray_y, np.ones_like(x)], -1)[ok]
    np.testing.assert_allclose(opencv_project(cam, points), np.stack([x, y], -1)[ok], atol=1e-5)


def test_rows_are_those_of_the_whole_map():
    reference, other = camera("plumb_bob"), camera("equidistant", (45, 37), 33.0)
    whole = calibrated_map(reference, other, TURN, 2.0)
    part = calibrated_map(reference, other, TURN, 2.0, rows=slice(10, 31))
    for some, every in zip(part, whole):
        np.testing.assert_array_equal(some, every[10:31])


@pytest.mark.parametrize("lens", ["plumb_bob", "equidistant"])
def test_grids_are_made_in_strips_without_seams(lens, monkeypatch):
    plane = CalibratedPlane(
        reference=camera("plumb_bob"), other=camera(lens, (45, 37), 33.0), transform=TURN, plane_depth_m=2.0
    )
    whole = Registration(plane).grid((37, 45), (75, 97))
    monkeypatch.setattr("isfl_ros.registration.grid._STRIP", 97 * 7)
    strips = Registration(plane).grid((37, 45), (75, 97))
    for name in ("corner", "weight", "valid"):
        np.testing.assert_array_equal(getattr(strips, name), getattr(whole, name))


# Calibrations


@pytest.mark.parametrize("lens", LENSES)
def test_a_calibration_scales_with_its_pictures(lens):
    """A direction that is seen at a place of the picture is seen at the same place of the scaled picture."""
    cam = camera(lens)
    big = cam.scaled((97 * 3, 75 * 3))
    assert cam.scaled((97, 75)) is cam
    x, y, _ = cam.project(np.array([0.1, -0.3]), np.array([0.2, 0.05]))
    big_x, big_y, _ = big.project(np.array([0.1, -0.3]), np.array([0.2, 0.05]))
    np.testing.assert_allclose([big_x, big_y], [(x + 0.5) * 3 - 0.5, (y + 0.5) * 3 - 0.5], atol=1e-9)
    np.testing.assert_allclose(big.scaled((97, 75)).matrix, cam.matrix, atol=1e-12)


def test_calibrated_registration_of_scaled_pictures():
    plane = CalibratedPlane(
        reference=camera("plumb_bob"), other=camera("rational", (45, 37), 33.0), transform=TURN, plane_depth_m=2.0
    )
    registration = Registration(plane)
    small = registration.grid((37, 45), (75, 97))
    large = registration.grid((37 * 2, 45 * 2), (75 * 3, 97 * 3))
    # The middle pixel of 3x3 is the same direction; its place in the doubled picture is that place, doubled.
    place = (small.corner + np.stack([small.weight % 32, small.weight // 32], -1) / 32)[small.valid]
    middle = large.corner + np.stack([large.weight % 32, large.weight // 32], -1) / 32
    assert large.valid[1::3, 1::3][small.valid].all()
    np.testing.assert_allclose(middle[1::3, 1::3][small.valid], (place + 0.5) * 2 - 0.5, atol=3 / 64 + 1e-9)
    with pytest.raises(InputError, match="rgb: size of the calibration does not fit.*97x75.*97x61.*cropped"):
        named = CalibratedPlane(reference=camera(name="rgb"), other=camera(), transform=TURN, plane_depth_m=2.0)
        Registration(named).grid((75, 97), (61, 97))


K = [60.0, 0, 48, 0, 60, 37, 0, 0, 1]
BAD_CALIBRATIONS = {
    "uncalibrated": ({"matrix": np.zeros(9)}, "thermal: not calibrated.*K of zeros.*homography or none"),
    "sizes swapped": ({"size": (37, 97), "matrix": [60, 0, 48, 0, 60, 18, 0, 0, 1]}, "principal point.*look swapped"),
    "K of a larger picture": (
        {"matrix": [600, 0, 480, 0, 600, 370, 0, 0, 1]},
        "principal point.*K is for pictures of another",
    ),
    "column major": ({"matrix": np.reshape(K, (3, 3)).T}, "K unusable.*row major"),
    "skew": ({"matrix": [60, 1, 48, 0, 60, 37, 0, 0, 1]}, "K unusable"),
    "negative": ({"matrix": [60, 0, 48, 0, -60, 37, 0, 0, 1]}, "K unusable"),
    "NaN": ({"matrix": [60, 0, 48, 0, np.nan, 37, 0, 0, 1]}, "K unusable.*finite"),
    "size": ({"size": (0, 0)}, "size of the calibration unusable"),
    "model": ({"model": "inverse_brown"}, "unknown distortion model.*plumb_bob, rational_polynomial, equidistant"),
    "no model": ({"model": "", "distortion": (0.1,)}, "unknown distortion model"),
    "too many": ({"distortion": (0.1, 0, 0, 0, 0, 0.2)}, "do not fit the model plumb_bob.*at most 5"),
    "fisheye of five": ({"model": "equidistant", "distortion": (0.1, 0, 0, 0, 0.3)}, "do not fit.*at most 4"),
    "tilt": ({"model": "rational_polynomial", "distortion": (0.1,) * 14}, "do not fit.*tau"),
    "D not finite": ({"distortion": (np.inf,)}, "finite"),
}


@pytest.mark.parametrize("case", BAD_CALIBRATIONS)
def test_calibrations_that_are_wrong_are_named(case):
    fields, words = BAD_CALIBRATIONS[case]
    with pytest.raises(InputError, match=words) as caught:
        Calibration(**{"size": (97, 75), "matrix": K, "name": "thermal"} | fields)
    assert "thermal" in str(caught.value)


def test_zeros_at_the_end_of_d_mean_nothing():
    """Drivers pad D: 14 numbers of a rational model, 5 of plumb_bob, or none at all."""
    for model, short, long in (
        ("rational_polynomial", (0.1, 0.2), (0.1, 0.2) + (0.0,) * 12),
        ("plumb_bob", (0.1,), (0.1, 0, 0, 0, 0, 0, 0, 0)),
        ("", (), (0.0,) * 5),
    ):
        a, b = (
            Calibration(size=(97, 75), matrix=K, model=model, distortion=d).project(0.3, 0.2) for d in (short, long)
        )
        assert a == b


def test_a_principal_point_off_the_middle_is_mentioned():
    half = Calibration(size=(97, 75), matrix=[30, 0, 24, 0, 30, 18, 0, 0, 1], name="rgb")
    plane = CalibratedPlane(
        reference=half,
        other=camera(),
        transform=Transform(rotation=np.eye(3), translation=np.zeros(3)),
        plane_depth_m=2.0,
    )
    (words,) = Registration(plane).concerns
    assert "rgb: the principal point 24, 18" in words and "another resolution" in words


# Transforms


def test_quaternions_are_x_y_z_w():
    angle = 0.3
    t = Transform.from_quaternion((0, 0, math.sin(angle / 2), math.cos(angle / 2)), (1, 2, 3))
    np.testing.assert_allclose(t.rotation, cv2.Rodrigues(np.array([0, 0, angle]))[0], atol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        vector = rng.normal(size=3)
        length = np.linalg.norm(vector)
        q = np.array([*(vector / length * np.sin(length / 2)), np.cos(length / 2)])
        np.testing.assert_allclose(
            Transform.from_quaternion(q * 1.001, (0, 0, 0)).rotation, cv2.Rodrigues(vector)[0], atol=1e-12
        )
    point = np.array([0.3, -0.2, 4.0])
    there = TURN.rotation @ point + TURN.translation
    np.testing.assert_allclose(TURN.inverse().rotation @ there + TURN.inverse().translation, point, atol=1e-12)
    with pytest.raises(InputError, match=r"\(x, y, z, w\)"):
        Transform.from_quaternion((0, 0, 0, 0), (0, 0, 0))


@pytest.mark.parametrize("rotation", [2 * np.eye(3), np.diag([1, 1, -1]), np.ones((3, 3)), np.full((3, 3), np.nan)])
def test_rotations_that_are_none_are_refused(rotation):
    with pytest.raises(InputError, match="rotation"):
        Transform(rotation=rotation, translation=np.zeros(3))


BODY_TO_OPTICAL = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], float)
WRONG_TRANSFORMS = {
    "body frame": (Transform(rotation=BODY_TO_OPTICAL, translation=np.zeros(3)), "90 degrees apart.*optical frames"),
    "w first": (Transform.from_quaternion((1, 0, 0, 0), (0, 0, 0)), "180 degrees apart.*quaternion's order"),
    "millimetres": (Transform(rotation=np.eye(3), translation=[120.0, 0, 0]), "0 degrees apart, 120 m between.*metres"),
}


@pytest.mark.parametrize("case", WRONG_TRANSFORMS)
def test_transforms_that_show_nothing_are_explained(case):
    transform, words = WRONG_TRANSFORMS[case]
    with pytest.raises(InputError, match=f"nothing that the reference camera sees.*{words}"):
        Registration(CalibratedPlane(reference=camera(), other=camera(), transform=transform, plane_depth_m=10.0))


@pytest.mark.parametrize("depth", [0.0, -1.0, math.nan])
def test_planes_behind_the_camera_are_refused(depth):
    with pytest.raises(InputError, match="plane depth out of range; expected > 0 m"):
        CalibratedPlane(reference=camera(), other=camera(), transform=TURN, plane_depth_m=depth)
    with pytest.raises(InputError, match="plane depth"):
        calibrated_map(camera(), camera(), TURN, depth)


def test_the_error_of_a_wrong_depth_is_as_stated():
    """f b |1/Z - 1/plane| pixels for a baseline across the view."""
    cam = camera()
    side = Transform(rotation=np.eye(3), translation=[0.2, 0.0, 0.0])
    at_plane, _, _ = calibrated_map(cam, cam, side, 10.0)
    at_depth, _, _ = calibrated_map(cam, cam, side, 4.0)
    np.testing.assert_allclose(at_depth - at_plane, 60.0 * 0.2 * (1 / 4 - 1 / 10), atol=1e-9)
