"""Static pictures of token merges over the images they came from (needs matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.partition import plan_stage, window_partition
from lightkv_graphs.trace import MergeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

CELL = 16
"""Length of a cell's side on the axes, and pixels per cell, if the picture has no more."""

WIDTH = 3.2
"""Inches of a panel."""


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
    _check_image(trace.layout, image)
    stage = stage if len(trace) else None
    cells = _cells(trace, stage, image)
    ax = _show(picture, cells, ax, mean=stage is not None)
    _outline(ax, cells, color="white", linewidth=0.6)
    if stage is not None:
        _outline(ax, _windows(trace, stage, image), color="black", linewidth=1.6)
    ax.set_title(_title(trace, stage, cells), fontsize=9)
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
    _check_image(layout, image)
    window = window_partition(layout, plan_stage(layout.occupancy, windows, 0)).window.cpu()
    cells = _cells(MergeTrace(layout, ()), None, image)
    ax = _show(picture, cells, ax)
    _outline(ax, cells, color="white", linewidth=0.4)
    of_cell = torch.where(cells < 0, cells, window[cells.clamp(min=0)])
    _outline(ax, of_cell, color="black", linewidth=1.6)
    rows, cols = layout.grids[image]
    ax.set_title(f"{rows}x{cols} vision tokens, {windows}x{windows} windows", fontsize=9)
    return ax


def _check_image(layout: TokenLayout, image: int) -> None:
    if not 0 <= image < len(layout.grids):
        raise ValueError(f"image {image}: there are images 0..{len(layout.grids) - 1}")


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
        _check_image(layout, image)
    return {image: pictures[image] for image in numbers}


def _show(picture: Image, cells: Tensor, ax: Axes | None, *, mean: bool = False) -> Axes:
    """Shows the picture, or the mean colours of its groups of cells, in its own shape."""
    import numpy as np
    from matplotlib.figure import Figure

    rows, cols = cells.shape
    shape = picture.height / picture.width
    side = max(CELL, math.ceil(picture.height / rows), math.ceil(picture.width / cols))
    resized = np.asarray(picture.convert("RGB").resize((cols * side, rows * side)))
    pixels = torch.from_numpy(resized.copy()).float()
    if mean:
        pixels = _mean_colours(pixels, cells.repeat_interleave(side, 0).repeat_interleave(side, 1))
    if ax is None:
        ax = Figure(figsize=(4, 4 * shape + 0.3), layout="constrained").subplots()
    ax.imshow(
        pixels.byte().numpy(),
        extent=(-0.5, cols * CELL - 0.5, rows * CELL - 0.5, -0.5),
        aspect=shape * cols / rows,
    )
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def _cells(trace: MergeTrace, stage: int | None, image: int) -> Tensor:
    """Survivor of each cell, `[row, col]`; -1 where no token lies."""
    layout = trace.layout
    rows = torch.arange(len(layout)) if stage is None else trace.survivor_of(stage).cpu()
    row, col, (height, width) = layout.row.cpu(), layout.col.cpu(), layout.grids[image]
    placed = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    here = (layout.image == image).cpu() & placed
    cells = torch.full((height, width), -1)
    cells[row[here], col[here]] = rows[here]
    return cells


def _windows(trace: MergeTrace, stage: int, image: int) -> Tensor:
    """Window of each original cell at a stage, `[row, col]`."""
    before = trace.stages[stage]
    earlier = MergeTrace(trace.layout, trace.stages[: trace.stages.index(before)])
    cells = _cells(earlier, -1 if len(earlier) else None, image)
    return torch.where(cells < 0, cells, before.window.cpu()[cells.clamp(min=0)])


def _mean_colours(pixels: Tensor, label: Tensor) -> Tensor:
    """Mean colour of each label: `[y, x, colour]` by `[y, x]`."""
    groups, index = label.flatten().unique(return_inverse=True)
    flat = pixels.reshape(-1, 3)
    total = flat.new_zeros(len(groups), 3).index_add_(0, index, flat)
    return (total / index.bincount()[:, None])[index].reshape(pixels.shape)


def _outline(ax: Axes, cells: Tensor, *, color: str, linewidth: float) -> None:
    """Lines wherever two neighbouring cells differ."""
    from matplotlib.collections import LineCollection

    side = (cells[:, 1:] != cells[:, :-1]).nonzero().tolist()
    below = (cells[1:] != cells[:-1]).nonzero().tolist()
    lines = [[((c + 1) * CELL, r * CELL), ((c + 1) * CELL, (r + 1) * CELL)] for r, c in side]
    lines += [[(c * CELL, (r + 1) * CELL), ((c + 1) * CELL, (r + 1) * CELL)] for r, c in below]
    shifted = [[(x - 0.5, y - 0.5) for x, y in line] for line in lines]
    ax.add_collection(LineCollection(shifted, colors=color, linewidths=linewidth))


def _title(trace: MergeTrace, stage: int | None, cells: Tensor) -> str:
    tokens = len(cells[cells >= 0].unique())
    if stage is None:
        return f"{tokens} vision tokens"
    done = trace.stages[stage]
    return f"{tokens} after layer {done.layer} ({done.windows}x{done.windows} windows)"
