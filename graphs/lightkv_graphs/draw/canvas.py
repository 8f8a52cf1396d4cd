"""What all drawings share: cells of a picture, their borders, axes (needs matplotlib)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.trace import MergeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

CELL = 16
"""Length of a cell's side on the axes, and pixels per cell, if the picture has no more."""

WIDTH = 3.2
"""Inches of a panel."""


def check_image(layout: TokenLayout, image: int) -> None:
    """Raises ValueError if there is no such image."""
    if not 0 <= image < len(layout.grids):
        raise ValueError(f"image {image}: there are images 0..{len(layout.grids) - 1}")


def show(picture: Image, cells: Tensor, ax: Axes | None, *, mean: bool = False) -> Axes:
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


def cells_of(trace: MergeTrace, stage: int | None, image: int) -> Tensor:
    """Survivor of each cell, `[row, col]`; -1 where no token lies."""
    layout = trace.layout
    rows = (
        torch.arange(len(layout), device="cpu") if stage is None else trace.survivor_of(stage).cpu()
    )
    row, col, (height, width) = layout.row.cpu(), layout.col.cpu(), layout.grids[image]
    placed = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    here = (layout.image == image).cpu() & placed
    cells = torch.full((height, width), -1, device="cpu")
    cells[row[here], col[here]] = rows[here]
    return cells


def windows_of(trace: MergeTrace, stage: int, image: int) -> Tensor:
    """Window of each original cell at a stage, `[row, col]`."""
    before = trace.stages[stage]
    earlier = MergeTrace(trace.layout, trace.stages[: trace.stages.index(before)])
    cells = cells_of(earlier, -1 if len(earlier) else None, image)
    return torch.where(cells < 0, cells, before.window.cpu()[cells.clamp(min=0)])


def _mean_colours(pixels: Tensor, label: Tensor) -> Tensor:
    """Mean colour of each label: `[y, x, colour]` by `[y, x]`."""
    groups, index = label.flatten().unique(return_inverse=True)
    flat = pixels.reshape(-1, 3)
    total = flat.new_zeros(len(groups), 3).index_add_(0, index, flat)
    return (total / index.bincount()[:, None])[index].reshape(pixels.shape)


def outline(ax: Axes, cells: Tensor, *, color: str, linewidth: float) -> None:
    """Lines wherever two neighbouring cells differ."""
    from matplotlib.collections import LineCollection

    side = (cells[:, 1:] != cells[:, :-1]).nonzero().tolist()
    below = (cells[1:] != cells[:-1]).nonzero().tolist()
    lines = [[((c + 1) * CELL, r * CELL), ((c + 1) * CELL, (r + 1) * CELL)] for r, c in side]
    lines += [[(c * CELL, (r + 1) * CELL), ((c + 1) * CELL, (r + 1) * CELL)] for r, c in below]
    shifted = [[(x - 0.5, y - 0.5) for x, y in line] for line in lines]
    ax.add_collection(LineCollection(shifted, colors=color, linewidths=linewidth))
