"""Static pictures of token merges over the image they came from (needs matplotlib)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightkv_graphs.trace import MergeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

CELL = 16
"""Pixels drawn per token cell."""


def draw_merges(
    trace: MergeTrace,
    picture: Image,
    *,
    stage: int | None = -1,
    image: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Paints each survivor's original cells in their mean colour, with borders between survivors.

    Args:
        trace: From ``handle.trace``.
        picture: What the model saw as ``image`` (a PIL image, resized to the token grid).
        stage: Which stage; None for the tokens before the first one.
        image: Image number in the batch.
        ax: Axes to draw into; new ones if not given.

    Raises:
        ValueError: The trace has no such image.
    """
    import numpy as np
    from matplotlib.figure import Figure

    if not 0 <= image < len(trace.layout.grids):
        raise ValueError(f"image {image}: the trace has images 0..{len(trace.layout.grids) - 1}")
    stage = stage if len(trace) else None
    ax = Figure(figsize=(4, 4), layout="constrained").subplots() if ax is None else ax
    rows, cols = trace.layout.grids[image]
    pixels = torch.from_numpy(
        np.asarray(picture.convert("RGB").resize((cols * CELL, rows * CELL))).copy()
    ).float()
    cells = _cells(trace, stage, image)
    if stage is not None:
        pixels = _mean_colours(pixels, cells)
    ax.imshow(pixels.byte().numpy())
    _outline(ax, cells, color="white", linewidth=0.6)
    if stage is not None:
        _outline(ax, _windows(trace, stage, image), color="black", linewidth=1.6)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(_title(trace, stage, cells), fontsize=9)
    return ax


def draw_stages(trace: MergeTrace, picture: Image, *, image: int = 0) -> Figure:
    """The picture before the first stage and after each one, side by side."""
    from matplotlib.figure import Figure

    panels: list[int | None] = [None, *range(len(trace))]
    figure = Figure(figsize=(3.2 * len(panels), 3.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for stage, ax in zip(panels, axes[0], strict=True):
        draw_merges(trace, picture, stage=stage, image=image, ax=ax)
    return figure


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


def _mean_colours(pixels: Tensor, cells: Tensor) -> Tensor:
    index = cells.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1).flatten()
    groups, index = index.unique(return_inverse=True)
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
