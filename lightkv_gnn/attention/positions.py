"""Rotary positions of survivors: kept, or closed up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.errors import UnsupportedInputError


def rotary_rows(tables: tuple[Tensor, Tensor], source: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the cosine and sine tables: each survivor keeps its own position.

    Args:
        tables: cos and sin, `[batch or 1, token, channel]`.
        source: Token of each row, `[batch, row]`; -1 for padding.

    Returns:
        cos and sin, `[batch, row, channel]`, on the device of ``source``.
    """
    cos, sin = (_rows(table, source) for table in tables)
    return cos, sin


def _rows(table: Tensor, source: Tensor) -> Tensor:
    index = source.clamp(min=0)[:, :, None].expand(-1, -1, table.shape[-1])
    return table.to(source.device).expand(source.shape[0], -1, -1).gather(1, index)


def closed_up(
    rotary: Callable[..., Any], hidden_states: Tensor, position_ids: Tensor, merged_before: Tensor
) -> tuple[Tensor, Tensor]:
    """Tables for positions from which the tokens merged away before each one are subtracted.

    Args:
        rotary: Makes the layer's tables.
        hidden_states: Gives dtype and device.
        position_ids: Original positions, `[batch or 1, token]`.
        merged_before: `[batch, token or 1]`.
    """
    positions = position_ids.to(merged_before.device) - merged_before
    tables = rotary(hidden_states, position_ids=positions)
    cos, sin = (table.to(hidden_states.device) for table in tables)
    return cos, sin


def numbered(
    rotary: Callable[..., Any],
    hidden_states: Tensor,
    places: Tensor,
    missing: Tensor,
    merged: Tensor,
    given: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Tables for the numbers of entries, where M-RoPE is given up.

    Samples of which nothing was merged keep theirs, as they do alone.

    Args:
        rotary: Makes the layer's tables.
        hidden_states: Gives dtype and device.
        places: Logical index of each row, `[batch, row]`.
        missing: Tokens before each row that have no entry, padding too, `[batch, row or 1]`.
        merged: Tokens of each sample merged away, `[batch, 1]`.
        given: The layer's tables, with rows like ``places``.
    """
    made = closed_up(rotary, hidden_states, places, missing)
    whole = (merged == 0)[:, :, None]
    given = (given[0].to(whole.device), given[1].to(whole.device))
    cos, sin = (torch.where(whole, *pair) for pair in zip(given, made, strict=True))
    return cos, sin


def padding_before(mask: Any, real: Tensor, past: int) -> Tensor:
    """Padding of each sample among the tokens before a call, `[batch, 2]`.

    The second column, what was merged away, is 0; see ``CompressedMixin.merged``.

    Args:
        mask: What the call was given, as :func:`lightkv_gnn.attention.masks.real_tokens` takes it.
        real: Tokens of the call that are not padding, `[batch, token]`.
        past: Tokens before it.

    Raises:
        UnsupportedInputError: A mask that ends within the past.
    """
    if isinstance(mask, dict):
        mask = next((one for one in mask.values() if one is not None), None)
    batch, length = real.shape
    if mask is None or past == 0:
        return torch.zeros(batch, 2, dtype=torch.int64)
    if mask.ndim == 4:  # the last token that is none sees all that is none
        if mask.shape[3] < past + length:
            raise UnsupportedInputError(
                f"attention_mask has {mask.shape[3]} keys, fewer than the {past + length} tokens "
                'so far: positions="reindex" has to know what was padding, so pass it as '
                f"[{batch}, {past + length}]"
            )
        last = (real * torch.arange(1, length + 1)).argmax(1)
        mask = mask[:, 0].cpu().expand(batch, -1, -1)[torch.arange(batch), last]
        mask = mask if mask.dtype == torch.bool else mask >= 0
    count = (~mask[:, :past].bool()).sum(1).cpu()
    return torch.stack([count, torch.zeros_like(count)], dim=1)


def positions_of(position_ids: Tensor, source: Tensor) -> Tensor:
    """Original position of each row, `[batch, row]`."""
    wide = position_ids.to(source.device).expand(source.shape[0], -1)
    return torch.gather(wide, 1, source.clamp(min=0))
