"""Scores of the suites on worlds of cells, with and without compression."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.evaluation.cued import CellRecipe, CellSuite
from lightkv_gnn.evaluation.cued.drawing import draw
from lightkv_gnn.evaluation.suite import Batch, Subject

QUESTIONS = 768

MEAN = {"guidance": "none", "message": lk.mean}
PRUNE = {"message": lk.destination_only}
RANDOM = {"matcher": lk.graphs.random_matching, **PRUNE}
LAST = {"guidance": "last_token"}


def quickly(suite: type[CellSuite], config: pytest.Config, **recipe: int) -> CellRecipe:
    """How to train what tests ask: with ``--all`` as the suite says, else on fewer samples."""
    return suite.own_recipe if config.getoption("--all") else replace(suite.own_recipe, **recipe)


class Exam:
    """A suite's model, and its accuracy under compressions after its first layers."""

    def __init__(self, suite: CellSuite, subject: Subject, questions: int = QUESTIONS) -> None:
        self.suite, self.subject, self.questions = suite, subject, questions
        self.drawn: dict[str, list[Batch]] = {}

    def batches(self, group: str | None) -> tuple[str, list[Batch]]:
        group = group or self.suite.groups[0]
        if group not in self.drawn:
            fresh = self.suite.batches(self.subject, group, self.questions, seed=1)
            self.drawn[group] = list(fresh)
        return group, self.drawn[group]

    def scores(self, group: str | None, ratios: tuple[float, ...], **options) -> Iterator[float]:
        """Of each question; ``ratios`` are merged away after layers 0, 1, ...

        An option that is ``Of(make)`` is made for each batch.
        """
        group, batches = self.batches(group)
        stages = [lk.Stage(layer, 1, ratio) for layer, ratio in enumerate(ratios)]
        torch.manual_seed(0)
        for batch in batches:
            own = {name: _for_batch(value, batch) for name, value in options.items()}
            config = lk.LightKVConfig(stages, **own)
            with lk.attach(self.subject.model, config) if stages else nullcontext():
                yield from self.suite.ask(self.subject, group, batch)

    def accuracy(self, *ratios: float, group: str | None = None, **options) -> float:
        return fmean(self.scores(group, ratios, **options))


class Of:
    """An option that knows the batch it is for."""

    def __init__(self, make: Callable[[Batch], Any]) -> None:
        self.make = make


def _for_batch(value: Any, batch: Batch) -> Any:
    return value.make(batch) if isinstance(value, Of) else value


def relevant_only(batch: Batch) -> Callable[[Any], Tensor]:
    """Guidance that knows where the answer is."""
    return lambda block: batch.relevant + 1e-6


ORACLE = {"guidance": Of(relevant_only)}


def keep_top(score: Callable[[Tensor], Tensor]) -> lk.graphs.Matcher:
    """A matcher that lets the tokens of least ``score(x)`` go; for one window per image."""

    def match(x: Tensor, partition: lk.graphs.WindowPartition) -> lk.graphs.Matching:
        edges = []
        for image, gone in enumerate(partition.plan.merges):
            own = (partition.window == image).nonzero()[:, 0]
            order = own[score(x[own]).argsort()]
            edges.append(torch.stack([order[:gone], order[-1].expand(gone)]))
        edge_index = torch.cat(edges, dim=1)
        edge_index = edge_index[:, edge_index[0].argsort()]
        return lk.graphs.Matching(edge_index, torch.zeros(edge_index.shape[1]))

    return match


def saliency(subject: Subject, side: int) -> Callable[[Tensor], Tensor]:
    """Objects above background, and among objects by chance; blind to the prompt."""
    black = draw(torch.zeros(1, side * side, dtype=torch.int64), side)
    with torch.no_grad():
        background = subject.model.get_image_features(black).pooler_output[0][0]
    return lambda x: ((x - background).norm(dim=1) > 1e-2) + torch.rand(len(x)) / 2


def binomial_band(share: float, questions: int = QUESTIONS, sigmas: float = 3.3) -> float:
    """Half width of what chance makes of a share; outside once in a thousand."""
    return sigmas * (share * (1 - share) / questions) ** 0.5
