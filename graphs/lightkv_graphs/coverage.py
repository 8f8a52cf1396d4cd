"""Matching by coverage: of each window, those stay that stand best for what the prompt asks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.matching import Matching, padded, source_cosines, staying, take_edges
from lightkv_graphs.partition import StagePlan, WindowPartition
from lightkv_graphs.prompt_matching import relevance

Objective = Literal["sum", "max"]


@dataclass(frozen=True)
class CoverageMatching:
    """Chooses who stays one by one, each time the token that adds most; the others join them.

    A token i that stays covers a token j as far as their features agree, ``max(0, cos(x_i, x_j))``;
    a token is covered by the best of those that stay.  What j counts is ``w_j = m_j * g_j ** p``,
    with its mass m, and the prompt's guidance g relative to the mean of its image.  With
    ``objective="sum"`` the next token is the one that raises ``sum_j w_j * cover_j`` most
    (facility location: a greedy choice reaches at least 1 - 1/e of the best one; Nemhauser, Wolsey
    and Fisher 1978).  With ``"max"`` it is the one for which ``w_j * (1 - cover_j)`` is largest
    (weighted k-centre, farthest point first; Gonzalez 1985; Dyer and Frieze 1985).

    Every token that leaves joins the most similar one that stays.  Ties go to the lowest index.  A
    token with a NaN stays before all others.  Any ratio up to 0.99 will do.

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
    ) -> Matching:
        """Matches the tokens of every window.

        Args:
            x: Features, `[token, channel]`.
            partition: The windows, with the number of tokens that leave.
            guidance: Logarithm of the prompt's guidance, `[token]`; equal for all if not given.
            layout: Has the tokens' masses; 1 each if not given.
        """
        slots, tokens = partition.slots(), x.shape[0]
        heard = torch.ones(tokens, device=x.device)
        if guidance is not None:
            heard = relevance(guidance.detach().float(), partition)
        weight = heard**self.guidance_power
        if layout is not None:
            weight = weight * layout.mass
        cosine = _cosines(x, slots)
        broken = ~x.detach().isfinite().all(1)
        first = padded(heard.masked_fill(broken, torch.inf), -torch.inf)[slots]
        rank = self._ranks(cosine, padded(weight, 0.0)[slots], first, partition)
        leaving, _ = take_edges(partition, slots, slots, -rank.float())
        return _joined(leaving[0], slots, cosine, tokens)

    def _ranks(
        self, cosine: Tensor, weight: Tensor, first: Tensor, partition: WindowPartition
    ) -> Tensor:
        """When each token is chosen, `[window, slot]`, from 0; those that are not, last of all.

        Args:
            cosine: Of the tokens of each window, `[window, slot, slot]`.
            weight: What each token counts, `[window, slot]`.
            first: Guidance, by which anchors are chosen, `[window, slot]`; infinity for what has to
                stay, minus infinity for padding.
            partition: The windows.
        """
        plan, size = partition.plan, partition.sizes()
        anchors = ((size - plan.count(size, plan.ratio)) * self.anchors).floor()[:, None]
        must, taken = first == torch.inf, first == -torch.inf
        steps = _most_staying(plan)
        rank = torch.full_like(taken, steps, dtype=torch.int64)
        covered = torch.zeros_like(weight)
        place = torch.arange(weight.shape[1], device=weight.device)
        for step in range(steps):
            if self.objective == "sum":
                gain = ((cosine - covered[:, :, None]).clamp(min=0) * weight[:, :, None]).sum(1)
            else:
                gain = weight * (1 - covered)
            gain = torch.where(step < anchors, first, gain)
            gain = gain.masked_fill(must, torch.inf).masked_fill(taken, -torch.inf)
            best = gain.argmax(dim=1, keepdim=True)
            chosen = (place == best) & ~taken
            rank = rank.masked_fill(chosen, step)
            taken = taken | chosen
            cover = cosine.gather(2, best[:, None].expand(-1, cosine.shape[1], 1))[:, :, 0]
            covered = torch.maximum(covered, cover)
        return rank


coverage_matching = CoverageMatching()
"""Facility location, in which the prompt counts with the root of its guidance."""


def _most_staying(plan: StagePlan) -> int:
    """Most tokens of a window that may stay: of a larger window more leave, and more stay."""
    if plan.leaving is None:
        return plan.largest
    return plan.largest - max(plan.leaving, default=0)


def _cosines(x: Tensor, slots: Tensor) -> Tensor:
    """Cosines of the tokens of each window, `[window, slot, slot]`; 1 of every token and itself."""
    own = torch.eye(slots.shape[1], dtype=torch.bool, device=slots.device)
    return source_cosines(x, slots, slots).masked_fill(own, 1.0)


def _joined(leaving: Tensor, slots: Tensor, cosine: Tensor, tokens: int) -> Matching:
    """Edges from tokens that leave, `[edge]`, to the most similar that stay."""
    stays = staying(leaving, tokens)
    least = -2.0  # of a token with a NaN, which is like none of those that stay
    cosine = cosine.clamp(min=least).masked_fill(~stays[slots][:, None, :], -torch.inf)
    similarity, slot = cosine.max(dim=2)
    similarity = similarity.masked_fill(similarity == least, -torch.inf)
    flat = slots.reshape(-1)
    heir = torch.zeros_like(stays, dtype=torch.int64)
    heir = heir.index_copy(0, flat, slots.gather(1, slot).reshape(-1))[leaving]
    like = similarity.new_zeros(tokens + 1).index_copy(0, flat, similarity.reshape(-1))[leaving]
    return Matching(torch.stack([leaving, heir]), like)
