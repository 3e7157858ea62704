"""Thermal and RGB camera fusion for ROS 2 with intervention-stable features.

Importing this package does no work; see :mod:`isfl_ros.pipeline` for the entry point of live and offline fusion.
"""

__version__ = "0.1.0"
