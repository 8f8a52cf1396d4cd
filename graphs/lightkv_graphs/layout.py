"""Where every vision token of a batch belongs: sample, image, row, column, mass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightkv_graphs.occupancy import Occupancy, cell_occupancy

Grid = tuple[int, int]
"""Rows and columns of an image's token grid."""


class Tile(NamedTuple):
    """Vision tokens that follow each other: a grid, and tokens without a place around it.

    Attributes:
        rows: Rows of the grid, from the top.
        cols: Columns of the grid, from the left.
        before: Tokens before the grid, such as a class token.
        row_end: Tokens at the end of every row, such as a newline.
        after: Tokens after the grid.
    """

    rows: int
    cols: int
    before: int = 0
    row_end: int = 0
    after: int = 0

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.before + self.rows * (self.cols + self.row_end) + self.after


Tiles = tuple[tuple[Tile, ...], ...]
"""The tiles of each sample."""


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """The vision tokens of a batch, image by image, each image in raster order.

    Build one with :meth:`from_tiles` or :meth:`from_tokens`, which validate; the constructor is
    for stages, which derive a layout from a valid one.

    Attributes:
        sample: Sample of each token, `[token]`, int64.
        image: Image of each token, counted through the whole batch, `[token]`, int64.
        row: Row in the image's grid, `[token]`, int64; -1 for a token without a place.
        col: Column in the image's grid, `[token]`, int64; -1 for a token without a place.
        mass: How many original tokens each token stands for, `[token]`, int64.
        protected: True for tokens that are never merged (newline tokens, separators), `[token]`.
        grids: (rows, columns) of each image.
        samples: Sample of each image.
        counts: Tokens of each image, known on the host.
        occupancy: What the host knows of where each image's mergeable tokens lie.
        tiles: What the layout was made of, where it is all of that; a layout that
            ``dataclasses.replace`` derives is not taken for that any more.
    """

    sample: Tensor
    image: Tensor
    row: Tensor
    col: Tensor
    mass: Tensor
    protected: Tensor
    grids: tuple[Grid, ...]
    samples: tuple[int, ...]
    counts: tuple[int, ...]
    occupancy: tuple[Occupancy, ...]
    tiles: Tiles | None = field(default=None, init=False)

    def __len__(self) -> int:
        return sum(self.counts)

    def __repr__(self) -> str:
        grids = ", ".join(f"{rows}x{cols}" for rows, cols in self.grids)
        return f"TokenLayout({len(self)} tokens, grids [{grids}], samples {list(self.samples)})"

    def to(self, device: torch.device | str) -> TokenLayout:
        """The same layout with its per-token tensors on ``device``."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _PER_TOKEN}
        return _made_of(self.tiles, replace(self, **moved))

    @classmethod
    def from_grids(cls, grids: Sequence[Sequence[Grid]]) -> TokenLayout:
        """Full grids: ``grids[sample]`` lists the (rows, columns) of that sample's images.

        Raises:
            ValueError: A grid has no rows or no columns.
        """
        return cls.from_tiles(grids)

    @classmethod
    def from_tiles(cls, tiles: Sequence[Sequence[Tile | Grid]]) -> TokenLayout:
        """Tiles in the order of the sequence: ``tiles[sample]`` lists that sample's.

        Every tile is an image of its own, which no merge crosses; its tokens without a place are
        protected.

        Raises:
            ValueError: A tile has no rows or no columns, or a negative number of tokens.
            TypeError: Something else than lists of tiles of whole numbers.
        """
        try:
            exact = tuple(tuple(Tile(*map(index, tile)) for tile in own) for own in tiles)
            known = _of_tiles(exact)
        except TypeError as error:
            raise TypeError(
                f"tiles is {tiles!r}: expected for each sample a list of its tiles, each a "
                "Tile(rows, cols) of integers"
            ) from error
        own = replace(known, **{name: getattr(known, name).clone() for name in _PER_TOKEN})
        return _made_of(exact, own)

    @classmethod
    def from_tokens(
        cls,
        *,
        sample: Tensor,
        image: Tensor,
        row: Tensor,
        col: Tensor,
        grids: Sequence[Grid],
        mass: Tensor | None = None,
        protected: Tensor | None = None,
    ) -> TokenLayout:
        """Checks the tokens and computes what the host has to know of them.

        Args:
            sample: Sample of each token, `[token]`.
            image: Image of each token, `[token]`, ascending through the batch from 0.
            row: Row of each token, `[token]`.
            col: Column of each token, `[token]`.
            grids: (rows, columns) of each image.
            mass: Original tokens per token, `[token]`; ones if not given.
            protected: Tokens that are never merged, `[token]` bool; none if not given.  They need
                no place in the grid.

        Raises:
            ValueError: Tensors of unequal shape, a token outside its image's grid, two tokens in
                one cell, tokens out of raster order, an image in two samples or without tokens,
                or a mass below 1; the message names the token.
            TypeError: Something else than tensors of integers, or of bool for ``protected``.
        """
        given: dict[str, Tensor] = {"sample": sample, "image": image, "row": row, "col": col}
        given |= {"mass": mass} if mass is not None else {}
        given |= {"protected": protected} if protected is not None else {}
        for name, value in given.items():
            if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
                kind = getattr(value, "dtype", type(value).__name__)
                raise TypeError(f"{name} is of {kind}: expected a tensor of integers")
        given.setdefault("mass", torch.ones_like(row))
        given.setdefault("protected", torch.zeros_like(row))
        for name, value in given.items():
            if value.ndim != 1 or value.shape != image.shape:
                raise ValueError(
                    f"{name} has shape {list(value.shape)}: expected [token] = "
                    f"{list(image.shape)}, one entry per vision token like image"
                )
        host = {
            name: value.detach().cpu().to(torch.int64).contiguous() for name, value in given.items()
        }
        host["protected"] = host["protected"].bool()
        _check_tokens(host, grids)
        starts = torch.searchsorted(
            host["image"], torch.arange(len(grids) + 1, device="cpu")
        ).tolist()
        occupancy = []
        for (rows, cols), (start, stop) in zip(grids, pairwise(starts), strict=True):
            free = ~host["protected"][start:stop]
            cells = (host[name][start:stop][free] for name in ("row", "col"))
            occupancy.append(cell_occupancy(rows, cols, *cells))
        return cls(
            **host,
            grids=tuple((int(rows), int(cols)) for rows, cols in grids),
            samples=tuple(int(host["sample"][start]) for start in starts[:-1]),
            counts=tuple(stop - start for start, stop in pairwise(starts)),
            occupancy=tuple(occupancy),
        )


def _made_of(tiles: Tiles | None, layout: TokenLayout) -> TokenLayout:
    object.__setattr__(layout, "tiles", tiles)
    return layout


@lru_cache(maxsize=64)
def _of_tiles(tiles: Tiles) -> TokenLayout:
    """The layout of tiles, made once; what is handed out are copies."""
    flat = [(s, tile) for s, own in enumerate(tiles) for tile in own]
    for number, (_, tile) in enumerate(flat):
        if min(tile.rows, tile.cols) < 1 or min(tile) < 0:
            raise ValueError(
                f"image {number} has a grid of {tile.rows}x{tile.cols} tokens with "
                f"{tile[2:]} around it: expected 1x1 or more, and 0 or more around it"
            )
    sizes = torch.tensor([tile.tokens for _, tile in flat], dtype=torch.int64, device="cpu")
    none = torch.zeros(0, 2, dtype=torch.int64, device="cpu")
    place = torch.cat([none, *(_places(tile) for _, tile in flat)])
    return TokenLayout.from_tokens(
        sample=torch.tensor(
            [s for s, _ in flat], dtype=torch.int64, device="cpu"
        ).repeat_interleave(sizes),
        image=torch.arange(len(flat), device="cpu").repeat_interleave(sizes),
        row=place[:, 0],
        col=place[:, 1],
        grids=[(tile.rows, tile.cols) for _, tile in flat],
        protected=place[:, 0] < 0,
    )


@lru_cache(maxsize=64)
def _places(tile: Tile) -> Tensor:
    """Row and column of each token of a tile, `[token, 2]`; -1 without a place."""
    cells = torch.cartesian_prod(
        torch.arange(tile.rows, device="cpu"), torch.arange(tile.cols, device="cpu")
    )
    cells = pad(cells.view(tile.rows, tile.cols, 2), (0, 0, 0, tile.row_end), value=-1)
    return pad(cells.view(-1, 2), (0, 0, tile.before, tile.after), value=-1)


_PER_TOKEN = ("sample", "image", "row", "col", "mass", "protected")


def _check_tokens(host: dict[str, Tensor], grids: Sequence[Grid]) -> None:
    sample, image, row, col = (host[name] for name in ("sample", "image", "row", "col"))
    size = torch.tensor([tuple(grid) for grid in grids], dtype=torch.int64, device="cpu").reshape(
        -1, 2
    )

    def where(token: int) -> str:
        return (
            f"token {token} (sample {sample[token]}, image {image[token]}, "
            f"row {row[token]}, col {col[token]})"
        )

    def require(good: Tensor, problem: str, mend: str) -> None:
        if not bool(good.all()):
            raise ValueError(f"{where(int((~good).nonzero()[0]))} {problem}; {mend}")

    require(sample >= 0, "has a negative sample", "samples are numbered from 0")
    in_range = (image >= 0) & (image < len(grids))
    require(in_range, f"names an image outside 0..{len(grids) - 1}", "give one grid per image")
    require(host["mass"] >= 1, "has a mass below 1", "a token stands for at least itself")
    placed = ~host["protected"]
    limit = size[image]
    require(
        ~placed | ((row >= 0) & (col >= 0)),
        "has a negative row or column",
        "mark tokens without a place in the grid as protected",
    )
    require(
        ~placed | ((row < limit[:, 0]) & (col < limit[:, 1])),
        "lies outside its image's grid",
        f"the grids are {[tuple(grid) for grid in grids]} as (rows, columns)",
    )
    previous = torch.cat([image.new_zeros(1), image[:-1]])
    require(image >= previous, "comes after a token of a later image", "sort tokens by image")
    absent = sorted(set(range(len(grids))) - set(image.tolist()))
    if absent:
        raise ValueError(f"image {absent[0]} has no tokens: leave its grid out of grids")
    first = torch.searchsorted(image, image)
    require(sample == sample[first], "is in another sample than its image", "images belong to one")
    _check_raster(host, placed, limit, where)


def _check_raster(
    host: dict[str, Tensor], placed: Tensor, limit: Tensor, where: Callable[[int], str]
) -> None:
    tokens = placed.nonzero()[:, 0]
    image, row, col = (host[name][tokens] for name in ("image", "row", "col"))
    cell = row * limit[tokens, 1] + col
    same = image[1:] == image[:-1]
    for order, problem in (
        (
            same & (cell[1:] == cell[:-1]),
            "is a duplicate: its cell is taken by the token before it",
        ),
        (same & (cell[1:] < cell[:-1]), "is out of raster order or a duplicate of an earlier cell"),
    ):
        if bool(order.any()):
            token = int(tokens[1:][order.nonzero()[0, 0]])
            raise ValueError(f"{where(token)} {problem}; list each cell once, row by row")
