"""Attention masks of compressed layers, read off the masks of uncompressed ones."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.errors import UnsupportedInputError


def compressed_mask(
    mask: Tensor | None, rows: Tensor | None, columns: Tensor, *, ragged: bool, past: int = 0
) -> Tensor | None:
    """The mask between the entries a compressed layer holds.

    Args:
        mask: The mask the layer was given, `[batch or 1, 1 or head, query, key]`, bool or
            additive, in logical tokens; None for plain causal attention.
        rows: Token of the call of each query, `[batch, query']`, -1 for padding; None if unchanged.
        columns: Logical index of each key, `[batch, key']`, -1 for padding.
        ragged: Whether ``columns`` may hold padding.
        past: Logical tokens before the call.

    Returns:
        `[batch, 1 or head, query', key']`, or None where plain causal attention still is right.
    """
    if mask is None:
        if not ragged:
            return None
        if rows is None:
            return (columns >= 0)[:, None, None, :]
        allowed = (columns[:, None, :] <= rows[:, :, None] + past) & (columns >= 0)[:, None, :]
        return _with_own_column(allowed[:, None], rows)
    batch, heads, width = columns.shape[0], mask.shape[1], columns.shape[1]
    mask = mask.expand(batch, *mask.shape[1:])
    if rows is not None:
        index = rows.clamp(min=0)[:, None, :, None].expand(-1, heads, -1, mask.shape[3])
        mask = mask.gather(2, index)
    index = columns.clamp(min=0)[:, None, None, :].expand(-1, heads, mask.shape[2], width)
    mask = mask.gather(3, index)
    if not ragged:
        return mask
    padding = (columns < 0)[:, None, None, :]
    blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    mask = mask.masked_fill(padding, blocked)
    return mask if rows is None else _with_own_column(mask, rows)


def _with_own_column(mask: Tensor, rows: Tensor) -> Tensor:
    """Lets padding rows see themselves, so that their softmax is over something."""
    queries, keys = mask.shape[2:]
    own = torch.eye(queries, dtype=torch.bool, device=mask.device)
    own = torch.nn.functional.pad(own, (keys - queries, 0))
    seen = True if mask.dtype == torch.bool else 0.0
    return mask.masked_fill((rows < 0)[:, None, :, None] & own, seen)


def real_tokens(
    mask: Any, batch: int, length: int, past: int, widths: Collection[int] = ()
) -> Tensor:
    """Which tokens of a call are not padding, `[batch, token]`, from the user's mask.

    Args:
        mask: 2-D `[batch, past + token]` or 4-D `[batch, 1 or head, token, key]`, or None; or a
            dictionary of them, as ``generate`` makes it for a static cache.
        batch: Samples.
        length: Tokens of the call.
        past: Tokens in the cache before it.
        widths: Keys that a 4-D mask may have besides all tokens so far: those of a static cache,
            or of a sliding window, which ends with the call.

    Raises:
        UnsupportedInputError: Another shape.
    """
    if isinstance(mask, dict):  # the same padding in all of them; no mask where there is none
        mask = next((one for one in mask.values() if one is not None), None)
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool)
    if mask.ndim == 2 and mask.shape == (batch, past + length):
        return mask[:, past:].bool().cpu()
    seen = past + length
    if mask.ndim == 4 and mask.shape[2] == length and mask.shape[3] in (seen, *widths):
        first = past if mask.shape[3] >= seen else mask.shape[3] - length
        own = mask[:, 0, :, first : first + length].diagonal(dim1=1, dim2=2)
        return (own if mask.dtype == torch.bool else own >= 0).cpu().expand(batch, -1)
    raise UnsupportedInputError(
        f"attention_mask has shape {list(mask.shape)}: expected [{batch}, {past + length}], one "
        f"entry per token of the cache and the call, or [{batch}, 1, {length}, {past + length}]"
    )
