"""Who stays, one by one: all greedy choices of a window in one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightkv_gnn.stage.kernels.device import check_device
from lightkv_graphs.greedy import LEAST, Objective

TILE = 4096
"""Distances that a program holds at once; of large windows four rows."""


@triton.jit
def _gains(distance, weight, uncovered, slots, T: tl.constexpr, B: tl.constexpr):
    """What each token would add to the coverage of its window, `[slot]`; reads all distances."""
    column = tl.arange(0, B)
    gain = tl.zeros((B,), tl.float32)
    for first in range(0, slots, T):
        row = first + tl.arange(0, T)
        away = tl.load(
            distance + row[:, None] * slots + column[None, :],
            mask=(row < slots)[:, None] & (column < slots)[None, :],
            other=float("inf"),
        )
        more = tl.maximum(tl.gather(uncovered, row, 0)[:, None] - away, 0.0)
        counts = tl.load(weight + row, mask=row < slots, other=0.0)
        gain += tl.sum(more * counts[:, None], axis=0)
    return gain


@triton.jit(do_not_specialize=["steps"])
def _greedy(
    distance,
    weight,
    heard,
    urgent,
    anchored,
    rank,
    slots,
    steps,
    centre: tl.constexpr,
    least: tl.constexpr,
    T: tl.constexpr,
    B: tl.constexpr,
):
    window = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, B)
    inside = slot < slots
    distance += window * slots * slots
    weight += window * slots
    at = window * slots + slot
    urgency = tl.load(urgent + at, mask=inside, other=-float("inf"))
    own = tl.load(weight + slot, mask=inside, other=0.0)
    order = tl.zeros((B,), tl.float32) + steps
    uncovered = tl.full((B,), 1.0, tl.float32)
    fresh = tl.zeros((B,), tl.float32)
    every = 1  # how many choices there are from one sum to the next
    tokens = tl.sum((urgency > -float("inf")).to(tl.int32))
    for step in range(tl.minimum(steps, tokens)):
        if centre:
            gain = own * uncovered
        else:
            every = tl.where(step == 8 * every, 2 * every, every)
            if step % every == 0:
                gain = _gains(distance, weight, uncovered, slots, T, B)
                fresh = tl.div_rn(gain, tl.maximum(uncovered, least))
            else:
                gain = fresh * uncovered
        if anchored is not None:
            anchor = step < tl.load(anchored + window)
            gain = tl.where(anchor, tl.load(heard + at, mask=inside, other=0.0), gain)
        # Less than urgent even where it is infinite or NaN, and never again what was chosen.
        gain = tl.where(gain < float("inf"), gain, 3e38)
        gain = tl.where(urgency == 0, gain, urgency)
        highest = tl.max(gain, axis=0)
        chosen = tl.min(tl.where(gain == highest, slot, B), axis=0)
        order = tl.where(slot == chosen, step, order)
        urgency = tl.where(slot == chosen, -float("inf"), urgency)
        away = tl.load(distance + chosen * slots + slot, mask=inside, other=float("inf"))
        uncovered = tl.minimum(uncovered, away)
    tl.store(rank + at, order, mask=inside)


def greedy_ranks(
    distance: Tensor,
    weight: Tensor,
    heard: Tensor,
    urgent: Tensor,
    steps: int,
    anchored: Tensor | None,
    objective: Objective,
) -> Tensor:
    """Equal of :func:`lightkv_graphs.greedy_ranks`, `[window, slot]`, but for the rounding of sums.

    Distances `[window, slot, slot]` are read whole where gains are summed up, and one row `[slot]`
    after each choice; what is known of the slots of a window stays in registers.
    """
    check_device(distance.device)
    rank = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    windows, slots = weight.shape
    if rank.numel() == 0:
        return rank
    block = triton.next_power_of_2(slots)
    with torch.cuda.device_of(distance):
        _greedy[(windows,)](
            *(part.float().contiguous() for part in (distance, weight, heard, urgent)),
            None if anchored is None else anchored.contiguous(),
            rank,
            slots,
            steps,
            objective == "max",
            LEAST,
            **tile_of(block),
        )
    return rank


def tile_of(block: int) -> dict[str, int]:
    """Rows and columns of distances that a program holds at once, and its warps."""
    warps = 4 if block <= 512 else 8 if block <= 2048 else 16
    return {"T": min(block, max(4, TILE // block)), "B": block, "num_warps": warps}
