"""Masks of flex attention: functions of two positions, with the blocks they leave empty."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

_LOG_MASS = "_lightkv_log_mass"


def compressed_block_mask(mask: BlockMask, rows: Tensor | None, columns: Tensor) -> BlockMask:
    """The mask between the entries a compressed layer holds.

    Rows that are padding may see nothing at all: flex attention then returns zeros.

    Args:
        mask: The mask the layer was given, in logical tokens.
        rows: Token of the call of each query, `[batch, query']`, -1 for padding; None if unchanged.
        columns: Logical index of each key, `[batch, key']`, -1 for padding.
    """
    sees, source = mask.mask_mod, None if rows is None else rows.clamp(min=0)
    known, logical = columns >= 0, columns.clamp(min=0)

    def sees_compressed(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = query if source is None else source[sample, query]
        return sees(sample, head, row, logical[sample, key]) & known[sample, key]

    _, heads, queries, _ = mask.shape
    return create_block_mask(
        sees_compressed,
        B=columns.shape[0],
        H=heads if heads > 1 else None,
        Q_LEN=queries if rows is None else rows.shape[1],
        KV_LEN=columns.shape[1],
        device=columns.device,
        BLOCK_SIZE=mask.BLOCK_SIZE,
    )


def with_mass(mask: BlockMask, log_mass: Tensor | None) -> BlockMask:
    """The mask, with what is to be added to the logits of each key, `[batch, key]`, beside it.

    With its function, which stays the same where the mask is taken to another device.
    """
    mask.mask_mod.__dict__[_LOG_MASS] = log_mass
    return mask


def mass_beside(mask: Any) -> Tensor | None:
    """What :func:`with_mass` put beside a mask, `[batch, key]`; None of any other mask."""
    return getattr(mask.mask_mod, _LOG_MASS, None) if isinstance(mask, BlockMask) else None
