"""The figure of what is kept for what it costs: KV against accuracy, few lines, named beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from lightkv_gnn.baselines.blind_pruning import RANDOM_PRUNING
from lightkv_gnn.baselines.downsample import DOWNSAMPLE
from lightkv_gnn.baselines.fastv import FASTV
from lightkv_gnn.baselines.merging import OURS
from lightkv_gnn.evaluation.figures import INCHES, Plot, depth_title, panels_of
from lightkv_gnn.evaluation.pooling import BASELINE, CEILINGS, Pooled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "kv"
"""Of the file."""

LINES = 6
"""Methods that have a line; the others are dots."""

ALWAYS = (OURS.name, DOWNSAMPLE.name, RANDOM_PRUNING.name, FASTV.name)
"""Methods that have one wherever there are rows of them."""

COLOURS = ("black", "#D55E00", "#7F7F7F", "#0072B2", "#009E73", "#CC79A7")
"""Of the lines, told apart by colour-blind readers too.  Source: Okabe and Ito 2008."""

APART = 0.055
"""Least distance of two names, as a share of a panel's height."""

LONGEST = 24
"""Characters of a name."""

CAPTION = (
    "Accuracy against the size of the KV cache, a row of panels per depth; accuracy on hard "
    "questions beside it, where there are any."
)

Value = Callable[[Pooled], float]

BY_DEPTH = Plot(
    NAME,
    lambda entry: entry.mean("kv_ratio"),
    "KV bytes after the prefill, of those without compression",
    lambda entry: entry.first.depth,
    depth_title,
    CAPTION,
)
"""A row of panels for each depth, or one where each depth has its own budget."""


class End(NamedTuple):
    """Where a method's line ends.

    Attributes:
        cost: Share of the KV bytes.
        value: Accuracy.
        name: Of the method.
        colour: Of the line.
    """

    cost: float
    value: float
    name: str
    colour: str


def chosen(entries: Sequence[Pooled]) -> list[str]:
    """Methods that have a line: those that always have one, then the most accurate."""
    right: dict[str, list[float]] = {}
    for entry in entries:
        if entry.first.method not in CEILINGS:
            right.setdefault(entry.first.method, []).append(entry.accuracy)
    names = [name for name in ALWAYS if name in right]
    best = sorted(right, key=lambda name: -sum(right[name]) / len(right[name]))
    return [*names, *(name for name in best if name not in names)][:LINES]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, value), those of more value than all that cost as much or less."""
    found: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or value > found[-1][1]:
            found.append((cost, value))
    return found


def draw(entries: Sequence[Pooled]) -> Figure | None:
    """A row of panels per depth; None where there is nothing but no compression.

    Args:
        entries: Of one group.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    base = next((entry for entry in entries if entry.first.method == BASELINE), None)
    others = [entry for entry in entries if entry.first.method != BASELINE]
    if not others:
        return None
    plot, depths = panels_of(BY_DEPTH, others)
    values: list[tuple[str, Value]] = [("accuracy", lambda entry: entry.accuracy)]
    if any(math.isfinite(entry.mean("hard_accuracy")) for entry in others):
        values.append(("accuracy on hard questions", lambda entry: entry.mean("hard_accuracy")))
    size = (INCHES, 3.2 * len(depths) + 0.4)
    canvas = Figure(figsize=size, layout="constrained")
    axes = canvas.subplots(len(depths), len(values), squeeze=False, sharex=True)
    names = chosen(others)
    costs = [plot.x(entry) for entry in others]
    for row, depth in zip(axes, depths, strict=True):
        here = [entry for entry in others if entry.first.depth == -1 or plot.panel(entry) == depth]
        for ax, (label, value) in zip(row, values, strict=True):
            ends = _lines(ax, here, names, value, bars=label == values[0][0])
            if label == values[0][0] and base is not None:
                ax.axhline(base.accuracy, color="black", linestyle="--", linewidth=1)
            _label(ax, ends, min(costs), max(costs))
            ax.set_title(plot.panel_label(depth), fontsize=10)
            ax.set_ylabel(label, fontsize=10)
            ax.grid(color="0.92")
            ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.yaxis.set_major_formatter(PercentFormatter(1))
    canvas.supxlabel(BY_DEPTH.x_label, fontsize=10)
    return canvas


def _lines(
    ax: Any, entries: Sequence[Pooled], names: Sequence[str], value: Value, *, bars: bool
) -> list[End]:
    """Draws the lines, and tells where they end."""
    drawn = [entry for entry in entries if math.isfinite(value(entry))]
    places = {id(entry): (BY_DEPTH.x(entry), value(entry)) for entry in drawn}
    for entry in drawn:
        if entry.first.method not in names:
            ax.plot(*places[id(entry)], ".", color="0.75", zorder=1)
    ends: list[End] = []
    for name, colour in zip(names, COLOURS, strict=False):
        own = [entry for entry in drawn if entry.first.method == name]
        points = sorted(places[id(entry)] for entry in own)
        if not points:
            continue
        width = 2.2 if name == OURS.name else 1.3
        ax.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=width, markersize=4)
        for entry in own if bars else ():
            ax.plot([places[id(entry)][0]] * 2, entry.interval, color=colour, linewidth=0.8)
        ends.append(End(*points[-1], name, colour))
    able = [places[id(entry)] for entry in drawn if entry.first.method not in CEILINGS]
    steps = front(able)
    if len(steps) > 1:
        ax.plot(*zip(*steps, strict=True), ":", color="0.3", drawstyle="steps-post", zorder=1)
    return ends


def _label(ax: Any, ends: Sequence[End], left: float, right: float) -> None:
    """Names to the right of all lines, each as high as its line's end where there is room."""
    span, (low, high) = max(right - left, 0.1), ax.get_ylim()
    gap, height = APART * (high - low), -math.inf
    for end in sorted(ends, key=lambda end: (end.value, end.name)):
        height = max(end.value, height + gap)
        ax.annotate(
            shorten(end.name, LONGEST).replace("$", r"\$"),
            (end.cost, end.value),
            (right + 0.08 * span, height),
            color=end.colour,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.5},
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        )
    ax.set_xlim(left - 0.06 * span, right + 0.66 * span)
    ax.set_ylim(low, max(high, height + gap))
    ax.set_xticks([tick for tick in ax.get_xticks() if left - 0.06 * span <= tick <= right])
    ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= min(high, 1 + 1e-9)])
