"""Pictures as grids of cells: what a cell may show, and the pixels of it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

PATCH = 4
"""Pixels per side of a cell; one cell is one vision token."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1, 0, 0),
    "orange": (1, 0.5, 0),
    "yellow": (1, 1, 0),
    "lime": (0.5, 1, 0),
    "green": (0, 1, 0),
    "mint": (0, 1, 0.5),
    "cyan": (0, 1, 1),
    "azure": (0, 0.5, 1),
    "blue": (0, 0, 1),
    "violet": (0.5, 0, 1),
    "magenta": (1, 0, 1),
    "rose": (1, 0, 0.5),
}
"""Red, green and blue of the twelve hours of the colour wheel, 0 to 1."""

SHAPES: dict[str, str] = {
    "disc": ".##. #### #### .##.",
    "ring": "#### #..# #..# ####",
    "cross": "#..# .##. .##. #..#",
    "triangle": "#... ##.. ###. ####",
    "stripes": "#### .... #### ....",
    "bars": "#.#. #.#. #.#. #.#.",
}
"""Rows of each shape."""

DIGITS: dict[str, str] = {
    "0": "###. #.#. #.#. ###.",
    "1": ".#.. ##.. .#.. ###.",
    "2": "##.. ..#. .#.. ###.",
    "3": "###. .##. ..#. ###.",
    "4": "#.#. #.#. ###. ..#.",
    "5": "###. ##.. ..#. ##..",
    "6": "#... ###. #.#. ###.",
    "7": "###. ..#. .#.. .#..",
    "8": "###. ###. #.#. ###.",
    "9": "###. #.#. ###. ..#.",
}
"""Rows of each digit."""

BACKGROUND = 0
"""Code of an empty cell, which is black."""


def object_code(colour: Tensor | int, shape: Tensor | int) -> Tensor | int:
    """Code of a cell with an object, by the indices of its colour and shape."""
    return 1 + colour * len(SHAPES) + shape


def patch_code(colour: Tensor) -> Tensor:
    """Code of a cell that is filled with one colour, by the colour's index."""
    return 1 + len(COLOURS) * len(SHAPES) + colour


def digit_code(digit: Tensor) -> Tensor:
    """Code of a cell with a white digit."""
    return 1 + len(COLOURS) * (len(SHAPES) + 1) + digit


def draw(codes: Tensor, side: int, behind: Tensor | None = None) -> Tensor:
    """Draws pictures.

    Args:
        codes: Codes of the cells in raster order, `[picture, cell]`.
        side: Cells per side.
        behind: What is seen where cells are black, 0 to 1, `[picture, channel, row, column]`.

    Returns:
        Pixels from -1 to 1, `[picture, channel, row, column]`.
    """
    cells = _glyphs()[codes].unflatten(1, (side, side))
    pixels = cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    if behind is not None:
        pixels = torch.where(pixels.amax(dim=1, keepdim=True) > 0, pixels, behind)
    return 2 * pixels - 1


@lru_cache(maxsize=1)
def _glyphs() -> Tensor:
    """What each code looks like, `[code, channel, row, column]`."""
    colours = torch.tensor(list(COLOURS.values()))[:, None, :, None, None]
    shapes = torch.stack([_stencil(rows) for rows in SHAPES.values()])[None, :, None]
    digits = torch.stack([_stencil(rows) for rows in DIGITS.values()])[:, None]
    empty = torch.zeros(1, 3, PATCH, PATCH)
    patches = colours[:, 0].expand(-1, -1, PATCH, PATCH)
    objects = (colours * shapes).flatten(0, 1)
    return torch.cat([empty, objects, patches, digits.expand(-1, 3, -1, -1)])


def _stencil(rows: str) -> Tensor:
    """1 where there is a ``#``, `[row, column]`."""
    return torch.tensor([[float(cell == "#") for cell in row] for row in rows.split()])
