"""Like DivPrune: the most diverse tokens are kept, whatever the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.choosing import most_staying, of_tokens
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
    for step in range(most_staying(partition)):
        best = distance.argmax(dim=1)
        new = ~distance[every, best].isneginf()
        score[every, best] = torch.where(new, float(width - step), score[every, best])
        nearer = apart[every, best]
        distance = torch.minimum(distance, nearer) if step else nearer
        distance = distance.masked_fill(empty | (score > 0), -torch.inf)
    return drop_lowest(of_tokens(score, slots, len(x)), x, partition)


DIVPRUNE_LIKE = Once(
    "divprune_like",
    "after DivPrune (Alvar et al. 2025): max-min diversity by greedy choice, but of the hidden "
    "states at the stage's layer in place of the projected features before the decoder",
    {"guidance": "none", "matcher": keep_diverse},
)
