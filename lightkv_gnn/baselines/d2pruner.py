"""Like D2Pruner: debiased attention, then an independent set in a graph of space and meaning."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.attention import last_token_attention
from lightkv_gnn.baselines.choosing import (
    choose,
    most_staying,
    number_staying,
    of_slots,
    of_tokens,
    similarities,
)
from lightkv_gnn.baselines.pruning import Once
from lightkv_graphs import Matching, TokenLayout, WindowPartition, drop_lowest

PIVOTS = 0.7
"""Share of those that stay which are taken by their importance alone."""

NEIGHBOURS = 0.8
"""Affinity above which two tokens are neighbours."""

FAINTEST = -30.0
"""Logarithm of the attention relative to a picture's most that no attention counts as."""


def keep_independent(
    x: Tensor, partition: WindowPartition, guidance: Tensor, layout: TokenLayout
) -> Matching:
    """Keeps pivots, then an independent set of the others, the most important one first.

    Whoever is chosen after the pivots takes its neighbours out of the choice.  Where no token is
    left to choose before enough are, the others follow by importance.
    """
    slots = partition.slots()
    real, steps = slots < len(x), most_staying(partition)
    importance = debiased(of_slots(guidance.detach().float(), slots), real).softmax(dim=1)
    neighbours = affinity(x, slots, layout) > NEIGHBOURS
    pivots = (number_staying(partition) * PIVOTS).floor()
    blocked = torch.zeros_like(real)
    every = torch.arange(len(slots), device=x.device)

    def worth(step: int, left: Tensor) -> Tensor:
        return importance + (~blocked).float()  # importance sums to 1: what is free comes first

    def taken(step: int, best: Tensor) -> None:
        blocked.logical_or_(neighbours[every, best] & (step >= pivots))

    score = choose(slots, real, steps, worth, taken)
    return drop_lowest(of_tokens(score, slots, len(x)), x, partition)


def debiased(attention: Tensor, real: Tensor) -> Tensor:
    """Logarithm of attention less its linear trend over each picture, `[window, slot]`.

    Args:
        attention: Its logarithm, in raster order, likewise.
        real: Which slots are tokens, likewise.
    """
    most = attention.masked_fill(~real, -torch.inf).amax(dim=1, keepdim=True)
    most = most.masked_fill(most.isinf(), 0)
    level = (attention - most).nan_to_num(nan=FAINTEST).clamp(FAINTEST, 0) * real
    number = real.sum(dim=1, keepdim=True).clamp(min=1)
    place = torch.arange(real.shape[1], device=real.device) * real
    place = (place - place.sum(dim=1, keepdim=True) / number) * real
    slope = (place * level).sum(dim=1, keepdim=True) / place.square().sum(1, True).clamp(min=1)
    return (level - slope * place).masked_fill(~real, torch.finfo(level.dtype).min / 4)


def affinity(x: Tensor, slots: Tensor, layout: TokenLayout) -> Tensor:
    """Mean of cosine and closeness of every two tokens, `[window, slot, slot]`.

    Closeness is 1 less the distance between places as a share of the picture's diagonal.
    """
    size = torch.tensor(layout.grids, device=x.device, dtype=torch.float32).reshape(-1, 2)
    place = torch.stack([layout.row, layout.col], dim=1) / size.norm(dim=1)[layout.image, None]
    place = torch.cat([place, place.new_zeros(1, 2)])[slots]
    return (similarities(x, slots) + 1 - torch.cdist(place, place)) / 2


D2PRUNER_LIKE = Once(
    "d2pruner_like",
    "after D2Pruner (Zhang et al. 2026): pivots by debiased attention of the last token, then a "
    "maximal independent set of the others in a graph of space and meaning; the bias divided by is "
    "the trend over the picture itself in place of a mean over many pictures, and edges join "
    "tokens whose mean of cosine and closeness is above 0.8",
    {"guidance": last_token_attention, "matcher": keep_independent},
)
