"""Traces of stages on random features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reference import features, make_layout

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import Grid, MergeTrace, StageTrace, plan_stage

SCHEDULE = ((3, 4), (7, 2), (9, 1))


def traced(
    grids: Sequence[Sequence[Grid]],
    schedule: Sequence[tuple[int, int]] = SCHEDULE,
    ratio: float = 0.5,
    guided: bool = False,
    compressor: TokenCompressor | None = None,
    **variant: int,
) -> MergeTrace:
    """Stages after ``layer`` with ``windows`` each."""
    compressor = compressor or TokenCompressor()
    first = layout = make_layout(grids, **variant)
    x, _ = features(layout)
    generator = torch.Generator().manual_seed(1)
    stages = []
    for layer, windows in schedule:
        plan = plan_stage(layout.occupancy, windows, ratio)
        guidance = torch.randn(len(layout), generator=generator) if guided else None
        done = compressor(x, layout, plan, guidance)
        stages.append(
            StageTrace.from_graph(
                done.graph,
                done.survivor,
                done.layout,
                layer=layer,
                windows=windows,
                guidance=guidance,
                certificate=done.merges.matching.certificate,
            )
        )
        x, layout = done.hidden_states, done.layout
    return MergeTrace(first, tuple(stages))
