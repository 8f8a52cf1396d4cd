"""The released code's compression step, from the same parts as ours.

What differs: windows are cut from the sequence folded on a square, pieces and counts are rounded
as released, each text token's unit is shared out over all queries, every token outside an image
counts as text, and a stage is skipped where any image has fewer than 8 tokens per window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_gnn.stage.guidance import share_of_text, total_share
from lightkv_graphs import TokenLayout, float32_count, leading_cut, plan_stage

Span = tuple[int, int]

LEAST_TOKENS_PER_WINDOW = 8


@dataclass(frozen=True, eq=False)
class CompressedSequence:
    """What :func:`compress_sequence` returns.

    Attributes:
        hidden_states: `[1, sequence, channel]`, shorter.
        kept: For each image, the tokens that stay as indices within the image as it came in,
            ascending, aligned with the image's rows of ``hidden_states``.
        image_spans: The images' half-open spans in the new sequence.
    """

    hidden_states: Tensor
    kept: tuple[Tensor, ...]
    image_spans: tuple[Span, ...]


def compress_sequence(
    hidden_states: Tensor,
    attention_logits: Tensor,
    image_spans: Sequence[Span],
    *,
    windows: int,
    ratio: float,
) -> CompressedSequence:
    """Compresses one sequence as the released module does.

    Args:
        hidden_states: Output of a decoder layer, `[1, sequence, channel]`.
        attention_logits: That layer's raw scaled logits, unmasked, `[1, head, query, key]`.
        image_spans: Half-open ``(start, end)`` of each image, ascending and disjoint.
        windows: Windows per side.
        ratio: Fraction merged away, 0 to 1; at most half of a window leaves.

    Raises:
        ValueError: Shapes that do not fit each other, spans outside the sequence, overlapping or
            empty, or numbers out of range.
    """
    spans = _check(hidden_states, attention_logits, image_spans, windows, ratio)
    counts = [end - start for start, end in spans]
    least = LEAST_TOKENS_PER_WINDOW * windows**2
    if not spans or ratio == 0 or min(counts) < least:
        kept = tuple(torch.arange(count, device=hidden_states.device) for count in counts)
        return CompressedSequence(hidden_states, kept, spans)
    layout = _folded(counts).to(hidden_states.device)
    plan = plan_stage(
        layout.occupancy, windows, min(ratio, 0.5), cut=leading_cut, count=float32_count
    )
    vision = torch.cat([torch.arange(*span, device="cpu") for span in spans]).to(
        hidden_states.device
    )
    text = _text_positions(hidden_states.shape[1], spans).to(hidden_states.device)
    guidance = _guidance(attention_logits, vision, text)
    sequence = hidden_states[0]
    done = TokenCompressor()(sequence[vision], layout, plan, guidance)
    positions = torch.cat([text, vision[done.kept]])
    rows = torch.cat([sequence[text], done.hidden_states])
    order = positions.argsort()
    image = done.layout.image
    starts = torch.tensor([0, *counts[:-1]], device=image.device).cumsum(0)
    within = (done.kept - starts[image]).split(list(done.layout.counts))
    return CompressedSequence(rows[order][None], tuple(within), _shifted(spans, done.layout.counts))


def _guidance(attention_logits: Tensor, vision: Tensor, text: Tensor) -> Tensor | None:
    """Logarithm of the released weights, `[token]`; None without any text."""
    if len(text) == 0:
        return None
    columns = attention_logits[:, :, :, text].transpose(2, 3)
    columns = columns.to(torch.promote_types(columns.dtype, torch.float32))
    over_all_queries = columns.logsumexp(dim=3, keepdim=True)
    return total_share(share_of_text(columns[:, :, :, vision], total=over_all_queries))[0]


def _folded(counts: list[int]) -> TokenLayout:
    """Each image's tokens, in sequence order, on a square of side ceil(sqrt(count))."""
    number = torch.tensor(counts, device="cpu")
    image = torch.arange(len(counts), device="cpu").repeat_interleave(number)
    token = torch.arange(int(number.sum()), device="cpu") - (number.cumsum(0) - number)[image]
    side = torch.tensor([math.isqrt(count - 1) + 1 for count in counts], device="cpu")
    return TokenLayout.from_tokens(
        sample=torch.zeros_like(image),
        image=image,
        row=token // side[image],
        col=token % side[image],
        grids=[(int(s), int(s)) for s in side],
    )


def _text_positions(length: int, spans: tuple[Span, ...]) -> Tensor:
    is_text = torch.ones(length, dtype=torch.bool, device="cpu")
    for start, end in spans:
        is_text[start:end] = False
    return is_text.nonzero()[:, 0]


def _shifted(spans: tuple[Span, ...], counts: tuple[int, ...]) -> tuple[Span, ...]:
    new, removed = [], 0
    for (start, end), count in zip(spans, counts, strict=True):
        new.append((start - removed, start - removed + count))
        removed += end - start - count
    return tuple(new)


def _check(
    hidden_states: Tensor,
    attention_logits: Tensor,
    image_spans: Sequence[Span],
    windows: int,
    ratio: float,
) -> tuple[Span, ...]:
    if hidden_states.ndim != 3 or hidden_states.shape[0] != 1:
        raise ValueError(
            f"hidden_states has shape {list(hidden_states.shape)}: expected [1, sequence, channel]"
        )
    length = hidden_states.shape[1]
    if attention_logits.ndim != 4 or attention_logits.shape[::2] != (1, length):
        raise ValueError(
            f"attention_logits has shape {list(attention_logits.shape)}: expected "
            f"[1, head, {length}, {length}], raw logits of the layer that gave hidden_states"
        )
    if attention_logits.shape[3] != length:
        raise ValueError(
            f"attention_logits has {attention_logits.shape[3]} keys: expected {length}, one per row"
        )
    if windows < 1:
        raise ValueError(f"windows is {windows}: expected at least one window per side")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}: expected a fraction merged away from 0 to 1")
    spans = tuple((int(start), int(end)) for start, end in image_spans)
    previous = 0
    for start, end in spans:
        if not previous <= start < end <= length:
            raise ValueError(
                f"image span ({start}, {end}): expected ascending, disjoint, non-empty half-open "
                f"spans inside 0..{length}"
            )
        previous = end
    return spans
