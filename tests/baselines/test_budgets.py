"""Schedules keep to budgets: the average that was asked for, or an error that says why not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from lightkv_gnn import ScheduleError, Stage
from lightkv_gnn.baselines import progressive, single
from lightkv_gnn.costs.plan import plan_stages
from lightkv_gnn.costs.schedule import layer_average
from lightkv_graphs import Grid, TokenLayout


def held_by(stages: tuple[Stage, ...], layers: int, grid: Grid) -> float:
    """Vision tokens of each layer, counted out."""
    layout = TokenLayout.from_grids([[grid]])
    tokens = [len(layout)] * layers
    for step in plan_stages(stages, layout, [len(layout)]):
        for layer in range(step.stage.layer + 1, layers):
            tokens[layer] = step.vision[0]
    return sum(tokens) / (layers * len(layout))


@pytest.mark.parametrize("layers", [4, 8, 28, 32])
@pytest.mark.parametrize("retention", [0.4, 0.55, 0.8, 1.0])
@pytest.mark.parametrize("depth", [0, 1])
def test_the_average_is_as_asked(layers: int, retention: float, depth: int) -> None:
    for find in (progressive, single):
        try:
            stages = find(layers, retention, depth)
        except ScheduleError:
            assert layers == 4
            continue
        assert layer_average(stages, layers) == pytest.approx(retention, abs=1e-3)
        for step in (-1e-4, 1e-4):  # no other ratio of four digits comes nearer
            others = [replace(s, ratio=max(0.0, s.ratio + step)) for s in stages]
            nearer = abs(layer_average(others, layers) - retention)
            assert abs(layer_average(stages, layers) - retention) <= nearer + 1e-9
        assert stages[0].layer == depth
        gaps = {b.layer - a.layer for a, b in pairwise(stages)}
        assert len(gaps) <= 1
        assert len({stage.ratio for stage in stages}) == 1
        assert stages[-1].layer < layers - 1


@pytest.mark.parametrize("grid", [(16, 16), (24, 24), (12, 9)], ids=str)
@pytest.mark.parametrize("retention", [0.4, 0.55, 0.7, 0.9])
@pytest.mark.parametrize("depth", [0, 1])
def test_on_a_grid_the_average_is_that_of_whole_tokens(
    grid: Grid, retention: float, depth: int
) -> None:
    stages = progressive(8, retention, depth, grid)
    assert held_by(stages, 8, grid) == pytest.approx(retention, abs=0.012)
    assert all(0 <= stage.ratio <= 0.5 for stage in stages)


def test_stages_are_as_far_apart_as_the_budget_allows() -> None:
    assert [stage.layer for stage in progressive(8, 0.55, 0)] == [0, 3, 6]
    assert [stage.layer for stage in progressive(8, 0.35, 0)] == [0, 1, 2]
    assert [stage.windows for stage in progressive(8, 0.55, 0)] == [4, 2, 1]
    assert len(progressive(8, 0.26, 0)) > 3
    assert len(progressive(8, 0.9, 5)) == 2
    assert [stage.layer for stage in progressive(8, 0.95, 6)] == [6]  # the last that helps
    assert progressive(3, 0.9, 1) == (Stage(1, 4, 0.3),)


def test_one_stage_takes_all_at_once() -> None:
    (stage,) = single(8, 0.55, 2)
    assert stage == Stage(2, 1, 0.72)


@pytest.mark.parametrize("find", [progressive, single])
def test_what_cannot_be_kept_to_is_refused(find: object) -> None:
    assert callable(find)
    with pytest.raises(ScheduleError, match="no stages from layer 5 of 8 on keep 55%"):
        find(8, 0.55, 5)
    for depth in (-1, 7):
        with pytest.raises(ScheduleError, match=f"depth is {depth}: expected a layer from 0 to 6"):
            find(8, 0.55, depth)
    for retention in (0, 1.01):
        with pytest.raises(ScheduleError, match=f"retention is {retention}: expected a fraction"):
            find(8, retention, 0)
