"""Like SCOPE: tokens that cover what is not covered yet, and are attended to."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.attention import last_token_attention
from lightkv_gnn.baselines.choosing import choose, heard, most_staying, of_tokens, similarities
from lightkv_gnn.baselines.pruning import Once
from lightkv_graphs import Matching, WindowPartition, drop_lowest


def keep_salient_cover(x: Tensor, partition: WindowPartition, guidance: Tensor) -> Matching:
    """Keeps, one after the other, the token with most saliency times gain in coverage.

    A token is covered as far as the most similar of those chosen, 0 at first; the gain of a token i
    is ``sum_j max(0, cos(x_i, x_j) - covered_j)``, over the tokens of the picture.
    """
    slots = partition.slots()
    real, steps = slots < len(x), most_staying(partition)
    saliency = heard(guidance, partition, slots)
    cosine = similarities(x, slots) * real[:, :, None]
    covered = torch.zeros_like(saliency)
    every = torch.arange(len(slots), device=x.device)

    def worth(step: int, left: Tensor) -> Tensor:
        return (cosine - covered[:, :, None]).relu_().sum(dim=1) * saliency

    def taken(step: int, best: Tensor) -> None:
        torch.maximum(covered, cosine[every, :, best], out=covered)

    score = choose(slots, real, steps, worth, taken)
    return drop_lowest(of_tokens(score, slots, len(x)), x, partition)


SCOPE_LIKE = Once(
    "scope_like",
    "after SCOPE (Deng et al. 2025): a greedy choice by saliency times gain in coverage, but of "
    "the hidden states at the stage's layer in place of features before the decoder, and with the "
    "last token's attention in place of that of the vision tower's [CLS]; the exponent of the "
    "saliency is 1, as in its released scripts",
    {"guidance": last_token_attention, "matcher": keep_salient_cover},
)
