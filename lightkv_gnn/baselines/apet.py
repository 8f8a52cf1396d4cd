"""Like ApET: what a few tokens cannot approximate stays, the rest joins it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.choosing import (
    choose,
    join,
    most_staying,
    number_staying,
    similarities,
)
from lightkv_gnn.baselines.pruning import Once
from lightkv_gnn.stage.messages import mean
from lightkv_graphs import Matching, WindowPartition

BASIS = 10
"""Tokens of each picture that the others are approximated by."""

RIDGE = 1e-4
"""Of the least squares, as a share of the basis tokens' mean squared length."""


def keep_unpredictable(x: Tensor, partition: WindowPartition) -> Matching:
    """The basis stays, and of the other tokens those with the largest errors.

    The error is the length of what is left of a token's features when a linear combination of the
    basis is taken away, by ridge regression.  Whoever leaves joins the most similar token that
    stays.  A token with a NaN stays.
    """
    slots = partition.slots()
    real, known = slots < len(x), torch.cat([x.detach().float(), x.new_zeros(1, x.shape[1])])
    bad = ~known.isfinite().all(dim=1)[slots]
    features = known[slots].masked_fill(bad[:, :, None], 0)
    number = number_staying(partition).clamp(max=BASIS)
    order = farthest(features, slots, real & ~bad, min(BASIS, most_staying(partition)))
    chosen = order > BASIS - number
    rank, places = order.topk(min(BASIS, order.shape[1]), dim=1)
    basis = features.gather(1, places[:, :, None].expand(-1, -1, features.shape[2]))
    error = residual(features, basis * (rank > BASIS - number)[:, :, None], RIDGE)
    score = error.masked_fill(chosen | bad, torch.inf)
    return join(score, similarities(x, slots), x, partition, real)


def farthest(features: Tensor, slots: Tensor, real: Tensor, steps: int) -> Tensor:
    """Farthest points, the first one that is farthest from the mean; see :func:`choose`.

    Args:
        features: `[window, slot, channel]`.
        slots: Tokens, `[window, slot]`.
        real: Which of them may be chosen, likewise.
        steps: How many are chosen.

    Returns:
        ``BASIS`` for the first one, one less for the next, and so on, `[window, slot]`.
    """
    number = real.sum(dim=1)[:, None, None].clamp(min=1)
    centre = (features * real[:, :, None]).sum(dim=1, keepdim=True) / number
    distance = torch.cdist(features, centre)[:, :, 0]
    every = torch.arange(len(slots), device=slots.device)

    def taken(step: int, best: Tensor) -> None:
        own = torch.cdist(features, features[every, best][:, None])[:, :, 0]
        distance.copy_(own if step == 0 else torch.minimum(distance, own))

    score = choose(slots, real, steps, lambda step, left: distance, taken)
    return torch.where(score > 0, score + BASIS - steps, score)


def residual(features: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """Length of what a basis leaves of each token, `[window, slot]`.

    Args:
        features: `[window, slot, channel]`.
        basis: Basis tokens, `[window, basis, channel]`; rows of zeros count for nothing.
        ridge: Penalty, as a share of the basis tokens' mean squared length.
    """
    gram = basis @ basis.transpose(1, 2)
    length = gram.diagonal(dim1=1, dim2=2)
    used = length > 0
    mean = length.sum(dim=1) / used.sum(dim=1).clamp(min=1)
    # A row of zeros has a penalty of its own, which keeps it solvable.
    penalty = torch.where(used, ridge * mean[:, None], torch.ones_like(length))
    share = torch.linalg.solve(gram + torch.diag_embed(penalty), basis @ features.transpose(1, 2))
    return torch.linalg.vector_norm(features - share.transpose(1, 2) @ basis, dim=2)


APET_LIKE = Once(
    "apet_like",
    "after ApET (Ma et al. 2026): ten farthest tokens approximate the others linearly, the largest "
    "errors stay, the rest are averaged into the most similar one; once in the decoder in place of "
    "before it too, and the first of the ten is the one farthest from the mean",
    {"guidance": "none", "message": mean, "matcher": keep_unpredictable},
)
