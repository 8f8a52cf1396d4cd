"""Tiles become tokens in order: those before the grid, its rows with their ends, those after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import GRIDS

from lightkv_gnn import TokenCompressor
from lightkv_graphs import (
    Grid,
    Tile,
    TokenLayout,
    balanced_cut,
    leading_cut,
    plan_stage,
    window_partition,
)
from lightkv_graphs.occupancy import Cut

TILES: dict[str, list[list[Tile]]] = {
    "plain": [[Tile(3, 4)]],
    "class token": [[Tile(2, 2, before=1), Tile(2, 2, before=1)]],
    "newlines": [[Tile(2, 3), Tile(4, 5, row_end=1)]],
    "one newline at the end": [[Tile(2, 2), Tile(2, 2, after=1)]],
    "everything": [[Tile(1, 1, 2, 3, 4)], [], [Tile(3, 2, 1, 2, 0), Tile(1, 5)]],
}
PER_TOKEN = ("sample", "image", "row", "col", "mass", "protected")


def slowly(samples: list[list[Tile]]) -> list[tuple[int, ...]]:
    """Every token of :data:`PER_TOKEN`, one after the other."""
    tokens: list[tuple[int, ...]] = []
    image = 0
    for sample, tiles in enumerate(samples):
        for rows, cols, before, row_end, after in tiles:
            none = (sample, image, -1, -1, 1, True)
            tokens += [none] * before
            for row in range(rows):
                tokens += [(sample, image, row, col, 1, False) for col in range(cols)]
                tokens += [none] * row_end
            tokens += [none] * after
            image += 1
    return tokens


@pytest.mark.parametrize("samples", TILES.values(), ids=TILES.keys())
def test_tokens_in_order(samples: list[list[Tile]]) -> None:
    layout = TokenLayout.from_tiles(samples)
    columns = [getattr(layout, name).tolist() for name in PER_TOKEN]
    assert list(zip(*columns, strict=True)) == slowly(samples)
    tiles = [tile for own in samples for tile in own]
    assert layout.grids == tuple((tile.rows, tile.cols) for tile in tiles)
    assert layout.counts == tuple(tile.tokens for tile in tiles)
    assert layout.samples == tuple(s for s, own in enumerate(samples) for _ in own)
    assert [known.tokens for known in layout.occupancy] == [t.rows * t.cols for t in tiles]


@pytest.mark.parametrize("samples", TILES.values(), ids=TILES.keys())
def test_tokens_of_a_tile(samples: list[list[Tile]]) -> None:
    assert len(slowly(samples)) == sum(tile.tokens for own in samples for tile in own)


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
def test_tiles_with_nothing_around_them_are_grids(grids: list[list[Grid]]) -> None:
    ours = TokenLayout.from_tiles([[Tile(*grid) for grid in own] for own in grids])
    theirs = TokenLayout.from_grids(grids)
    for name in PER_TOKEN:
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.grids, ours.samples, ours.counts) == (theirs.grids, theirs.samples, theirs.counts)


def test_alike_tiles_share_nothing_that_can_be_written_to() -> None:
    tile = Tile(2, 2, row_end=1)
    TokenLayout.from_tiles([[tile]]).row.fill_(7)
    assert TokenLayout.from_tiles([[tile]]).row.tolist() == [0, 0, -1, 1, 1, -1]


def test_plain_tuples_are_tiles() -> None:
    layout = TokenLayout.from_tiles([[(2, 2, 1)]])  # type: ignore[list-item]
    assert layout.row.tolist() == [-1, 0, 0, 1, 1]


def test_no_tiles() -> None:
    for samples in ([], [[]], [[], []]):
        assert len(TokenLayout.from_tiles(samples)) == 0


@pytest.mark.parametrize(
    "tile",
    [Tile(0, 3), Tile(3, 0, row_end=1), Tile(-1, 2), Tile(2, 2, -1), Tile(2, 2, 0, -1)],
    ids=str,
)
def test_impossible_tiles(tile: Tile) -> None:
    with pytest.raises(ValueError, match=r"image 1 has a grid of .*: expected 1x1 or more, and 0"):
        TokenLayout.from_tiles([[Tile(2, 2)], [tile]])


MIXED = [[Tile(5, 7, before=1, row_end=1), Tile(3, 3)], [Tile(4, 4, after=2)]]


@pytest.mark.parametrize("cut", [balanced_cut, leading_cut])
@pytest.mark.parametrize("windows", [1, 2, 5])
def test_remembered_windows_are_those_of_the_tokens(windows: int, cut: Cut) -> None:
    layout = TokenLayout.from_tiles(MIXED)
    plan = plan_stage(layout.occupancy, windows, 0.5, cut=cut)
    known, own = (window_partition(one, plan) for one in (layout, replace(layout)))
    assert torch.equal(known.window, own.window)
    assert torch.equal(known.slots(), own.slots())
    again = TokenLayout.from_tiles(MIXED)
    again = window_partition(again, plan_stage(again.occupancy, windows, 0.3, cut=cut))
    assert again.slots() is known.slots()
    assert own.slots() is not known.slots()


def test_only_whole_tiles_are_remembered() -> None:
    layout = TokenLayout.from_tiles(MIXED)
    assert layout.tiles == layout.to("meta").tiles == tuple(map(tuple, MIXED))
    assert window_partition(layout.to("meta"), plan_stage(layout.occupancy, 2, 0.5)).window.is_meta
    moved = replace(layout, row=layout.row.flip(0), col=layout.col.flip(0))
    assert moved.tiles is None
    x = torch.randn(len(layout), 4)
    assert TokenCompressor()(x, layout, plan_stage(layout.occupancy, 2, 0.5)).layout.tiles is None


def test_what_is_remembered_is_nobodys_to_change() -> None:
    """Windows are handed out as copies, made in inference mode or not."""
    with torch.inference_mode():
        layout = TokenLayout.from_tiles([[Tile(3, 11)]])
        plan = plan_stage(layout.occupancy, 3, 0.5)
        window_partition(layout, plan)
    layout = TokenLayout.from_tiles([[Tile(3, 11)]])
    first = window_partition(layout, plan_stage(layout.occupancy, 3, 0.5))
    before = first.window.tolist()
    first.window.fill_(0)
    assert not first.slots().is_inference()
    assert window_partition(layout, plan_stage(layout.occupancy, 3, 0.5)).window.tolist() == before
