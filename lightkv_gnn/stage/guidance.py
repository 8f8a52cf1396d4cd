"""Prompt guidance: how much the text cares for each vision token, from a small block of logits.

Only vision rows and text rows of one layer's queries and keys are touched; the whole
sequence-by-sequence matrix is never formed.  All weights are handled as logarithms, which keep
apart what probabilities in float32 would round to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightkv_gnn.choices import GUIDANCE, GuidanceName

CHUNK = 2**22
"""Most logits held at once on a CPU, in elements."""

LARGE_CHUNK = 2**25
"""Most logits held at once elsewhere, where many small steps would cost more."""

LOG2_E = math.log2(math.e)
"""Bits per nat: powers of two are cheaper than those of e."""


def at_once(logits: int, device: torch.device) -> int:
    """How many rows of so many logits each are computed at once."""
    return max(1, (CHUNK if device.type == "cpu" else LARGE_CHUNK) // max(1, logits))


@dataclass(frozen=True, eq=False)
class GuidanceBlock:
    """The queries and keys of one layer that guidance may use.

    Attributes:
        query: `[batch, head, token, channel]`.
        key: `[batch, key-value head, token, channel]`.
        vision: Positions of the vision tokens, `[batch, vision]`, padded at the end.
        text: Positions of the text tokens, `[batch, text]`, padded at the end.
        vision_mask: True for real entries of ``vision``.
        text_mask: True for real entries of ``text``.
        scaling: Factor of the logits.
        softcap: Bound that the logits approach, ``softcap * tanh(logits / softcap)``, as in
            Gemma 2; None for none.
        span: First position of the vision tokens and that behind them, where they follow each
            other at the same place in every sample, so that nothing need be gathered; else None.
    """

    query: Tensor
    key: Tensor
    vision: Tensor
    text: Tensor
    vision_mask: Tensor
    text_mask: Tensor
    scaling: float
    softcap: float | None = None
    span: tuple[int, int] | None = None

    @property
    def vision_query(self) -> Tensor:
        """`[batch, head, vision, channel]`."""
        return self._of_vision(self.query)

    @property
    def vision_key(self) -> Tensor:
        """`[batch, key-value head, vision, channel]`."""
        return self._of_vision(self.key)

    @property
    def text_query(self) -> Tensor:
        """`[batch, head, text, channel]`."""
        return _rows(self.query, self.text)

    @property
    def text_key(self) -> Tensor:
        """`[batch, key-value head, text, channel]`."""
        return _rows(self.key, self.text)

    def _of_vision(self, states: Tensor) -> Tensor:
        return _rows(states, self.vision) if self.span is None else states[:, :, slice(*self.span)]

    def of_last_text(self) -> GuidanceBlock:
        """The block with each sample's last text token as its only one."""
        if self.text.shape[1] == 0:
            return self
        last = (self.text_mask.sum(1, keepdim=True) - 1).clamp(min=0)
        return replace(self, text=self.text.gather(1, last), text_mask=self.text_mask[:, :1])


def _rows(states: Tensor, index: Tensor) -> Tensor:
    if len(index) == 1:
        return states.index_select(2, index[0])
    batch, heads = (torch.arange(size, device=index.device) for size in states.shape[:2])
    return states[batch[:, None, None], heads[:, None], index[:, None, :]]


GuidanceFunction = Callable[[GuidanceBlock], Tensor]
"""A guidance of one's own: non-negative weights `[batch, vision]`, in any unit."""


TextShares = Callable[[Tensor, Tensor, float, float | None, Tensor | None], Tensor]
"""See :func:`text_shares`."""


class Guidance(NamedTuple):
    """Logarithms of guidance.

    Attributes:
        weight: Of each vision token, `[batch, vision]`, float32.
        by_text: From each text token to each vision token, `[batch, text, vision]`; None where
            the guidance does not come from text tokens one by one.
    """

    weight: Tensor
    by_text: Tensor | None


def text_shares(
    text: Tensor,
    vision: Tensor,
    scaling: float,
    softcap: float | None = None,
    vision_mask: Tensor | None = None,
) -> Tensor:
    """Logarithm of what each text token gives to each vision token, in pieces that fit the memory.

    Args:
        text: Queries or keys of the text, `[batch, head, text, channel]`.
        vision: Keys or queries of the vision tokens, `[batch, head, vision, channel]`.
        scaling: Factor of the logits.
        softcap: Bound that the logits approach; None for none.
        vision_mask: True for real vision tokens, `[batch, vision]`; all if not given.

    Returns:
        `[batch, text, vision]`, summed over heads; each head of a text token shares out one.
    """
    if not (text.numel() and vision.numel()):
        wide = torch.promote_types(text.dtype, torch.float32)
        return text.new_zeros(len(text), text.shape[2], vision.shape[2], dtype=wide)
    heads = max(text.shape[1], vision.shape[1])
    samples = 1 if text.device.type == "cpu" else len(text)
    rows = at_once(samples * heads * vision.shape[2], text.device)
    cap = None if softcap is None else softcap * LOG2_E

    def piece(sample: int, first: int) -> Tensor:
        own = slice(sample, sample + samples)
        bits = text_logits(text[own, :, first : first + rows], vision[own], scaling * LOG2_E, cap)
        return _share_of_bits(bits, None if vision_mask is None else vision_mask[own])

    if samples == len(text) and rows >= text.shape[2]:
        return piece(0, 0)
    pieces = [
        torch.cat([piece(sample, first) for first in range(0, text.shape[2], rows)], dim=1)
        for sample in range(0, len(text), samples)
    ]
    return torch.cat(pieces)


