"""All suites, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lightkv_gnn.evaluation import cued
from lightkv_gnn.evaluation.photo_suite import PhotoSuite
from lightkv_gnn.evaluation.rectangles import Rectangles
from lightkv_gnn.evaluation.suite import Suite
from lightkv_gnn.evaluation.tiny_suite import TinySuite

CELLS: dict[str, Callable[..., Suite]] = {
    # Two listening layers, so that a schedule of several stages can end before anything has moved.
    name: partial(suite, listening=2)
    for name, suite in cued.SUITES.items()
}
"""Suites on square pictures of cells, of any ``side``."""

SUITES: dict[str, Callable[..., Suite]] = {
    **CELLS,
    Rectangles.name: Rectangles,
    TinySuite.name: TinySuite,
    PhotoSuite.name: PhotoSuite,
}
