"""Like VisionTrim: dominant tokens stay, the rest is merged around what the text asks about."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lightkv_gnn.baselines.attention import last_token_attention
from lightkv_gnn.baselines.choosing import join, number_staying, of_slots
from lightkv_gnn.baselines.method import Budget
from lightkv_gnn.baselines.pruning import Once
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.stage.guidance import GuidanceBlock, text_logits
from lightkv_gnn.stage.messages import mean
from lightkv_graphs import Matching, TokenLayout, WindowPartition

COMPLEMENT = 0.25
"""Share of those that stay which are centres of what the dominant tokens leave."""


class TextLogits:
    """Guidance by the last token's attention, which remembers what each text token looks for.

    Attributes:
        by_token: Logits of text tokens, averaged over heads, `[vision token, text]`, of the last
            prefill; minus infinity for padding.
    """

    def __init__(self) -> None:
        self.by_token = torch.zeros(0, 0, device="cpu")

    def __call__(self, block: GuidanceBlock) -> Tensor:
        """Attention of each sample's last text token, `[batch, vision]`."""
        logits = text_logits(block.text_query, block.vision_key, block.scaling, block.softcap)
        logits = logits.mean(dim=1).masked_fill(~block.text_mask[:, :, None], -torch.inf)
        self.by_token = logits.transpose(1, 2)[block.vision_mask]
        return last_token_attention(block)


def complement(
    text: TextLogits,
    x: Tensor,
    partition: WindowPartition,
    guidance: Tensor,
    layout: TokenLayout,
) -> Matching:
    """Dominant tokens stay as they are; centres that the text attends to take the others in.

    Dominant are the tokens with most attention and most like their neighbours.  Of the others, a
    quarter as many as stay are centres, by the share that text tokens give them; the rest joins the
    centre that the same words look for: ``sum_t p_i(t) * p_c(t)``, with p a softmax over the text.
    """
    slots = partition.slots()
    real, number = slots < len(x), number_staying(partition)
    centres = (number * COMPLEMENT).round().clamp(min=1).minimum(number)
    dominance = dominant(of_slots(guidance.detach().float(), slots), x, slots, layout)
    rank = dominance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    stays = (rank < number - centres) & real

    logits = torch.cat([text.by_token, text.by_token.new_zeros(1, text.by_token.shape[1])])[slots]
    asked = logits.masked_fill((stays | ~real)[:, :, None], torch.finfo(logits.dtype).min / 4)
    wanted = asked.softmax(dim=1).sum(dim=2).masked_fill(stays | ~real, -1)
    place = wanted.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    centre = (place < centres) & real & ~stays
    words = logits.softmax(dim=2).nan_to_num(0.0)
    return join(stays * 2.0 + centre, words @ words.transpose(1, 2), x, partition, centre)


def dominant(attention: Tensor, x: Tensor, slots: Tensor, layout: TokenLayout) -> Tensor:
    """Attention and affinity with neighbours, the steadier of the two with more weight.

    Args:
        attention: Logarithm of the attention that tokens get, `[window, slot]`.
        x: Features, `[token, channel]`.
        slots: Tokens, `[window, slot]`.
        layout: Where they are.

    Returns:
        `[window, slot]`; minus infinity where there is no token.
    """
    real = slots < len(x)
    seen = attention.exp().masked_fill(~real, -torch.inf).softmax(dim=1)
    near = local_affinity(x, slots, layout).masked_fill(~real, -torch.inf).softmax(dim=1)
    varies = [(part - 1 / real.sum(1, True).clamp(min=1)).square() * real for part in (seen, near)]
    by_seen, by_near = (part.sum(dim=1, keepdim=True) for part in varies)
    both = by_seen + by_near
    share = torch.where(both > 0, by_near / both.masked_fill(both == 0, 1), 0.5)
    return (share * seen + (1 - share) * near).masked_fill(~real, -torch.inf)


def local_affinity(x: Tensor, slots: Tensor, layout: TokenLayout) -> Tensor:
    """Minus the mean squared difference from up to eight neighbours, `[window, slot]`.

    Of features and of places, each in standard deviations of the differences between neighbours.
    """
    known = torch.cat([x.detach().float().nan_to_num(0.0), x.new_zeros(1, x.shape[1])])[slots]
    place = torch.stack([layout.row, layout.col], dim=1).float()
    place = torch.cat([place, place.new_full((1, 2), -9.0)])[slots]
    step = (place[:, :, None] - place[:, None, :]).abs().amax(dim=3)
    beside = (step == 1) & (slots < len(x))[:, :, None] & (slots < len(x))[:, None, :]
    pairs = beside.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    total = torch.zeros_like(step)
    for values in (known, place):
        apart = torch.cdist(values, values) * beside
        centre = apart.sum(dim=(1, 2), keepdim=True) / pairs
        spread = ((apart - centre).square() * beside).sum(dim=(1, 2), keepdim=True) / pairs
        total = total - apart.square() / spread.masked_fill(spread == 0, 1)
    return total.sum(dim=2) / beside.sum(dim=2).clamp(min=1)


class VisionTrim(Once):
    """One stage, with a memory of what the text looks for."""

    def config(self, budget: Budget) -> LightKVConfig:
        """How it compresses."""
        text = TextLogits()
        matcher = partial(complement, text)
        return LightKVConfig(self.stages(budget), guidance=text, matcher=matcher, message=mean)


VISIONTRIM_LIKE = VisionTrim(
    "visiontrim_like",
    "after VisionTrim (Yu et al. 2026): dominant tokens by attention and local affinity, the "
    "others merged around those that the text asks for; in the decoder alone, queries and keys in "
    "place of products of hidden states, means in place of weighted sums, and one pass",
)
