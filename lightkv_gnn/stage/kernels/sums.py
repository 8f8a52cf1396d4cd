"""Weighted sums of rows, survivor by survivor: every row is read once, no message is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightkv_gnn.stage.kernels.device import check_device, rounded_by_kernels

CHANNELS = 1024
"""Channels that a program sums."""


@triton.jit
def _weighted_sum(x, source, weight, start, out, channels, C: tl.constexpr):
    target = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    inside = channel < channels
    total = tl.zeros((C,), weight.dtype.element_ty)
    for edge in range(tl.load(start + target), tl.load(start + target + 1)):
        share = tl.load(weight + edge)
        row = tl.load(source + edge)
        own = tl.load(x + row * channels + channel, mask=inside, other=0.0)
        # What weighs nothing is not heard, a NaN in it neither.
        total += tl.where(share == 0, 0.0, share * own.to(weight.dtype.element_ty))
    tl.store(out + target * channels + channel, total.to(out.dtype.element_ty), mask=inside)


def weighted_sum(x: Tensor, source: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    """Sum of ``weight * x[source]`` over each target's edges, in the dtype of ``x``.

    Sums in the dtype of ``weight``, edge by edge in their order: the same input gives the same
    bits.  Has no gradient.

    Args:
        x: `[token, channel]`.
        source: Token of each edge, `[edge]`.
        weight: `[edge]`, float32 or float64.
        start: First edge of each target, and the number of edges, `[target + 1]`.

    Returns:
        `[target, channel]`.
    """
    check_device(x.device)
    x = x.contiguous()
    channels, targets = x.shape[1], len(start) - 1
    dtype = x.dtype if rounded_by_kernels(x) else weight.dtype
    out = x.new_empty(targets, channels, dtype=dtype)
    if out.numel():
        grid = targets, triton.cdiv(channels, CHANNELS)
        edges = (part.contiguous() for part in (source, weight, start))
        with torch.cuda.device_of(x):
            _weighted_sum[grid](x, *edges, out, channels, C=CHANNELS)
    return out.to(x.dtype)
