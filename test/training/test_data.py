"""Patches: registered, seeded by slot, with the persons of their labels."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest
import torch

from isfl_ros.errors import InputError
from isfl_ros.io.dataset import select_pairs
from isfl_ros.io.labels import number_persons
from isfl_ros.training.config import DataConfig
from isfl_ros.training.data import LoadedPair, PatchSampler, decode_pairs


def sampler_of(*pairs, batch=8, least_scale=1.0, seed=0):
    return PatchSampler(list(pairs), DataConfig(sets=("x",), patch=32, batch=batch, least_scale=least_scale), seed)


def texture(seed, height=70, width=90):
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def test_every_pair_comes_once_an_epoch_and_patches_stay_registered():
    flat = [LoadedPair(str(i), np.full((40, 50), 10 * i, np.uint8), np.full((40, 50), 10 * i, np.uint8)) for i in range(6)]
    sampler = sampler_of(*flat, batch=3)
    seen = [round(float(v) * 25.5) for step in range(4) for v in sampler.batch(step, range(3)).visible.mean(dim=(1, 2, 3))]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6)) and seen[:6] != seen[6:]
    batch = sampler_of(LoadedPair("t", texture(0), texture(0)), least_scale=0.5).batch(0, range(8))
    assert torch.equal(batch.visible, batch.infrared), "one crop, scale and turn for both modalities"
    assert len({tuple(v.flatten().tolist()) for v in batch.visible}) == 8
    assert batch.visible.dtype == torch.float32 and batch.visible.shape == (8, 1, 32, 32) and batch.people is None


def test_a_slot_is_cut_alike_whoever_cuts_it():
    sampler = sampler_of(*(LoadedPair(str(i), texture(i), texture(9 - i), texture(i).astype(np.uint16) // 64) for i in range(3)))
    whole = sampler.batch(5, range(8))
    for part in (range(0, 3), range(3, 7), range(7, 8)):
        for all_slots, some in zip(whole, sampler.batch(5, part)):
            some_of_all = all_slots[part.start : part.stop]
            assert torch.equal(some_of_all, some) if isinstance(some, torch.Tensor) else some_of_all == some


def test_draws_are_those_of_earlier_versions():
    """Recorded before samples were seeded by slot: a run that is resumed must see the patches that it would have seen."""
    sampler = sampler_of(LoadedPair("a", texture(0), texture(1)), LoadedPair("b", texture(2), texture(3)), batch=3, seed=7)
    digest = hashlib.sha256()
    for step in range(4):
        cut = sampler.cut(step, range(3))
        digest.update(cut.visible.numpy().tobytes() + cut.infrared.numpy().tobytes())
    assert digest.hexdigest() == "ab25472f35b65e1138e140f4fc78d6c6a7d83dcb07e8f3a1c4f1575080ea0125"


def test_persons_move_with_the_picture():
    people = np.zeros((70, 90), np.uint16)
    people[5:40, 10:30], people[30:66, 50:80] = 1, 2
    shown = (people * 60 + 20).astype(np.uint8)
    batch = sampler_of(LoadedPair("p", shown, shown, people)).batch(0, range(8))
    assert batch.people.dtype == torch.int16 and batch.people.shape == batch.visible.shape
    level = (batch.visible * 255).round().to(torch.int16)
    for picture, numbers in zip(level, batch.people):
        present = [n for n in (1, 2) if (picture == 60 * n + 20).any()]
        assert sorted(set(numbers.unique().tolist()) - {0}) == list(range(1, len(present) + 1)), "numbered from 1 in a sample"
        for place, number in enumerate(present):
            assert torch.equal(numbers == place + 1, picture == 60 * number + 20)
    assert batch.people_counts == tuple(int(n.max()) for n in batch.people)
    assert {len(n.unique()) for n in batch.people} >= {2, 3}, "samples with one and with two persons were drawn"


def test_persons_of_reduced_patches_keep_their_place():
    people = np.zeros((70, 90), np.uint16)
    people[5:40, 10:30], people[30:66, 50:80] = 1, 2
    shown = ((people > 0) * 200).astype(np.uint8)
    batch = sampler_of(LoadedPair("p", shown, shown, people), least_scale=0.45).batch(1, range(8))
    inside = batch.visible > 100 / 255
    assert inside.float().mean() > 0.1
    assert ((batch.people > 0) == inside).float().mean() > 0.98
    # Off by a pixel at most: everything clearly inside is numbered, everything clearly outside is not.
    assert (batch.people[batch.visible > 0.78] > 0).all() and (batch.people[batch.visible == 0] == 0).all()


def test_half_of_the_patches_are_sharpened_each_picture_by_its_own_amount():
    people = np.zeros((70, 90), np.uint16)
    people[20:50, 30:60] = 1
    soft = cv2.GaussianBlur(texture(4), (0, 0), 2.0)
    pair = LoadedPair("p", soft, soft, people)

    def cut(**options):
        return PatchSampler([pair], DataConfig(sets=("x",), patch=32, batch=64, **options), 0).batch(2, range(64))

    plain, sharp = cut(), cut(sharpen=2.0)
    assert torch.equal(plain.people, sharp.people), "the same places; persons keep their outlines"
    strength = [(x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2, 3)) for x in (plain.visible, sharp.visible, sharp.infrared)]
    stronger = [(x > strength[0]) for x in strength[1:]]
    touched = stronger[0] | stronger[1]  # an amount near 0 changes no grey level of one of them
    assert 20 < int(touched.sum()) < 44 and 16 < int((stronger[0] & stronger[1]).sum())
    assert torch.equal(plain.visible[~touched], sharp.visible[~touched])
    assert not torch.equal(sharp.visible[touched], sharp.infrared[touched])
    one = int(touched.nonzero()[0])
    amount = np.linspace(0, 2, 2001)
    source = plain.visible[one, 0].numpy() * 255
    blurred = cv2.GaussianBlur(source.round().astype(np.uint8), (0, 0), 1.0)
    got = sharp.visible[one, 0].numpy() * 255
    found = min(amount, key=lambda a: np.abs(np.clip(source + a * (source - blurred), 0, 255) - got).max())
    assert np.abs(np.clip(source + found * (source - blurred), 0, 255) - got).max() <= 0.51, "an unsharp mask of some amount"
    least, most = (float((strength[1] / strength[0])[touched].quantile(q)) for q in (0.1, 0.95))
    full = cv2.addWeighted(soft, 3.0, cv2.GaussianBlur(soft, (0, 0), 1.0), -2.0, 0.0).astype(float)
    by_two = np.abs(np.diff(full)).mean() / np.abs(np.diff(soft.astype(float))).mean()
    assert least < 1 + 0.3 * (by_two - 1) and 1 + 0.7 * (by_two - 1) < most < 1.1 * by_two, "amounts up to 2"


def test_half_of_the_patches_get_another_tone_each_picture_its_own():
    people = np.zeros((70, 90), np.uint16)
    people[20:50, 30:60] = 1
    pair = LoadedPair("p", texture(4), texture(4), people)

    def cut(**options):
        return PatchSampler([pair], DataConfig(sets=("x",), patch=32, batch=64, **options), 0).batch(2, range(64))

    plain, toned = cut(), cut(tone=0.5)
    assert torch.equal(plain.people, toned.people), "the same places; persons keep their outlines"
    changed = torch.tensor([not torch.equal(a, b) for a, b in zip(plain.visible, toned.visible)])
    assert 20 < int(changed.sum()) < 44
    assert not any(torch.equal(a, b) for a, b in zip(toned.visible[changed], toned.infrared[changed]))
    spreads = []
    for before, after in zip(plain.visible[changed], toned.visible[changed]):
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= 0).all(), "a curve that rises everywhere"
        spreads.append(float(after.max() - after.min()))
        # The steepest power of exp(0.5), and a contrast of exp(-1) of what it was at the least.
        assert float((after.max() - after.min()) / (before.max() - before.min())) > 0.2
    assert min(spreads) < 0.5 < max(spreads)


def test_patches_can_be_placed_on_persons():
    people = np.zeros((200, 220), np.uint16)
    people[150:160, 190:194] = 1
    pair = LoadedPair("p", texture(0, 200, 220), texture(1, 200, 220), people)
    nobody = LoadedPair("n", texture(2, 200, 220), texture(3, 200, 220), np.zeros_like(people))

    def with_person(share, *pairs):
        config = DataConfig(sets=("x",), patch=32, batch=48, people_share=share)
        batch = PatchSampler(list(pairs), config, 0).batch(0, range(48))
        return [bool(p.any()) for p in batch.people], {tuple(p.flatten().tolist()) for p in batch.people}

    found, places = with_person(1.0, pair)
    assert all(found) and len(places) > 20, "anywhere in the patch"
    assert 12 < sum(with_person(0.5, pair)[0]) < 40
    assert sum(with_person(0.0, pair)[0]) < 8
    assert sum(with_person(1.0, pair, nobody)[0]) == 24


def test_pairs_without_a_label_have_nobody(pairs_root):
    pairs = list(decode_pairs(select_pairs("labelled", root=pairs_root), "pairs", quiet=True))
    assert [pair.people is None for pair in pairs] == [False, False, True]
    assert sorted(np.unique(pairs[0].people)) == [0, 1, 2]
    people = sampler_of(*pairs, batch=3).batch(0, range(3)).people
    assert sorted(bool(p.any()) for p in people) == [False, True, True]


def test_persons_are_connected_over_corners():
    label = np.zeros((40, 40), np.uint8)
    label[0, 0] = label[1, 1] = label[5, 5] = 2
    label[3, 3] = 1
    numbers = number_persons(label, "label")
    assert numbers.dtype == np.uint16 and numbers[0, 0] == numbers[1, 1] == 1 and numbers[5, 5] == 2 and numbers.max() == 2
    speckles = np.zeros((400, 400), np.uint8)
    speckles[::2, ::2] = 2
    with pytest.raises(InputError, match="at most 32767 in a picture; got 40000"):
        number_persons(speckles, "label")


def test_pairs_smaller_than_a_patch_are_named():
    with pytest.raises(InputError, match="pair small is smaller than a patch"):
        sampler_of(LoadedPair("small", texture(0, 31, 90), texture(1, 31, 90)))
