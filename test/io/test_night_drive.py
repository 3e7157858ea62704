"""The synthetic night drive: deterministic, registered, and with people that only the thermal camera sees well."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from isfl_ros.errors import InputError
from isfl_ros.io.night_drive import NightDrive, NightDriveConfig

SMALL = dict(width=240, height=180, seed=1, noise=0.0, fog=0.0, fog_peak=0.0)


def same(a, b) -> bool:
    return np.array_equal(a.thermal, b.thermal) and np.array_equal(a.rgb, b.rgb) and a.people == b.people


@pytest.fixture(scope="module")
def drive():
    return NightDrive(NightDriveConfig(seed=0))


@pytest.fixture(scope="module")
def small():
    return NightDrive(NightDriveConfig(**SMALL))


@pytest.fixture(scope="module")
def frames(drive):
    return [drive.frame(i) for i in range(0, 300, 25)]


@pytest.mark.parametrize("width,height", [(161, 121), (64, 64), (96, 201)])
def test_shapes_and_types_at_any_size(width, height):
    drive = NightDrive(NightDriveConfig(width=width, height=height))
    k = drive.camera_matrix
    assert k.dtype == np.float64 and k.shape == (3, 3) and k[0, 0] == k[1, 1] > width / 2
    assert k[0, 2] == (width - 1) / 2 and 0 < k[1, 2] < height and k[2].tolist() == [0, 0, 1]
    frame = drive.frame(7)
    assert frame.thermal.shape == (height, width) and frame.thermal.dtype == np.uint16
    assert frame.rgb.shape == (height, width, 3) and frame.rgb.dtype == np.uint8
    assert frame.rgb.flags.c_contiguous and frame.thermal.flags.c_contiguous
    for x0, y0, x1, y1 in frame.people:
        assert all(type(v) is int for v in (x0, y0, x1, y1))
        assert 0 <= x0 < x1 <= width and 0 <= y0 and y0 + 12 <= y1 <= height


def test_same_bytes_in_any_order_and_instance():
    cfg = NightDriveConfig(width=161, height=121, seed=4)
    forward, backward = NightDrive(cfg), NightDrive(NightDriveConfig(width=161, height=121, seed=4))
    first = {i: forward.frame(i) for i in (0, 1, 90, 400)}
    np.random.seed(99)  # nothing may hang on the global generator
    state = np.random.get_state()[1].copy()
    for i in (400, 90, 1, 0):
        assert same(first[i], backward.frame(i)), i
    assert same(first[90], forward.frame(90))
    assert np.array_equal(np.random.get_state()[1], state)


def test_frames_do_not_share_memory_with_the_renderer(small):
    first = small.frame(3)
    first.thermal[:], first.rgb[:] = 0, 0
    again = small.frame(3)
    assert again.thermal.min() > 0 and again.rgb.any()


def test_seed_changes_the_scene_and_not_just_the_noise(small):
    a, b = small.frame(10), NightDrive(NightDriveConfig(**{**SMALL, "seed": 2})).frame(10)
    # Two noise fields alone would differ by about 0.1 K (10 counts).
    assert np.mean(np.abs(a.thermal.astype(int) - b.thermal)) > 40
    assert np.mean(np.abs(a.rgb.astype(int) - b.rgb)) > 4


def test_consecutive_frames_show_motion(small):
    a, b = small.frame(20), small.frame(21)
    step = np.abs(a.thermal.astype(int) - b.thermal)
    assert np.mean(step) > 8 and np.percentile(step, 99) > 100  # far above the detector's noise
    assert np.mean(np.abs(a.rgb.astype(int) - b.rgb)) > 1


def test_rate_only_changes_the_time_of_an_index(small):
    slow = NightDrive(NightDriveConfig(**SMALL, rate_hz=5.0)).frame(10)
    fast = small.frame(20)
    assert slow.people == fast.people
    assert np.array_equal(slow.rgb, fast.rgb)  # the same moment; the RGB noise is off
    assert not np.array_equal(slow.thermal, fast.thermal)  # its noise belongs to the index


def rings(frame):
    """(person's 90th percentile, median of the ring around, box) in counts for every person clear of the border."""
    height, width = frame.thermal.shape
    for x0, y0, x1, y1 in frame.people:
        margin = max(3, (x1 - x0) // 2)
        if x0 < margin or x1 > width - margin:
            continue
        outer = np.s_[max(0, y0 - 2):min(height, y1 + 2), x0 - margin:x1 + margin]
        mask = np.ones(frame.thermal.shape, bool)
        for a0, b0, a1, b1 in frame.people:  # no other person in the ring
            mask[b0 - 1:b1 + 1, max(a0 - 1, 0):a1 + 1] = False
        around = frame.thermal[outer][mask[outer]]
        if around.size > 20:
            yield np.percentile(frame.thermal[y0:y1, x0:x1], 90), np.median(around), (x0, y0, x1, y1)


def test_people_are_hot_in_thermal(frames):
    contrasts = [hot - ring for frame in frames for hot, ring, _ in rings(frame)]
    assert sum(bool(f.people) for f in frames) > len(frames) * 0.7
    assert len(contrasts) > 20
    contrasts = np.array(contrasts)
    assert np.mean(contrasts > 200) > 0.85 and np.median(contrasts) > 400  # 2 K and 4 K


def test_people_outside_the_head_lamps_are_dark_in_rgb(frames, drive):
    """Off the axis of the beam and above its cut-off: the upper half of people well to the side of the road.

    Nearer the middle of the picture it is not the person that one measures but the glare of oncoming cars before it.
    """
    focal, centre = drive.camera_matrix[0, 0], drive.camera_matrix[0, 2]
    dark = []
    for frame in frames:
        for x0, y0, x1, y1 in frame.people:
            if abs((x0 + x1) / 2 - centre) > 0.2 * focal:
                warm = frame.thermal[y0:y1, x0:x1] > np.percentile(frame.thermal[y0:y1, x0:x1], (10, 95)).mean()
                warm[(y1 - y0) // 2:] = False
                dark.append(np.median(frame.rgb[y0:y1, x0:x1][warm]))
    assert len(dark) > 12
    assert np.median(dark) < 50 and np.mean(np.array(dark) < 70) > 0.85
    lit_road = np.median([np.median(f.rgb[-60:, 220:420]) for f in frames])
    assert lit_road > 1.3 * np.median(dark)


def test_rgb_is_dark_with_lights_and_thermal_spans_sky_to_engine(frames):
    for frame in frames:
        assert 20 < frame.rgb.mean() < 95 and frame.rgb.max() > 240
        celsius = frame.thermal / 100.0 - 273.15
        sky, road = np.median(celsius[:40, 300:340]), np.median(celsius[-60:])
        assert -12 < sky < road - 2 < 15
        assert celsius.max() > 18


def test_modalities_are_registered(frames):
    """Edges of one picture lie on edges of the other: the match is best at no shift."""

    def edges(picture, cap):
        gy, gx = np.gradient(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.8))
        e = np.minimum(np.hypot(gx, gy), cap)
        return e - e.mean()

    score = np.zeros((7, 7))
    for frame in frames[::4]:
        t, v = edges(frame.thermal, 120), edges(frame.rgb.mean(axis=2), 15)
        for i in range(-3, 4):
            for j in range(-3, 4):
                score[i + 3, j + 3] += np.mean(t[8:-8, 8:-8] * v[8 + i:v.shape[0] - 8 + i, 8 + j:v.shape[1] - 8 + j])
    assert np.unravel_index(score.argmax(), score.shape) == (3, 3)


def test_fog_takes_more_from_rgb_than_from_thermal(small):
    def detail(drive):
        frame = drive.frame(0)

        def edges(picture):  # the median, so that the few lamps do not decide
            return np.median(np.hypot(*np.gradient(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.0))[:2]))

        return edges(frame.rgb.mean(axis=2)[30:100, 20:220]), edges(frame.thermal[30:100, 20:220])

    clear = detail(small)
    thick = detail(NightDrive(NightDriveConfig(**{**SMALL, "fog": 0.02, "fog_peak": 0.02})))
    left_rgb, left_thermal = thick[0] / clear[0], thick[1] / clear[1]
    assert left_rgb < 0.85 and left_rgb + 0.04 < left_thermal < 1


def test_no_pedestrians_when_asked_for_none(small):
    empty = NightDrive(NightDriveConfig(**SMALL, pedestrians=0.0))
    assert [empty.frame(i).people for i in (0, 60, 140)] == [[], [], []]
    assert any(small.frame(i).people for i in (0, 60, 140))


@pytest.mark.parametrize("bad", [
    dict(width=63), dict(height=0), dict(width=640.0), dict(height=True), dict(seed=-1), dict(rate_hz=0),
    dict(fog=-0.1), dict(fog=float("nan")), dict(fog_peak=1.0), dict(fog_period_s="long"), dict(speed_mps=0),
    dict(pedestrians=-1), dict(noise=float("inf")),
])
def test_bad_configuration_is_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        NightDriveConfig(**bad)


@pytest.mark.parametrize("index", [-1, 1.5, True])
def test_bad_index_is_refused(drive, index):
    with pytest.raises(InputError, match="index"):
        drive.frame(index)
