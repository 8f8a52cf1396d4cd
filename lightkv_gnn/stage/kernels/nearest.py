"""The most similar destination of every source: norms, products and maximum in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightkv_gnn.stage.kernels.device import multipliable
from lightkv_graphs.matching import SHORTEST

SOURCES, DESTINATIONS, CHANNELS = 16, 64, 128
"""Slots and channels that a program holds at once."""


@triton.jit
def _nearest(
    x,
    sources,
    destinations,
    cosine,
    nearest,
    tokens,
    channels,
    source_slots,
    destination_slots,
    shortest: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
):
    window = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * S + tl.arange(0, S)
    here = slot < source_slots
    source = tl.load(sources + window * source_slots + slot, mask=here, other=tokens)
    rows = x + source[:, None] * channels
    best = tl.full((S,), -float("inf"), tl.float32)
    place = tl.zeros((S,), tl.int32)
    for first in range(0, destination_slots, D):
        other = first + tl.arange(0, D)
        there = other < destination_slots
        destination = tl.load(
            destinations + window * destination_slots + other, mask=there, other=tokens
        )
        columns = x + destination[:, None] * channels
        product = tl.zeros((S, D), tl.float32)
        own = tl.zeros((S,), tl.float32)
        others = tl.zeros((D,), tl.float32)
        for start in range(0, channels, C):
            channel = start + tl.arange(0, C)
            inside = channel < channels
            a = tl.load(
                rows + channel[None, :],
                mask=(source < tokens)[:, None] & inside[None, :],
                other=0.0,
            )
            b = tl.load(
                columns + channel[None, :],
                mask=(destination < tokens)[:, None] & inside[None, :],
                other=0.0,
            )
            product = tl.dot(a, tl.trans(b), product, input_precision="ieee")
            own += tl.sum(a.to(tl.float32) * a.to(tl.float32), axis=1)
            others += tl.sum(b.to(tl.float32) * b.to(tl.float32), axis=1)
        own = tl.maximum(tl.sqrt(own), shortest)
        others = tl.maximum(tl.sqrt(others), shortest)
        similar = product / own[:, None] / others[None, :]
        known = (destination < tokens)[None, :] & (similar == similar)
        similar = tl.where(known, similar, -float("inf"))
        highest, index = tl.max(similar, axis=1, return_indices=True)
        place = tl.where(highest > best, first + index, place)
        best = tl.maximum(best, highest)
    at = window * source_slots + slot
    tl.store(cosine + at, best, mask=here)
    tl.store(nearest + at, place.to(tl.int64), mask=here)


def nearest_destinations(x: Tensor, sources: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor]:
    """Equal of :func:`lightkv_graphs.nearest_destinations` but for the rounding of sums.

    Cosines are summed in float32; slots of sources that hold no token get minus infinity or 0.
    """
    x = multipliable(x.detach()).contiguous()
    windows, slots = sources.shape
    cosine = torch.empty(sources.shape, dtype=torch.float32, device=x.device)
    nearest = torch.empty(sources.shape, dtype=torch.int64, device=x.device)
    if sources.numel() == 0:
        return cosine, nearest
    with torch.cuda.device_of(x):
        _nearest[windows, triton.cdiv(slots, SOURCES)](
            x,
            sources.contiguous(),
            destinations.contiguous(),
            cosine,
            nearest,
            *x.shape,
            slots,
            destinations.shape[1],
            SHORTEST,
            S=SOURCES,
            D=DESTINATIONS,
            C=CHANNELS,
        )
    return cosine, nearest
