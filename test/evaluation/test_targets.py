"""Person contrast on pictures with a known answer."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from isfl_ros.errors import InputError
from isfl_ros.evaluation.targets import PERSON_CLASS, person_contrast, read_label, summarize

HEIGHT, WIDTH = 101, 143


def _scene(*boxes):
    """Label with people in (y, x, height, width) boxes, and a function that paints a picture of two levels."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for y, x, height, width in boxes:
        label[y : y + height, x : x + width] = PERSON_CLASS

    def paint(inside, outside):
        return np.where(label == PERSON_CLASS, inside, outside).astype(np.uint8)

    return label, paint


def test_ratio_to_the_better_source_whatever_the_sign():
    label, paint = _scene((40, 60, 20, 9))
    # Contrast 30 fused, 60 infrared, 80 visible (darker inside).
    assert person_contrast(paint(130, 100), paint(160, 100), paint(20, 100), label) == [30 / 80]
    assert person_contrast(paint(70, 100), paint(160, 100), paint(90, 100), label) == [30 / 60]


def test_only_the_ring_counts_as_outside():
    label, paint = _scene((40, 60, 20, 9))
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    # Distance to the box; the disk of radius 10 reaches exactly the pixels up to 10 away along the axes.
    dy = np.maximum(np.maximum(40 - rows, rows - 59), 0)
    dx = np.maximum(np.maximum(60 - columns, columns - 68), 0)
    far = np.hypot(dy, dx) > 11
    picture = paint(200, 100)
    fused = picture.copy()
    fused[far] = 0  # must not matter
    assert person_contrast(fused, picture, picture, label) == [1.0]
    fused[50, 60 - 10] = 0  # the last pixel of the ring must
    assert person_contrast(fused, picture, picture, label)[0] > 1.0
    fused = picture.copy()
    fused[50, 60 - 11] = 0
    assert person_contrast(fused, picture, picture, label) == [1.0]


def test_other_people_are_not_outside():
    # The second person is 3 px from the first, the third too small to be measured but still no background.
    label, paint = _scene((40, 60, 20, 9), (40, 72, 20, 9), (30, 62, 4, 4))
    picture = paint(200, 100)
    assert person_contrast(paint(150, 100), picture, picture, label) == [0.5, 0.5]


def test_who_is_left_out():
    faint, clear = 109, 110
    label, paint = _scene((40, 60, 8, 10))
    assert person_contrast(paint(120, 100), paint(faint, 100), paint(100, 100), label) == []
    assert person_contrast(paint(120, 100), paint(clear, 100), paint(100, 100), label) == [2.0]
    small, paint = _scene((40, 60, 79, 1))  # 79 px of the 80
    assert person_contrast(paint(200, 100), paint(200, 100), paint(200, 100), small) == []
    cars = np.where(label == PERSON_CLASS, 1, 0).astype(np.uint8)
    assert person_contrast(paint(200, 100), paint(200, 100), paint(200, 100), cars) == []
    everywhere = np.full((HEIGHT, WIDTH), PERSON_CLASS, np.uint8)  # no ring
    assert person_contrast(paint(200, 100), paint(200, 100), paint(200, 100), everywhere) == []


def test_people_at_the_border_and_touching_at_a_corner():
    label, paint = _scene((0, 0, 20, 9), (81, 130, 20, 13))
    picture = paint(200, 100)
    assert person_contrast(picture, picture, picture, label) == [1.0, 1.0]
    diagonal, paint = _scene((10, 10, 10, 10), (20, 20, 10, 10))  # one person: 8-connected
    picture = paint(200, 100)
    assert person_contrast(picture, picture, picture, diagonal) == [1.0]


def test_sizes_must_agree():
    label, paint = _scene((40, 60, 20, 9))
    with pytest.raises(InputError, match="label picture has another size"):
        person_contrast(paint(1, 0), paint(1, 0), paint(1, 0), label[1:])


def test_summary():
    ratios = [0.1 * i for i in range(11)]
    assert summarize(ratios) == {
        "people": 11, "person_median": pytest.approx(0.5), "person_p10": pytest.approx(0.1)
    }
    assert summarize([]) == {"people": 0}


def test_read_label(tmp_path):
    label, _ = _scene((40, 60, 20, 9))
    cv2.imwrite(str(tmp_path / "index.png"), label)
    np.testing.assert_array_equal(read_label(tmp_path / "index.png", label.shape), label)
    with pytest.raises(InputError, match="index.png has another size"):
        read_label(tmp_path / "index.png", (HEIGHT, WIDTH + 1))
    colour = np.stack([label, label, 3 * label], axis=-1)
    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    with pytest.raises(InputError, match="colour.png is a colour picture"):
        read_label(tmp_path / "colour.png", label.shape)
