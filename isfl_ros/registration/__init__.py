"""Registration: the picture of the other camera, warped into the frame of the reference camera. No ROS in here.

Conventions, everywhere in this folder:

- A pixel's coordinates (x right, y down) are whole numbers at its centre, as in OpenCV and sensor_msgs/CameraInfo: the
  picture reaches from -0.5 to width - 0.5. A picture scaled by s therefore has x' = s (x + 0.5) - 0.5.
- ``size`` is (width, height), as in files and messages; ``shape`` is (H, W), as in numpy.
- Camera frames are optical frames: z forward, x right, y down, metres.
- The output has the raw geometry of the reference camera, its lens distortion included: its camera_info stays true.

A pixel of the output is valid only where every pixel it is interpolated from lies in the picture, is valid itself
and, for float32, is measured (:func:`isfl_ros.images.measured`). Invalid pixels are exactly 0.

Where the map shrinks by 1.5 or more (the mean over the picture), the other picture is first shrunk by a whole factor, each
pixel the mean of a square and valid only where all of the square is: interpolating alone would skip pixels.
"""

from __future__ import annotations

from isfl_ros.registration.alignment import REFERENCES, Alignment, SizeMismatch
from isfl_ros.registration.cameras import DISTORTION_MODELS, CalibratedPlane, Calibration, Transform, calibrated_map
from isfl_ros.registration.grid import INTERPOLATIONS, Grid, GridTensors, warp_tensor
from isfl_ros.registration.homography import Homography, parse_homography, read_homography, write_homography
from isfl_ros.registration.registration import MODES, Registration
from isfl_ros.registration.sizes import MAX_PIXELS, MAX_SIDE

__all__ = [
    "DISTORTION_MODELS",
    "INTERPOLATIONS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MODES",
    "REFERENCES",
    "Alignment",
    "CalibratedPlane",
    "Calibration",
    "Grid",
    "GridTensors",
    "Homography",
    "Registration",
    "SizeMismatch",
    "Transform",
    "calibrated_map",
    "parse_homography",
    "read_homography",
    "warp_tensor",
    "write_homography",
]
