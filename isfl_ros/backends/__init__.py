"""Who runs a network, on which device, in which precision: the choice with its reasons, and one class for each way.

``choice`` decides. ``host``: numpy pictures, the network in torch or OpenVINO on the CPU. ``cuda``: pictures uploaded,
warped, fused and downloaded on a stream, as one CUDA graph a layout. ``fallback``: what goes on when a CUDA device
fails. ``trial``: what was chosen automatically is tried on a small picture before it is trusted.
"""

from isfl_ros.backends.choice import Plan, choose
from isfl_ros.backends.frame import Backend
from isfl_ros.backends.trial import make_backend

__all__ = ["Backend", "Plan", "choose", "make_backend"]
