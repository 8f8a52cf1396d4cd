"""Figures of an evaluation: one line per method, one panel per depth or budget."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from PIL import Image

from lightkv_gnn.baselines import METHODS
from lightkv_gnn.baselines.merging import COVERAGE, GUIDED, MEAN, OURS, VISION_TO_TEXT
from lightkv_gnn.evaluation.pooling import BASELINE, Pooled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
"""Told apart by colour-blind readers too. Source: Okabe and Ito 2008; yellow is too pale."""

MARKERS = "osD^vP<Xp"
"""As many as share no factor with the colours: a pair comes again only after 63 methods."""

DASHES = ("-", "--", ":")
"""Solid as far as the colours go, then dashed, then dotted."""

OWN: dict[str, Any] = {
    "color": "black",
    "marker": "o",
    "linestyle": "-",
    "linewidth": 2.4,
    "markeredgecolor": "white",
    "zorder": 4,
}
"""Of the library's own method, which every figure is about."""

REST: dict[str, Any] = {
    "color": "0.75",
    "marker": ".",
    "linestyle": "-",
    "linewidth": 0.8,
    "markeredgecolor": "0.75",
    "zorder": 1,
}
"""Of methods that a figure does not name."""

NAMED = 7
"""Methods that a figure names of many; one more if that is all."""

FIRST = (
    *(method.name for method in (OURS, VISION_TO_TEXT, GUIDED, COVERAGE, MEAN)),
    "divprune_like",
    "fastv",
)
"""Those that are named before others."""

COLUMNS = 3
"""Panels beside each other."""

INCHES = 9.0
"""Width of a figure."""

SPREAD = 0.03
"""Methods at one place are set apart over so much of the axis."""

NARROWEST = 0.1
"""Least share that an axis of shares shows, so that methods that hold alike stand together."""

LOWEST = 0.02
"""Least share that an axis of accuracies shows, so that equal ones are seen to be equal."""

LONGEST = 60
"""Characters of a method's name in a legend."""

FILE_COLOURS = 128


@dataclass(frozen=True)
class Plot:
    """What is drawn against what.

    Attributes:
        name: Of the file.
        x: Of a point; NaN leaves it out.
        x_label: What x is.
        panel: What entries of one panel share.
        panel_label: Title of a panel.
        caption: What is seen.
        percent: Whether x is a fraction.
        layers: Whether x is a layer; drawn where there are two or more.
        against: "accuracy", or its "difference" to no compression.
    """

    name: str
    x: Callable[[Pooled], float]
    x_label: str
    panel: Callable[[Pooled], float]
    panel_label: Callable[[Any], str]
    caption: str
    percent: bool = True
    layers: bool = False
    against: str = "accuracy"


def relative_error(entry: Pooled) -> float:
    """Of the hidden states, averaged over the stages that lost any; NaN without stages."""
    errors = [stage.error for stage in entry.stages]
    return sum(errors) / len(errors) if errors else math.nan


def depth_title(depth: int) -> str:
    """What a panel or a table of one depth is headed."""
    return f"first compressed after layer {depth}" if depth >= 0 else "in all layers alike"


PLOTS = (
    Plot(
        "retention",
        lambda entry: entry.mean("held"),
        "retention observed: vision tokens held, averaged over the layers",
        lambda entry: entry.first.depth,
        depth_title,
        "Accuracy against the retention observed, a panel per depth.",
    ),
    Plot(
        "depth",
        lambda entry: entry.first.depth if entry.first.depth >= 0 else math.nan,
        "first decoder layer after which tokens leave",
        lambda entry: entry.first.retention,
        lambda retention: f"retention asked {retention:.1%}",
        "Accuracy against depth, a panel per budget.",
        percent=False,
        layers=True,
    ),
    Plot(
        "flops",
        lambda entry: entry.mean("flops_ratio"),
        "prefill FLOPs, of those without compression",
        lambda entry: entry.first.depth,
        depth_title,
        "Accuracy against the work of the prefill, a panel per depth.",
    ),
    Plot(
        "loss",
        relative_error,
        "relative error of the hidden states, mean of the stages",
        lambda entry: entry.first.depth,
        depth_title,
        "Accuracy less that without compression, against the information that the stages lost "
        "(relative error of the vision tokens' hidden states), a panel per depth.",
        percent=False,
        against="difference",
    ),
)


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker of its own for each method; those of the library keep theirs."""
    names = set(methods) - {BASELINE}
    order = [*METHODS, *sorted(names - set(METHODS))]
    return {
        method: OWN if method == OURS.name else _style(number)
        for number, method in enumerate(order)
        if method in names
    }


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        "linewidth": 1.2,
        "markeredgecolor": "white",
    }


def draw(plot: Plot, entries: Sequence[Pooled], look: dict[str, dict[str, Any]]) -> Figure | None:
    """The panels of a plot; None where nothing varies that it could show.

    Args:
        plot: What to draw.
        entries: Of one group.
        look: From :func:`styles`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    base = next((entry for entry in entries if entry.first.method == BASELINE), None)
    drawn = [
        entry
        for entry in entries
        if entry.first.method != BASELINE and math.isfinite(plot.x(entry))
    ]
    if len({plot.x(entry) for entry in drawn}) < (2 if plot.layers else 1):
        return None
    plot, panels = panels_of(plot, drawn)
    drawn = [entry for entry in drawn if plot.panel(entry) in (*panels, -1)]
    places = sorted({plot.x(entry) for entry in drawn})
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    canvas = Figure(figsize=(INCHES, 3.1 * rows + 1.2), layout="constrained")
    axes = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    named = _named(drawn)
    shown = {
        method: style if method in named else REST
        for method, style in look.items()
        if any(entry.first.method == method for entry in drawn)
    }
    span = max(places[-1] - places[0], NARROWEST if plot.percent else 0) or NARROWEST
    width = 0 if plot.against == "difference" else SPREAD * span
    for panel, ax in zip(panels, axes.flat, strict=False):
        _baseline(ax, base, plot.against)
        here = [entry for entry in drawn if plot.panel(entry) in (panel, -1)]
        for number, (method, style) in enumerate(shown.items()):
            points = sorted((e for e in here if e.first.method == method), key=plot.x)
            _line(ax, plot, points, ((number + 0.5) / len(shown) - 0.5) * width, style)
        ax.set_title(plot.panel_label(panel), fontsize=10)
        ax.grid(color="0.9")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        if plot.percent:
            ax.xaxis.set_major_formatter(PercentFormatter(1))
            middle = (places[0] + places[-1]) / 2
            ax.set_xlim(middle - 0.55 * span, middle + 0.55 * span)
        if plot.layers:
            ax.set_xticks(places)
        else:
            ax.locator_params(axis="x", nbins=6)
        ax.tick_params(labelbottom=True)
    low, high = axes.flat[0].get_ylim()
    if high - low < LOWEST:
        middle = (low + high) / 2
        axes.flat[0].set_ylim(middle - LOWEST / 2, middle + LOWEST / 2)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    canvas.supxlabel(plot.x_label, fontsize=10)
    what = "accuracy" if plot.against == "accuracy" else "accuracy less that of none"
    canvas.supylabel(what, fontsize=10)
    _legend(canvas, shown)
    return canvas


