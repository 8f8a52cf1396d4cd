"""Tiles of what processors make, and placeholders and positions for them, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families.models import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from lightkv_gnn.errors import UnsupportedModelError
from lightkv_gnn.vllm.geometry import (
    ChatGeometry,
    Geometry,
    GridGeometry,
    NextGeometry,
    SquareGeometry,
)
from lightkv_gnn.vllm.plan import Placed, plan_picture, spread_positions, thinned
from lightkv_gnn.vllm.settings import Settings
from lightkv_graphs import Tile

WHOLE = Tile(4, 4)
GRIDS = [[35 * rows, 35 * cols] for rows, cols in ((1, 1), (2, 1), (1, 2), (4, 4))]
SHRUNK = {"vision_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": GRIDS}
GEOMETRIES = {
    "llava_next": NextGeometry(tiny("llava_next").config),
    "llava_onevision": NextGeometry(tiny("llava_onevision", **SHRUNK).config),
}


def sized(*size: int, parts: int = 3) -> dict[str, Any]:
    return {"pixel_values": torch.zeros(parts, 1), "image_sizes": torch.tensor(size)}


@pytest.mark.parametrize(
    ("made", "tiles"),
    [
        (sized(90, 40), [WHOLE, Tile(10, 4, row_end=1)]),
        (sized(40, 90), [WHOLE, Tile(4, 10, row_end=1)]),
        (sized(56, 56, parts=5), [WHOLE, Tile(8, 8, row_end=1)]),
        (sized(56, 56, parts=1), [Tile(4, 4, after=1)]),
        # A line: none of its columns is left, and the newlines of four rows are.
        (sized(900, 3), [Tile(4, 4, after=4)]),
    ],
    ids=["portrait", "landscape", "square", "not cut", "line"],
)
def test_cut_pictures_have_no_padding(made: dict[str, Any], tiles: list[Tile]) -> None:
    assert GEOMETRIES["llava_next"].tiles("image", made) == tuple(tiles)


def test_large_grids_shrink_and_frames_are_pooled() -> None:
    geometry = GEOMETRIES["llava_onevision"]
    assert geometry.tiles("image", sized(140, 130)) == (Tile(5, 5), Tile(15, 14, row_end=1))
    film = {"pixel_values_videos": torch.zeros(3, 3, 35, 35)}
    assert geometry.tiles("video", film) == (Tile(3, 3), Tile(3, 3), Tile(3, 3, after=1))


@settings(deadline=None)
@given(
    st.tuples(st.integers(20, 200), st.integers(20, 200)),
    st.sampled_from([0.02, 0.25, 0.7, 1]),
    st.integers(1, 2),
)
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_no_picture_leaves_more_than_is_reckoned_with(
    family: str, size: tuple[int, int], retention: float, windows: int
) -> None:
    """Nor is that more than a picture of the most tokens, each window rounded up."""
    geometry, chosen = GEOMETRIES[family], Settings(retention, windows)
    tiles = geometry.tiles("image", sized(*size))
    assume(min(min(tile[:2]) for tile in tiles) >= windows)
    most = geometry.most(chosen)
    assert plan_picture(chosen, *tiles).kept <= most
    side, whole = geometry.adapter.side, geometry.most(Settings(1))
    assert most <= retention * whole + 2 * windows**2 + 4 * side + 2


def chat(tokens: int = 16, **changed: Any) -> SimpleNamespace:
    """OpenGVLab's configuration of squares of so many tokens."""
    config = tiny("internvl").config
    vision = SimpleNamespace(image_size=8 * int(tokens**0.5), patch_size=4)
    return SimpleNamespace(
        **{
            "model_type": "internvl_chat",
            "vision_config": vision,
            "force_image_size": None,
            "downsample_ratio": 0.5,
            "get_text_config": config.get_text_config,
            **changed,
        }
    )


@pytest.mark.parametrize(
    ("geometry", "side"),
    [
        (SquareGeometry(tiny("internvl").config), 4),
        (ChatGeometry(chat(36)), 6),
        (ChatGeometry(chat(36, force_image_size=64)), 8),
    ],
    ids=["transformers", "chat", "forced"],
)
def test_squares_are_counted(geometry: Geometry, side: int) -> None:
    tile = Tile(side, side)
    assert geometry.tiles("image", {"image_num_patches": torch.tensor(5)}) == (tile,) * 5
    batch = {"pixel_values_videos": None, "video_num_patches": torch.tensor([3, 2])}
    assert list(geometry.each(batch)) == [(tile,) * 3, (tile,) * 2]


def test_kinds_come_as_they_are_encoded() -> None:
    geometry = GridGeometry(tiny("qwen2_5_vl").config)
    image, video = torch.tensor([[1, 4, 6], [1, 2, 8]]), torch.tensor([[2, 4, 4]])
    pictures, film = [(Tile(2, 3),), (Tile(1, 4),)], [(Tile(2, 2),) * 2]
    both = {"image_grid_thw": image, "video_grid_thw": video}
    assert list(geometry.each(both)) == pictures + film
    assert list(geometry.each(dict(reversed(both.items())))) == film + pictures


def test_a_family_without_an_adapter() -> None:
    with pytest.raises(UnsupportedModelError, match="no adapter for BertConfig"):
        GridGeometry(BertConfig())


def test_any_text_model_will_do() -> None:
    config = tiny("llava_next").config
    config.text_config.model_type = "gemma2"
    assert NextGeometry(config).adapter.grid == (4, 4)


TILES = st.lists(st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(0, 1)), min_size=1)


@settings(deadline=None)
@given(TILES, st.booleans())
def test_each_tile_gives_up_its_own_placeholders(
    grids: list[tuple[int, int, int]], between: bool
) -> None:
    """Text between tiles stays as it is; of each tile, as many are left as its own plan says."""
    tiles = [Tile(rows, cols, row_end=end) for rows, cols, end in grids]
    chosen = Settings(0.25)
    planned = plan_picture(chosen, *tiles)
    text = [-1] * between
    full = [id_ for n, tile in enumerate(tiles) for id_ in [*text, *[n] * tile.tokens, *text]]
    places = torch.tensor(full) >= 0
    found = thinned(planned, full, places if between else None)
    assert [one for one in found if one < 0] == [one for one in full if one < 0]
    kept = [plan_picture(chosen, tile).kept for tile in tiles]
    assert [found.count(n) for n in range(len(tiles))] == kept == list(planned.tiles)
    assert found == [id_ for n, left in enumerate(kept) for id_ in [*text, *[n] * left, *text]]


def test_placeholders_of_another_picture() -> None:
    with pytest.raises(ValueError, match="17 placeholders stand for a picture of 16 tokens"):
        thinned(plan_picture(Settings(0.25), WHOLE), [7] * 17, None)


def test_frames_follow_each_other_at_their_times() -> None:
    """Text, two frames of 1 x 2 tokens of which one is left, three positions apart, and text."""
    whole = spread_positions(7, [Placed(1, (1, 2), (2, 2), (0, 3))])
    assert whole.T.tolist() == [
        [0, 0, 0],
        *([1, 1, 1], [1, 1, 2], [4, 1, 1], [4, 1, 2]),
        *([5, 5, 5], [6, 6, 6]),
    ]
    found = spread_positions(5, [Placed(1, (1, 2), (1, 1), (0, 3))])
    assert found.T.tolist() == [[0, 0, 0], [1, 1, 2], [4, 1, 2], [5, 5, 5], [6, 6, 6]]
