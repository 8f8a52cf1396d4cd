"""Like VisionZip: what the vision tower looks at stays, the rest is averaged into a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.adapters import adapter_for
from lightkv_gnn.baselines.choosing import join, number_staying, of_slots
from lightkv_gnn.baselines.losses import MeasuredCompressor
from lightkv_gnn.baselines.method import Applied, Budget, Hints
from lightkv_gnn.baselines.pruning import Once
from lightkv_gnn.baselines.tower import TowerAttention
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.session.attach import attach
from lightkv_gnn.stage.messages import mean
from lightkv_graphs import Matching, WindowPartition

CONTEXTUAL = 10 / 64
"""Share of those that stay which the others are averaged into."""


def dominant_and_contextual(
    tower: TowerAttention, x: Tensor, partition: WindowPartition, guidance: Tensor
) -> Matching:
    """The most salient tokens stay; of the others, some at even distances take the rest in.

    Whoever leaves joins the contextual token with the most similar keys in the tower.
    """
    slots = partition.slots()
    real, number = slots < len(x), number_staying(partition)
    contextual = (number * CONTEXTUAL).round().clamp(min=1).minimum(number)
    saliency = of_slots(guidance.detach().float(), slots).masked_fill(~real, -torch.inf)
    rank = saliency.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    stays = (rank < number - contextual) & real
    others = real & ~stays
    place = others.long().cumsum(dim=1) * contextual
    total = others.sum(dim=1, keepdim=True).clamp(min=1)
    # Of n others in raster order, the i-th is a target where floor(i * targets / n) goes up.
    before, upto = ((p / total).floor() for p in (place - contextual, place))
    target = others & (upto > before)
    keys = torch.cat([tower.keys, tower.keys.new_zeros(1, tower.keys.shape[1])]).float()[slots]
    keys = torch.nn.functional.normalize(keys.to(x.device), dim=2).nan_to_num(0.0)
    return join(stays * 2.0 + target, keys @ keys.transpose(1, 2), x, partition, target)


@dataclass(frozen=True, eq=False)
class Listening(Applied):
    """A method that listens to the vision tower, at work.

    Attributes:
        tower: It is heard by.
    """

    tower: TowerAttention | None = None

    def method_seconds(self) -> float:
        """Wall time of the stages, and of listening to the tower."""
        assert self.tower is not None
        return super().method_seconds() + self.tower.seconds


class VisionZip(Once):
    """One stage, that hears of the vision tower."""

    @contextmanager
    def applied(self, model: Any, budget: Budget) -> Iterator[Applied]:
        """The method at work; see :meth:`Method.applied`.

        Raises:
            UnsupportedInputError: The vision tower's attention is not at hand.
        """
        tower = TowerAttention(adapter_for(model))
        matcher = partial(dominant_and_contextual, tower)
        stages = self.stages(budget)
        config = LightKVConfig(stages, guidance=tower.guidance, matcher=matcher, message=mean)
        hints = Hints()
        measured = MeasuredCompressor(self.compressor(config, hints))
        with ExitStack() as undo:
            tower.install(undo)
            handle = undo.enter_context(attach(model, config, compressor=measured))
            yield Listening(handle, hints, measured, tower=tower)


VISIONZIP_LIKE = VisionZip(
    "visionzip_like",
    "after VisionZip (Yang et al. 2024): dominant tokens by the attention of the vision tower's "
    "[CLS] (of all patches where there is none), others averaged into some at even distances by "
    "the similarity of their keys; in the decoder in place of before it, and only where the "
    "tower's attention is at hand, with one vision token for each patch",
)
