"""Merging, with the prompt and without: the windows and the matching are the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.baselines.method import Budget, StageMethod
from lightkv_gnn.costs.schedule import Stage, one_stage
from lightkv_gnn.stage.guidance import GuidanceBlock, share_of_text, total_share
from lightkv_gnn.stage.messages import mass_mean, mean
from lightkv_graphs import coverage_matching


class NoCompression(StageMethod):
    """No stages; attached only so that the books are kept."""

    def budgets(
        self, model: Any, retentions: Sequence[float], depths: Sequence[int]
    ) -> list[Budget]:
        """One: everything, of which nothing leaves at any depth."""
        return [Budget.of(model, 1.0, -1)]

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """None."""
        return ()


def random_attention(block: GuidanceBlock) -> Tensor:
    """Weights from random numbers in place of the attention's logits, `[batch, vision]`."""
    batch, heads = block.query.shape[:2]
    shape = batch, heads, block.text.shape[1], block.vision.shape[1]
    logits = torch.rand(shape, device=block.query.device)
    return total_share(share_of_text(logits, block.vision_mask), block.text_mask).exp()


def random_weights(block: GuidanceBlock) -> Tensor:
    """Weights drawn evenly between 0 and 1, `[batch, vision]`."""
    return torch.rand(block.vision.shape, device=block.query.device)


class Early(StageMethod):
    """A method of one large stage, as ``LightKVConfig.for_model`` has it."""

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One, after the budget's depth."""
        legal = range(budget.depth, budget.layers - 1)
        return one_stage(budget.layers, budget.retention, budget.grid, legal[:1])


NONE = NoCompression("none", "no compression")
GUIDED = StageMethod(
    "guided",
    "LightKV (Chen et al. 2026), asked the other way round: text queries, vision keys",
)
GUIDED_MASS = StageMethod(
    "guided_mass",
    "the same, and survivors count in attention as often as the tokens they stand for",
    {"attention": "mass"},
)
COVERAGE = StageMethod(
    "coverage",
    "those stay that cover most of what the prompt asks about, by facility location (Nemhauser, "
    "Wolsey and Fisher 1978); the others join the most similar one",
    {"matcher": coverage_matching},
)
COVERAGE_MASS = StageMethod(
    "coverage_mass",
    "the same, and survivors count in attention as often as the tokens they stand for",
    {"matcher": coverage_matching, "attention": "mass"},
)
OURS = Early(
    "ours",
    "this library's default: coverage with mass in one stage, after the first layer asked for",
    COVERAGE_MASS.options,
)
VISION_TO_TEXT = StageMethod(
    "vision_to_text",
    "the same with the direction of LightKV's formula: vision queries, text keys",
    {"guidance": "vision_to_text"},
)
MEAN = StageMethod(
    "mean",
    "windowed token merging without the prompt; matching as in ToMe (Bolya et al. 2023)",
    {"guidance": "none", "message": mean},
)
MASS_MEAN = StageMethod(
    "mass_mean",
    "the mean weighted by the original tokens that each token stands for, as in ToMe",
    {"guidance": "none", "message": mass_mean},
)
RANDOM_ATTENTION = StageMethod(
    "random_attention",
    "random numbers in place of attention logits, as in the released LLaVA code; the weights are "
    "nearly equal",
    {"guidance": random_attention},
)
RANDOM_WEIGHTS = StageMethod(
    "random_weights", "weights drawn evenly from 0 to 1", {"guidance": random_weights}
)
