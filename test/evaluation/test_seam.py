"""The figure for a visible seam, on pictures with a known answer."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from isfl_ros.evaluation.regions import make_region, signed_distance
from isfl_ros.evaluation.seam import seam

SHAPE = (160, 208)
STRAIGHT = np.zeros(SHAPE, bool)
STRAIGHT[:, 101:] = True  # not on the grid of the runs


def _flat(level):
    return np.full(SHAPE, level, np.uint8)


def _texture(seed, amplitude, sigma=1.5):
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=SHAPE), (0, 0), sigma)
    return np.clip(np.rint(128 + amplitude * noise / noise.std()), 0, 255).astype(np.uint8)


def _ramp(region, k, width):
    """From 100 to 100 + k over `width` px, its middle on the edge."""
    part = np.clip(signed_distance(region) / width + 0.5, 0, 1)
    return np.rint(100 + k * part).astype(np.uint8)


@pytest.mark.parametrize("region", [STRAIGHT, *(make_region(n, SHAPE, "s") for n in ("band5", "band25", "half"))])
@pytest.mark.parametrize("k", [-60, 4, 30])
def test_a_hard_step_counts_in_full(region, k):
    fused = np.where(region, 100 + k, 100).astype(np.uint8)
    assert seam(fused, _flat(100), _flat(100), region) == pytest.approx(abs(k))


@pytest.mark.parametrize("stem", "abc")
def test_a_hard_step_around_holes(stem):
    region = make_region("holes", SHAPE, stem)
    fused = np.where(region, 140, 100).astype(np.uint8)
    assert seam(fused, _flat(100), _flat(100), region) == pytest.approx(40, rel=0.05)


def test_a_step_in_texture_that_changes_its_sign():
    both = _texture(0, 6)
    up = np.arange(SHAPE[0])[:, None] // 32 % 2 == 0
    switched = both + np.where(STRAIGHT, np.where(up, 40, -40), 0)
    assert seam(switched.astype(np.uint8), both, both, STRAIGHT) == pytest.approx(40, rel=0.1)


def test_the_wider_the_transition_the_less_of_a_seam():
    k = 60
    found = {width: seam(_ramp(STRAIGHT, k, width), _flat(100), _flat(160), STRAIGHT) for width in (4, 8, 16, 32)}
    assert found[4] == pytest.approx(k / 2, rel=0.1)
    assert found[4] > 2 * found[8] > 4 * found[16] > 0
    assert found[16] < k / 16 and found[32] < k / 40
    holes = make_region("holes", SHAPE, "a")
    assert seam(_ramp(holes, k, 16), _flat(100), _flat(160), holes) < k / 10


@pytest.mark.parametrize("shift", [-4, -2, 2, 4])
def test_a_step_beside_the_edge_is_still_a_seam(shift):
    fused = np.where(np.roll(STRAIGHT, shift, axis=1), 140, 100).astype(np.uint8)
    fused[:, :8], fused[:, -8:] = 100, 140  # what was rolled in from the other border
    assert seam(fused, _flat(100), _flat(100), STRAIGHT) == pytest.approx(40)


def test_a_line_along_the_edge_is_a_seam():
    distance = signed_distance(STRAIGHT)
    fused = np.where((distance > 0) & (distance < 2), 70, 100).astype(np.uint8)
    assert seam(fused, _flat(100), _flat(100), STRAIGHT) > 20


@pytest.mark.parametrize("region", [STRAIGHT, make_region("holes", SHAPE, "t")])
def test_texture_is_none(region):
    infrared, visible = _texture(1, 20), _texture(2, 30)
    both = ((infrared.astype(int) + visible) // 2).astype(np.uint8)
    for fused in (both, infrared, visible):
        assert seam(fused, infrared, visible, region) < 0.3


def test_detail_that_no_source_has_is_none_where_it_is_everywhere():
    noise = cv2.GaussianBlur(np.random.default_rng(3).normal(size=(640, 800)), (0, 0), 1.5)
    fused = np.rint(128 + 10 * noise / noise.std()).astype(np.uint8)
    flat = np.full(fused.shape, 128, np.uint8)
    assert seam(fused, flat, flat, make_region("holes", fused.shape, "t")) < 0.5


def test_a_step_against_those_of_the_sources_counts():
    against = np.where(STRAIGHT, 90, 100).astype(np.uint8)
    brighter = np.where(STRAIGHT, 130, 100).astype(np.uint8)
    assert seam(against, brighter, _flat(100), STRAIGHT) == pytest.approx(10)
    assert seam(_flat(100), brighter, brighter, STRAIGHT) == 0  # what is not there can be no seam


def test_an_edge_of_the_scene_in_the_same_place_is_none():
    scene = np.where(STRAIGHT, 180, 60).astype(np.uint8)
    assert seam(scene, scene, _flat(90), STRAIGHT) == 0
    assert seam(scene, _flat(90), scene, STRAIGHT) == 0


def test_without_an_edge_there_is_no_figure():
    for region in (np.ones(SHAPE, bool), np.zeros(SHAPE, bool)):
        assert seam(_flat(1), _flat(2), _flat(3), region) is None
    corner = np.zeros(SHAPE, bool)
    corner[:2, :2] = True
    assert seam(_flat(1), _flat(2), _flat(3), corner) is None
