"""The pictures: objects of two equal cells on rectangular grids, and what is asked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GRIDS = ((2, 12), (3, 8), (6, 4), (5, 4))
"""Rows and columns of cells; none is a square, and two by two windows cut no object."""

BLOCK = (1, 2)
"""Rows and columns of cells that show the same object."""

CELL = 4
"""Pixels on a side of a cell."""

COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "lime": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "pink": (1.0, 0.0, 1.0),
    "white": (1.0, 1.0, 1.0),
    "grey": (0.5, 0.5, 0.5),
    "orange": (1.0, 0.5, 0.0),
    "purple": (0.5, 0.0, 1.0),
    "green": (0.0, 0.5, 0.0),
    "navy": (0.0, 0.0, 0.5),
}

_GLYPHS = {
    "full": "####/####/####/####",
    "frame": "####/#..#/#..#/####",
    "cross": "#..#/.##./.##./#..#",
    "rows": "####/..../####/....",
    "columns": "#.#./#.#./#.#./#.#.",
    "corner": "#.../#.../#.../####",
    "dot": "..../.##./.##./....",
    "chess": "##../##../..##/..##",
}
SHAPES = tuple(_GLYPHS)
CORNERS = {
    "top-left": (0, 0),
    "top-right": (0, -1),
    "bottom-left": (-1, 0),
    "bottom-right": (-1, -1),
}
"""Row and column of the block at each corner."""

NOISE = 0.03
"""Standard deviation of the pixels of cells that show the same."""


class Question(NamedTuple):
    """What is asked of a picture: a shape.

    Attributes:
        cue: What tells which: a colour, or a corner.
        answer: The shape.
        block: Row and column of the block that it stands in.
    """

    cue: str
    answer: str
    block: tuple[int, int]


class Picture(NamedTuple):
    """Objects on a grid; every colour at most once.

    Attributes:
        colours: Colour of each block, as a number, `[row block, column block]`.
        shapes: Shape of each block, likewise.
        noise: `[3, row, column]` of the pixels.
    """

    colours: np.ndarray
    shapes: np.ndarray
    noise: np.ndarray

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, cols = self.colours.shape
        return BLOCK[0] * rows, BLOCK[1] * cols


def draw_picture(rng: np.random.Generator) -> Picture:
    """A picture on one of :data:`GRIDS`."""
    rows, cols = GRIDS[rng.integers(len(GRIDS))]
    blocks = rows // BLOCK[0], cols // BLOCK[1]
    count = blocks[0] * blocks[1]
    colours = rng.permutation(len(COLOURS))[:count].reshape(blocks)
    shapes = rng.integers(len(SHAPES), size=blocks)
    noise = rng.standard_normal((3, rows * CELL, cols * CELL), dtype=np.float32)
    return Picture(colours, shapes, NOISE * noise)


def questions_of(picture: Picture, group: str) -> list[Question]:
    """All questions of a group: "shape" names a colour, "position" a corner."""
    rows, cols = picture.colours.shape
    if group == "position":
        cues = {name: (row % rows, col % cols) for name, (row, col) in CORNERS.items()}
    else:
        names = tuple(COLOURS)
        cues = {names[colour]: place for place, colour in np.ndenumerate(picture.colours)}
    return [Question(cue, SHAPES[picture.shapes[block]], block) for cue, block in cues.items()]


def render(picture: Picture) -> Tensor:
    """Pixels of a picture, `[3, row, column]`, about -1 to 1."""
    masks = torch.tensor(
        [[[dot == "#" for dot in line] for line in glyph.split("/")] for glyph in _GLYPHS.values()]
    ).float()
    paint = torch.tensor(list(COLOURS.values()))[torch.from_numpy(picture.colours)]
    cells = masks[torch.from_numpy(picture.shapes)][..., None, :, :] * paint[..., None, None]
    cells = cells.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
    rows, cols = picture.grid
    pixels = cells.permute(2, 0, 3, 1, 4).reshape(3, rows * CELL, cols * CELL)
    return 2 * pixels - 1 + torch.from_numpy(picture.noise)
