"""Tiles become tokens in order: those before the grid, its rows with their ends, those after."""

from __future__ import annotations

import pytest
import torch
from reference import GRIDS

from lightkv_graphs import Grid, Tile, TokenLayout

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
