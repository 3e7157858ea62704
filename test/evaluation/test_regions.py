"""Regions where a modality is taken away: what they must be, and their distances against a search over all pixels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from isfl_ros.evaluation.regions import (
    PARTS,
    REGIONS,
    WHOLE,
    make_region,
    nearest_inside,
    region_digest,
    signed_distance,
)

SHAPES = [(480, 640), (101, 143), (41, 53)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PARTS)
def test_the_part_that_is_missing(name, shape):
    for stem in ("a", "b", "00123N"):
        region = make_region(name, shape, stem)
        assert region.shape == shape and region.dtype == bool
        expected = PARTS[name]
        slack = 0.5 / min(shape) if name != "holes" else 1 / region.size
        assert region.mean() == pytest.approx(expected, abs=slack + 1e-9)
    assert make_region(WHOLE, shape, "a").all()


def test_a_band_is_a_band_and_every_side_occurs():
    sides = set()
    for stem in range(40):
        region = make_region("band25", (60, 80), str(stem))
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        whole = np.zeros_like(region)
        whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        np.testing.assert_array_equal(region, whole)
        assert (len(rows), len(columns)) in ((15, 80), (60, 20))
        sides.add((rows[0], rows[-1], columns[0], columns[-1]))
    assert len(sides) == 4


def test_holes_are_irregular_and_large_enough_to_measure():
    region = make_region("holes", (240, 320), "x")
    edge = (region[1:] != region[:-1]).sum() + (region[:, 1:] != region[:, :-1]).sum()
    assert edge > 1.3 * 4 * np.sqrt(region.sum())  # more edge than a square of that area
    assert (signed_distance(region) >= 8).sum() > 0.2 * region.sum()


def test_stem_and_size_alone_decide():
    for name in REGIONS:
        first = region_digest(make_region(name, (97, 131), "x"))
        assert region_digest(make_region(name, (97, 131), "x")) == first
        assert region_digest(make_region(name, (131, 97), "x")) != first
    digests = {region_digest(make_region("holes", (97, 131), stem)) for stem in "abcdef"}
    assert len(digests) == 6


def test_another_process_makes_the_same_regions():
    program = (
        "from isfl_ros.evaluation.regions import *\n"
        "print(*(region_digest(make_region(name, (64, 80), 'x')) for name in REGIONS))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == [region_digest(make_region(name, (64, 80), "x")) for name in REGIONS]


def _searched(region):
    """Distance and nearest pixel across the edge, over all pairs of pixels."""
    inside, outside = np.argwhere(region), np.argwhere(~region)
    distance = np.zeros(region.shape)
    for mine, others, sign in ((inside, outside, 1), (outside, inside, -1)):
        gaps = np.sqrt(((mine[:, None] - others[None]) ** 2).sum(axis=-1))
        distance[tuple(mine.T)] = sign * (gaps.min(axis=1) - 0.5)
    return distance


@pytest.mark.parametrize("name", ["band25", "holes"])
def test_distances(name):
    region = make_region(name, (43, 41), "y")
    np.testing.assert_allclose(signed_distance(region), _searched(region), atol=1e-5)
    assert (signed_distance(np.ones((9, 9), bool)) == np.inf).all()
    assert (signed_distance(np.zeros((9, 9), bool)) == -np.inf).all()


def test_both_sides_know_the_same_place_of_the_edge():
    region = np.zeros((40, 60), bool)
    region[:, 33:] = True
    rows, columns = np.divmod(nearest_inside(region), 60)
    np.testing.assert_array_equal(columns, np.full((40, 60), 33))
    np.testing.assert_array_equal(rows, np.arange(40)[:, None] * np.ones((1, 60), int))
    holes = make_region("holes", (90, 70), "z")
    found = nearest_inside(holes)
    assert holes.ravel()[found].all()
    assert (np.abs(signed_distance(holes).ravel()[found]) <= 1.5).all()  # a pixel next to the edge
