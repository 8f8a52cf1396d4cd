"""Schedules: what retention a list of stages gives, and stages for a retention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from numbers import Real

from lightkv_gnn.choices import check_retention
from lightkv_gnn.errors import ScheduleError
from lightkv_graphs import Grid
from lightkv_graphs.stage import MOST_WINDOWS

WINDOWS = (4, 2, 1)
"""Windows per side of the first, second and third stage; they fall, so messages travel farther."""

PUBLISHED = {28: (8, 16, 24), 32: (11, 17, 23), 40: (15, 21, 27)}
"""Layers of the usual schedules of about 55 % by depth of the decoder."""

LEAST_TOKENS_PER_WINDOW = 8

STAYING = 16
"""Tokens of a window that stay at least where a matcher chooses among all of them."""

LARGE, MOST = 0.75, 0.99
"""Ratios of a single stage: up to which it may run later than the first, and the largest."""

WINDOWS_OF_ANY = 2
"""Windows per side of a single stage over pictures of any size."""

CLOSE = 0.005
"""Retentions nearer than this to the one asked for count as equal."""


@dataclass(frozen=True)
class Stage:
    """One compression between two decoder layers.

    Attributes:
        layer: The stage runs after this decoder layer (0-based), which keeps its full cache.
        windows: Windows per side, W; 1 to 1000.
        ratio: Fraction of the vision tokens that is merged away, 0 to 0.5; a matcher that
            does not alternate sources and destinations may go up to 0.99.
    """

    layer: int
    windows: int
    ratio: float = 0.5

    def __post_init__(self) -> None:
        for name in ("layer", "windows"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Stage.{name} is {value!r}: expected an integer")
        if not isinstance(self.ratio, (int, float)) or isinstance(self.ratio, bool):
            raise TypeError(f"Stage.ratio is {self.ratio!r}: expected a number")
        if self.layer < 0:
            raise ValueError(f"Stage.layer is {self.layer}: decoder layers are counted from 0")
        if not 1 <= self.windows <= MOST_WINDOWS:
            raise ValueError(
                f"Stage.windows is {self.windows}: expected 1 or more per side, at most "
                f"{MOST_WINDOWS}"
            )
        if not 0 <= self.ratio <= 0.99:
            raise ValueError(
                f"Stage.ratio is {self.ratio}: expected the fraction merged away, 0 to 0.5, or to "
                "0.99 with a matcher such as coverage_matching"
            )


def read_stage(text: str) -> Stage:
    """A stage written as ``LAYER:WINDOWS:RATIO``; the ratio may be left out.

    Raises:
        ValueError: It is not written so, or out of range.
    """
    expected = f"{text!r}: expected LAYER:WINDOWS:RATIO, such as 11:4:0.5"
    parts = text.split(":")
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        layer, windows, ratio = int(parts[0]), int(parts[1]), [float(part) for part in parts[2:]]
    except ValueError:
        raise ValueError(f"{expected}, with whole numbers and a fraction") from None
    try:
        return Stage(layer, windows, *ratio)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected} ({error})") from error


def in_words(stages: Sequence[Stage]) -> str:
    """What is merged away, and when."""
    told = []
    for stage in stages:
        windows = f"{stage.windows}x{stage.windows} windows"
        told.append(f"{stage.ratio:.0%} after layer {stage.layer} in {windows}")
    return ", ".join(told) or "nothing"


def layer_average(stages: Sequence[Stage], layers: int) -> float:
    """Vision tokens held, averaged over ``layers`` decoder layers; a fraction, before rounding.

    A layer holds what it was given, so the layer that a stage runs after holds the tokens from
    before the stage.
    """
    held, kept, done = 0.0, 1.0, 0
    for stage in stages:
        held += kept * (stage.layer + 1 - done)
        done = stage.layer + 1
        kept *= 1 - stage.ratio
    return (held + kept * (layers - done)) / layers


def one_stage(
    layers: int, retention: float, grid: Grid | None = None, legal: Sequence[int] | None = None
) -> tuple[Stage, ...]:
    """One early stage whose layer average is ``retention``, for matchers of any ratio.

    It runs after a sixteenth of the layers, and earlier where it would have to take more than three
    quarters of the tokens; in windows of which each keeps 16 tokens or more, or in 2 x 2 where
    pictures differ in size.  Why: docs/evidence/coverage.

    Args:
        layers: Decoder layers.
        retention: Vision tokens to hold, averaged over layers; fraction.
        grid: The images' grid where it is always the same.
        legal: Layers that a stage may run after; all but the last if not given.

    Raises:
        ScheduleError: ``retention`` is not in (0, 1], or out of reach for this depth.
        TypeError: ``retention`` is no number.
    """
    legal = _checked(layers, retention, legal)
    if retention == 1:
        return ()
    ratios = {layer: (1 - retention) * layers / (layers - 1 - layer) for layer in legal}
    early = [layer for layer in legal if layer <= layers // 16] or list(legal[:1])
    if not early or ratios[early[0]] > MOST:
        reach = layer_average([Stage(layer, 1, MOST) for layer in early[:1]], layers)
        raise ScheduleError(
            f"no stage on {layers} layers keeps {retention:.0%} of the vision tokens, as stages "
            f"may run after layers {list(legal)}: the layers up to the first of them hold all; "
            f"ask for {math.ceil(reach * 100)}% or more"
        )
    layer = next((layer for layer in reversed(early) if ratios[layer] <= LARGE), early[0])
    windows, ratio = WINDOWS_OF_ANY, ratios[layer]
    if grid is not None:
        windows = windows_of(0, grid, 1 - ratio, STAYING)
        window = math.prod(math.ceil(side / windows) for side in grid)
        ratio = min(max(round(ratio * window), 1) / window, MOST)  # windows give up whole tokens
    return (Stage(layer, windows, math.ceil(ratio * 10_000 - 1e-6) / 10_000),)


def _checked(layers: int, retention: float, legal: Sequence[int] | None) -> Sequence[int]:
    """Layers that a stage may run after; see :func:`find_stages` for what is raised."""
    if not isinstance(retention, Real):
        raise TypeError(f"retention is {retention!r}: expected a number")
    check_retention(retention)
    return range(layers - 1) if legal is None else legal


def find_stages(
    layers: int, retention: float, grid: Grid | None = None, legal: Sequence[int] | None = None
) -> tuple[Stage, ...]:
    """Halving stages whose layer average is close to ``retention``, as the paper's.

    Three stages if they come close, evenly spaced before unevenly, else two, one, or none.

    Args:
        layers: Decoder layers.
        retention: Vision tokens to hold, averaged over layers; fraction.
        grid: The images' grid where it is always the same; limits the windows.
        legal: Layers that a stage may run after; all but the last if not given.

    Raises:
        ScheduleError: ``retention`` is not in (0, 1], or out of reach for this depth.
        TypeError: ``retention`` is no number.
    """
    legal = _checked(layers, retention, legal)
    published = PUBLISHED.get(layers, ())
    if published and abs(retention - 0.55) < CLOSE and set(published) <= set(legal):
        return halving(published, grid)
    candidates = [halving(chosen, grid) for chosen in _layer_choices(layers, legal)]
    best = min(candidates, key=lambda stages: _badness(stages, layers, retention))
    reached = layer_average(best, layers)
    if abs(reached - retention) > 0.05:
        raise ScheduleError(
            f"no schedule of halving stages on {layers} layers keeps {retention:.0%} of the vision "
            f"tokens, as stages may run after layers {list(legal)}; the nearest keeps "
            f"{reached:.0%}: {best}. Ask for that, or write the stages out"
        )
    return best


def _layer_choices(layers: int, legal: Sequence[int]) -> Iterator[tuple[int, ...]]:
    yield ()
    for number in (1, 2):
        yield from combinations(legal, number)
    for chosen in combinations(legal, 3):
        first, second, third = chosen
        if len(legal) <= 16 or second - first == third - second:
            yield chosen


def _badness(stages: tuple[Stage, ...], layers: int, retention: float) -> tuple[float, ...]:
    error = math.floor(abs(layer_average(stages, layers) - retention) / CLOSE)
    borders = [*(stage.layer for stage in stages), layers - 1]
    gaps = [after - before for before, after in pairwise(borders)]
    uneven = max(gaps) - min(gaps) if gaps else 0
    return error, -len(stages), uneven


def halving(chosen: Sequence[int], grid: Grid | None) -> tuple[Stage, ...]:
    """A halving stage after each of up to three layers, in windows that a grid has tokens for."""
    return tuple(
        Stage(layer, windows_of(number, grid, 0.5**number), 0.5)
        for number, layer in enumerate(chosen)
    )


def windows_of(
    stage: int, grid: Grid | None, left: float, least: int = LEAST_TOKENS_PER_WINDOW
) -> int:
    """Windows per side of the stage of that number, fewer where a grid has too few tokens.

    Args:
        stage: Number of the stage, from 0.
        grid: The images' grid, or None where it is not always the same.
        left: Share of the tokens that is left when the stage runs.
        least: Tokens that each window shall have.
    """
    windows = WINDOWS[min(stage, len(WINDOWS) - 1)]
    if grid is None:
        return windows
    tokens = grid[0] * grid[1] * left
    while windows > 1 and (tokens < least * windows**2 or windows > min(grid)):
        windows //= 2
    return windows
