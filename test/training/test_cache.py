"""The cache gives what decoding gives, whatever has happened to it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time

import cv2
import numpy as np
import pytest

from isfl_ros.errors import InputError
from isfl_ros.io.dataset import select_pairs
from isfl_ros.training import cache as cache_module
from isfl_ros.training import data
from isfl_ros.training.cache import PictureCache


@pytest.fixture
def pairs(pairs_root, tmp_path):
    """Five pairs of their own files: two with labels, one with a 16-bit thermal picture of another size."""
    for name in ("set", "labelled"):
        shutil.copytree(pairs_root / name, tmp_path / "data" / name)
    (tmp_path / "data/set/ir/3.png").unlink()
    (tmp_path / "data/set/vi/3.png").unlink()
    rng = np.random.default_rng(5)
    cv2.imwrite(str(tmp_path / "data/set/ir/2.png"), rng.integers(20000, 30000, (47, 53)).astype(np.uint16))
    cv2.imwrite(str(tmp_path / "data/set/vi/2.png"), rng.integers(0, 256, (47, 53, 3)).astype(np.uint8))
    return [pair for name in ("set", "labelled") for pair in select_pairs(name, root=tmp_path / "data")]


def assert_same(found, pairs):
    for one, pair in zip(found, pairs, strict=True):
        oracle = data.decode_pair(pair)
        assert one.stem == oracle.stem
        for key in ("visible", "infrared", "people"):
            a, b = getattr(one, key), getattr(oracle, key)
            assert (a is None) == (b is None)
            if b is not None:
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


@pytest.fixture
def decoded(monkeypatch):
    """Stems that were decoded since the last ``clear()``."""
    stems, original = [], data.decode_pair

    def spy(pair):
        stems.append(pair.thermal)
        return original(pair)

    monkeypatch.setattr(data, "decode_pair", spy)
    return stems


def test_decoded_once_then_mapped(pairs, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(cache_module, "_PAIRS_PER_FILE", 4)
    first = PictureCache(tmp_path / "cache").load(pairs, "pairs")
    assert len(decoded) == len(pairs)
    decoded.clear()
    again = PictureCache(tmp_path / "cache").load(pairs[::-1], "pairs")
    assert not decoded
    assert_same(first, pairs)
    assert_same(again, pairs[::-1])
    assert len(list((tmp_path / "cache").glob("pictures-*.npy"))) == 2
    assert not again[0].visible.flags.writeable and not again[0].visible.flags.owndata


def test_more_pairs_are_added_and_a_pair_may_come_twice(pairs, tmp_path, decoded):
    PictureCache(tmp_path / "cache").load(pairs[:3], "pairs")
    decoded.clear()
    found = PictureCache(tmp_path / "cache").load([*pairs, pairs[4]], "pairs")
    assert sorted(decoded) == sorted(pair.thermal for pair in pairs[3:])
    assert_same(found, [*pairs, pairs[4]])


@pytest.mark.parametrize("which", ["thermal", "rgb", "label"])
def test_a_file_that_changed_is_decoded_again(pairs, tmp_path, decoded, caplog, which):
    PictureCache(tmp_path / "cache").load(pairs, "pairs")
    changed = next(pair for pair in pairs if pair.label)
    path = getattr(changed, which)
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    before = path.stat()
    cv2.imwrite(str(path), picture[::-1].copy())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        found = PictureCache(tmp_path / "cache").load(pairs, "pairs")
    assert decoded == [changed.thermal]
    assert "have changed since" in caplog.text
    assert_same(found, pairs)


def test_another_conversion_decodes_everything_again(pairs, tmp_path, decoded, monkeypatch):
    PictureCache(tmp_path / "cache").load(pairs, "pairs")
    decoded.clear()
    monkeypatch.setattr(cache_module, "CONVERSION", cache_module.CONVERSION + 1)
    found = PictureCache(tmp_path / "cache").load(pairs, "pairs")
    assert len(decoded) == len(pairs)
    assert_same(found, pairs)
    assert len(list((tmp_path / "cache").glob("pictures-*.npy"))) == 1, "what nobody refers to any more is removed"


def _flip_every_hundredth_byte(folder):
    path = next(folder.glob("pictures-*.npy"))
    content = bytearray(path.read_bytes())
    for place in range(128, len(content), 100):
        content[place] ^= 1
    path.write_bytes(bytes(content))


def _cut_off_the_end(folder):
    path = next(folder.glob("pictures-*.npy"))
    path.write_bytes(path.read_bytes()[:-1000])


def _empty_the_file(folder):
    next(folder.glob("pictures-*.npy")).write_bytes(b"")


def _edit_index(change):
    def damage(folder):
        document = json.loads((folder / "index.json").read_text())
        for entry in document["entries"].values():
            change(entry)
        (folder / "index.json").write_text(json.dumps(document))

    return damage


DAMAGES = {
    "flipped bits": _flip_every_hundredth_byte,
    "truncated": _cut_off_the_end,
    "empty file": _empty_the_file,
    "file removed": lambda folder: next(folder.glob("pictures-*.npy")).unlink(),
    "index is no JSON": lambda folder: (folder / "index.json").write_text('{"entries": {'),
    "index of another program": lambda folder: (folder / "index.json").write_text("[1, 2]"),
    "sides swapped": _edit_index(lambda e: e.update(height=e["width"], width=e["height"])),
    "other offset": _edit_index(lambda e: e.update(offset=e["offset"] + 2)),
    "negative offset": _edit_index(lambda e: e.update(offset=-4)),
    "entry without a key": _edit_index(lambda e: e.pop("sha256")),
    "labels forgotten": _edit_index(lambda e: e.update(people=not e["people"])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_costs_time_never_pictures(pairs, tmp_path, decoded, caplog, damage):
    PictureCache(tmp_path / "cache").load(pairs, "pairs")
    damage(tmp_path / "cache")
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        found = PictureCache(tmp_path / "cache").load(pairs, "pairs")
    assert decoded, "the damage was not noticed"
    assert "decoded again" in caplog.text
    assert_same(found, pairs)
    decoded.clear()
    assert_same(PictureCache(tmp_path / "cache").load(pairs, "pairs"), pairs)
    caplog.clear()
    PictureCache(tmp_path / "cache").load(pairs, "pairs")
    assert not caplog.records, "mended for good"


def test_one_fills_it_while_the_others_wait(pairs, tmp_path, monkeypatch, caplog):
    # A lock belongs to an open file, so threads exclude each other as processes do.
    decoded, original = [], data.decode_pair

    def slow(pair):
        decoded.append(pair.thermal)
        time.sleep(0.05)
        return original(pair)

    monkeypatch.setattr(data, "decode_pair", slow)
    found, start = {}, threading.Barrier(3)

    def load(name):
        start.wait()
        found[name] = PictureCache(tmp_path / "cache").load(pairs, "pairs", quiet=True)

    with caplog.at_level(logging.INFO):
        threads = [threading.Thread(target=load, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(decoded) == sorted(pair.thermal for pair in pairs), "every pair by one of them only"
    assert "waiting for another process" in caplog.text
    monkeypatch.setattr(data, "decode_pair", original)
    for loaded in found.values():
        assert_same(loaded, pairs)


def test_what_a_kill_left_behind_is_removed_and_what_was_done_is_kept(pairs, tmp_path, decoded):
    folder = tmp_path / "cache"
    PictureCache(folder).load(pairs[:2], "pairs")
    (folder / ".pictures-dead.npy").write_bytes(b"half")
    decoded.clear()
    found = PictureCache(folder).load(pairs, "pairs")
    assert sorted(decoded) == sorted(pair.thermal for pair in pairs[2:])
    assert_same(found, pairs)
    assert not list(folder.glob(".pictures-*"))


def test_a_file_that_changes_while_it_is_read_is_refused(pairs, tmp_path, monkeypatch):
    original = data.decode_pair

    def rewrite(pair):
        loaded = original(pair)
        os.utime(pair.rgb)
        return loaded

    monkeypatch.setattr(data, "decode_pair", rewrite)
    with pytest.raises(InputError, match="change while they are read"):
        PictureCache(tmp_path / "cache").load(pairs, "pairs")
