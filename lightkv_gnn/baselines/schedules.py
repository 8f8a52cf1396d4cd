"""Schedules that keep to a budget, so that methods can be compared at equal cost."""

from __future__ import annotations

from collections.abc import Sequence

from lightkv_gnn.errors import ScheduleError
from lightkv_gnn.schedule import Stage, layer_average, windows_of
from lightkv_graphs import Grid


def progressive(
    layers: int, retention: float, depth: int, grid: Grid | None = None, stages: int = 3
) -> tuple[Stage, ...]:
    """Stages of equal ratio, at most one half, that keep ``retention`` averaged over the layers.

    The first one runs after layer ``depth``, the others follow at equal distances, as far apart as
    the budget allows.  There are more than ``stages`` where no distance allows it, and fewer where
    no more layers follow.

    Args:
        layers: Decoder layers.
        retention: Vision tokens kept, averaged over layers; fraction.
        depth: Layer that the first stage runs after.
        grid: Limits the windows.
        stages: How many, if possible.

    Raises:
        ScheduleError: No such layer, or even halving after every layer would keep more.
    """
    room = _room(layers, retention, depth)
    for number in range(min(stages, room), room + 1):
        for gap in range((room - 1) // max(1, number - 1), 0, -1):
            chosen = [depth + gap * step for step in range(number)]
            ratio = _ratio(chosen, layers, retention, 0.5)
            if ratio is not None:
                return tuple(
                    Stage(layer, windows_of(step, grid, (1 - ratio) ** step), ratio)
                    for step, layer in enumerate(chosen)
                )
    raise _out_of_reach(layers, retention, depth)


def single(layers: int, retention: float, depth: int) -> tuple[Stage, ...]:
    """One stage over the whole picture after layer ``depth``, as large as the budget asks.

    Raises:
        ScheduleError: No such layer, or the layers up to it hold more than the budget already.
    """
    _room(layers, retention, depth)
    ratio = _ratio([depth], layers, retention, 0.99)
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


def _ratio(chosen: Sequence[int], layers: int, retention: float, most: float) -> float | None:
    """The ratio, to four digits, that keeps ``retention``; None beyond ``most``."""

    def held(ratio: float) -> float:
        return layer_average([Stage(layer, 1, ratio) for layer in chosen], layers)

    if held(most) > retention:
        return None
    low, high = 0.0, most
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) > retention else (low, middle)
    return round(high, 4)


def _out_of_reach(layers: int, retention: float, depth: int) -> ScheduleError:
    return ScheduleError(
        f"no stages from layer {depth} of {layers} on keep {retention:.0%} of the vision tokens, "
        f"averaged over the layers: expected more, or an earlier layer"
    )