def _named(entries: Sequence[Pooled]) -> list[str]:
    """Of many methods, those to name: the first of all, then those with most right answers."""
    right: dict[str, list[float]] = {}
    for entry in entries:
        right.setdefault(entry.first.method, []).append(entry.accuracy)
    best = sorted(right, key=lambda method: -sum(right[method]) / len(right[method]))
    best = sorted(best, key=lambda method: method not in FIRST)
    return best if len(best) == NAMED + 1 else best[:NAMED]


def panels_of(plot: Plot, entries: Sequence[Pooled]) -> tuple[Plot, list[float]]:
    """The panels that have something to compare; one for all where each depth has its own budget.

    Methods without a depth are in all panels, and have one only where there is no other.
    """
    budgets: dict[float, set[float]] = {}
    compared: dict[float, set[Any]] = {}
    for entry in entries:
        first = entry.first
        budgets.setdefault(first.depth, set()).add(first.retention)
        what = first.depth if plot.layers else first.method
        compared.setdefault(plot.panel(entry), set()).add(what)
    alone = len(budgets) > 1 and all(len(own) == 1 for own in budgets.values())
    if alone and len(set.union(*budgets.values())) > 1:
        label = "a budget for each depth"
        return replace(plot, panel=lambda _: 0.0, panel_label=lambda _: label), [0.0]
    if len(compared) > 1:
        compared.pop(-1, None)
    several = [panel for panel, own in compared.items() if len(own) > 1]
    return plot, sorted(several or compared)


def _baseline(ax: Any, base: Pooled | None, against: str) -> None:
    if against == "difference":
        ax.axhline(0, color="black", linestyle="--", linewidth=1)
    elif base is not None:
        ax.axhspan(*base.interval, color="0.88", zorder=0)
        ax.axhline(base.accuracy, color="black", linestyle="--", linewidth=1)


def _line(
    ax: Any, plot: Plot, points: Sequence[Pooled], shift: float, look: dict[str, Any]
) -> None:
    if not points:
        return
    if plot.against == "accuracy":
        values = [(entry.accuracy, *entry.interval) for entry in points]
    else:
        values = [entry.difference[:3] for entry in points]
    below = [max(0.0, value - low) for value, low, _ in values]
    above = [max(0.0, high - value) for value, _, high in values]
    ax.errorbar(
        [plot.x(entry) + shift for entry in points],
        [value for value, _, _ in values],
        yerr=[below, above],
        markersize=6.5,
        elinewidth=0.9,
        markeredgewidth=0.5,
        **(look if plot.against == "accuracy" else {**look, "linestyle": "none"}),
    )


def _legend(canvas: Figure, look: dict[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    named = {method: style for method, style in look.items() if style is not REST}
    names = [shorten(method, LONGEST).replace("$", r"\$") for method in named]
    handles = [
        Line2D([], [], markersize=8, markeredgewidth=0.5, **style) for style in named.values()
    ]
    if others := len(look) - len(named):
        names.append(f"{others} others")
        handles.append(Line2D([], [], markersize=6, **REST))
    longest = max(map(len, names))
    columns = max(1, min(5, int(100 / (longest + 8))))
    canvas.legend(handles, names, loc="outside upper center", ncols=columns, fontsize=9)


def save(canvas: Figure, file: Path) -> None:
    """A compact PNG."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, dpi=130)
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(FILE_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
