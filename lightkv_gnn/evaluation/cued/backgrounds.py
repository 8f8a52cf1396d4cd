"""What is behind the cells: nothing, or photographs."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from lightkv_gnn.evaluation.cued.drawing import PATCH
from lightkv_gnn.tiny.photo.photographs import Split, sample_photograph

Background = Literal["plain", "photo"]

DIM = 0.6
"""Brightness of photographs, so that full colours are those of objects."""


def photographs(shape: tuple[int, int], side: int, generator: Generator, split: Split) -> Tensor:
    """Parts of photographs, 0 to 1, `[*shape, channel, row, column]`.

    Args:
        shape: How many: samples, and pictures of each.
        side: Cells per side of a picture.
        generator: Chooses them.
        split: Which photographs.
    """
    number = int(torch.randint(2**31, (1,), generator=generator))
    rng = np.random.default_rng(number)
    parts = [sample_photograph(rng, split).pixels(side * PATCH) for _ in range(shape[0] * shape[1])]
    pixels = torch.from_numpy(np.stack([np.asarray(part) for part in parts]))
    return DIM / 255 * pixels.permute(0, 3, 1, 2).float().unflatten(0, shape)
