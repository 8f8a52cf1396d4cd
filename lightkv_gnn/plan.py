"""A schedule laid over a batch: every size of every stage, known before the first one runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightkv_gnn.schedule import Stage
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
