"""What methods share that choose who stays, one token of every window after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightkv_graphs import Matching, WindowPartition, edge_cosine, source_cosines, take_edges
from lightkv_graphs.matching import padded, staying
from lightkv_graphs.prompt_matching import relevance

Worth = Callable[[int, Tensor], Tensor]
"""``worth(step, left)``: what each token would be worth next, `[window, slot]`; ``left``, alike, is
True for those that may still be chosen."""

Taken = Callable[[int, Tensor], None]
"""``taken(step, slot)`` is told who was chosen in each window, `[window]`."""


def choose(slots: Tensor, real: Tensor, steps: int, worth: Worth, taken: Taken) -> Tensor:
    """Chooses the token of most worth, again and again; ties go to the lowest index.

    Args:
        slots: Tokens of each window, `[window, slot]`; see :meth:`WindowPartition.slots`.
        real: Which of them are tokens, likewise.
        steps: How many are chosen of each window, or all of a smaller one.
        worth: Says what tokens are worth; it must be no NaN.
        taken: Is told of the choice.

    Returns:
        When each was chosen, the higher the earlier, `[window, slot]`; 0 for those that were not.
    """
    left, every = real.clone(), torch.arange(len(slots), device=slots.device)
    score = torch.zeros(slots.shape, device=slots.device)
    for step in range(steps):
        best = worth(step, left).masked_fill(~left, -torch.inf).argmax(dim=1)
        new = left[every, best]
        score[every, best] = torch.where(new, float(steps - step), score[every, best])
        left[every, best] = False
        taken(step, best)
    return score


def similarities(x: Tensor, slots: Tensor) -> Tensor:
    """Cosines of every two tokens of each window, `[window, slot, slot]`, float32.

    A token with a NaN is like any other, so that it is the first to go; one without direction is
    like none.
    """
    return source_cosines(x, slots, slots).nan_to_num(neginf=1.0)


def of_slots(values: Tensor, slots: Tensor) -> Tensor:
    """Values of tokens, `[token]`, by window and slot; 0 where there is no token."""
    return padded(values, 0.0)[slots]


def of_tokens(values: Tensor, slots: Tensor, tokens: int) -> Tensor:
    """Values by window and slot for each token, `[token]`; 0 for tokens that are in no window."""
    flat = values.new_zeros(tokens + 1).index_copy(0, slots.reshape(-1), values.reshape(-1))
    return flat[:-1]


def heard(guidance: Tensor, partition: WindowPartition, slots: Tensor) -> Tensor:
    """Guidance relative to the mean of each image, `[window, slot]`, from its logarithm."""
    return of_slots(relevance(guidance.detach().float(), partition), slots)


def spread(values: Tensor, real: Tensor) -> Tensor:
    """Values of each window from 0 for the least to 1 for the largest; 1 where all are equal."""
    low = values.masked_fill(~real, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~real, -torch.inf).amax(dim=1, keepdim=True)
    width = high - low
    share = (values - low) / width.masked_fill(width <= 0, 1)
    return torch.where(width > 0, share, torch.ones_like(share)).masked_fill(~real, 0)


def number_staying(partition: WindowPartition) -> Tensor:
    """How many tokens of each window stay, `[window, 1]`."""
    plan, size = partition.plan, partition.sizes()
    return (size - plan.count(size, plan.ratio))[:, None]


def most_staying(partition: WindowPartition) -> int:
    """An upper bound on the tokens that stay in a window."""
    plan = partition.plan
    if partition.per_image > 1:
        return plan.largest
    left = (own.tokens - gone for own, gone in zip(plan.before, plan.merges, strict=True))
    return max(left, default=0)


def join(
    score: Tensor, similarity: Tensor, x: Tensor, partition: WindowPartition, hosts: Tensor
) -> Matching:
    """The tokens of least score leave, and each joins the most similar host that stays.

    Args:
        score: `[window, slot]`.
        similarity: Of tokens to be compared, `[window, slot, slot]`.
        x: Features, `[token, channel]`.
        partition: The windows, with the number of tokens that leave.
        hosts: Tokens that others may join, `[window, slot]` bool; one at least has to stay in each
            window that loses some.
    """
    slots, tokens = partition.slots(), len(x)
    leaving = take_edges(partition, slots, slots, score)[0][0]
    able = hosts & staying(leaving, tokens)[slots]
    nearest = similarity.masked_fill(~able[:, None, :], -torch.inf).argmax(dim=2)
    heir = torch.zeros(tokens + 1, dtype=torch.int64, device=x.device)
    heir = heir.index_copy(0, slots.reshape(-1), slots.gather(1, nearest).reshape(-1))
    edge_index = torch.stack([leaving, heir[leaving]])
    return Matching(edge_index, edge_cosine(x, edge_index).nan_to_num(nan=-torch.inf))
