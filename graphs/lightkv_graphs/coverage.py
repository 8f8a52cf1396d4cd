"""Matching by coverage: of each window, those stay that stand best for what the prompt asks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import get_args

import torch
from torch import Tensor

from lightkv_graphs.certificate import certified
from lightkv_graphs.greedy import Greedy, Objective, gains, greedy_ranks
from lightkv_graphs.host import row_minima
from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.matching import (
    FARTHEST,
    Matching,
    padded,
    staying,
    take_edges,
    window_distances,
)
from lightkv_graphs.partition import StagePlan, WindowPartition
from lightkv_graphs.prompt_matching import relevance

MOST = 1e30
"""That a token may count; sums of it are finite."""


@dataclass(frozen=True)
class CoverageMatching:
    """Chooses who stays one by one, each time the token that adds most; the others join them.

    A token i that stays covers a token j as far as their features agree, ``max(0, cos(x_i, x_j))``;
    a token is covered by the best of those that stay.  What j counts is ``w_j = m_j * g_j ** p``,
    with its mass m, and the prompt's guidance g relative to the mean of its image.  With
    ``objective="sum"`` the next token is the one that raises ``sum_j w_j * cover_j`` most
    (facility location: a greedy choice reaches at least 1 - 1/e of the best one; Nemhauser, Wolsey
    and Fisher 1978).  What each would add is summed up for each of the first nine, and then four
    times until twice as many are chosen; in between it shrinks as ``1 - cover_j`` does.  With
    ``"max"`` the next is the one for which ``w_j * (1 - cover_j)`` is largest (weighted k-centre,
    farthest point first; Gonzalez 1985; Dyer and Frieze 1985).

    Every token that leaves joins the most similar one that stays; the matching carries a
    :class:`~lightkv_graphs.Certificate` of what is lost, ``w_j * (1 - cover_j)``.  Ties go to the
    lowest index.  A token with a NaN stays before all others.  Any ratio up to 0.99 will do.

    Attributes:
        guidance_power: The exponent p; 0 hears nothing of the prompt.
        anchors: Share of those that stay which are the tokens of most guidance, chosen first.
        objective: "sum" or "max".
    """

    guidance_power: float = 0.5
    anchors: float = 0.0
    objective: Objective = "sum"

    def __post_init__(self) -> None:
        for name in ("guidance_power", "anchors"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}: expected a number")
        if not 0 <= self.guidance_power < math.inf:
            raise ValueError(
                f"guidance_power is {self.guidance_power}: expected a finite exponent of 0 or more"
            )
        if not 0 <= self.anchors <= 1:
            raise ValueError(f"anchors is {self.anchors}: expected a fraction from 0 to 1")
        if self.objective not in get_args(Objective):
            raise ValueError(
                f"objective is {self.objective!r}: expected one of {get_args(Objective)}"
            )

    def __call__(
        self,
        x: Tensor,
        partition: WindowPartition,
        guidance: Tensor | None = None,
        layout: TokenLayout | None = None,
        greedy: Greedy = greedy_ranks,
    ) -> Matching:
        """Matches the tokens of every window.

        Args:
            x: Features, `[token, channel]`.
            partition: The windows, with the number of tokens that leave.
            guidance: Logarithm of the prompt's guidance, `[token]`; equal for all if not given.
            layout: Has the tokens' masses; 1 each if not given.
            greedy: Chooses who stays.
        """
        slots, tokens = partition.slots(), x.shape[0]
        heard = torch.ones(tokens, device=x.device)
        if guidance is not None:
            heard = relevance(guidance.detach().float(), partition)
        weight = heard**self.guidance_power
        if layout is not None:
            weight = weight * layout.mass
        weight = weight.nan_to_num(0.0).clamp(max=MOST)
        distance = window_distances(x, slots)
        own = distance.diagonal(dim1=1, dim2=2)
        # None are chosen before tokens with a NaN, and none after what is no token.
        urgent = torch.zeros_like(own).masked_fill(own == FARTHEST, torch.inf)
        urgent = urgent.masked_fill(slots == tokens, -torch.inf)
        own.fill_(FARTHEST)
        nearest = distance.amin(dim=2)
        own.fill_(0.0)
        heard, weight = (padded(value, 0.0)[slots] for value in (heard, weight))
        steps, anchored = _most_staying(partition.plan), self._anchored(partition)
        rank = greedy(distance, weight, heard, urgent, steps, anchored, self.objective)
        leaving, _ = take_edges(partition, slots, slots, -rank)
        stays = staying(leaving[0], tokens)
        matching = _joined(leaving[0], slots, distance, stays)
        uncovered = torch.zeros_like(stays, dtype=distance.dtype)
        uncovered = uncovered.index_copy(0, leaving[0], 1 - matching.similarity)
        uncovered = uncovered.clamp(max=1)[slots]
        more = gains(distance, weight, uncovered)
        of_images = partition.images, partition.per_image
        choice = stays[slots], slots != tokens, of_images
        certificate = certified(weight, uncovered, nearest, more, *choice)
        return replace(matching, certificate=certificate)

    def _anchored(self, partition: WindowPartition) -> Tensor | None:
        """How many of each window's tokens are anchors, `[window, 1]`; None if there are none."""
        if self.anchors == 0:
            return None
        plan, size = partition.plan, partition.sizes()
        return ((size - plan.count(size, plan.ratio)) * self.anchors).floor()[:, None]


coverage_matching = CoverageMatching()
"""Facility location, in which the prompt counts with the root of its guidance."""


def _most_staying(plan: StagePlan) -> int:
    """Most tokens of a window that may stay: of a larger window more leave, and more stay."""
    if plan.leaving is None:
        return plan.largest
    return plan.largest - max(plan.leaving, default=0)


def _joined(leaving: Tensor, slots: Tensor, distance: Tensor, stays: Tensor) -> Matching:
    """Edges from tokens that leave, `[edge]`, to the nearest of those that stay."""
    flat, width = slots.reshape(-1), slots.shape[1]
    place = torch.arange(len(flat), device=flat.device)
    place = place.new_zeros(len(stays)).index_copy(0, flat, place)[leaving]
    window = place // width
    least = torch.full_like(slots, torch.inf, dtype=distance.dtype).masked_fill(stays[slots], 0.0)
    distance = distance.reshape(-1, width).index_select(0, place)
    nearest, slot = row_minima(distance.add_(least.index_select(0, window)))
    heir = flat.index_select(0, window * width + slot)
    similarity = (1 - nearest).masked_fill(nearest == FARTHEST, -torch.inf)
    return Matching(torch.stack([leaving, heir]), similarity)
