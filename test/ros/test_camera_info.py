from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from isfl_ros.errors import InputError
from isfl_ros.ros.camera_info import calibration, fingerprint, picture_size


def message(width=640, height=480, **changes):
    k = [500.0, 0.0, 310.0, 0.0, 510.0, 235.0, 0.0, 0.0, 1.0]
    values = {"k": k, "d": [-0.3, 0.1, 1e-3, 2e-3, 0.0], "distortion_model": "plumb_bob"} | changes
    return CameraInfo(width=width, height=height, **values)


def roi(x, y, width, height):
    return RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height)


def test_size_matrix_and_distortion():
    camera = calibration(message(), "thermal camera")
    assert camera.size == (640, 480) and camera.name == "thermal camera" and camera.model == "plumb_bob"
    np.testing.assert_array_equal(camera.matrix.ravel(), message().k)
    assert camera.distortion == tuple(message().d)


@pytest.mark.parametrize(
    "changes, size",
    [
        ({}, (640, 480)),
        ({"binning_x": 2, "binning_y": 4}, (320, 120)),
        ({"roi": roi(101, 52, 401, 300)}, (401, 300)),
        ({"roi": roi(101, 52, 401, 300), "binning_x": 2, "binning_y": 3}, (200, 100)),
        ({"roi": roi(0, 0, 640, 480), "binning_x": 1}, (640, 480)),
    ],
)
def test_region_and_binning_are_of_the_pixels_that_come(changes, size):
    """Each pixel of the picture sees what the middle of those sees that it is made of."""
    info = message(**changes)
    assert picture_size(info) == size
    whole, picture = calibration(message(), "x"), calibration(info, "x")
    assert picture.size == size
    bx, by = max(1, info.binning_x), max(1, info.binning_y)
    for column, row in ((0, 0), (size[0] - 1, size[1] - 1), (17, 31)):
        x = info.roi.x_offset + np.mean(column * bx + np.arange(bx))
        y = info.roi.y_offset + np.mean(row * by + np.arange(by))
        for got, wanted in zip(picture.rays(column, row), whole.rays(x, y)):
            np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_a_size_that_is_binned_already_does_no_harm():
    """Some drivers write the size of the picture, and its binning too: scaled to the picture, all is well again."""
    twice = calibration(message(binning_x=2, binning_y=2), "x").scaled((640, 480))
    np.testing.assert_allclose(twice.matrix, calibration(message(), "x").matrix)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"k": [0.0] * 9}, "thermal camera: not calibrated.*K of zeros"),
        ({"k": [float("nan")] * 9}, "thermal camera: K unusable"),
        ({"width": 0}, "thermal camera: size of the calibration unusable"),
        ({"distortion_model": "fisheye"}, "thermal camera: unknown distortion model.*'fisheye'"),
        ({"roi": roi(300, 0, 400, 480)}, "region of interest.*within 640x480; got 400x480 at 300, 0"),
        ({"roi": roi(400, 0, 200, 480)}, "principal point of K lies outside"),
        ({"binning_x": 4_000_000_000}, "size of the calibration unusable"),
        ({"width": 100_000, "height": 100_000}, "size of the calibration unusable"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(changes, said):
    with pytest.raises(InputError, match=said) as raised:
        calibration(message(**changes), "thermal camera")
    assert "\n" not in str(raised.value)


def test_the_fingerprint_is_that_of_the_calibration():
    same = message()
    same.header.stamp.sec, same.r, same.p = 9, [1.0] * 9, [1.0] * 12
    assert fingerprint(same) == fingerprint(message())
    broken = message(k=[float("nan")] * 9)
    assert fingerprint(broken) == fingerprint(message(k=[float("nan")] * 9)) != fingerprint(message())
    for change in ({"width": 641}, {"d": [0.1]}, {"distortion_model": ""}, {"binning_x": 2}, {"roi": roi(0, 0, 9, 9)}):
        assert fingerprint(message(**change)) != fingerprint(message()), change
    assert fingerprint(message(binning_x=1, roi=roi(0, 0, 640, 480))) == fingerprint(message())
