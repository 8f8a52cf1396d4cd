"""What each text token gives to each vision token: products and softmax, never written in between.

Two passes: the sum that each text token and head divides by, then the shares, summed over heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightkv_gnn.stage.kernels.device import multipliable

WIDE = 512
"""Bytes of a row beyond which a program holds fewer tokens, to fit the shared memory of any GPU."""

LEAST = torch.finfo(torch.float32).min / 4
"""Logit of what gets no share; can still be subtracted from."""


@triton.jit
def _tile(
    text,
    vision,
    of_text,
    of_vision,
    row,
    column,
    texts,
    visions,
    channels,
    scaling,
    softcap,
    least: tl.constexpr,
    capped: tl.constexpr,
    C: tl.constexpr,
):
    """Logits `[text, vision]` of some rows and columns of one head."""
    channel = tl.arange(0, C)
    inside = channel < channels
    a = tl.load(
        text + row[:, None] * of_text + channel[None, :],
        mask=(row < texts)[:, None] & inside[None, :],
        other=0.0,
    )
    b = tl.load(
        vision + column[:, None] * of_vision + channel[None, :],
        mask=(column < visions)[:, None] & inside[None, :],
        other=0.0,
    )
    logits = tl.dot(a, tl.trans(b), input_precision="ieee") * scaling
    if capped:
        logits = softcap * (2 / (1 + tl.exp(-2 * logits / softcap)) - 1)
    logits = tl.where(logits == logits, logits, least)
    return tl.minimum(tl.maximum(logits, least), -least)


@triton.jit
def _totals(
    text,
    vision,
    mask,
    totals,
    text_strides,
    vision_strides,
    heads,
    text_group,
    vision_group,
    texts,
    visions,
    channels,
    scaling,
    softcap,
    least: tl.constexpr,
    capped: tl.constexpr,
    T: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
):
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    row = tl.program_id(1) * T + tl.arange(0, T)
    text += sample * text_strides[0] + (head // text_group) * text_strides[1]
    vision += sample * vision_strides[0] + (head // vision_group) * vision_strides[1]
    most = tl.full((T,), least, tl.float32)
    total = tl.zeros((T,), tl.float32)
    for first in range(0, visions, V):
        column = first + tl.arange(0, V)
        logits = _tile(
            text,
            vision,
            text_strides[2],
            vision_strides[2],
            row,
            column,
            texts,
            visions,
            channels,
            scaling,
            softcap,
            least,
            capped,
            C,
        )
        real = tl.load(mask + sample * visions + column, mask=column < visions, other=0) != 0
        logits = tl.where(real[None, :], logits, least)
        higher = tl.maximum(most, tl.max(logits, axis=1))
        # What is beyond the last column is no token; what is masked is one without a share.
        share = tl.where((column < visions)[None, :], tl.exp(logits - higher[:, None]), 0.0)
        total = total * tl.exp(most - higher) + tl.sum(share, axis=1)
        most = higher
    # Apart from each other: beside a very negative maximum the logarithm would be rounded away.
    at = 2 * tl.program_id(0).to(tl.int64) * texts + row
    tl.store(totals + at, most, mask=row < texts)
    tl.store(totals + at + texts, tl.log(total), mask=row < texts)


@triton.jit
def _shares(
    text,
    vision,
    mask,
    totals,
    shares,
    text_strides,
    vision_strides,
    heads,
    text_group,
    vision_group,
    texts,
    visions,
    channels,
    scaling,
    softcap,
    least: tl.constexpr,
    capped: tl.constexpr,
    T: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * T + tl.arange(0, T)
    column = tl.program_id(2) * V + tl.arange(0, V)
    text += sample * text_strides[0]
    vision += sample * vision_strides[0]
    real = tl.load(mask + sample * visions + column, mask=column < visions, other=0) != 0
    most = tl.full((T, V), 3 * least, tl.float32)
    total = tl.zeros((T, V), tl.float32)
    for head in range(heads):
        logits = _tile(
            text + (head // text_group) * text_strides[1],
            vision + (head // vision_group) * vision_strides[1],
            text_strides[2],
            vision_strides[2],
            row,
            column,
            texts,
            visions,
            channels,
            scaling,
            softcap,
            least,
            capped,
            C,
        )
        logits = tl.where(real[None, :], logits, least)
        at = 2 * (sample * heads + head) * texts + row
        share = logits - tl.load(totals + at, mask=row < texts, other=0.0)[:, None]
        share -= tl.load(totals + at + texts, mask=row < texts, other=0.0)[:, None]
        higher = tl.maximum(most, share)
        total = total * tl.exp(most - higher) + tl.exp(share - higher)
        most = higher
    at = (sample * texts + row[:, None]) * visions + column[None, :]
    inside = (row < texts)[:, None] & (column < visions)[None, :]
    tl.store(shares + at, most + tl.log(total), mask=inside)


def text_shares(
    text: Tensor,
    vision: Tensor,
    scaling: float,
    softcap: float | None = None,
    vision_mask: Tensor | None = None,
) -> Tensor:
    """Equal of :func:`lightkv_gnn.stage.guidance.text_shares` but for rounding; has no gradient.

    Products are of the inputs' dtype and summed in float32.
    """
    common = torch.promote_types(text.dtype, vision.dtype)
    text, vision = (_rows(states.to(common)) for states in (text, vision))
    batch, text_heads, texts, channels = text.shape
    vision_heads, visions = vision.shape[1:3]
    heads = max(text_heads, vision_heads)
    if vision_mask is None:
        vision_mask = torch.ones(batch, visions, dtype=torch.bool, device=text.device)
    totals = torch.empty(batch, heads, 2, texts, dtype=torch.float32, device=text.device)
    shares = torch.empty(batch, texts, visions, dtype=torch.float32, device=text.device)
    if shares.numel() == 0:
        return shares
    sizes = (
        text.stride()[:3],
        vision.stride()[:3],
        heads,
        heads // text_heads,
        heads // vision_heads,
        texts,
        visions,
        channels,
        scaling,
        softcap or 1.0,
    )
    blocks = {
        "least": LEAST,
        "capped": softcap is not None,
        **tile_of(channels, text.dtype),
    }
    rows, columns = triton.cdiv(texts, blocks["T"]), triton.cdiv(visions, blocks["V"])
    mask = vision_mask.contiguous()
    with torch.cuda.device_of(text):
        _totals[batch * heads, rows](text, vision, mask, totals, *sizes, **blocks)
        _shares[batch, rows, columns](text, vision, mask, totals, shares, *sizes, **blocks)
    return shares


def tile_of(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Text and vision tokens, and channels, that a program holds at once; stages of its loads."""
    width = max(16, triton.next_power_of_2(channels))
    if width * dtype.itemsize > WIDE:
        return {"T": 16, "V": 32, "C": width, "num_stages": 1}
    return {"T": 32, "V": 64, "C": width, "num_stages": 3}


def _rows(states: Tensor) -> Tensor:
    """`[batch, head, token, channel]` whose channels lie one behind the other."""
    states = multipliable(states)
    return states if states.stride(3) == 1 else states.contiguous()
