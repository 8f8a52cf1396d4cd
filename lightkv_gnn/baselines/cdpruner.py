"""Like CDPruner: a determinantal point process that the prompt conditions."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.choosing import (
    choose,
    heard,
    most_staying,
    of_tokens,
    similarities,
    spread,
)
from lightkv_gnn.baselines.pruning import Once
from lightkv_graphs import Matching, WindowPartition, drop_lowest

LEAST = 1e-6
"""Variance below which a token adds nothing to those that were chosen."""


def keep_conditionally_diverse(x: Tensor, partition: WindowPartition, guidance: Tensor) -> Matching:
    """Keeps the tokens that the greedy choice gives the largest determinant of the kernel.

    The kernel is ``r_i * cos(x_i, x_j) * r_j``, with relevance r from 0 for the least of each image
    to 1 for the most.  The greedy choice grows a Cholesky factor row by row (Chen, Zhang and Zhou
    2018, "Fast greedy MAP inference for determinantal point process"): each next token is the one
    whose variance, given those chosen, is largest.  Once none is left, the lowest index follows.
    """
    slots = partition.slots()
    real, steps = slots < len(x), most_staying(partition)
    share = spread(heard(guidance, partition, slots), real)
    kernel = share[:, :, None] * similarities(x, slots) * share[:, None, :]
    variance = kernel.diagonal(dim1=1, dim2=2).clone()
    rows = variance.new_zeros(len(slots), steps, slots.shape[1])
    every = torch.arange(len(slots), device=x.device)

    def taken(step: int, best: Tensor) -> None:
        known = (rows[every, :, best][:, None] @ rows)[:, 0]
        pivot = variance[every, best][:, None]
        row = (kernel[every, best] - known) / pivot.clamp(min=LEAST).sqrt()
        rows[:, step] = row.masked_fill(pivot <= LEAST, 0)
        variance.sub_(rows[:, step].square())

    score = choose(
        slots, real, steps, lambda step, left: variance.masked_fill(variance <= LEAST, 0), taken
    )
    return drop_lowest(of_tokens(score, slots, len(x)), x, partition)


CDPRUNER_LIKE = Once(
    "cdpruner_like",
    "after CDPruner (Zhang et al. 2025): the greedy mode of a determinantal point process whose "
    "kernel is similarity times the relevance of both tokens, but of the hidden states at the "
    "stage's layer, with relevance from the prompt's attention in place of CLIP's similarity to "
    "the text",
    {"matcher": keep_conditionally_diverse},
)
