"""Schedules that keep to a budget, so that methods can be compared at equal cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from lightkv_gnn.choices import check_retention
from lightkv_gnn.costs.plan import plan_stages
from lightkv_gnn.costs.schedule import WINDOWS_OF_ANY, Stage, layer_average, windows_of
from lightkv_gnn.errors import ScheduleError
from lightkv_graphs import Grid, TokenLayout

CLOSE = 0.025
"""Retentions that differ by less from what was asked for are that budget; fraction."""


def progressive(
    layers: int,
    retention: float,
    depth: int,
    grid: Grid | None = None,
    *,
    stages: int = 3,
    windows: Sequence[int] = (),
    most: float = 0.5,
) -> tuple[Stage, ...]:
    """Stages of equal ratio that keep ``retention`` averaged over the layers.

    The first one runs after layer ``depth``, the others follow at equal distances, as far apart as
    the budget allows.  There are more than ``stages`` where no distance allows it, and fewer where
    no more layers follow.  Small windows lose whole tokens only; on a known grid the stages after
    the first one make up for that.

    Args:
        layers: Decoder layers.
        retention: Vision tokens held, averaged over layers; fraction.
        depth: Layer that the first stage runs after.
        grid: Limits the windows, and says how many tokens they lose.
        stages: How many, if possible.
        windows: Windows per side of each stage, the last number for later ones too; if not given,
            4, 2 and 1, or fewer where the grid has too few tokens.
        most: The largest ratio; alternating tokens, as the paper matches them, allow one half.

    Raises:
        ScheduleError: No such layer, even the largest ratio after every layer would keep more, or
            the windows of a known grid are too small to come close.
    """
    room = _room(layers, retention, depth)
    for number in range(min(stages, room), room + 1):
        for gap in range(max(1, (room - 1) // max(1, number - 1)), 0, -1):
            chosen = [depth + gap * step for step in range(number)]
            ratio = _ratio(partial(_held_by, chosen, layers), retention, most)
            if ratio is not None:
                even = _even(chosen, ratio, grid, windows)
                return _exact(even, layers, retention, grid, most)
    raise _out_of_reach(layers, retention, depth)


def _even(
    chosen: Sequence[int], ratio: float, grid: Grid | None, windows: Sequence[int] = ()
) -> tuple[Stage, ...]:
    """Stages of equal ratio after some layers."""
    stages = []
    for step, layer in enumerate(chosen):
        usual = windows_of(step, grid, (1 - ratio) ** step)
        own = windows[min(step, len(windows) - 1)] if windows else usual
        stages.append(Stage(layer, own, ratio))
    return tuple(stages)


def _held_by(chosen: Sequence[int], layers: int, ratio: float) -> float:
    """Vision tokens held by stages of that ratio, before rounding."""
    return _held(_even(chosen, ratio, None), layers)


def _exact(
    stages: tuple[Stage, ...], layers: int, retention: float, grid: Grid | None, most: float
) -> tuple[Stage, ...]:
    """The stages, with ratios after the first one that make up for its rounding."""
    if grid is None:
        return stages
    found = _nearest(stages, layers, retention, grid, most)
    held = _held(found, layers, grid)
    if abs(held - retention) > CLOSE:
        windows = "-".join(str(stage.windows) for stage in found)
        raise ScheduleError(
            f"in {windows} windows a side, a {grid[0]}x{grid[1]} grid holds {held:.1%} where "
            f"{retention:.1%} are asked for, since windows give up whole tokens: expected fewer "
            "windows, or another budget"
        )
    return found


def _nearest(
    stages: tuple[Stage, ...], layers: int, retention: float, grid: Grid, most: float
) -> tuple[Stage, ...]:
    """The stages with the ratio after the first one, or of the only one, that comes nearest."""
    first = stages[: len(stages) > 1]

    def of(ratio: float) -> tuple[Stage, ...]:
        return first + tuple(replace(stage, ratio=ratio) for stage in stages[len(first) :])

    ratio = _ratio(lambda ratio: _held(of(ratio), layers, grid), retention, most)
    return of(most if ratio is None else ratio)


def single(layers: int, retention: float, depth: int) -> tuple[Stage, ...]:
    """One stage over the whole picture after layer ``depth``, as large as the budget asks.

    Raises:
        ScheduleError: No such layer, or the layers up to it hold more than the budget already.
    """
    _room(layers, retention, depth)
    ratio = _ratio(lambda ratio: _held([Stage(depth, 1, ratio)], layers), retention, 0.99)
    if ratio is None:
        raise _out_of_reach(layers, retention, depth)
    return (Stage(depth, 1, ratio),)


def windowed(
    layers: int, retention: float, depth: int, grid: Grid | None = None
) -> tuple[Stage, ...]:
    """The stage of :func:`single`, in 4 windows a side, or fewer that come close to the budget.

    Where pictures differ in size, in 2.

    Raises:
        ScheduleError: As there.
    """
    (whole,) = single(layers, retention, depth)
    if grid is None:
        return (replace(whole, windows=WINDOWS_OF_ANY),)
    for windows in (number for number in (4, 2) if number <= min(grid)):
        found = _nearest((replace(whole, windows=windows),), layers, retention, grid, 0.99)
        if abs(_held(found, layers, grid) - retention) <= CLOSE:
            return found
    return (whole,)


def _room(layers: int, retention: float, depth: int) -> int:
    """Layers that a stage may run after, from ``depth`` on."""
    check_retention(retention)
    if not 0 <= depth < layers - 1:
        raise ScheduleError(f"depth is {depth}: expected a layer from 0 to {layers - 2}")
    return layers - 1 - depth


def _held(stages: Sequence[Stage], layers: int, grid: Grid | None = None) -> float:
    """Vision tokens held, averaged over the layers; of a grid with all rounding in windows."""
    if grid is None:
        return layer_average(stages, layers)
    layout = TokenLayout.from_grids([[grid]])
    after = {step.stage.layer: step.vision[0] for step in plan_stages(stages, layout, [0])}
    left, held = len(layout), 0
    for layer in range(layers):
        held += left
        left = after.get(layer, left)
    return held / (layers * len(layout))


def _ratio(held: Callable[[float], float], retention: float, most: float) -> float | None:
    """The ratio, to four digits, that comes nearest to ``retention``; None beyond ``most``."""
    low, high = -1, round(most * 10_000)
    if held(most) > retention + 1e-9:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if held(middle / 10_000) > retention else (low, middle)
    above, below = max(low, 0) / 10_000, high / 10_000
    return above if abs(held(above) - retention) < abs(held(below) - retention) else below


def _out_of_reach(layers: int, retention: float, depth: int) -> ScheduleError:
    return ScheduleError(
        f"no stages from layer {depth} of {layers} on keep {retention:.0%} of the vision tokens, "
        f"averaged over the layers: expected more, or an earlier layer"
    )
