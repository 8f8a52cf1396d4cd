"""Pooling: blocks of neighbouring cells become their mean, as many as the budget asks."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.method import Budget
from lightkv_gnn.baselines.pruning import Once
from lightkv_gnn.costs.schedule import Stage
from lightkv_gnn.errors import ScheduleError
from lightkv_gnn.stage.messages import mean
from lightkv_graphs import Matching, TokenLayout, WindowPartition, edge_cosine

SIDE = 2
"""Cells of a block, along each side."""


def pool(x: Tensor, partition: WindowPartition, layout: TokenLayout) -> Matching:
    """Blocks of 2x2 cells join their first token, spread evenly over each image.

    At the lower and right edge of an odd grid blocks are smaller.  The last block may be joined in
    part, so that as many tokens leave as planned.

    Raises:
        ValueError: Blocks have not enough tokens to lose.
    """
    device, tokens = x.device, x.shape[0]
    number = torch.arange(tokens, device=device)
    size = torch.tensor(layout.grids, device=device).reshape(-1, 2)[layout.image]
    row, col = layout.row // SIDE, layout.col // SIDE
    across = torch.div(size + SIDE - 1, SIDE, rounding_mode="floor")
    begin = torch.tensor(
        [0, *(-(-rows // SIDE) * -(-cols // SIDE) for rows, cols in layout.grids)], device=device
    ).cumsum(0)
    free = partition.window < partition.total
    blocks = int(begin[-1])
    block = torch.where(free, begin[layout.image] + row * across[:, 1] + col, blocks)
    head = number.new_full((blocks + 1,), tokens).scatter_reduce(0, block, number, "amin")
    leaves = free & (head[block] != number)
    # Sorted by multiples of irrational numbers, any number of first blocks lies evenly.
    spread = row.double() * 0.7548776662466927 + col.double() * 0.5698402909980532
    order = spread.frac().argsort(stable=True)
    image = layout.image.masked_fill(~leaves, len(layout.counts))
    order = order[image[order].argsort(stable=True)]
    able = torch.bincount(image, minlength=len(layout.counts))[: len(layout.counts)]
    gone = partition.plan.merges
    if any(own < asked for own, asked in zip(able.tolist(), gone, strict=True)):
        raise ValueError(f"{list(gone)} tokens are to leave: blocks have {able.tolist()} to lose")
    starts = (able.cumsum(0) - able).tolist()
    own = [order[at : at + n] for at, n in zip(starts, gone, strict=True)]
    taken = torch.cat([order[:0], *own]).sort().values
    edge_index = torch.stack([taken, head[block[taken]]])
    return Matching(edge_index, edge_cosine(x, edge_index))


class Pooling(Once):
    """One stage of pooling."""

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One, that may take three of four tokens."""
        (stage,) = super().stages(budget)
        rows, cols = budget.grid or (SIDE, SIDE)
        blocks = -(-rows // SIDE) * -(-cols // SIDE)
        most = 1 - blocks / (rows * cols)
        if stage.ratio > most:
            raise ScheduleError(
                f"pooling after layer {budget.depth} has to take {stage.ratio:.0%} of the tokens "
                f"away, but blocks of {SIDE}x{SIDE} lose {most:.0%}: expected more retention, or "
                "an earlier layer"
            )
        return (stage,)


POOLING = Pooling(
    "pooling",
    "blocks of 2x2 neighbouring tokens become their mean, once, as many blocks as the budget asks, "
    "spread evenly over the picture",
    {"guidance": "none", "message": mean, "matcher": pool},
)
