"""How many tokens of a picture stay, counted before any of them is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lightkv_gnn.vllm.libraries import graph_layer
from lightkv_gnn.vllm.settings import Settings

if TYPE_CHECKING:
    from lightkv_graphs import StagePlan, Tile, TokenLayout


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
