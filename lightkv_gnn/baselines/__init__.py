"""Methods to compare with, each in a small file, all on the same hooks."""

from __future__ import annotations

from lightkv_gnn.baselines.blind_pruning import RANDOM_PRUNING, STRIDE
from lightkv_gnn.baselines.losses import Loss, MeasuredCompressor
from lightkv_gnn.baselines.merging import (
    GUIDED,
    MASS_MEAN,
    MEAN,
    NONE,
    RANDOM_ATTENTION,
    RANDOM_WEIGHTS,
)
from lightkv_gnn.baselines.method import Applied, Bill, Budget, Hints, Method, StageMethod
from lightkv_gnn.baselines.oracle import ORACLE
from lightkv_gnn.baselines.schedules import progressive, single

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        NONE,
        GUIDED,
        MEAN,
        MASS_MEAN,
        RANDOM_ATTENTION,
        RANDOM_WEIGHTS,
        RANDOM_PRUNING,
        STRIDE,
        ORACLE,
    )
}
"""By name, in the order of tables."""

__all__ = [
    "METHODS",
    "NONE",
    "Applied",
    "Bill",
    "Budget",
    "Hints",
    "Loss",
    "MeasuredCompressor",
    "Method",
    "StageMethod",
    "progressive",
    "single",
]
