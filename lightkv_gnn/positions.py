"""Rotary positions of survivors: kept, or closed up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rotary_rows(tables: tuple[Tensor, Tensor], source: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the cosine and sine tables: each survivor keeps its own position.

    Args:
        tables: cos and sin, `[batch or 1, token, channel]`.
        source: Token of each row, `[batch, row]`; -1 for padding.

    Returns:
        cos and sin, `[batch, row, channel]`.
    """
    cos, sin = (_rows(table, source) for table in tables)
    return cos, sin


def _rows(table: Tensor, source: Tensor) -> Tensor:
    index = source.clamp(min=0)[:, :, None].expand(-1, -1, table.shape[-1])
    return table.expand(source.shape[0], -1, -1).gather(1, index)


def closed_up(
    rotary: Callable[..., Any], hidden_states: Tensor, position_ids: Tensor, merged_before: Tensor
) -> Any:
    """Tables for positions from which the tokens merged away before each one are subtracted.

    Args:
        rotary: Makes the layer's tables.
        hidden_states: Gives dtype and device.
        position_ids: Original positions, `[batch or 1, token]`.
        merged_before: `[batch, token or 1]`.
    """
    return rotary(hidden_states, position_ids=position_ids - merged_before)


def positions_of(position_ids: Tensor, source: Tensor) -> Tensor:
    """Original position of each row, `[batch, row]`."""
    wide = position_ids.expand(source.shape[0], -1)
    return torch.gather(wide, 1, source.clamp(min=0))