def prompt_guidance(
    block: GuidanceBlock,
    kind: GuidanceName | GuidanceFunction,
    shares: TextShares = text_shares,
) -> Guidance:
    """Weighs every vision token by the prompt.

    With logits ``A[h, i, j]`` between vision token i and text token j, ``text_to_vision`` takes
    the text's queries and the vision tokens' keys, which a prompt after its picture was trained to
    match, ``last_token`` the same of the last text token alone, and ``vision_to_text`` the vision
    tokens' queries and the text's keys, as in LightKV's formula.  Each text token and
    head shares out one unit over the sample's vision tokens:
    ``weight_i = sum_h sum_j softmax_i(A[h, i, j])``.  There is no causal mask: the question
    usually comes after the picture, and a mask would silence it.
    Source: Chen et al. 2026, section 3.2, which is ``vision_to_text``; the release normalises over
    all queries instead.

    Args:
        block: Queries and keys.
        kind: A name, or a callable that returns weights.
        shares: Computes what each text token gives, as :func:`text_shares` does.

    Raises:
        ValueError: An unknown name, or a callable returned another shape than `[batch, vision]`
            or weights that are negative or not finite.
        TypeError: A callable returned no tensor of real numbers.
    """
    batch, vision = block.vision_mask.shape
    if callable(kind):
        weight = kind(block)
        if not isinstance(weight, Tensor) or weight.is_complex():
            kind_of = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(
                f"the guidance callable returned {kind_of}: expected a tensor of real weights, "
                f"[batch, vision] = [{batch}, {vision}]"
            )
        if weight.shape != (batch, vision):
            raise ValueError(
                f"the guidance callable returned shape {list(weight.shape)}: expected "
                f"[batch, vision] = [{batch}, {vision}]"
            )
        real = weight[block.vision_mask]
        if not bool((real.isfinite() & (real >= 0)).all()):
            raise ValueError(
                "the guidance callable returned weights that are negative or not finite: expected "
                "numbers of 0 or more, which are normalised afterwards"
            )
        return Guidance(weight.float().log(), None)
    if kind not in GUIDANCE:
        raise ValueError(f"guidance is {kind!r}: expected one of {GUIDANCE} or a callable")
    if kind == "none" or 0 in (vision, block.text_mask.shape[1]):
        return Guidance(block.query.new_zeros(batch, vision, dtype=torch.float32), None)
    if kind == "last_token":
        block = block.of_last_text()
    padded = block.vision_mask if block.span is None else None
    if kind == "vision_to_text":
        text, vision_states = block.text_key, block.vision_query
    else:
        text, vision_states = block.text_query, block.vision_key
    by_text = shares(text, vision_states, block.scaling, block.softcap, padded)
    return Guidance(total_share(by_text, block.text_mask), by_text)


