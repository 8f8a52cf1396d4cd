"""Small multiples of one picture: what each stage heard of the prompt, and what it left."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

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

PICTURE = "picture"
"""Where the picture is drawn, beside what the stages heard and left."""

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
    """The picture, and of each stage the guidance it heard, and the survivors it left.

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
    figure = Figure(layout="constrained")
    places = _places(len(trace), list(heard))
    figure.set_size_inches(
        WIDTH * len(places[0]) + 0.8 * bool(heard),
        (WIDTH * picture.height / picture.width + 0.3) * len(places) + 0.5,
    )
    axes = figure.subplot_mosaic(places)
    if heard:
        limits = limits_of(list(heard.values()))
        for number, guidance in heard.items():
            ax = axes[f"heard {number}"]
            _, painted = paint_guidance(picture, guidance, limits, ax)
            ax.set_title(f"guidance heard after layer {trace.stages[number].layer}", fontsize=9)
            _follow(ax, trace, number, image, chosen)
        add_bar(painted, [axes[f"heard {number}"] for number in heard])
    for number in range(len(trace) + 1):
        ax = axes[f"left {number - 1}" if number else PICTURE]
        draw_merges(trace, picture, stage=number - 1 if number else None, image=image, ax=ax)
        _follow(ax, trace, number, image, chosen)
    told = [_prompt(trace, image, 32 * len(places[0]))] if trace.prompts else []
    if chosen is not None:
        told.append(f"where {int(chosen.sum())} patches come together")
    if told:
        figure.suptitle("\n".join(told), fontsize=10)
    return figure


def _places(stages: int, heard: Sequence[int]) -> list[Any]:
    """Names of what is drawn: all of one stage in a row, of several the picture aside."""
    left = [f"left {number}" for number in range(stages)]
    if not heard:
        return [[PICTURE, *left]]
    above = [f"heard {number}" if number in heard else "." for number in range(stages)]
    return [[PICTURE, *above, *left]] if stages == 1 else [[PICTURE, *above], [PICTURE, *left]]


def _prompt(trace: MergeTrace, image: int, width: int) -> str:
    prompt = trace.prompts[trace.layout.samples[image]]
    prompt = prompt if len(prompt) <= _PROMPT else f"{prompt[:_PROMPT]} ..."
    return fill(prompt.replace("$", r"\$"), width)


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
