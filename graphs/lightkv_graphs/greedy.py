"""The greedy choice of coverage: one token of every window after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lightkv_graphs.host import plain

Objective = Literal["sum", "max"]

LEAST = 1e-6
"""Of what is not covered yet, where something is divided by it."""

FEW_DISTANCES = 2**16
"""Of all windows, up to which the host sums all of them up again."""

Greedy = Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor | None, Objective], Tensor]
"""See :func:`greedy_ranks`."""


def greedy_ranks(
    distance: Tensor,
    weight: Tensor,
    heard: Tensor,
    urgent: Tensor,
    steps: int,
    anchored: Tensor | None,
    objective: Objective,
) -> Tensor:
    """When each token is chosen, `[window, slot]`, from 0; those that are not, last of all.

    Args:
        distance: ``1 - cos`` of the tokens of each window, 0 with itself, `[window, slot, slot]`,
            float32.
        weight: What each token counts, 0 for padding, `[window, slot]`.
        heard: Guidance, by which anchors are chosen, `[window, slot]`.
        urgent: Infinity for what has to stay, minus infinity for padding, else 0, likewise.
        steps: How many are chosen of each window, or all of a smaller one.
        anchored: How many of them are anchors, `[window, 1]`; none if not given.
        objective: What the others add, see :class:`CoverageMatching`.
    """
    if steps == 0 or weight.numel() == 0:
        return torch.full_like(heard, steps)
    distance, weight, heard, urgent = (
        part.detach().float() for part in (distance, weight, heard, urgent)
    )
    # A choice takes NumPy less time: what it works on is small.
    choose = _with_numpy if plain(distance) else _with_torch
    chosen = choose(distance, weight, heard, urgent, steps, anchored, objective)
    order = torch.arange(steps, device=heard.device, dtype=heard.dtype)
    order = order.repeat_interleave(len(heard))
    rank = torch.full_like(heard, steps).flatten()
    rank = rank.scatter_reduce(0, chosen.flatten(), order, "amin").view_as(heard)
    return rank.masked_fill(urgent == -torch.inf, steps)


def gains(distance: Tensor, weight: Tensor, uncovered: Tensor) -> Tensor:
    """What each token would add to the coverage of its window, `[window, slot]`.

    Args:
        distance: See :func:`greedy_ranks`.
        weight: What each token counts, `[window, slot]`.
        uncovered: Distance of each token and the nearest of those chosen, at most 1, likewise.
    """
    return (uncovered[:, :, None] - distance).relu_().mul_(weight[:, :, None]).sum(1)


def _with_torch(
    distance: Tensor,
    weight: Tensor,
    heard: Tensor,
    urgent: Tensor,
    steps: int,
    anchored: Tensor | None,
    objective: Objective,
) -> Tensor:
    """Who is chosen, `[step, window]`, as places in all windows' slots."""
    slots = weight.shape[1]
    chosen: list[Tensor] = []
    uncovered, rows = torch.ones_like(weight), distance.reshape(-1, slots)
    begins = torch.arange(0, len(rows), slots, device=weight.device)
    fresh, urgent = weight, urgent.flatten()
    for step in range(steps):
        if objective == "sum" and _summed_up(step):
            gain = gains(distance, weight, uncovered)
            fresh = gain / uncovered.clamp(min=LEAST)
        else:
            gain = fresh * uncovered
        if anchored is not None:
            gain = torch.where(step < anchored, heard, gain)
        row = (gain + urgent.view_as(gain)).argmax(dim=1) + begins
        urgent = urgent.index_fill(0, row, -torch.inf)
        uncovered = torch.minimum(uncovered, rows.index_select(0, row))
        chosen.append(row)
    return torch.stack(chosen)


def _with_numpy(
    distance: Tensor,
    weight: Tensor,
    heard: Tensor,
    urgent: Tensor,
    steps: int,
    anchored: Tensor | None,
    objective: Objective,
) -> Tensor:
    """The same as :func:`_with_torch`; sums are torch's, of memory that both share."""
    known = _Gains(distance, weight) if objective == "sum" else None
    rows, guidance = distance.reshape(-1, weight.shape[1]).numpy(), heard.numpy()
    fresh, urgency = weight.numpy(), urgent.clone().numpy()
    uncovered = np.ones_like(fresh)
    chosen = torch.empty(steps, len(weight), dtype=torch.int64, device="cpu")
    begins = np.arange(0, len(rows), weight.shape[1])
    anchors = None if anchored is None else anchored.numpy()
    with np.errstate(all="ignore"):
        for step, row in enumerate(chosen.numpy()):
            if known is not None and _summed_up(step):
                gain = known.now(uncovered)
                fresh = gain / np.maximum(uncovered, LEAST)
            else:
                gain = fresh * uncovered
            if anchors is not None:
                gain = np.where(step < anchors, guidance, gain)
            np.add((gain + urgency).argmax(1), begins, out=row)
            urgency.reshape(-1)[row] = -np.inf
            uncovered = np.minimum(uncovered, rows.take(row, axis=0))
    return chosen


def _summed_up(step: int) -> bool:
    """Whether gains are summed up before that choice; the same in windows of any size."""
    return step % max(1, 2 ** step.bit_length() // 8) == 0


class _Gains:
    """:func:`gains` again and again, on the host, while less and less is uncovered.

    They shrink by what tokens are covered better than before: of many that were chosen, a few more
    cover few tokens better, and the distances of those alone are read.
    """

    def __init__(self, distance: Tensor, weight: Tensor) -> None:
        self.distance, self.weight = distance, weight
        self.rows = distance.reshape(-1, weight.shape[1]).numpy()
        self.counts = weight.flatten().numpy()
        self.begins = np.arange(0, len(self.rows), weight.shape[1])
        self.places = torch.arange(len(self.rows), device="cpu")
        self.known: np.ndarray | None = None
        self.before = np.empty(0, np.float32)

    def now(self, uncovered: np.ndarray) -> np.ndarray:
        """They with what is uncovered now, `[window, slot]`, not more than at the last call."""
        flat = uncovered.reshape(-1)
        if self.known is None or self.distance.numel() <= FEW_DISTANCES:
            self.known = self._all(uncovered)
        else:
            changed = (flat < self.before).nonzero()[0]
            if 4 * len(changed) > 3 * len(flat):
                self.known = self._all(uncovered)
            else:
                self.known = np.maximum(self.known - self._less(changed, flat.take(changed)), 0)
        self.before = flat
        return self.known

    def _all(self, uncovered: np.ndarray) -> np.ndarray:
        return gains(self.distance, self.weight, torch.from_numpy(uncovered)).numpy()

    def _less(self, changed: np.ndarray, now: np.ndarray) -> np.ndarray:
        """By how much gains shrink as the tokens ``changed`` are covered better."""
        high, low = (torch.from_numpy(part)[:, None] for part in (self.before.take(changed), now))
        rows = torch.from_numpy(self.rows.take(changed, axis=0))
        rows = torch.maximum(rows, low, out=rows)
        return embedding_bag(
            self.places[: len(changed)],
            torch.sub(high, rows, out=rows).relu_(),
            torch.from_numpy(changed.searchsorted(self.begins)),
            mode="sum",
            per_sample_weights=torch.from_numpy(self.counts.take(changed)),
        ).numpy()
