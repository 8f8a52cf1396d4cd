"""The greedy choice of coverage: one token of every window after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Objective = Literal["sum", "max"]

LEAST = 1e-6
"""Of what is not covered yet, where something is divided by it."""

Greedy = Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor | None, Objective], Tensor]
"""See :func:`greedy_ranks`."""


def greedy_ranks(
    cosine: Tensor,
    weight: Tensor,
    heard: Tensor,
    urgent: Tensor,
    steps: int,
    anchored: Tensor | None,
    objective: Objective,
) -> Tensor:
    """When each token is chosen, `[window, slot]`, from 0; those that are not, last of all.

    Args:
        cosine: Of the tokens of each window, 1 with itself, `[window, slot, slot]`, float32.
        weight: What each token counts, 0 for padding, `[window, slot]`.
        heard: Guidance, by which anchors are chosen, `[window, slot]`.
        urgent: Infinity for what has to stay, minus infinity for padding, else 0, likewise.
        steps: How many are chosen of each window, or all of a smaller one.
        anchored: How many of them are anchors, `[window, 1]`; none if not given.
        objective: What the others add, see :class:`CoverageMatching`.
    """
    if steps == 0 or weight.numel() == 0:
        return torch.full_like(heard, steps)
    cosine, weight, heard, urgent = (
        part.detach().float() for part in (cosine, weight, heard, urgent)
    )
    covers = covering(cosine, weight) if objective == "sum" else None
    # A choice takes NumPy less time: what it works on is small.
    choose = _with_numpy if _plain(cosine) else _with_torch
    chosen = choose(cosine, covers, weight, heard, urgent, steps, anchored)
    order = torch.arange(steps, device=heard.device, dtype=heard.dtype)
    order = order.repeat_interleave(len(heard))
    rank = torch.full_like(heard, steps).flatten()
    rank = rank.scatter_reduce(0, chosen.flatten(), order, "amin").view_as(heard)
    return rank.masked_fill(urgent == -torch.inf, steps)


def _plain(x: Tensor) -> bool:
    """Whether a tensor is the host's, and what is done to it is done now and seen by nobody."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_functorch_wrapped_tensor(x)
        and not _get_current_dispatch_mode_stack()
    )


def covering(cosine: Tensor, weight: Tensor) -> Tensor:
    """How far each token is covered by each other, times what it counts.

    `[window, covered slot, slot]`.
    """
    return cosine.relu().mul_(weight[:, :, None])


def gains(covers: Tensor, covered: Tensor) -> Tensor:
    """What each token would add to the coverage of its window, `[window, slot]`.

    Args:
        covers: See :func:`covering`.
        covered: How far tokens are covered, times what they count, `[window, slot]`.
    """
    return (covers - covered[:, :, None]).relu_().sum(1)


def _with_torch(
    cosine: Tensor,
    covers: Tensor | None,
    weight: Tensor,
    heard: Tensor,
    urgent: Tensor,
    steps: int,
    anchored: Tensor | None,
) -> Tensor:
    """Who is chosen, `[step, window]`, as places in all windows' slots."""
    slots = weight.shape[1]
    chosen: list[Tensor] = []
    covered, rows = torch.zeros_like(weight), cosine.reshape(-1, slots)
    begins = torch.arange(0, len(rows), slots, device=weight.device)
    fresh, urgent = weight, urgent.flatten()
    for step in range(steps):
        if covers is not None and _summed_up(step):
            gain = gains(covers, weight * covered)
            fresh = gain / (1 - covered).clamp(min=LEAST)
        else:
            gain = fresh * (1 - covered)
        if anchored is not None:
            gain = torch.where(step < anchored, heard, gain)
        row = (gain + urgent.view_as(gain)).argmax(dim=1) + begins
        urgent = urgent.index_fill(0, row, -torch.inf)
        covered = torch.maximum(covered, rows.index_select(0, row))
        chosen.append(row)
    return torch.stack(chosen)


def _with_numpy(
    cosine: Tensor,
    covers: Tensor | None,
    weight: Tensor,
    heard: Tensor,
    urgent: Tensor,
    steps: int,
    anchored: Tensor | None,
) -> Tensor:
    """The same as :func:`_with_torch`; sums are torch's, of memory that both share."""
    slots = weight.shape[1]
    rows, guidance = cosine.reshape(-1, slots).numpy(), heard.numpy()
    chosen = torch.empty(steps, len(weight), dtype=torch.int64, device="cpu")
    covered = torch.zeros_like(weight)
    shown, urgency = covered.numpy(), urgent.flatten().clone().numpy()
    gain, uncovered = np.empty_like(shown), np.empty_like(shown)
    fresh = weight.numpy()
    begins = np.arange(0, len(rows), slots)
    anchors = None if anchored is None else anchored.numpy()
    with np.errstate(all="ignore"):
        for step, row in enumerate(chosen.numpy()):
            np.subtract(1, shown, out=uncovered)
            if covers is not None and _summed_up(step):
                gain[:] = gains(covers, weight * covered).numpy()
                fresh = gain / np.maximum(uncovered, LEAST)
            else:
                np.multiply(fresh, uncovered, out=gain)
            if anchors is not None:
                gain = np.where(step < anchors, guidance, gain)
            gain += urgency.reshape(gain.shape)
            np.add(gain.argmax(1), begins, out=row)
            urgency[row] = -np.inf
            np.maximum(shown, rows[row], out=shown)
    return chosen


def _summed_up(step: int) -> bool:
    """Whether gains are summed up before that choice; the same in windows of any size."""
    return step % max(1, 2 ** step.bit_length() // 8) == 0
