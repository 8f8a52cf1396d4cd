"""Layouts hold what was given, and say which token is wrong."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from reference import GRIDS, make_layout

from lightkv_graphs import Grid, TokenLayout

PER_TOKEN = ("sample", "image", "row", "col", "mass", "protected")


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
def test_full_grids(grids: list[list[Grid]]) -> None:
    layout = TokenLayout.from_grids(grids)
    cells = []
    image = 0
    for sample, images in enumerate(grids):
        for rows, cols in images:
            cells += [(sample, image, r, c, 1, 0) for r in range(rows) for c in range(cols)]
            image += 1
    columns = [getattr(layout, name).tolist() for name in PER_TOKEN]
    assert list(zip(*columns, strict=True)) == cells
    assert len(layout) == len(cells)
    assert layout.grids == tuple(grid for images in grids for grid in images)
    assert layout.samples == tuple(s for s, images in enumerate(grids) for _ in images)
    assert layout.counts == tuple(rows * cols for rows, cols in layout.grids)
    assert [occupancy.tokens for occupancy in layout.occupancy] == list(layout.counts)
    for name in PER_TOKEN[:-1]:
        assert getattr(layout, name).dtype == torch.int64
    assert layout.protected.dtype == torch.bool


def test_no_images() -> None:
    layout = TokenLayout.from_grids([[], []])
    assert len(layout) == 0
    assert layout.counts == ()


def test_protected_tokens_and_holes_do_not_count_as_mergeable() -> None:
    layout = make_layout([[(3, 4)], [(2, 2)]], newlines=True, protect=5, holes=6)
    free = ~layout.protected
    for image, occupancy in enumerate(layout.occupancy):
        mine = free & (layout.image == image)
        assert occupancy.tokens == int(mine.sum())
        cells = torch.zeros(layout.grids[image], dtype=torch.int64)
        cells[layout.row[mine], layout.col[mine]] = 1
        assert torch.equal(occupancy.counts, cells)
    assert layout.counts == (3 * 4 - 2 + 3, 2 * 2 - 1 + 2)
    assert (layout.row[layout.protected] == -1).any()


def test_mass_is_kept() -> None:
    layout = tokens(mass=torch.tensor([1, 5, 2, 1]))
    assert layout.mass.tolist() == [1, 5, 2, 1]


def test_repr_names_tokens_grids_and_samples() -> None:
    layout = TokenLayout.from_grids([[(2, 3)], [(1, 4)]])
    assert repr(layout) == "TokenLayout(10 tokens, grids [2x3, 1x4], samples [0, 1])"


def test_to_moves_the_tokens_and_keeps_the_rest() -> None:
    layout = TokenLayout.from_grids([[(2, 3)]])
    moved = layout.to("meta")
    for field in fields(TokenLayout):
        if field.name in PER_TOKEN:
            assert getattr(moved, field.name).device.type == "meta"
        else:
            assert getattr(moved, field.name) is getattr(layout, field.name)


def tokens(**changed: Any) -> TokenLayout:
    """Two samples, three images, four tokens; one thing changed."""
    given: dict[str, Any] = {
        "sample": torch.tensor([0, 0, 0, 1]),
        "image": torch.tensor([0, 0, 1, 2]),
        "row": torch.tensor([0, 1, 0, 2]),
        "col": torch.tensor([1, 0, 0, 3]),
        "grids": [(2, 2), (1, 1), (3, 4)],
    }
    return TokenLayout.from_tokens(**(given | changed))


def test_the_unchanged_tokens_are_valid() -> None:
    layout = tokens()
    assert layout.counts == (2, 1, 1)
    assert layout.samples == (0, 0, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row": [0, 1, 0]}, r"row has shape \[3\]: expected \[token\] = \[4\]"),
        ({"mass": [1, 1, 1]}, r"mass has shape \[3\].*one entry per vision token"),
        ({"protected": [[0, 0, 0, 0]]}, r"protected has shape \[1, 4\]"),
        ({"sample": [0, -1, 0, 1]}, r"token 1 \(sample -1, .* negative sample; .*from 0"),
        ({"image": [0, 0, 1, 3]}, r"token 3 \(.*image 3.* outside 0..2; give one grid per image"),
        ({"image": [-1, 0, 1, 2]}, r"token 0 .* names an image outside 0..2"),
        ({"mass": [1, 1, 0, 1]}, r"token 2 .* mass below 1; .* at least itself"),
        ({"row": [0, -1, 0, 2]}, r"token 1 .*row -1.* negative row or column; mark .* protected"),
        ({"col": [1, 0, 0, -1]}, r"token 3 .*col -1.* negative row or column"),
        ({"row": [0, 2, 0, 2]}, r"token 1 .* outside its image's grid; .*\(2, 2\).*\(rows, col"),
        ({"col": [1, 0, 1, 3]}, r"token 2 .* outside its image's grid"),
        (
            {"image": [0, 1, 0, 2], "row": [0, 0, 0, 2]},
            r"token 2 .* after a token of a later image; sort tokens",
        ),
        ({"image": [0, 0, 0, 1], "row": [0, 1, 1, 0], "col": [1, 0, 1, 0]}, "image 2 has no token"),
        ({"sample": [0, 1, 1, 1]}, r"token 1 .* in another sample than its image"),
        ({"row": [0, 0, 0, 2], "col": [1, 1, 0, 3]}, r"token 1 .* duplicate: .*once, row by row"),
        ({"row": [1, 0, 0, 2]}, r"token 1 .* out of raster order .*list each cell once"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_token(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokens(**{name: torch.tensor(value) for name, value in changed.items()})


def test_an_earlier_cell_again_is_out_of_raster_order() -> None:
    place = {"row": [0, 0, 0], "col": [0, 1, 0], "sample": [0, 0, 0], "image": [0, 0, 0]}
    with pytest.raises(ValueError, match=r"token 2 .* duplicate of an earlier cell"):
        TokenLayout.from_tokens(
            **{name: torch.tensor(value) for name, value in place.items()}, grids=[(2, 2)]
        )


def test_order_is_not_asked_of_protected_tokens() -> None:
    layout = tokens(
        row=torch.tensor([1, -1, 0, 2]),
        col=torch.tensor([0, -1, 0, 3]),
        protected=torch.tensor([False, True, False, False]),
    )
    assert layout.protected.tolist() == [False, True, False, False]


@pytest.mark.parametrize("grid", [(0, 3), (3, 0), (-1, 2)])
def test_grids_need_cells(grid: Grid) -> None:
    with pytest.raises(ValueError, match=r"image 1 has a grid of .*: expected 1x1 or more"):
        TokenLayout.from_grids([[(2, 2), grid]])
