"""Methods to compare with, each in a small file, all on the same hooks.

``method`` says what a method is, ``schedules`` keep it to a budget, ``losses`` measure it,
and ``inspection`` what is left.
Merging: ``merging``, ``pooling`` and ``square_folded``.  Pruning, on what ``pruning`` shares:
``blind_pruning``, ``divprune``, ``fastv``, ``pyramid_drop``, ``sparsevlm``, with ``attention``
from few rows.  Pruning one token after the other, on what ``choosing`` shares: ``scope``,
``cdpruner``, ``anchorprune``, ``d2pruner``; and with the rest merged: ``apet``, ``visiontrim``, and
``visionzip``, which hears of the vision ``tower``.  Of the cache alone: ``cache_method``,
``elastic_cache``, ``random_cache``.  Bounds: ``oracle`` is told what matters, ``downsample`` makes
the picture smaller.
"""

from __future__ import annotations

from lightkv_gnn.baselines.anchorprune import ANCHORPRUNE_LIKE
from lightkv_gnn.baselines.apet import APET_LIKE
from lightkv_gnn.baselines.blind_pruning import RANDOM_PRUNING, STRIDE
from lightkv_gnn.baselines.cdpruner import CDPRUNER_LIKE
from lightkv_gnn.baselines.d2pruner import D2PRUNER_LIKE
from lightkv_gnn.baselines.divprune import DIVPRUNE_LIKE
from lightkv_gnn.baselines.downsample import DOWNSAMPLE, smaller
from lightkv_gnn.baselines.elastic_cache import ELASTIC_CACHE_LIKE
from lightkv_gnn.baselines.fastv import FASTV, WINDOW_FASTV
from lightkv_gnn.baselines.losses import Loss, MeasuredCompressor
from lightkv_gnn.baselines.merging import (
    COVERAGE,
    COVERAGE_MASS,
    GUIDED,
    GUIDED_MASS,
    MASS_MEAN,
    MEAN,
    NONE,
    OURS,
    RANDOM_ATTENTION,
    RANDOM_WEIGHTS,
    VISION_TO_TEXT,
)
from lightkv_gnn.baselines.method import Applied, Bill, Budget, Hints, Method, StageMethod
from lightkv_gnn.baselines.oracle import ORACLE, ORACLE_PRUNING
from lightkv_gnn.baselines.pooling import POOLING
from lightkv_gnn.baselines.pruning import keep_top
from lightkv_gnn.baselines.pyramid_drop import PYRAMID_DROP
from lightkv_gnn.baselines.random_cache import RANDOM_CACHE
from lightkv_gnn.baselines.schedules import progressive, single
from lightkv_gnn.baselines.scope import SCOPE_LIKE
from lightkv_gnn.baselines.sparsevlm import SPARSEVLM_LIKE
from lightkv_gnn.baselines.visiontrim import VISIONTRIM_LIKE
from lightkv_gnn.baselines.visionzip import VISIONZIP_LIKE

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        NONE,
        OURS,
        GUIDED,
        GUIDED_MASS,
        COVERAGE,
        COVERAGE_MASS,
        VISION_TO_TEXT,
        MEAN,
        MASS_MEAN,
        RANDOM_ATTENTION,
        RANDOM_WEIGHTS,
        RANDOM_PRUNING,
        RANDOM_CACHE,
        STRIDE,
        POOLING,
        DOWNSAMPLE,
        FASTV,
        WINDOW_FASTV,
        PYRAMID_DROP,
        SPARSEVLM_LIKE,
        DIVPRUNE_LIKE,
        SCOPE_LIKE,
        CDPRUNER_LIKE,
        ANCHORPRUNE_LIKE,
        D2PRUNER_LIKE,
        APET_LIKE,
        VISIONTRIM_LIKE,
        VISIONZIP_LIKE,
        ELASTIC_CACHE_LIKE,
        ORACLE,
        ORACLE_PRUNING,
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
    "keep_top",
    "progressive",
    "single",
    "smaller",
]
