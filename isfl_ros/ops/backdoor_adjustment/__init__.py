"""Back-door adjustment of features; see ``README.md`` beside this file."""

from isfl_ros.ops.backdoor_adjustment.api import (
    IMPLEMENTATIONS,
    AdjustmentTables,
    AdjustmentWeights,
    adjust_folded,
    backdoor_adjustment,
    check_implementation,
    fold_adjustment,
)

__all__ = [
    "IMPLEMENTATIONS",
    "AdjustmentTables",
    "AdjustmentWeights",
    "adjust_folded",
    "backdoor_adjustment",
    "check_implementation",
    "fold_adjustment",
]
