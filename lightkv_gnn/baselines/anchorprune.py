"""Like AnchorPrune: relevant anchors that are new to each other, then what is far from them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.choosing import (
    choose,
    heard,
    most_staying,
    number_staying,
    of_tokens,
    similarities,
)
from lightkv_gnn.baselines.pruning import Once
from lightkv_graphs import Matching, WindowPartition, drop_lowest

NOVEL = 0.1
"""Least distance, ``1 - cos``, of an anchor from all anchors before it."""


def keep_anchored(x: Tensor, partition: WindowPartition, guidance: Tensor) -> Matching:
    """Keeps anchors, then the tokens with most relevance times distance from those chosen.

    Anchors are taken by relevance among the tokens that are novel, until none is or half of those
    that stay are anchors.
    """
    slots = partition.slots()
    real, steps = slots < len(x), most_staying(partition)
    relevance = heard(guidance, partition, slots)
    apart = 1 - similarities(x, slots)
    distance = torch.full_like(relevance, 2.0)  # the largest there is
    anchoring = torch.ones(len(slots), 1, dtype=torch.bool, device=x.device)
    half = number_staying(partition) // 2
    every = torch.arange(len(slots), device=x.device)

    def worth(step: int, left: Tensor) -> Tensor:
        novel = left & (distance >= NOVEL)
        anchoring.logical_and_((step < half) & novel.any(dim=1, keepdim=True))
        anchors = torch.where(novel, relevance, -1.0)
        return torch.where(anchoring, anchors, relevance * distance)

    def taken(step: int, best: Tensor) -> None:
        torch.minimum(distance, apart[every, best], out=distance)

    score = choose(slots, real, steps, worth, taken)
    return drop_lowest(of_tokens(score, slots, len(x)), x, partition)


ANCHORPRUNE_LIKE = Once(
    "anchorprune_like",
    "after AnchorPrune (arXiv 2607.07033): anchors by relevance while they are novel, at most "
    "half, then greedily by relevance times distance from those chosen; relevance is the prompt's "
    "attention, features are the hidden states at the stage's layer, and that novel means a "
    "distance of a tenth is a guess",
    {"matcher": keep_anchored},
)
