"""What methods that drop tokens share: their schedules, and a ranking by any score."""

from __future__ import annotations

from torch import Tensor

from lightkv_gnn.baselines.method import Budget, StageMethod
from lightkv_gnn.baselines.schedules import progressive, single
from lightkv_gnn.costs.schedule import Stage
from lightkv_gnn.stage.guidance import GuidanceFunction
from lightkv_graphs import Matching, WindowPartition, drop_lowest


class Once(StageMethod):
    """A method with one stage, over the whole picture."""

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One."""
        return single(budget.layers, budget.retention, budget.depth)


class Staged(StageMethod):
    """A method with several stages, each over the whole picture."""

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Those of the usual schedule, in one window."""
        return progressive(budget.layers, budget.retention, budget.depth, budget.grid, windows=(1,))


def keep_highest(x: Tensor, partition: WindowPartition, guidance: Tensor) -> Matching:
    """Drops the tokens with the least guidance."""
    return drop_lowest(guidance, x, partition)


def keep_top(title: str, origin: str, score: GuidanceFunction) -> Once:
    """A method that keeps the tokens with the highest scores, once.

    Args:
        title: Name in tables.
        origin: Where it comes from.
        score: Of each vision token, 0 or more, from queries and keys, `[batch, vision]`.
    """
    return Once(title, origin, {"guidance": score, "matcher": keep_highest})
