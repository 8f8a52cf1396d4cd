"""Like DivPrune: the most diverse tokens are kept, whatever the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.pruning import Once
from lightkv_graphs import Matching, WindowPartition, drop_lowest, source_cosines


def keep_diverse(x: Tensor, partition: WindowPartition) -> Matching:
    """Keeps tokens that are far from each other by cosine, one after the other.

    The first one is the token that is farthest from its nearest neighbour; each next one that
    which is farthest from those chosen.  All images at once; it takes a matrix of tokens by tokens
    for each, and as many steps as tokens are kept.
    """
    slots = partition.slots()
    images, width = slots.shape
    empty = slots == x.shape[0]
    # A token without direction is like any other.
    apart = 1 - source_cosines(x, slots, slots).nan_to_num(neginf=1.0)
    own = torch.eye(width, dtype=torch.bool, device=x.device)
    alone = apart.masked_fill(own | empty[:, None, :], torch.inf).amin(dim=2)
    distance = alone.masked_fill(empty, -torch.inf)
    score = torch.zeros_like(distance)
    every = torch.arange(images, device=x.device)
    for step in range(_most_kept(partition)):
        best = distance.argmax(dim=1)
        new = ~distance[every, best].isneginf()
        score[every, best] = torch.where(new, float(width - step), score[every, best])
        nearer = apart[every, best]
        distance = torch.minimum(distance, nearer) if step else nearer
        distance = distance.masked_fill(empty | (score > 0), -torch.inf)
    flat = torch.zeros(x.shape[0] + 1, device=x.device)
    return drop_lowest(flat.index_copy(0, slots.reshape(-1), score.reshape(-1))[:-1], x, partition)


def _most_kept(partition: WindowPartition) -> int:
    """An upper bound on the tokens that stay in a window."""
    plan = partition.plan
    if partition.per_image > 1:
        return plan.largest
    left = (own.tokens - gone for own, gone in zip(plan.before, plan.merges, strict=True))
    return max(left, default=0)


DIVPRUNE_LIKE = Once(
    "divprune_like",
    "after DivPrune (Alvar et al. 2025): max-min diversity by greedy choice, but of the hidden "
    "states at the stage's layer in place of the projected features before the decoder",
    {"guidance": "none", "matcher": keep_diverse},
)
