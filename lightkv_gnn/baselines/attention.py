"""What the text really attends to: a layer's own probabilities, from few rows of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightkv_gnn.stage.guidance import GuidanceBlock, at_once, attention_logits


def attention_to_vision(block: GuidanceBlock, chosen: Tensor) -> Tensor:
    """Probabilities with which text tokens attend to the vision tokens.

    As the layer has them: a softmax over all keys of the call that come no later than the query,
    of vision and text.  Tokens cached before the call and sliding windows are not known here, and
    attention is taken to be causal.

    Args:
        block: Queries and keys.
        chosen: Columns of ``block.text`` to ask, `[batch, query]`.

    Returns:
        `[batch, head, query, vision]`, in float32 at least; 0 for padding.
    """
    position = block.text.gather(1, chosen)
    query = replace(block, text=position).text_query
    keys = torch.cat([block.vision_key, block.text_key], dim=2)
    place = torch.cat([block.vision, block.text], dim=1)
    real = torch.cat([block.vision_mask, block.text_mask], dim=1)
    seen = real[:, None, :] & (place[:, None, :] <= position[:, :, None])
    logits = attention_logits(query, keys, block.scaling, block.softcap)
    # A query that is padding and sees nothing spreads over everything; its caller ignores it.
    logits = logits.masked_fill(~seen[:, None], torch.finfo(logits.dtype).min / 4)
    share = logits.softmax(dim=3) * seen[:, None]
    return share[..., : block.vision.shape[1]]


def text_attention(block: GuidanceBlock, raters: Tensor) -> Tensor:
    """Attention of some text tokens to each vision token, averaged over heads, summed over them.

    Args:
        block: Queries and keys.
        raters: Weight of each text token, `[batch, text]`.

    Returns:
        `[batch, vision]`.
    """
    batch, text = block.text.shape
    keys = block.vision.shape[1] + text
    width = at_once(batch * block.query.shape[1] * keys, block.query.device)
    weight = (raters * block.text_mask).to(torch.promote_types(block.query.dtype, torch.float32))
    total = weight.new_zeros(block.vision.shape)
    for start in range(0, text, width):
        chosen = torch.arange(start, min(start + width, text), device=weight.device)
        share = attention_to_vision(block, chosen.expand(batch, -1)).mean(dim=1)
        total = total + (share * weight[:, chosen, None]).sum(dim=1)
    return total


def last_token_attention(block: GuidanceBlock) -> Tensor:
    """Attention of each sample's last text token, averaged over heads, `[batch, vision]`."""
    if block.text.shape[1] == 0:
        return block.query.new_ones(block.vision.shape)
    last = (block.text_mask.sum(1, keepdim=True) - 1).clamp(min=0)
    return attention_to_vision(block, last)[:, :, 0].mean(dim=1)
