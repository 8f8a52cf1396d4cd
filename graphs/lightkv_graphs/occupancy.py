"""What the host knows about where an image's tokens are, without reading the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

Cut = Callable[[Tensor, "Tensor | int", int], Tensor]
"""Piece of each coordinate: ``cut(coordinate, size, windows)`` with ``size`` cells in all."""

MergeCount = Callable[[Tensor, float], Tensor]
"""Tokens merged away in windows of ``n`` tokens: ``count(n, ratio)``."""


@dataclass(frozen=True, eq=False)
class Occupancy:
    """How many mergeable tokens lie in each block of an image's grid.

    Before the first stage every cell is a block of its own.  After a stage the blocks are its
    windows: which cells of a window survived depends on the data, but how many did does not.

    Attributes:
        row_edges: Block borders along the rows, ascending, from 0 to the number of rows.
        col_edges: Block borders along the columns, likewise.
        counts: Tokens per block, `[row block, column block]`, int64, on the CPU.
    """

    row_edges: Tensor
    col_edges: Tensor
    counts: Tensor

    @property
    def tokens(self) -> int:
        """Mergeable tokens of the image."""
        return int(self.counts.sum())

    def in_windows(self, windows: int, cut: Cut) -> Tensor | None:
        """Tokens per window `[windows, windows]`, or None where a block straddles two windows."""
        rows = _block_pieces(self.row_edges, windows, cut)
        cols = _block_pieces(self.col_edges, windows, cut)
        if rows is None or cols is None:
            return None
        by_row = self.counts.new_zeros(windows, self.counts.shape[1]).index_add_(
            0, rows, self.counts
        )
        return by_row.new_zeros(windows, windows).index_add_(1, cols, by_row)

    def largest_window(self, windows: int, cut: Cut) -> int:
        """An upper bound on the tokens in any window, from the areas alone."""
        rows, cols = int(self.row_edges[-1]), int(self.col_edges[-1])
        area = largest_piece(rows, windows, cut) * largest_piece(cols, windows, cut)
        return min(area, self.tokens)

    def merged(self, per_window: Tensor, merges: Tensor, cut: Cut) -> Occupancy:
        """The occupancy after ``merges`` tokens have left each window of ``per_window``."""
        windows = per_window.shape[0]
        rows, cols = int(self.row_edges[-1]), int(self.col_edges[-1])
        return Occupancy(
            _piece_edges(rows, windows, cut), _piece_edges(cols, windows, cut), per_window - merges
        )

    def blurred(self, merges: int) -> Occupancy:
        """One block for the whole image: all that is known after windows of unknown sizes."""
        whole = torch.tensor([[self.tokens - merges]], device="cpu")
        return Occupancy(self.row_edges[[0, -1]], self.col_edges[[0, -1]], whole)


def cell_occupancy(rows: int, cols: int, row: Tensor, col: Tensor) -> Occupancy:
    """Occupancy of single cells: 1 where one of the tokens (``row``, ``col``) lies, else 0.

    Tokens lie in different cells.  Full grids of one size share theirs.
    """
    if len(row) == rows * cols:
        return _full_occupancy(rows, cols)
    counts = torch.zeros(rows, cols, dtype=torch.int64, device="cpu")
    counts[row, col] = 1
    return Occupancy(
        torch.arange(rows + 1, device="cpu"), torch.arange(cols + 1, device="cpu"), counts
    )


@lru_cache(maxsize=64)
def _full_occupancy(rows: int, cols: int) -> Occupancy:
    cells = torch.ones(rows, cols, dtype=torch.int64, device="cpu")
    return Occupancy(
        torch.arange(rows + 1, device="cpu"), torch.arange(cols + 1, device="cpu"), cells
    )


def balanced_cut(coordinate: Tensor, size: Tensor | int, windows: int) -> Tensor:
    """Pieces whose borders lie at ``ceil(k * size / windows)``.

    A cut into fewer pieces that divides this one has its borders among them, so the windows of a
    later, coarser stage are unions of the earlier windows whatever the size of the grid.
    """
    return torch.div(coordinate * windows, size, rounding_mode="floor")


def leading_cut(coordinate: Tensor, size: Tensor | int, windows: int) -> Tensor:
    """The first ``size % windows`` pieces are one longer than the rest (the released cut)."""
    size = torch.as_tensor(size, device=coordinate.device)
    short, longer = size // windows, size % windows
    edge = longer * (short + 1)
    return torch.where(
        coordinate < edge,
        coordinate // (short + 1),
        longer + (coordinate - edge) // short.clamp(min=1),
    )


def exact_count(n: Tensor, ratio: float) -> Tensor:
    """``floor(ratio * n)`` in integers, for ``ratio`` as a fraction of a denominator up to 10^4."""
    share = Fraction(ratio).limit_denominator(10_000)
    return torch.div(n * share.numerator, share.denominator, rounding_mode="floor")


def float32_count(n: Tensor, ratio: float) -> Tensor:
    """``trunc(float32(ratio) * n)``, at most ``n // 2``: the rounding of the released code."""
    return torch.minimum((n.to(torch.float32) * ratio).to(torch.int64), n // 2)


def largest_piece(size: int, windows: int, cut: Cut) -> int:
    """Cells in the largest piece of a side of ``size`` cells."""
    return int(_piece_edges(size, windows, cut).diff().max())


def _piece_edges(size: int, windows: int, cut: Cut) -> Tensor:
    pieces = cut(torch.arange(size, device="cpu"), size, windows)
    lengths = torch.zeros(windows, dtype=torch.int64, device="cpu").index_add_(
        0, pieces, torch.ones_like(pieces)
    )
    return torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), lengths.cumsum(0)])


def _block_pieces(edges: Tensor, windows: int, cut: Cut) -> Tensor | None:
    """The piece each block lies in, or None where one straddles a border."""
    size = int(edges[-1])
    start, stop = edges[:-1].clamp(max=max(size - 1, 0)), edges[1:]
    first, last = cut(start, size, windows), cut((stop - 1).clamp(min=0), size, windows)
    empty = edges[:-1] == stop
    return first if bool((empty | (first == last)).all()) else None
