"""Questions about pictures as what the model takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightkv_gnn.evaluation.rectangles.words import IDS
from lightkv_gnn.evaluation.rectangles.world import CELL, Picture, Question, render

PATCH = CELL // 2


def seen(picture: Picture, side: float = 1.0) -> Tensor:
    """A picture as the model is shown it, whole cells in all, `[3, row, column]`."""
    pixels = render(picture)
    if side == 1.0:
        return pixels
    size = [max(1, round(length * side)) * CELL for length in picture.grid]
    return interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def patches(pixels: Tensor) -> Tensor:
    """Patches of a picture in the model's order, four of a cell together, `[patch, channel]`."""
    rows, cols = (length // CELL for length in pixels.shape[1:])
    cut = pixels.reshape(3, rows, 2, PATCH, cols, 2, PATCH)
    return cut.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * cols * 4, 3 * PATCH**2)


def asked(question: Question) -> list[int]:
    """Ids of a question."""
    return [IDS["shape"], IDS[question.cue]]


def inputs_of(
    pictures: Sequence[Tensor], texts: Sequence[Sequence[int]], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Inputs of a batch, padded at the left.

    Args:
        pictures: Pixels of each sample's picture.
        texts: Ids behind each picture.
        device: Where to put them.
    """
    grids = [[1, pixels.shape[1] // PATCH, pixels.shape[2] // PATCH] for pixels in pictures]
    rows = [
        [IDS["<start>"], *[IDS["<image>"]] * (grid[1] * grid[2] // 4), IDS["<end>"], *text]
        for grid, text in zip(grids, texts, strict=True)
    ]
    width = max(map(len, rows))
    ids = torch.tensor([[IDS["<pad>"]] * (width - len(row)) + row for row in rows])
    real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    inputs = {
        "input_ids": ids,
        "attention_mask": real,
        "mm_token_type_ids": (ids == IDS["<image>"]).int(),
        "pixel_values": torch.cat([patches(pixels) for pixels in pictures]),
        "image_grid_thw": torch.tensor(grids),
    }
    return {name: value.to(device) for name, value in inputs.items()}
