"""Gated blend of the Causal Feature Integrator; see ``README.md`` beside this file."""

from isfl_ros.ops.gated_blend.api import (
    IMPLEMENTATIONS,
    MAX_CHANNELS,
    MAX_GATE_CHANNELS,
    NEGATIVE_SLOPE,
    GateWeights,
    PreparedWeights,
    gated_blend,
    prepare_weights,
)

__all__ = [
    "IMPLEMENTATIONS",
    "MAX_CHANNELS",
    "MAX_GATE_CHANNELS",
    "NEGATIVE_SLOPE",
    "GateWeights",
    "PreparedWeights",
    "gated_blend",
    "prepare_weights",
]
