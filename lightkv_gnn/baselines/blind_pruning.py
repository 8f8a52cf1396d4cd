"""Pruning that looks at nothing: at random, or every so many tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.method import Budget
from lightkv_gnn.baselines.pruning import Staged
from lightkv_gnn.baselines.schedules import single
from lightkv_gnn.costs.schedule import Stage
from lightkv_gnn.errors import ScheduleError
from lightkv_graphs import Matching, WindowPartition, drop_lowest


def drop_at_random(x: Tensor, partition: WindowPartition) -> Matching:
    """Every token is as likely to be dropped as any other."""
    return drop_lowest(torch.rand(x.shape[0], device=x.device), x, partition)


def drop_evenly(x: Tensor, partition: WindowPartition) -> Matching:
    """Drops tokens at even distances in raster order, whatever is in them."""
    slots = partition.slots()
    place = torch.arange(slots.shape[1], device=x.device)
    share = 1 - partition.plan.ratio
    # A token stays where the number of tokens that should have stayed so far goes up.
    crossing = ((place + 1) * share).floor() - (place * share).floor()
    score = torch.zeros(x.shape[0] + 1, device=x.device)
    score = score.index_copy(0, slots.reshape(-1), crossing.expand(slots.shape).reshape(-1))
    return drop_lowest(score[:-1], x, partition)


class Anyhow(Staged):
    """In the stages of merging, or in one where they cannot keep to the budget."""

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """As in merging, where no stage takes more than half; else one that takes what it must."""
        try:
            return super().stages(budget)
        except ScheduleError:
            return single(budget.layers, budget.retention, budget.depth)


RANDOM_PRUNING = Anyhow(
    "random_pruning",
    "vision tokens dropped at random, in the stages of merging (ImgRand), or in one where those "
    "cannot keep to the budget",
    {"guidance": "none", "matcher": drop_at_random},
)
STRIDE = Staged(
    "stride",
    "vision tokens kept at even distances in raster order, in the stages of merging",
    {"guidance": "none", "matcher": drop_evenly},
)
