"""Pictures of the prompt's guidance over what the model saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightkv_graphs.draw.canvas import cells_of, check_image, show
from lightkv_graphs.trace import MergeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from PIL.Image import Image

_RANGE = 1000.0
"""Largest over smallest value that colours tell apart."""


def draw_guidance(
    trace: MergeTrace,
    picture: Image,
    *,
    stage: int = 0,
    image: int = 0,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The picture in grey under what the prompt's guidance gave each token.

    A token's colour fills all cells it stands for.  Its share of the guidance is told relative to
    the mean of its sample's mergeable tokens, on a logarithmic scale: 1 is average.

    Args:
        trace: From ``handle.trace``.
        picture: What the model saw as ``image`` (a PIL image, resized to the token grid).
        stage: The stage that heard the guidance, of the tokens before it.
        image: Image number in the batch.
        limits: Ends of the colour scale; those of the shown values if not given.
        ax: Axes to draw into; new ones if not given.

    Raises:
        IndexError: No such stage.
        ValueError: The trace has no such image, or the stage heard no prompt.
    """
    check_image(trace.layout, image)
    values = guidance_of_cells(trace, stage, image)
    ax, painted = paint_guidance(picture, values, limits or limits_of([values]), ax)
    add_bar(painted, [ax])
    done = trace.stages[stage]
    ax.set_title(f"the prompt's guidance, heard after layer {done.layer}", fontsize=9)
    return ax


def guidance_of_cells(trace: MergeTrace, stage: int, image: int) -> Tensor:
    """Guidance that a stage heard, relative to the mean, of each cell's token, `[row, col]`.

    NaN where no token lies.
    """
    relative = trace.relative_guidance(stage) if len(trace) else None
    if relative is None:
        raise ValueError(f"stage {stage} heard no prompt: there is no guidance to draw")
    number = stage % len(trace)
    relative = torch.cat([relative.cpu(), relative.new_full((1,), torch.nan, device="cpu")])
    return relative[cells_of(trace, number - 1 if number else None, image)]


def limits_of(values: list[Tensor]) -> tuple[float, float]:
    """Ends of a colour scale for guidance that is shown side by side."""
    flat = torch.cat([value[value > 0] for value in values])
    high = float(flat.max()) if len(flat) else 1.0
    low = max(float(flat.min()), high / _RANGE) if len(flat) else 1.0
    return (low, high) if high > 1.05 * low else (low / 2, high * 2)


def paint_guidance(
    picture: Image, values: Tensor, limits: tuple[float, float], ax: Axes | None
) -> tuple[Axes, ScalarMappable]:
    """The grey picture under the values of its cells `[row, col]`, and what a colour bar needs."""
    from matplotlib.colors import LogNorm

    low, high = limits
    ax = show(picture.convert("L"), values, ax)
    (below,) = ax.images[-1:]
    painted = ax.imshow(
        values.clamp(min=low).numpy(),
        cmap="inferno",
        norm=LogNorm(low, high, clip=True),
        alpha=0.6,
        extent=below.get_extent(),
        aspect=ax.get_aspect(),
        interpolation="nearest",
    )
    return ax, painted


def add_bar(painted: ScalarMappable, axes: list[Axes]) -> None:
    """The scale beside ``axes``, in steps of 1, 2 and 5."""
    figure = axes[0].figure
    bar = figure.colorbar(painted, ax=axes, shrink=0.9)
    low, high = painted.get_clim()
    fine = [digit * 10.0**power for power in range(-9, 10) for digit in (1, 2, 5)]
    ticks = [tick for tick in fine if low <= tick <= high]
    ticks = ticks if len(ticks) <= 7 else [tick for tick in ticks if tick in fine[::3]]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("guidance (1 = mean)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