def text_logits(
    text: Tensor, vision: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """Logits of every text token with every vision token, whichever of the two asks.

    Args:
        text: Queries or keys of the text, `[batch, head, text, channel]`.
        vision: Keys or queries of the vision tokens, `[batch, head, vision, channel]`.
        scaling: Factor.
        softcap: Bound that the logits approach; None for none.

    Returns:
        `[batch, query head, text, vision]`; see :func:`attention_logits`.
    """
    if vision.shape[1] <= text.shape[1]:
        return attention_logits(text, vision, scaling, softcap)
    group = vision.shape[1] // text.shape[1]
    grouped = vision.unflatten(1, (-1, group)).flatten(2, 3)
    logits = attention_logits(text, grouped, scaling, softcap)
    return logits.unflatten(3, (group, -1)).transpose(2, 3).flatten(1, 2)


def attention_logits(
    query: Tensor, key: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """Scaled logits in float32 (float64 stays), keys shared among groups of query heads.

    Args:
        query: `[batch, head, query, channel]`.
        key: `[batch, key-value head, key, channel]`.
        scaling: Factor.
        softcap: Bound that the logits approach; None for none.

    Returns:
        `[batch, head, query, key]`.
    """
    batch, heads, queries, channels = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    group = heads // key.shape[1]
    scaled = query.to(wide) * scaling
    grouped = scaled.reshape(batch, key.shape[1], group * queries, channels)
    logits = grouped @ key.to(wide).transpose(2, 3)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    return logits.reshape(batch, heads, queries, key.shape[2])


def share_of_text(
    logits: Tensor, vision_mask: Tensor | None = None, total: Tensor | None = None
) -> Tensor:
    """Logarithm of the share of each text token's units that each vision token gets.

    Args:
        logits: `[batch, head, text, vision]`; a NaN gets no share.
        vision_mask: True for real vision tokens, `[batch, vision]`; all if not given.
        total: Logarithm of the sum a unit is divided by, `[batch, head, text, 1]`; that over the
            vision tokens if not given.

    Returns:
        `[batch, text, vision]`, summed over heads.
    """
    bits = logits * LOG2_E
    return _share_of_bits(bits, vision_mask, None if total is None else total * LOG2_E)


def _share_of_bits(
    bits: Tensor, vision_mask: Tensor | None = None, total: Tensor | None = None
) -> Tensor:
    """:func:`share_of_text` of logits and a total in bits; the logits are overwritten."""
    if bits.numel() == 0:
        return bits.sum(dim=1)
    bits = _finite(bits, None if vision_mask is None else vision_mask[:, None, None, :])
    if total is not None:
        return _logsumexp2(bits.sub_(total)) / LOG2_E
    # One power of two per logit, relative to the best head of its pair of tokens: so neither the
    # sums over heads vanish nor those over vision tokens, to which best heads give the weights.
    bits.sub_(bits.detach().amax(dim=3, keepdim=True))
    best = bits.detach().amax(dim=1, keepdim=True)
    part = bits.sub_(best).exp2_().transpose(1, 2)
    best = best.transpose(1, 2)
    share = (best.exp2() @ part.transpose(2, 3)).reciprocal() @ part
    return (share.log2() + best)[:, :, 0] / LOG2_E


def total_share(by_text: Tensor, text_mask: Tensor | None = None) -> Tensor:
    """Sums shares over the text: `[batch, text, vision]` to `[batch, vision]`, in logarithms.

    A NaN is no share; nor is what the mask, `[batch, text]`, leaves out.
    """
    if by_text.shape[1] == 0:
        return torch.full_like(by_text.sum(dim=1), -torch.inf)
    mask = None if text_mask is None else text_mask[:, :, None]
    return _logsumexp2(_finite(by_text * LOG2_E, mask)) / LOG2_E


def _logsumexp2(bits: Tensor) -> Tensor:
    """Sum over dimension 1 of numbers given as logarithms, all finite; they are overwritten."""
    best = bits.detach().amax(dim=1, keepdim=True)
    return bits.sub_(best).exp2_().sum(dim=1).log2() + best[:, 0]


def _finite(bits: Tensor, mask: Tensor | None) -> Tensor:
    """Infinities as very large numbers; NaN, and what the mask leaves out, as almost nothing.

    The numbers are overwritten.  The mask is broadcast, which ``masked_fill`` takes twenty times as
    long for on a CPU as a minimum does.
    """
    least = _least(bits)
    bits.nan_to_num_(nan=least, posinf=-least, neginf=least)
    if mask is None:
        return bits
    limit = torch.full_like(mask, least, dtype=bits.dtype)
    return torch.minimum(bits, limit.masked_fill(mask, -least))


def _least(x: Tensor) -> float:
    """A very negative number that can still be subtracted from; infinities would give NaN."""
    return torch.finfo(x.dtype).min / 4


def unrotated(states: Tensor, tables: tuple[Tensor, Tensor] | Tensor | None) -> Tensor:
    """Takes rotary position out of queries or keys (the transpose of the rotation).

    Args:
        states: `[batch, head, token, channel]`, with the first channels rotated: as many as there
            are cosines, in halves; or all, in pairs, where tables are complex.
        tables: Cosines and sines, `[batch, token, rotated channel]`, with the model's attention
            scaling in them; or as complex numbers, one for a pair of channels; or None where
            nothing is rotated.
    """
    if tables is None:
        return states
    if isinstance(tables, Tensor):
        pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
        back = pairs / tables[:, None].to(states.device)
        return torch.view_as_real(back).flatten(-2).to(states.dtype)
    cos, sin = (table[:, None].to(states.device, states.dtype) for table in tables)
    rotated, rest = states.split([cos.shape[-1], states.shape[-1] - cos.shape[-1]], dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    back = rotated * cos - torch.cat([-second, first], dim=-1) * sin
    return torch.cat([back / (cos.square() + sin.square()), rest], dim=-1)
