"""Schedules that keep to a budget, so that methods can be compared at equal cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightkv_gnn.errors import ScheduleError
from lightkv_gnn.plan import plan_stages
from lightkv_gnn.schedule import Stage, layer_average, windows_of
from lightkv_graphs import Grid, TokenLayout

NEAR = 0.005
"""Retentions nearer than this to the one asked for are good enough."""


def progressive(
    layers: int, retention: float, depth: int, grid: Grid | None = None, stages: int = 3
) -> tuple[Stage, ...]:
    """Stages of equal ratio, at most one half, that keep ``retention`` averaged over the layers.

    The first one runs after layer ``depth``, the others follow at equal distances, as far apart as
    the budget allows, or a little closer where a grid's windows, which lose whole tokens, then come
    nearer to the budget.  There are more than ``stages`` where no distance allows it, and fewer where
    no more layers follow.

    Args:
        layers: Decoder layers.
        retention: Vision tokens kept, averaged over layers; fraction.
        depth: Layer that the first stage runs after.
        grid: Limits the windows, and says how many tokens they lose.
        stages: How many, if possible.

    Raises:
        ScheduleError: No such layer, or even halving after every layer would keep more.
    """
    room = _room(layers, retention, depth)
    nearest, least = None, 1.0
    for number in range(min(stages, room), room + 1):
        for gap in range((room - 1) // max(1, number - 1), 0, -1):
            chosen = [depth + gap * step for step in range(number)]

            def of(ratio: float, chosen: Sequence[int] = chosen) -> tuple[Stage, ...]:
                return tuple(
                    Stage(layer, windows_of(step, grid, (1 - ratio) ** step), ratio)
                    for step, layer in enumerate(chosen)
                )

            def held(ratio: float, of: Callable[[float], tuple[Stage, ...]] = of) -> float:
                return _held(of(ratio), layers, grid)

            ratio = _ratio(held, retention, 0.5)
            if ratio is None:
                continue
            error = abs(held(ratio) - retention)
            if error < least - 1e-9:
                nearest, least = of(ratio), error
            if least <= NEAR:
                return of(ratio)
        if nearest is not None:
            return nearest
    raise _out_of_reach(layers, retention, depth)


def single(layers: int, retention: float, depth: int) -> tuple[Stage, ...]:
    """One stage over the whole picture after layer ``depth``, as large as the budget asks.

    Raises:
        ScheduleError: No such layer, or the layers up to it hold more than the budget already.
    """
    _room(layers, retention, depth)
    ratio = _ratio(lambda ratio: _held([Stage(depth, 1, ratio)], layers, None), retention, 0.99)
    if ratio is None:
        raise _out_of_reach(layers, retention, depth)
    return (Stage(depth, 1, ratio),)


def _room(layers: int, retention: float, depth: int) -> int:
    """Layers that a stage may run after, from ``depth`` on."""
    if not 0 < retention <= 1:
        raise ScheduleError(f"retention is {retention}: expected a fraction above 0, at most 1")
    if not 0 <= depth < layers - 1:
        raise ScheduleError(f"depth is {depth}: expected a layer from 0 to {layers - 2}")
    return layers - 1 - depth


def _held(stages: Sequence[Stage], layers: int, grid: Grid | None) -> float:
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
