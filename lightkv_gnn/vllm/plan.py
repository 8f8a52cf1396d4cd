"""How many tokens of a picture stay, counted before any of them is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lightkv_gnn.vllm.libraries import graph_layer
from lightkv_gnn.vllm.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from lightkv_graphs import StagePlan, Tile, TokenLayout

Grid = tuple[int, int]
"""Rows and columns of a picture's tokens."""


@dataclass(frozen=True, eq=False)
class PicturePlan:
    """One picture before and after.

    Attributes:
        layout: Of the picture's tokens.
        stage: Sizes of the step.
        kept: Tokens that the decoder gets, and placeholders in the prompt.
    """

    layout: TokenLayout
    stage: StagePlan
    kept: int


def plan_picture(settings: Settings, *tiles: Any) -> PicturePlan:
    """Plans one picture.

    Args:
        settings: How much is kept.
        *tiles: Its tiles in the order of their tokens; (rows, columns) or Tile.  Each is cut into
            windows of its own; tokens without a place in a grid stay.

    Raises:
        ValueError: A tile has no rows or columns, or is too small for the windows.
    """
    return _planned(settings, tuple(graph_layer().Tile(*tile) for tile in tiles))


@lru_cache(maxsize=256)
def _planned(settings: Settings, tiles: tuple[Tile, ...]) -> PicturePlan:
    graphs = graph_layer()
    for tile in tiles:
        if min(tile.rows, tile.cols) < settings.windows:
            raise ValueError(
                f"a picture has {tile.rows}x{tile.cols} tokens, too few for {settings.windows}x"
                f"{settings.windows} windows: expected a larger picture, or fewer windows in the "
                "settings"
            )
    layout = graphs.TokenLayout.from_tiles([tiles])
    stage = graphs.plan_stage(layout.occupancy, settings.windows, settings.ratio)
    return PicturePlan(layout, stage, len(layout) - stage.total)


def spread_positions(tokens: int, pictures: Sequence[tuple[int, int, Grid]]) -> Tensor:
    """Positions with a row and a column, of a prompt whose pictures were merged.

    Text counts on in all three coordinates.  A picture begins where text has come to: its n-th of
    k survivors lies where the token ``floor((n + 1/2) * rows * cols / k)`` of the whole picture
    would, and text goes on after the largest coordinate of the whole picture.

    Args:
        tokens: Length of the prompt.
        pictures: Of each, ascending: where it begins, its survivors, and its (rows, columns).

    Returns:
        Time, row and column of each token, `[3, token]`, int64.
    """
    import torch

    parts, done, now = [], 0, 0
    for begin, kept, (rows, cols) in pictures:
        parts.append(torch.arange(now, now + begin - done).expand(3, -1))
        now += begin - done
        cell = ((2 * torch.arange(kept) + 1) * rows * cols).div(2 * kept, rounding_mode="floor")
        place = torch.stack([torch.zeros_like(cell), cell // cols, cell % cols])
        parts.append(now + place)
        done, now = begin + kept, now + max(rows, cols)
    parts.append(torch.arange(now, now + tokens - done).expand(3, -1))
    return torch.cat(parts, dim=1)
