"""A schedule laid over a batch: every size and cost, known before the first layer runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightkv_gnn.costs.ledger import DecoderSize, LayerCost
from lightkv_gnn.costs.schedule import Stage
from lightkv_graphs import StagePlan, TokenLayout, plan_stage


@dataclass(frozen=True, eq=False)
class PlannedStage:
    """A stage with its sizes.

    Attributes:
        stage: From the configuration.
        plan: Merges per image.
        lengths: Tokens of each sample after the stage, without padding.
        vision: Vision tokens of each sample after the stage.
    """

    stage: Stage
    plan: StagePlan
    lengths: tuple[int, ...]
    vision: tuple[int, ...]

    def of_sample(self, sample: int) -> PlannedStage:
        """The same with one sample's sizes; its plan is still the batch's."""
        lengths, vision = self.lengths[sample], self.vision[sample]
        return replace(self, lengths=(lengths,), vision=(vision,))


def plan_stages(
    stages: Sequence[Stage], layout: TokenLayout, lengths: Sequence[int]
) -> list[PlannedStage]:
    """Sizes of all stages; those that merge nothing away are left out."""
    planned = []
    occupancy = layout.occupancy
    vision = [0] * len(lengths)
    for image, sample in enumerate(layout.samples):
        vision[sample] += layout.counts[image]
    left = list(lengths)
    for stage in stages:
        plan = plan_stage(occupancy, stage.windows, stage.ratio)
        if plan.total == 0:
            continue
        occupancy = plan.occupancy
        for image, sample in enumerate(layout.samples):
            left[sample] -= plan.merges[image]
            vision[sample] -= plan.merges[image]
        planned.append(PlannedStage(stage, plan, tuple(left), tuple(vision)))
    return planned


def plan_costs(
    sizes: Sequence[DecoderSize],
    planned: Sequence[PlannedStage],
    lengths: Sequence[int],
    vision: int,
    width: int,
    room: Sequence[int | None],
) -> list[tuple[LayerCost, LayerCost]]:
    """What every layer of a prefill costs, as planned and without compression.

    The layer that a stage runs after has the tokens from before it.

    Args:
        sizes: Of each decoder layer.
        planned: From :func:`plan_stages`.
        lengths: Tokens of each sample before the first stage, without padding.
        vision: Vision tokens of the batch before the first stage.
        width: Tokens of a row before the first stage, padding included.
        room: Of each layer, how many entries its cache can take before it forgets any; None
            without bound.
    """
    full = now = tuple(lengths), vision, width
    after = {step.stage.layer: step for step in planned}
    costs = []
    for layer, (size, left) in enumerate(zip(sizes, room, strict=True)):
        costs.append((_cost(size, *now, left), _cost(size, *full, left)))
        if layer in after:
            left_over = after[layer].lengths
            now = left_over, sum(after[layer].vision), max(left_over)
    return costs


def _cost(
    size: DecoderSize, lengths: Sequence[int], vision: int, width: int, room: int | None
) -> LayerCost:
    return size.cost(lengths, vision, width if room is None else min(width, room))
