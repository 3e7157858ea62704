"""What the masks promise: areas, disjointness, shapes, seeds."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest
import torch

from isfl_ros.errors import InputError
from isfl_ros.training.config import VARIANTS, InterventionConfig
from isfl_ros.training.interventions import _quantile, draw_variants, make_masks

SHAPE = (12, 96, 80)


def masks(variant, step=0, shape=SHAPE, seed=3, slots=None, **config):
    samples = range(shape[0]) if slots is None else slots
    return make_masks(variant, InterventionConfig(**config), shape[1:], seed, step, samples, "cpu")


@pytest.mark.parametrize("overlap", ["trim", "coin"])
@pytest.mark.parametrize("disks", [0.0, 0.3])
def test_complementary_masks_never_hide_both(overlap, disks):
    for step in range(10):
        visible, infrared = masks("complementary", step, overlap=overlap, disks=disks, square=32, most_area=1.0)
        assert visible.dtype == infrared.dtype == torch.bool
        assert visible.shape == infrared.shape == (12, 1, 96, 80)
        assert bool((visible | infrared).all())
        assert not visible.all() and not infrared.all()


def test_the_two_masked_variants_are_independent_draws():
    assert not torch.equal(masks("complementary").visible, masks("identical").visible)


def test_coin_leaves_both_modalities_a_part_of_what_met():
    found = set()
    for step in range(5):
        trimmed = masks("complementary", step, overlap="trim", square=48, most_area=1.0)
        tossed = masks("complementary", step, overlap="coin", square=48, most_area=1.0)
        freed = ~trimmed.visible & tossed.visible  # pixels that the coin gave back to the visible picture
        found.update(torch.unique(freed).tolist())
        assert torch.equal(~trimmed.visible | ~trimmed.infrared, ~tossed.visible | ~tossed.infrared)
    assert found == {False, True}


def test_identical_masks_are_identical_squares_of_16():
    visible, infrared = masks("identical")
    assert torch.equal(visible, infrared)
    hidden = (~visible).flatten(1).sum(1)
    assert int(hidden.min()) >= 256 and int(hidden.max()) <= 6 * 256
    assert len(set(hidden.tolist())) > 1, "the number of squares must vary"


def test_one_square_is_a_square_and_a_disk_is_round():
    square = (~masks("identical", most_squares=1)[0])[0, 0]
    rows, columns = torch.nonzero(square, as_tuple=True)
    assert rows.max() - rows.min() == columns.max() - columns.min() == 15 and int(square.sum()) == 256
    disk = (~masks("identical", most_squares=1, disks=1.0)[0])[0, 0]
    assert abs(int(disk.sum()) - np.pi * 64) < 16


def test_area_is_bounded_on_small_patches():
    for step in range(20):
        visible, _ = masks("identical", step, shape=(8, 40, 40))  # half of 1600 px is three squares of 256
        assert int((~visible).flatten(1).sum(1).max()) <= 800


def test_dropout_hides_one_whole_modality():
    visible, infrared = masks("drop_infrared")
    assert visible.all() and not infrared.any()
    visible, infrared = masks("drop_visible")
    assert infrared.all() and not visible.any()


def test_large_regions_hide_one_modality_in_bands_halves_and_holes():
    areas = []
    for step in range(30):
        visible, infrared = masks("complementary", step, large=1.0)
        assert bool((visible | infrared).all())
        whole = visible.flatten(1).all(1) ^ infrared.flatten(1).all(1)
        assert bool(whole.all()), "a large region is cut from exactly one modality"
        areas += [float(1 - (v & i).float().mean()) for v, i in zip(visible, infrared)]
    assert 0.025 <= min(areas) < 0.06 and max(areas) <= 0.55, "thin bands too"
    assert sum(abs(a - 0.5) < 0.01 for a in areas) > len(areas) / 5, "half frames"
    assert np.std(areas) > 0.1


def test_large_regions_are_bands_twice_as_often_as_halves_or_holes():
    kinds = {"band": 0, "half": 0, "holes": 0}
    for step in range(60):
        visible, infrared = masks("complementary", step, large=1.0)
        for missing in ~(visible & infrared)[:, 0]:
            rows, columns = missing.all(1), missing.all(0)
            straight = bool((missing == (rows[:, None] | columns)).all()) and (rows.any() != columns.any())
            kinds["holes" if not straight else "half" if abs(float(missing.float().mean()) - 0.5) < 0.01 else "band"] += 1
    total = sum(kinds.values())
    for kind, share in (("band", 0.5), ("half", 0.25), ("holes", 0.25)):
        assert kinds[kind] / total == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5), kinds


def test_specks_are_single_pixels_and_small_squares_of_one_modality():
    shares, sides = [], set()
    for step in range(30):
        visible, infrared = masks("complementary", step, specks=1.0, large=0.5)
        assert bool((visible | infrared).all())
        assert bool((visible.flatten(1).all(1) ^ infrared.flatten(1).all(1)).all()), "of exactly one modality"
        for missing in ~(visible & infrared)[:, 0]:
            shares.append(float(missing.float().mean()))
            _, _, found, _ = cv2.connectedComponentsWithStats(missing.numpy().astype(np.uint8), connectivity=8)
            sides |= {int(stat[cv2.CC_STAT_WIDTH]) for stat in found[1:] if stat[cv2.CC_STAT_WIDTH] == stat[cv2.CC_STAT_HEIGHT]}
    assert 0 < min(shares) < 0.003 and 0.015 < max(shares) < 0.06
    assert {1, 2, 3} <= sides
    plain, specked = (masks("complementary", 3, large=0.5, **more) for more in ({}, {"specks": 0.5}))
    same = [torch.equal(a, b) and torch.equal(c, d) for a, b, c, d in zip(plain.visible, specked.visible, plain.infrared, specked.infrared)]
    assert 0 < sum(same) < len(same), "what gets none is as it would be without"


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_depend_on_slot_and_step_not_on_who_makes_them(variant):
    options = {"large": 0.5, "specks": 0.3, "disks": 0.3, "overlap": "coin"}
    whole = masks(variant, **options)
    for slots in (range(0, 5), range(5, 12), [11, 3]):
        part = masks(variant, slots=slots, **options)
        for all_slots, some in zip(whole, part):
            assert torch.equal(all_slots[list(slots)], some)


def test_masks_are_seeded():
    whole = masks("complementary", large=0.5)
    again = masks("complementary", large=0.5)
    assert torch.equal(whole.visible, again.visible)
    assert not torch.equal(whole.visible, masks("complementary", step=1, large=0.5).visible)
    assert not torch.equal(whole.visible, masks("complementary", seed=4, large=0.5).visible)


def test_draws_are_those_of_earlier_versions():
    """Recorded when bands became thinner: a run that is resumed must see the masks that it would have seen."""
    digest = hashlib.sha256()
    for step in range(4):
        for mask in (*masks("complementary", step, large=0.5, disks=0.3), *masks("identical", step)):
            digest.update(np.packbits(mask.numpy()).tobytes())
    assert digest.hexdigest() == "4ec0a4c9b3a527482288bd826334da9054e87de4bebef037743bbafc1365025c"


def test_quantile_is_torchs():
    values, share = torch.rand(7, 501), torch.rand(7)
    expected = torch.stack([torch.quantile(row, q) for row, q in zip(values, share)])
    assert torch.equal(_quantile(values, share), expected)


def test_variants_of_a_step():
    assert draw_variants(InterventionConfig(), 0, 0) == VARIANTS
    assert draw_variants(InterventionConfig(identical=False), 0, 0) == tuple(v for v in VARIANTS if v != "identical")
    drawn = [draw_variants(InterventionConfig(per_step=2), 0, step) for step in range(200)]
    assert all(len(d) == 2 and len(set(d)) == 2 for d in drawn)
    share = {v: sum(v in d for d in drawn) / 200 for v in VARIANTS}
    assert all(0.35 < s < 0.65 for s in share.values()), share


@pytest.mark.parametrize("values", [{"square": 0}, {"most_area": 1.5}, {"per_step": 5}, {"overlap": "no"}, {"large": -1.0}])
def test_values_are_checked(values):
    with pytest.raises(InputError, match=f"interventions.{next(iter(values))}"):
        InterventionConfig(**values)
