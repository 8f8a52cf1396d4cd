"""Positions of survivors, kept or closed up, and whatever else a layer is given for each token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.errors import UnsupportedInputError

Tables = tuple[Tensor, Tensor] | Tensor | None
"""A layer's rotary tables, `[..., batch or 1, token, channel]`.

Cosines and sines, or both as one tensor of complex numbers; None where nothing is rotated.
"""


def rotary_rows(tables: Tables, source: Tensor) -> Tables:
    """Rows of the rotary tables: each survivor keeps its own position.

    Args:
        tables: Of the layer.
        source: Token of each row, `[batch, row]`; -1 for padding.

    Returns:
        The same with rows in the place of tokens, on the device of ``source``.

    Raises:
        UnsupportedInputError: Tables of a form that is not known.
    """
    if tables is None:
        return None
    if isinstance(tables, Tensor):
        return token_rows("rotary tables", tables, source, -2)
    if not isinstance(tables, tuple) or len(tables) != 2:
        raise UnsupportedInputError(
            f"a decoder layer is given rotary tables as {type(tables).__name__}: expected cosines "
            "and sines, one tensor, or None"
        )
    cos, sin = (token_rows("rotary tables", table, source, -2) for table in tables)
    return cos, sin


def token_rows(name: str, given: Tensor, source: Tensor, axis: int) -> Tensor:
    """What a layer is given for each token, for the tokens that are left.

    Args:
        name: For errors.
        given: `[..., batch or 1, token, ...]`.
        source: Token of each row, `[batch, row]`; -1 for padding, which gets the first token's.
        axis: Of the tokens, the one after that of samples.

    Returns:
        `[..., batch, row, ...]`, on the device of ``source``.

    Raises:
        UnsupportedInputError: There is no axis of samples before that of tokens.
    """
    axis %= given.ndim
    if axis == 0:
        raise UnsupportedInputError(
            f"{name} of a decoder layer have shape {list(given.shape)}: expected an axis of "
            "samples before that of tokens"
        )
    shape, (batch, rows) = given.shape, source.shape
    index = source.clamp(min=0).view(
        *(1,) * (axis - 1), batch, rows, *(1,) * (given.ndim - axis - 1)
    )
    index = index.expand(*shape[: axis - 1], batch, rows, *shape[axis + 1 :])
    given = given.to(source.device).expand(*shape[: axis - 1], batch, *shape[axis:])
    return given.gather(axis, index)


def closed_up(rotary: Callable[..., Any], hidden_states: Tensor, positions: Tensor) -> Tables:
    """Tables for positions from which the tokens merged away before each one are subtracted.

    Args:
        rotary: Makes the layer's tables.
        hidden_states: Gives dtype and device.
        positions: `[batch, token]`.
    """
    tables = rotary(hidden_states, position_ids=positions)
    if isinstance(tables, Tensor):
        return tables.to(hidden_states.device)
    cos, sin = (table.to(hidden_states.device) for table in tables)
    return cos, sin


def numbered(
    rotary: Callable[..., Any],
    hidden_states: Tensor,
    places: Tensor,
    missing: Tensor,
    merged: Tensor,
    given: Tables,
) -> Tables:
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
    if given is None:
        return None
    made: Any = closed_up(rotary, hidden_states, places - missing)
    whole = (merged == 0)[:, :, None]
    if isinstance(given, Tensor):
        return torch.where(whole, given.to(whole.device), made)
    pairs = zip(given, made, strict=True)
    cos, sin = (torch.where(whole, own.to(whole.device), new) for own, new in pairs)
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
        return torch.zeros(batch, 2, dtype=torch.int64, device="cpu")
    if mask.ndim == 4:  # the last token that is none sees all that is none
        if mask.shape[3] < past + length:
            raise UnsupportedInputError(
                f"attention_mask has {mask.shape[3]} keys, fewer than the {past + length} tokens "
                'so far: positions="reindex" has to know what was padding, so pass it as '
                f"[{batch}, {past + length}]"
            )
        last = (real * torch.arange(1, length + 1, device="cpu")).argmax(1)
        mask = mask[:, 0].cpu().expand(batch, -1, -1)[torch.arange(batch, device="cpu"), last]
        mask = mask if mask.dtype == torch.bool else mask >= 0
    count = (~mask[:, :past].bool()).sum(1).cpu()
    return torch.stack([count, torch.zeros_like(count)], dim=1)
