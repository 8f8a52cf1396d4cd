"""Attention implementations, told apart by the masks that transformers makes for them.

What a compressed layer must be handed depends on nothing else: whoever registers an attention
function of their own with one of transformers' mask functions gets masks that it understands.
"""

from __future__ import annotations

from typing import Any, Literal

from lightkv_gnn import seams

try:
    from transformers.masking_utils import (
        AttentionMaskInterface,
        eager_mask,
        flash_attention_mask,
        flex_attention_mask,
        sdpa_mask,
    )
except ImportError as error:
    raise seams.with_versions(error) from error

MaskForm = Literal["dense", "padding", "block"]
"""`[batch, head, query, key]`; `[batch, key]`, causal by itself; a flex attention BlockMask."""

_FORMS: dict[Any, MaskForm] = {
    eager_mask: "dense",
    sdpa_mask: "dense",
    flash_attention_mask: "padding",
    flex_attention_mask: "block",
}

SUPPORTED = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
)
"""Implementations that transformers brings along and compression can translate masks for."""


def mask_form(implementation: str | None) -> MaskForm | None:
    """The masks of an attention implementation; None if they are not known.

    Paged implementations have masks too, but keep keys in a cache of their own.
    """
    if implementation is None or implementation.startswith("paged|"):
        return None
    # transformers itself asks this mapping whether to make a mask.
    return _FORMS.get(AttentionMaskInterface._global_mapping.get(implementation))


def why_no_mass(implementation: str) -> str | None:
    """Why attention cannot count a key as often as it stands for; None if it can."""
    form = mask_form(implementation)
    if form == "padding":
        return f"{implementation!r} adds nothing to the logits of a key"
    if form == "block" and not seams.takes_bias(implementation):
        return f"the attention function of {implementation!r} takes no {seams.BIAS}"
    if form == "dense" and seams.masks_only_hide(implementation):
        return f"masks of {implementation!r} only hide on this device"
    return None


def form_of(implementation: str) -> MaskForm:
    """The masks of a supported attention implementation.

    Raises:
        ValueError: It is not supported.
    """
    form = mask_form(implementation)
    if form is None:
        raise ValueError(f"the masks of {implementation!r} are not known")
    return form
