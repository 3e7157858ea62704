"""Flicker of sequences with a known answer."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from isfl_ros.errors import InputError
from isfl_ros.evaluation import flicker
from isfl_ros.evaluation.predict import prediction_path
from isfl_ros.evaluation.sets import LeftOut, PairSet, read_set
from isfl_ros.io.folders import write_png

SHAPE = (121, 163)
FRAMES = 4


def _picture(seed, shape=SHAPE):
    noise = np.random.default_rng(seed).normal(size=shape)
    picture = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (2, 5))
    return np.clip(np.rint(128 + 30 * picture / picture.std()), 0, 255).astype(np.uint8)


def _sequence(root, thermal, visible, fused):
    """Each a list of pictures; of `fused` a dictionary of them."""
    for t, (infrared, luma) in enumerate(zip(thermal, visible)):
        write_png(root / "drive" / "ir" / f"{t:03}.png", infrared)
        write_png(root / "drive" / "vi" / f"{t:03}.png", luma)
        for method, pictures in fused.items():
            write_png(prediction_path(root / "kept", method, "drive", f"{t:03}"), pictures[t])
    pair_set = read_set(str(root / "drive"))
    rows = []
    for step in flicker.steps(pair_set):
        rows += flicker.score_step(list(fused), "drive", *step, root / "kept")
    return flicker.summarize(rows, pair_set, list(fused), list(fused)[:1])


def test_a_static_scene_does_not_flicker_and_a_method_that_does_is_seen(tmp_path):
    infrared, luma = _picture(0), _picture(1)
    steady = ((infrared.astype(int) + luma) // 2).clip(10, 245).astype(np.uint8)
    k = 3
    pulsing = [(steady.astype(int) + (k if t % 2 else -k)).astype(np.uint8) for t in range(FRAMES)]
    found = _sequence(
        tmp_path, [infrared] * FRAMES, [luma] * FRAMES, {"steady": [steady] * FRAMES, "pulsing": pulsing}
    )
    assert (found.steps, found.total) == (FRAMES - 1, FRAMES - 1)
    assert found.left_out < 0.01
    assert found.methods["steady"].flicker == pytest.approx(0, abs=1e-3)
    assert found.methods["pulsing"].flicker == pytest.approx(2 * k, abs=1e-2)
    assert found.methods["pulsing"].change == pytest.approx(2 * k, abs=1e-2)
    assert found.methods["pulsing"].lower_than == {"steady": 0} and found.methods["steady"].lower_than == {}


def _moving(picture, dx, dy):
    return [picture[20 + dy * t : 20 + dy * t + 121, 20 + dx * t : 20 + dx * t + 163] for t in range(FRAMES)]


def test_what_moves_with_the_scene_does_not_flicker(tmp_path):
    large = (200, 240)
    infrared, luma = _picture(2, large), _picture(3, large)
    both = ((infrared.astype(int) + luma) // 2).astype(np.uint8)
    tracks = [_moving(picture, 4, 2) for picture in (infrared, luma, both)]
    still = {"still": [tracks[2][0]] * FRAMES}
    found = _sequence(tmp_path, tracks[0], tracks[1], {"moving": tracks[2]} | still)
    # Without the flow every pixel would differ by about 10 levels.
    plain = np.abs(tracks[2][1].astype(float) - tracks[2][0]).mean()
    assert found.methods["moving"].flicker < 0.1 and plain > 5
    assert found.methods["moving"].change < 0.1 * plain
    assert found.methods["still"].flicker > 0.5 * plain  # it should have moved and did not
    assert 0.02 < found.left_out < 0.2  # at least the columns and rows that came in
    assert found.methods["still"].worst >= found.methods["still"].flicker


def test_what_a_source_does_itself_is_not_held_against_the_method(tmp_path):
    infrared, luma = _picture(4), _picture(5)
    blinking = [np.clip(infrared.astype(int) + 20 * (t % 2), 0, 255).astype(np.uint8) for t in range(FRAMES)]
    doubled = [np.clip(infrared.astype(int) + 30 * (t % 2), 0, 255).astype(np.uint8) for t in range(FRAMES)]
    found = _sequence(tmp_path, blinking, [luma] * FRAMES, {"copies": blinking, "doubles": doubled})
    assert found.methods["copies"].flicker == pytest.approx(0, abs=1e-3)
    assert found.methods["copies"].change == pytest.approx(20, abs=0.5)
    assert found.methods["doubles"].flicker == pytest.approx(10, abs=0.5)


def test_what_a_moving_thing_uncovers_has_no_flow():
    ground, thing = _picture(8), _picture(9, (50, 60))
    frames = []
    for x in (40, 52):
        frame = ground.copy()
        frame[35:85, x : x + 60] = thing
        frames.append(frame)
    valid = flicker.Warp(*frames).valid
    assert valid[40:80, 42:50].mean() < 0.2  # uncovered: nowhere in the frame before
    assert valid[:30].mean() > 0.9 and valid[45:75, 60:100].mean() > 0.9  # the ground far away, and the thing itself


def test_threads_are_left_as_they_were_and_do_not_matter():
    previous, current = _moving(_picture(6, (200, 240)), 3, 1)[:2]
    threads = cv2.getNumThreads()
    try:
        found = []
        for count in (1, 3):
            cv2.setNumThreads(count)
            warp = flicker.Warp(previous, current)
            assert cv2.getNumThreads() == count
            found.append((warp(previous), warp.valid))
    finally:
        cv2.setNumThreads(threads)
    for one, three in zip(*found):
        np.testing.assert_array_equal(one, three)


def test_nothing_is_measured_across_a_gap():
    def pair_set(kept, left_out):
        from isfl_ros.io.folders import Pair

        items = tuple(LeftOut(set="s", stem=stem, cause="unpaired", why="why") for stem in left_out)
        return PairSet(name="s", spec="s", pairs=tuple(Pair(stem, stem, stem) for stem in kept), left_out=items)

    def names(steps):
        return [(first.stem, second.stem) for first, second in steps]

    assert names(flicker.steps(pair_set("abcd", ""))) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert names(flicker.steps(pair_set("abde", "cf"))) == [("a", "b"), ("d", "e")]
    with pytest.raises(InputError, match="s is no sequence; expected two consecutive frames.*got 2 of 3 frames"):
        flicker.check_sequence(pair_set("ac", "b"))


def test_pictures_without_a_valid_flow_are_said_to_be_unmeasured(tmp_path, monkeypatch):
    real = flicker.Warp.__init__

    def nowhere(self, previous, current):
        real(self, previous, current)
        self.valid[:] = False

    monkeypatch.setattr(flicker.Warp, "__init__", nowhere)
    picture = _picture(7)
    found = _sequence(tmp_path, [picture] * 2, [picture] * 2, {"one": [picture] * 2})
    assert (found.steps, found.total, found.left_out, found.methods) == (0, 1, 1.0, {})
