"""sensor_msgs/CameraInfo as a calibration of the pictures that come with it."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CameraInfo

from isfl_ros.errors import InputError
from isfl_ros.registration import Calibration


def picture_size(info: CameraInfo) -> tuple[int, int]:
    """(width, height) of the pictures: of the region of interest where there is one, divided by the binning."""
    _, _, width, height = _region(info)
    binning_x, binning_y = _binning(info)
    return width // binning_x, height // binning_y


def calibration(info: CameraInfo, name: str) -> Calibration:
    """K and D for the raw pictures as they come: K of the message is for the whole sensor, D does not depend on either.

    A binned pixel is the mean of those that it covers: its centre is theirs.

    Args:
        info: the message.
        name: what errors call the camera.

    Raises:
        InputError: as :class:`Calibration` (uncalibrated, unknown model, ...), or the region of interest is not on the
            sensor.
    """
    left, top, width, height = _region(info)
    if left + width > info.width or top + height > info.height:
        raise InputError(
            f"{name}: the region of interest of its camera_info is not on the sensor",
            expected=f"within {info.width}x{info.height}",
            got=f"{width}x{height} at {left}, {top}",
        )
    x, y = (1.0 / side for side in _binning(info))
    binned = np.array([[x, 0.0, (x - 1.0) / 2.0], [0.0, y, (y - 1.0) / 2.0], [0.0, 0.0, 1.0]])
    cropped = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]])
    return Calibration(
        size=picture_size(info),
        matrix=binned @ cropped @ np.reshape(info.k, (3, 3)),
        model=info.distortion_model,
        distortion=tuple(info.d),
        name=name,
    )


def fingerprint(info: CameraInfo) -> tuple:
    """Equal for messages with the same :func:`calibration`; also where numbers are not numbers."""
    numbers = np.array([*info.k, *info.d]).tobytes()
    return info.width, info.height, info.distortion_model, numbers, _region(info), _binning(info)


def _region(info: CameraInfo) -> tuple[int, int, int, int]:
    """Left, top, width, height on the sensor; all zero in the message means all of it."""
    roi = info.roi
    if roi.width == 0 or roi.height == 0:
        return 0, 0, info.width, info.height
    return roi.x_offset, roi.y_offset, roi.width, roi.height


def _binning(info: CameraInfo) -> tuple[int, int]:
    """Pixels that become one, by x and y; 0 in the message means 1."""
    return max(1, info.binning_x), max(1, info.binning_y)
