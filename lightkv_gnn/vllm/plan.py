"""How many tokens of a picture stay, counted before any of them is computed, and where."""

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
        tiles: Of each tile, the tokens that the decoder gets, and placeholders in the prompt.
    """

    layout: TokenLayout
    stage: StagePlan
    tiles: tuple[int, ...]

    @property
    def kept(self) -> int:
        """Tokens of all tiles that the decoder gets."""
        return sum(self.tiles)


def plan_picture(settings: Settings, *tiles: Any) -> PicturePlan:
    """Plans one picture.

    Args:
        settings: How much is kept.
        *tiles: Its tiles, or a video's frames, in the order of their tokens; (rows, columns) or
            Tile.  Each is cut into windows of its own; tokens without a place in a grid stay.

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
    kept = zip(layout.counts, stage.merges, strict=True)
    return PicturePlan(layout, stage, tuple(count - merged for count, merged in kept))


def thinned(planned: PicturePlan, full: Sequence[int], places: Tensor | None) -> list[int]:
    """What stands for a picture in a prompt, with as many placeholders as are planned.

    Args:
        planned: The picture's plan.
        full: Tokens that stand for it whole, in which each tile's placeholders follow each other.
        places: Which of them are placeholders, `[token]` bool; all if not given.

    Raises:
        ValueError: There are more or fewer placeholders than tokens of the whole picture.
    """
    import torch

    if places is None:
        places = torch.ones(len(full), dtype=torch.bool, device="cpu")
    counts = planned.layout.counts
    if int(places.sum()) != sum(counts):
        raise ValueError(
            f"{int(places.sum())} placeholders stand for a picture of {sum(counts)} tokens: "
            "expected as many; the processor and the model do not fit each other"
        )
    stays = ~places
    stays[places] = torch.cat(
        [
            torch.arange(n, device="cpu") < kept
            for n, kept in zip(counts, planned.tiles, strict=True)
        ]
    )
    return [token for token, stay in zip(full, stays.tolist(), strict=True) if stay]


@dataclass(frozen=True)
class Placed:
    """A picture in a prompt, or a video without text between its frames.

    Attributes:
        begin: Where its first token stands.
        grid: Rows and columns of the whole picture, or of a whole frame.
        kept: Survivors of the picture, or of each frame.
        times: When each frame is, in positions.
    """

    begin: int
    grid: Grid
    kept: tuple[int, ...]
    times: tuple[int, ...] = (0,)


def spread_positions(tokens: int, pictures: Sequence[Placed]) -> Tensor:
    """Positions with a row and a column, of a prompt whose pictures were merged.

    Text counts on in all three coordinates.  A picture begins where text has come to: its n-th of
    k survivors lies where the token ``floor((n + 1/2) * rows * cols / k)`` of the whole picture
    would, and text goes on after the largest coordinate of the whole picture.

    Args:
        tokens: Length of the prompt.
        pictures: Ascending.

    Returns:
        Time, row and column of each token, `[3, token]`, int64.
    """
    import torch

    parts, done, now = [], 0, 0
    for one in pictures:
        parts.append(torch.arange(now, now + one.begin - done, device="cpu").expand(3, -1))
        now += one.begin - done
        rows, cols = one.grid
        for kept, time in zip(one.kept, one.times, strict=True):
            cell = ((2 * torch.arange(kept, device="cpu") + 1) * rows * cols).div(
                2 * kept, rounding_mode="floor"
            )
            place = torch.stack([torch.full_like(cell, time), cell // cols, cell % cols])
            parts.append(now + place)
        done, now = one.begin + sum(one.kept), now + max(*one.times, rows - 1, cols - 1) + 1
    parts.append(torch.arange(now, now + tokens - done, device="cpu").expand(3, -1))
    return torch.cat(parts, dim=1)
