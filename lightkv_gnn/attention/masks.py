"""Attention masks of compressed layers, read off the masks of uncompressed ones."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightkv_gnn.attention.backends import MaskForm
from lightkv_gnn.attention.block_masks import compressed_block_mask, with_mass
from lightkv_gnn.errors import UnsupportedInputError

Mask = Tensor | BlockMask | None


def compressed_mask(
    mask: Mask,
    rows: Tensor | None,
    columns: Tensor,
    *,
    ragged: bool,
    past: int = 0,
    form: MaskForm = "dense",
    log_mass: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Mask:
    """The mask between the entries a compressed layer holds.

    Args:
        mask: The mask the layer was given, in logical tokens: dense, `[batch or 1, 1 or head,
            query, key]`, bool or additive; of padding, `[batch, key]`; of blocks; or None for
            plain causal attention.
        rows: Token of the call of each query, `[batch, query']`, -1 for padding; None if unchanged.
        columns: Logical index of each key, `[batch, key']`, -1 for padding.
        ragged: Whether ``columns`` may hold padding.
        past: Logical tokens before the call.
        form: Of the masks that the layer's attention takes.
        log_mass: To be added to the logits of each key, `[batch, key']`; None for nothing.
        dtype: Of a mask that adds, unless ``mask`` does.

    Returns:
        A mask of the same kind, on the device of ``columns``, or None where plain causal attention
        still is right.  With ``log_mass`` a dense mask adds, and one of blocks carries it for
        :mod:`lightkv_gnn.attention.capture`.

    Raises:
        UnsupportedInputError: A dense mask for attention that knows of padding only.
    """
    if isinstance(mask, BlockMask):
        return with_mass(compressed_block_mask(mask, rows, columns), log_mass)
    mask = None if mask is None else mask.to(columns.device)
    if form == "padding":
        return _padding_mask(mask, columns, ragged)
    if mask is not None:
        mask = _dense_mask(mask, rows, columns, ragged)
    elif ragged or (log_mass is not None and rows is not None):
        mask = _causal_mask(rows, columns, past)
    return mask if log_mass is None else with_log_mass(mask, log_mass, dtype)


def with_log_mass(mask: Tensor | None, log_mass: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that adds to the logits of each key, `[batch, 1 or head, query' or 1, key']`.

    Args:
        mask: Dense, or None where every key is seen.
        log_mass: What it adds, `[batch, key']`; see :func:`compressed_mask`.
        dtype: Of the result, unless ``mask`` adds already.
    """
    dtype = mask.dtype if mask is not None and mask.dtype != torch.bool else dtype
    term = log_mass.to(dtype)[:, None, None, :]
    if mask is None:
        return term
    if mask.dtype == torch.bool:
        return torch.where(mask, term, torch.finfo(dtype).min)
    return mask + term


def check_padding_mask(mask: Mask) -> None:
    """Raises UnsupportedInputError for a mask that says more than what is padding."""
    if isinstance(mask, Tensor) and mask.ndim != 2:
        raise UnsupportedInputError(
            f"attention_mask has shape {list(mask.shape)}, but flash attention takes padding "
            "masks only, [batch, token]: pass one, or load the model with another "
            "attn_implementation"
        )


def _padding_mask(mask: Tensor | None, columns: Tensor, ragged: bool) -> Tensor | None:
    """`[batch, key']`; causality and aligning queries to the last keys is the kernel's matter."""
    check_padding_mask(mask)
    if mask is None:
        return columns >= 0 if ragged else None
    return mask.bool().gather(1, columns.clamp(min=0)) & (columns >= 0)


def _causal_mask(rows: Tensor | None, columns: Tensor, past: int) -> Tensor:
    if rows is None:
        return (columns >= 0)[:, None, None, :]
    allowed = (columns[:, None, :] <= rows[:, :, None] + past) & (columns >= 0)[:, None, :]
    return _with_own_column(allowed[:, None], rows)


def _dense_mask(mask: Tensor, rows: Tensor | None, columns: Tensor, ragged: bool) -> Tensor:
    """`[batch, 1 or head, query', key']`."""
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
        UnsupportedInputError: Another shape, or no tensor at all.
    """
    if isinstance(mask, dict):  # the same padding in all of them; no mask where there is none
        mask = next((one for one in mask.values() if one is not None), None)
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device="cpu")
    if not isinstance(mask, Tensor):
        raise UnsupportedInputError(
            f"attention_mask is a {type(mask).__name__}, which does not tell what is padding: pass "
            f"a tensor [{batch}, {past + length}], one entry per token of the cache and the call"
        )
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
