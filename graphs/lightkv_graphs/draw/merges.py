"""Pictures of merges: survivors in their mean colours, and windows, over what the model saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightkv_graphs.draw.canvas import WIDTH, cells_of, check_image, outline, show, windows_of
from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.partition import plan_stage, window_partition
from lightkv_graphs.trace import MergeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image


def draw_merges(
    trace: MergeTrace,
    picture: Image,
    *,
    stage: int | None = -1,
    image: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Paints each survivor's original cells in their mean colour, with borders between survivors.

    Tokens without a place, such as newlines, are not drawn.

    Args:
        trace: From ``handle.trace``.
        picture: What the model saw as ``image`` (a PIL image, resized to the token grid).
        stage: Which stage; None for the tokens before the first one.
        image: Image number in the batch.
        ax: Axes to draw into; new ones if not given.

    Raises:
        ValueError: The trace has no such image.
    """
    check_image(trace.layout, image)
    stage = stage if len(trace) else None
    cells = cells_of(trace, stage, image)
    ax = show(picture, cells, ax, mean=stage is not None)
    outline(ax, cells, color="white", linewidth=0.6)
    if stage is not None:
        outline(ax, windows_of(trace, stage, image), color="black", linewidth=1.6)
    ax.set_title(title_of(trace, stage, cells), fontsize=9)
    return ax


def draw_stages(
    trace: MergeTrace,
    pictures: Image | Sequence[Image],
    *,
    images: Sequence[int] | None = None,
    most: int = 6,
) -> Figure:
    """The pictures before the first stage and after each one: a row per image.

    Args:
        trace: From ``handle.trace``.
        pictures: What the model saw, one for each image of the trace, as from ``seen_tiles``; or
            one picture, which is the first of ``images``, or the first image.
        images: Which to draw, by number; if not given, all, or the first ones and the last.
        most: Images drawn if none are chosen.

    Raises:
        ValueError: There are not as many pictures as images, or an image is not in the trace.
    """
    from matplotlib.figure import Figure

    chosen = _chosen(trace.layout, pictures, images, most)
    panels: list[int | None] = [None, *range(len(trace))]
    heights = [WIDTH * picture.height / picture.width + 0.3 for picture in chosen.values()]
    size = (WIDTH * len(panels), sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(chosen), len(panels), squeeze=False, height_ratios=heights)
    for row, (image, picture) in zip(axes, chosen.items(), strict=True):
        for stage, ax in zip(panels, row, strict=True):
            draw_merges(trace, picture, stage=stage, image=image, ax=ax)
        if len(trace.layout.grids) > 1:
            row[0].set_ylabel(f"image {image}", fontsize=9)
    left = len(trace.layout.grids) - len(chosen)
    if images is None and left:
        figure.supxlabel(f"and {left} more", fontsize=9)
    return figure


def draw_windows(
    layout: TokenLayout,
    windows: int,
    picture: Image,
    *,
    image: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The picture with its tokens, and the windows of a stage.

    Args:
        layout: The tokens before the stage.
        windows: Windows per side.
        picture: What the model saw as ``image`` (a PIL image, resized to the token grid).
        image: Image number in the batch.
        ax: Axes to draw into; new ones if not given.

    Raises:
        ValueError: The layout has no such image, or ``windows`` is below 1.
    """
    check_image(layout, image)
    window = window_partition(layout, plan_stage(layout.occupancy, windows, 0)).window.cpu()
    cells = cells_of(MergeTrace(layout, ()), None, image)
    ax = show(picture, cells, ax)
    outline(ax, cells, color="white", linewidth=0.4)
    of_cell = torch.where(cells < 0, cells, window[cells.clamp(min=0)])
    outline(ax, of_cell, color="black", linewidth=1.6)
    rows, cols = layout.grids[image]
    ax.set_title(f"{rows}x{cols} vision tokens, {windows}x{windows} windows", fontsize=9)
    return ax


def _chosen(
    layout: TokenLayout,
    pictures: Image | Sequence[Image],
    images: Sequence[int] | None,
    most: int,
) -> dict[int, Image]:
    """The pictures to draw, by number of their image."""
    count = len(layout.grids)
    if not isinstance(pictures, Sequence):
        numbers = [0] if images is None else list(images)
        if len(numbers) != 1:
            raise ValueError(f"one picture for images {numbers}: give one for each of the trace")
        return {numbers[0]: pictures}
    if len(pictures) != count:
        raise ValueError(
            f"{len(pictures)} pictures for a trace of {count} images: every tile and every frame "
            "is an image, see lightkv_gnn.seen_tiles"
        )
    numbers = list(range(count)) if images is None else list(images)
    if images is None and count > most:  # what is cut in tiles often ends with the whole picture
        numbers = [*range(most - 1), count - 1]
    for image in numbers:
        check_image(layout, image)
    return {image: pictures[image] for image in numbers}


def title_of(trace: MergeTrace, stage: int | None, cells: Tensor) -> str:
    """How many tokens a panel shows, and which stage left them."""
    tokens = len(cells[cells >= 0].unique())
    if stage is None:
        return f"{tokens} vision tokens"
    done = trace.stages[stage]
    return f"{tokens} after layer {done.layer} ({done.windows}x{done.windows} windows)"
