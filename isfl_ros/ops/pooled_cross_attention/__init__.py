"""Pooled bidirectional cross-attention; see ``README.md`` beside this file for the derivation."""

from isfl_ros.ops.pooled_cross_attention.api import (
    FOLDED_IMPLEMENTATIONS,
    IMPLEMENTATIONS,
    FoldedProjections,
    Projections,
    attend_folded,
    fold_projections,
    pooled_cross_attention,
)

__all__ = [
    "FOLDED_IMPLEMENTATIONS",
    "IMPLEMENTATIONS",
    "FoldedProjections",
    "Projections",
    "attend_folded",
    "fold_projections",
    "pooled_cross_attention",
]
