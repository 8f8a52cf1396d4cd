"""All suites, by name."""

from __future__ import annotations

from collections.abc import Callable

from lightkv_gnn.evaluation import cued
from lightkv_gnn.evaluation.rectangles import Rectangles
from lightkv_gnn.evaluation.suite import Suite
from lightkv_gnn.evaluation.tiny_suite import TinySuite

SUITES: dict[str, Callable[[], Suite]] = {
    **cued.SUITES,
    Rectangles.name: Rectangles,
    TinySuite.name: TinySuite,
}
