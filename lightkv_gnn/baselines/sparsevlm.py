"""Like SparseVLM: text tokens that concern the picture rate it; part of what goes is recycled."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.attention import text_attention
from lightkv_gnn.baselines.pruning import Staged
from lightkv_gnn.stage.guidance import GuidanceBlock, attention_logits
from lightkv_gnn.stage.messages import mean
from lightkv_graphs import Matching, WindowPartition, edge_cosine, heirs

RECYCLED = 0.3
"""Part of the tokens that did not make it, the best of them, that is aggregated."""

PER_CLUSTER = 10
"""Recycled tokens for each aggregated one."""

NEIGHBOURS = 5
"""Nearest tokens that a density is made of."""


def rated(block: GuidanceBlock) -> Tensor:
    """Attention of the text tokens that concern the picture, `[batch, vision]`.

    A text token concerns it whose part of what the vision tokens look for in the text (without a
    causal mask, as they come first) is above the average.
    """
    if block.text.shape[1] == 0:
        return block.query.new_ones(block.vision.shape)
    query, key = block.vision_query, block.text_key
    logits = attention_logits(query, key, block.scaling, block.softcap)
    logits = logits.masked_fill(~block.text_mask[:, None, None], torch.finfo(logits.dtype).min / 4)
    looked_for = logits.softmax(dim=3).mean(dim=1)  # [batch, vision, text]
    relevant = (looked_for * block.vision_mask[:, :, None]).sum(dim=1)
    number = block.text_mask.sum(dim=1, keepdim=True).clamp(min=1)
    average = (relevant * block.text_mask).sum(dim=1, keepdim=True) / number
    return text_attention(block, (relevant >= average) & block.text_mask)


def recycling(x: Tensor, partition: WindowPartition, guidance: Tensor) -> Matching:
    """Keeps the highest scores; the best of the others are gathered into a few tokens.

    The tokens that are kept make room for the aggregated ones, so that no more stay than planned.

    Raises:
        ValueError: The picture is cut into windows.
    """
    if partition.per_image != 1:
        raise ValueError(f"{partition.plan.windows} windows per side: expected the whole picture")
    padding, plan = x.shape[0], partition.plan
    slots = partition.slots()
    score = torch.cat([guidance.float(), guidance.new_full((1,), -torch.inf).float()])
    empty = slots == padding
    order = score[slots].argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, empty.gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))
    ranked = slots.gather(1, order)
    images = zip(plan.before, plan.merges, strict=True)
    sizes = [_share(occupancy.tokens, gone) for occupancy, gone in images]
    kept, centres, pool = torch.tensor(sizes, device=x.device).reshape(-1, 3).T[:, :, None]
    rank = torch.arange(ranked.shape[1], device=x.device)
    recycled = (rank >= kept) & (rank < kept + pool) & (ranked != padding)

    first = min((own[0] for own in sizes), default=0)
    last = max((own[0] + own[2] for own in sizes), default=0)
    candidates, taken = ranked[:, first:last], recycled[:, first:last]
    centre, nearest = clusters(_padded(x)[candidates], taken, centres)

    stays = torch.zeros(padding + 1, dtype=torch.bool, device=x.device)
    stays[ranked[rank < kept]] = True
    stays[candidates[centre]] = True
    stays[:padding] |= partition.window == partition.total  # what is never merged
    stays[padding] = False
    target, silent = heirs(slots, stays), torch.ones_like(stays)
    target[candidates[taken]] = candidates.gather(1, nearest)[taken]
    silent[candidates[taken]] = False
    source = (~stays[:padding]).nonzero()[:, 0]
    edge_index = torch.stack([source, target[source]])
    return Matching(edge_index, edge_cosine(x, edge_index), silent[source])


def _share(tokens: int, gone: int) -> tuple[int, int, int]:
    """Of an image: tokens kept as they are, aggregated ones, and those these are made of."""
    if gone == 0:
        return tokens, 0, 0
    left = tokens - gone
    centres = min(left, int(RECYCLED * gone) // PER_CLUSTER + 1)
    return left - centres, centres, max(centres, int(RECYCLED * (gone + centres)))


def clusters(x: Tensor, taken: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Clusters around density peaks, for each image.

    A centre has many near neighbours, and is far from what has more.

    Args:
        x: Features, `[image, token, channel]`.
        taken: Tokens to cluster, `[image, token]` bool.
        number: Clusters, `[image, 1]`; no more than tokens to cluster.

    Returns:
        Which are centres, `[image, token]`, and the centre nearest to each, `[image, token]`.
    """
    far = torch.finfo(torch.float32).max / 4
    x = x.detach().float()
    apart = torch.cdist(x, x).nan_to_num(far, far, far) / x.shape[2] ** 0.5
    pairs = taken[:, :, None] & taken[:, None, :]
    near = apart.masked_fill(~pairs, far)
    neighbours = near.sort(dim=2).values[:, :, 1 : NEIGHBOURS + 1]  # without itself
    known = neighbours < far
    density = (-(neighbours.where(known, 0).square().sum(2) / known.sum(2).clamp(min=1))).exp()
    place = torch.arange(x.shape[1], device=x.device)
    earlier = place[None, :] < place[:, None]
    same = density[:, None, :] == density[:, :, None]
    denser = (density[:, None, :] > density[:, :, None]) | (same & earlier)
    distance = near.masked_fill(~denser, far).amin(dim=2)
    widest = apart.masked_fill(~pairs, 0).amax(dim=(1, 2))[:, None]
    distance = torch.minimum(distance, widest)
    peak = (density * distance).masked_fill(~taken, -1)
    rank = peak.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    centre = (rank < number) & taken
    nearest = near.masked_fill(~centre[:, None, :], far).argmin(dim=2)
    return centre, torch.where(centre, place, nearest)


def _padded(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(1, x.shape[1])])


SPARSEVLM_LIKE = Staged(
    "sparsevlm_like",
    "after SparseVLM (Zhang et al. 2024): raters from queries and keys in place of embeddings, a "
    "ratio from the budget in place of the rank of the attention, means in place of sums of the "
    "recycled tokens, each at its centre's position",
    {"guidance": rated, "matcher": recycling, "message": mean},
)
