"""Cued objects and their like: small worlds whose right scores are known in advance.

Pictures are grids of cells, one vision token each; a tiny stock ``LlavaForConditionalGeneration``
is trained on them in about a minute on one CPU core.
"""

from lightkv_gnn.evaluation.cued.base import CellSuite
from lightkv_gnn.evaluation.cued.suites import (
    SUITES,
    CountingSuite,
    Cued,
    CuedSymmetric,
    Dense,
    Plain,
    SecondQuestion,
    TwoImages,
)
from lightkv_gnn.evaluation.cued.training import CellRecipe

__all__ = [
    "SUITES",
    "CellRecipe",
    "CellSuite",
    "CountingSuite",
    "Cued",
    "CuedSymmetric",
    "Dense",
    "Plain",
    "SecondQuestion",
    "TwoImages",
]
