"""Pooled bidirectional cross-attention; see ``README.md`` beside this file for the derivation."""

from isfl_ros.ops.pooled_cross_attention.api import (
    IMPLEMENTATIONS,
    Choice,
    Projections,
    choose_implementation,
    pooled_cross_attention,
)

__all__ = ["IMPLEMENTATIONS", "Choice", "Projections", "choose_implementation", "pooled_cross_attention"]
