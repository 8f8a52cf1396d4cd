"""Pruning as matching: tokens that are dropped are counted with a neighbour that stays."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_graphs.matching import Matching, edge_cosine, take_edges
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
    padding = x.shape[0]
    cost = torch.cat([score.detach().float(), score.new_zeros(1, dtype=torch.float32)])[slots]
    taken, _ = take_edges(partition, slots, slots, cost)
    stays = torch.ones(padding + 1, dtype=torch.bool, device=x.device)
    stays = stays.index_fill(0, taken[0], False)
    stays[padding] = False
    heir = torch.full_like(stays, padding, dtype=torch.int64)
    heir = heir.index_copy(0, slots.reshape(-1), _beside(slots, stays[slots], padding).reshape(-1))
    edge_index = torch.stack([taken[0], heir[taken[0]]])
    dropped = torch.ones_like(edge_index[0], dtype=torch.bool)
    return Matching(edge_index, edge_cosine(x, edge_index), dropped)


def _beside(slots: Tensor, stays: Tensor, padding: int) -> Tensor:
    """For every slot the next token that stays, else the last one before it, `[window, slot]`."""
    width = slots.shape[1]
    place = torch.arange(width, device=slots.device).expand_as(slots)
    later = place.masked_fill(~stays, width).flip(1).cummin(1).values.flip(1)
    earlier = place.masked_fill(~stays, -1).cummax(1).values
    chosen = torch.where(later < width, later, earlier)
    return torch.where(chosen < 0, padding, slots.gather(1, chosen.clamp(min=0)))
