"""Schedules against counting layer by layer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest

from lightkv_gnn import ScheduleError, Stage
from lightkv_gnn.costs.schedule import (
    LARGE,
    LEAST_TOKENS_PER_WINDOW,
    PUBLISHED,
    STAYING,
    WINDOWS,
    find_stages,
    layer_average,
    one_stage,
)


def counted(stages: Sequence[Stage], layers: int) -> Fraction:
    """Each layer holds what it was given; a stage acts on the layers after its own."""
    held = []
    kept = Fraction(1)
    for layer in range(layers):
        held.append(kept)
        for stage in stages:
            if stage.layer == layer:
                kept *= 1 - Fraction(stage.ratio)
    return sum(held, Fraction(0)) / layers


@pytest.mark.parametrize("seed", range(50))
def test_layer_average_is_counted(seed: int) -> None:
    chance = random.Random(seed)
    layers = chance.randint(1, 48)
    chosen = sorted(chance.sample(range(layers), min(layers, chance.randint(0, 5))))
    stages = [Stage(layer, 1, chance.choice([0.0, 0.25, 0.3, 0.5])) for layer in chosen]
    assert layer_average(stages, layers) == pytest.approx(float(counted(stages, layers)))


@pytest.mark.parametrize(
    ("layers", "after", "percent"),
    [
        (32, (11, 17, 23), 54.7),
        (40, (15, 21, 27), 55.0),
        (28, (8, 16, 24), 54.9),
        (32, (12, 18, 24), 57.4),
    ],
)
def test_published_schedules(layers: int, after: tuple[int, int, int], percent: float) -> None:
    a, b, c = after
    n = layers
    formula = ((a + 1) + (b - a) / 2 + (c - b) / 4 + (n - 1 - c) / 8) / n
    stages = [Stage(layer, 1) for layer in after]
    assert layer_average(stages, layers) == pytest.approx(formula)
    assert round(100 * formula, 1) == percent
    published = [stage.layer for stage in find_stages(layers, 0.55)]
    assert (published == list(after)) == (percent < 57)  # the authors' script has other layers


@pytest.mark.parametrize("layers", sorted(PUBLISHED))
def test_the_usual_depths_get_the_published_layers(layers: int) -> None:
    stages = find_stages(layers, 0.55)
    assert tuple(stage.layer for stage in stages) == PUBLISHED[layers]
    assert tuple(stage.windows for stage in stages) == WINDOWS


@pytest.mark.parametrize("layers", [3, 4, 6, 8, 12, 16, 17, 24, 28, 32, 40, 48])
@pytest.mark.parametrize("retention", [0.35, 0.45, 0.55, 0.65, 0.8, 0.95, 1.0])
def test_what_is_found_is_close_and_legal(layers: int, retention: float) -> None:
    try:
        stages = find_stages(layers, retention)
    except ScheduleError:
        best = min(
            (
                abs(counted(_halving(*pair), layers) - Fraction(retention))
                for pair in _pairs(layers)
            ),
            default=Fraction(1),
        )
        assert best > Fraction(1, 20)
        return
    assert abs(float(counted(stages, layers)) - retention) <= 0.05
    after = [stage.layer for stage in stages]
    assert after == sorted(set(after))
    assert all(0 <= layer <= layers - 2 for layer in after)
    assert [stage.windows for stage in stages] == list(WINDOWS[: len(stages)])
    assert {stage.ratio for stage in stages} <= {0.5}


def _pairs(layers: int) -> list[tuple[int, ...]]:
    useful = range(layers - 1)
    singles = [(a,) for a in useful]
    return singles + [(a, b) for a in useful for b in useful if a < b]


def _halving(*after: int) -> list[Stage]:
    return [Stage(layer, 1) for layer in after]


@pytest.mark.parametrize("grid", [(4, 4), (24, 24), (8, 16), (3, 40), (1, 9), (2, 2)])
def test_windows_have_tokens_to_merge(grid: tuple[int, int]) -> None:
    for number, stage in enumerate(find_stages(32, 0.55, grid)):
        tokens = grid[0] * grid[1] / 2**number
        assert stage.windows == 1 or tokens >= LEAST_TOKENS_PER_WINDOW * stage.windows**2
        assert 1 <= stage.windows <= min(grid)
        assert stage.windows <= WINDOWS[number]


@pytest.mark.parametrize("retention", [0.0, -0.5, 1.01, float("nan")])
def test_retention_is_a_fraction(retention: float) -> None:
    with pytest.raises(ScheduleError, match="a fraction above 0, at most 1"):
        find_stages(32, retention)


def test_out_of_reach() -> None:
    with pytest.raises(ScheduleError, match=r"32 layers keeps 5%.*the nearest keeps \d+%"):
        find_stages(32, 0.05)
    assert find_stages(1, 1.0) == ()


@pytest.mark.parametrize("layers", [26, 34, 48, 62])
@pytest.mark.parametrize("retention", [0.45, 0.55, 0.7])
def test_stages_run_after_legal_layers_only(layers: int, retention: float) -> None:
    """Every sixth layer, as where sliding windows alternate with full attention."""
    legal = range(5, layers - 1, 6)
    stages = find_stages(layers, retention, legal=legal)
    assert {stage.layer for stage in stages} <= set(legal)
    assert abs(float(counted(stages, layers)) - retention) <= 0.05


def test_a_published_schedule_must_be_legal_too() -> None:
    assert [stage.layer for stage in find_stages(32, 0.55)] == list(PUBLISHED[32])
    legal = range(12, 31)
    assert min(stage.layer for stage in find_stages(32, 0.55, legal=legal)) >= 12


def test_no_layer_is_legal() -> None:
    assert find_stages(8, 1.0, legal=()) == ()
    with pytest.raises(ScheduleError, match="nearest keeps 100%"):
        find_stages(8, 0.55, legal=())


@pytest.mark.parametrize("layers", [2, 4, 6, 8, 12, 16, 24, 28, 32, 40, 64])
@pytest.mark.parametrize("retention", [0.1, 0.16, 0.3, 0.55, 0.75, 0.999, 1.0])
def test_one_stage_keeps_what_the_first_layer_leaves_room_for(
    layers: int, retention: float
) -> None:
    least = float(counted([Stage(0, 1, 0.99)], layers))
    if retention < least:
        with pytest.raises(ScheduleError, match=rf"{layers} layers keeps {retention:.0%}"):
            one_stage(layers, retention)
        assert one_stage(layers, math.ceil(least * 100) / 100)  # what the message advises
        return
    stages = one_stage(layers, retention)
    assert float(counted(stages, layers)) == pytest.approx(retention, abs=1e-4)
    assert len(stages) == (retention < 1)
    for stage in stages:
        assert stage.layer <= layers // 16
        assert stage.ratio <= LARGE or stage.layer == 0
        later = Stage(stage.layer + 1, 1, LARGE)
        assert later.layer > layers // 16 or float(counted([later], layers)) > retention


def test_a_tenth_is_kept_on_any_depth_that_allows_it() -> None:
    for layers in range(12, 100):
        kept = float(counted(one_stage(layers, 0.1), layers))
        assert kept == pytest.approx(0.1, abs=1e-4)


def test_one_stage_where_few_layers_are_legal() -> None:
    assert [stage.layer for stage in one_stage(48, 0.55, legal=range(5, 47, 6))] == [5]
    assert [stage.layer for stage in one_stage(8, 0.7, legal=[3])] == [3]
    assert [stage.layer for stage in one_stage(32, 0.55, legal=range(1, 31))] == [2]
    assert one_stage(8, 1.0, legal=()) == ()
    with pytest.raises(ScheduleError, match="ask for 100% or more"):
        one_stage(8, 0.55, legal=())


@pytest.mark.parametrize("retention", [0.55, 0.3, 0.1])
@pytest.mark.parametrize("grid", [None, (4, 4), (6, 6), (16, 16), (24, 24), (3, 40), (1, 9)])
def test_of_each_window_many_stay(grid: tuple[int, int] | None, retention: float) -> None:
    (stage,) = one_stage(32, retention, grid)
    if grid is None:
        assert stage.windows == 2
        return
    tokens = grid[0] * grid[1]
    assert stage.windows == 1 or tokens * (1 - stage.ratio) >= 0.9 * STAYING * stage.windows**2
    assert stage.windows in (1, 2, 4)
    assert stage.windows <= min(grid)
    held = layer_average([stage], 32)
    assert abs(held - retention) <= 1 / math.prod(math.ceil(side / stage.windows) for side in grid)
