"""What the tiny model is trained on: right answers, and patches that lie near their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from lightkv_gnn.tiny.packing import PackedBatch
from lightkv_gnn.tiny.questions import GROUPS

__all__ = ["LEADING", "answer_loss", "grounding_loss"]

# Questions before the picture are scored as a group of their own.
LEADING = len(GROUPS)
# Weight of an answer token: yes/no answers compare two things and are learnt last, lists have
# many tokens, and a picture has room for one leading question among a dozen others.
WEIGHTED = dict(zip((*GROUPS, "leading"), (1.0, 3.0, 2.0, 0.5, 4.0), strict=True))


def answer_loss(
    hidden: torch.Tensor,
    head: torch.nn.Module,
    batch: PackedBatch,
    eos_id: int,
    weighted: Mapping[str, float] = WEIGHTED,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the weighted loss of the answers and the token accuracy of each group.

    Args:
        hidden: last hidden state ``[batch, token, channel]``.
        head: maps hidden states to logits.
        batch: the packed questions.
        eos_id: id of the end mark, which is left out of the accuracy: it is nearly free.
        weighted: weight of an answer token of each group, in the order of their numbers.
    """
    chosen = batch.groups[:, 1:] >= 0
    groups, targets = batch.groups[:, 1:][chosen], batch.input_ids[:, 1:][chosen]
    logits = head(hidden[:, :-1][chosen])
    weights = torch.tensor(tuple(weighted.values()), device=logits.device)[groups]
    losses = F.cross_entropy(logits, targets, reduction="none")
    hits, scored = logits.argmax(-1) == targets, targets != eos_id
    right = {
        name: float(hits[scored & (groups == index)].float().mean())
        for index, name in enumerate(weighted)
        if bool((scored & (groups == index)).any())
    }
    return (losses * weights).sum() / weights.sum(), right


def grounding_loss(
    features: torch.Tensor, labels: torch.Tensor, tables: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[float]]:
    """Ask every patch that shows an object to lie near the words for its colour and shape.

    A pretrained LLaVA gets this from its contrastively trained vision tower; here it is what
    lets attention by colour start within a few hundred steps.

    Args:
        features: projected patches ``[patch, channel]``.
        labels: colour and shape of each as ``[patch, 2]``, -1 for background.
        tables: word vectors ``[word, channel]`` of the colours and of the shapes.

    Returns:
        The loss, and the share of patches nearest to the right colour and the right shape.
    """
    shown = labels[:, 0] >= 0
    total, shares = features.new_zeros(()), []
    for column, table in enumerate(tables):
        logits = features[shown] @ table.T / features.shape[-1] ** 0.5
        total = total + F.cross_entropy(logits, labels[shown, column])
        shares.append(float((logits.argmax(-1) == labels[shown, column]).float().mean()))
    return total, shares
