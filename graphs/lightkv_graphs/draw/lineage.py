"""Small multiples of one picture: what each stage heard of the prompt, and what it left."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightkv_graphs.draw.canvas import WIDTH, cells_of, check_image, outline
from lightkv_graphs.draw.guidance import add_bar, guidance_of_cells, limits_of, paint_guidance
from lightkv_graphs.draw.merges import draw_merges
from lightkv_graphs.trace import MergeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

_PROMPT = 300
"""Characters of a prompt that are shown."""

HIGHLIGHT = "#D55E00"
"""Vermilion, which colour-blind readers tell from the greys and the blues around it."""


def draw_lineage(
    trace: MergeTrace,
    picture: Image,
    *,
    image: int = 0,
    patch: tuple[int, int] | None = None,
    survivor: int | None = None,
) -> Figure:
    """A column per stage: the survivors it left, and above them the guidance it heard.

    With a patch or a survivor, the rest is veiled, and borders show how its patches come together.

    Args:
        trace: From ``handle.trace``.
        picture: What the model saw as ``image`` (a PIL image, resized to the token grid).
        image: Image number in the batch.
        patch: Row and column of a patch, to follow with all that it lives on with.
        survivor: Row of a token after the last stage, to show where it comes from.

    Raises:
        ValueError: The trace has no such image, patch or survivor, or both of the latter are given.
    """
    from matplotlib.figure import Figure

    check_image(trace.layout, image)
    chosen = _members(trace, image, patch, survivor)
    heard = {
        number: guidance_of_cells(trace, number, image)
        for number, done in enumerate(trace)
        if done.guidance is not None
    }
    columns, rows = len(trace) + 1, 2 if heard else 1
    height = WIDTH * picture.height / picture.width + 0.3
    figure = Figure(
        figsize=(WIDTH * columns + 0.8 * bool(heard), height * rows + 0.3), layout="compressed"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for number, ax in enumerate(axes[-1]):
        draw_merges(trace, picture, stage=number - 1 if number else None, image=image, ax=ax)
        _follow(ax, trace, number, image, chosen)
    if heard:
        limits = limits_of(list(heard.values()))
        for number, ax in enumerate(axes[0, 1:]):
            if number not in heard:
                ax.axis("off")
                continue
            _, painted = paint_guidance(picture, heard[number], limits, ax)
            ax.set_title(f"guidance heard after layer {trace.stages[number].layer}", fontsize=9)
            _follow(ax, trace, number, image, chosen)
        add_bar(painted, list(axes[0]))
        _write_prompt(axes[0, 0], trace, image)
    if chosen is not None:
        figure.suptitle(f"where {int(chosen.sum())} patches come together", fontsize=10)
    return figure


def _write_prompt(ax: Axes, trace: MergeTrace, image: int) -> None:
    ax.axis("off")
    if trace.prompts:
        prompt = trace.prompts[trace.layout.samples[image]]
        prompt = prompt if len(prompt) <= _PROMPT else f"{prompt[:_PROMPT]} ..."
        text = fill(prompt.replace("$", r"\$"), 32)
        ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=10, transform=ax.transAxes)


def _members(
    trace: MergeTrace, image: int, patch: tuple[int, int] | None, survivor: int | None
) -> Tensor | None:
    """The cells to follow, `[row, col]`."""
    if patch is None and survivor is None:
        return None
    if patch is not None and survivor is not None:
        raise ValueError(f"patch {patch} and survivor {survivor}: expected one of them")
    ends = cells_of(trace, -1 if len(trace) else None, image)
    if patch is not None:
        (row, col), (rows, cols) = patch, ends.shape
        if not (0 <= row < rows and 0 <= col < cols) or ends[row, col] < 0:
            raise ValueError(f"no token lies at patch {patch} of image {image}, {rows}x{cols}")
        return torch.eq(ends, ends[row, col])
    chosen = (ends >= 0) & torch.eq(ends, survivor or 0)
    if not bool(chosen.any()):
        raise ValueError(f"survivor {survivor} stands for no patch of image {image}")
    return chosen


def _follow(ax: Axes, trace: MergeTrace, number: int, image: int, chosen: Tensor | None) -> None:
    """Veils what is not chosen, and borders what is, as it was after ``number`` stages."""
    import numpy as np

    if chosen is None:
        return
    veil = np.zeros((*chosen.shape, 4))
    veil[~chosen.numpy()] = (1, 1, 1, 0.7)
    extent, aspect = ax.images[-1].get_extent(), ax.get_aspect()
    ax.imshow(veil, extent=extent, aspect=aspect, interpolation="nearest")
    groups = cells_of(trace, number - 1 if number else None, image)
    outline(ax, torch.where(chosen, groups, -1), color=HIGHLIGHT, linewidth=1.8)
