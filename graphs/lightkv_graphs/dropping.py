"""Pruning as matching: tokens that are dropped are counted with a neighbour that stays."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_graphs.matching import Matching, edge_cosine, padded, staying, take_edges
from lightkv_graphs.partition import WindowPartition


def drop_lowest(score: Tensor, x: Tensor, partition: WindowPartition) -> Matching:
    """Drops the tokens with the lowest scores, as many of each window as planned.

    A dropped token's edge leads to the next token of its window that stays, or at the window's end
    to the one before; it carries nothing, and is there for the lineage.

    Args:
        score: `[token]`; ties go to the lowest index.
        x: Features, `[token, channel]`.
        partition: The windows, with the number of tokens to drop.
    """
    slots = partition.slots()
    cost = padded(score.detach().float(), 0.0)[slots]
    taken, _ = take_edges(partition, slots, slots, cost)
    heir = heirs(slots, staying(taken[0], x.shape[0]))
    edge_index = torch.stack([taken[0], heir[taken[0]]])
    dropped = torch.ones_like(edge_index[0], dtype=torch.bool)
    return Matching(edge_index, edge_cosine(x, edge_index), dropped)


def heirs(slots: Tensor, stays: Tensor) -> Tensor:
    """For every token the next one of its window that stays, else the last one before it.

    Args:
        slots: Tokens of each window in raster order, `[window, slot]`; see
            :meth:`WindowPartition.slots`.
        stays: Which tokens stay, `[token + 1]` bool, the last entry being that of the padding.

    Returns:
        `[token + 1]`; the number of tokens where a window has none that stays.
    """
    width, padding = slots.shape[1], stays.shape[0] - 1
    stay = stays[slots]
    place = torch.arange(width, device=slots.device).expand_as(slots)
    later = place.masked_fill(~stay, width).flip(1).cummin(1).values.flip(1)
    earlier = place.masked_fill(~stay, -1).cummax(1).values
    chosen = torch.where(later < width, later, earlier)
    beside = torch.where(chosen < 0, padding, slots.gather(1, chosen.clamp(min=0)))
    heir = torch.full_like(stays, padding, dtype=torch.int64)
    return heir.index_copy(0, slots.reshape(-1), beside.reshape(-1))
