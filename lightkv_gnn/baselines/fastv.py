"""FastV: what the last token attends to least is dropped, once; everywhere, or in windows."""

from __future__ import annotations

from lightkv_gnn.baselines.attention import last_token_attention
from lightkv_gnn.baselines.method import Budget
from lightkv_gnn.baselines.pruning import Once, keep_top
from lightkv_gnn.baselines.schedules import windowed
from lightkv_gnn.costs.schedule import Stage

FASTV = keep_top(
    "fastv",
    "FastV (Chen et al. 2024): vision tokens ranked by the attention they get from the last token "
    "in one layer, averaged over heads; the lowest are dropped, once",
    last_token_attention,
)


class WindowFastV(Once):
    """FastV in windows of equal size, each of which keeps the same share."""

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One, in as many windows as a grid has tokens for."""
        return windowed(budget.layers, budget.retention, budget.depth, budget.grid)


WINDOW_FASTV = WindowFastV(
    "window_fastv",
    "windowed FastV (Wen et al. 2025): the same share of every window of the picture, ranked as in "
    "FastV; 4 windows a side, or fewer where they cannot keep to the budget",
    FASTV.options,
)
