"""Cuts, counts and what the host knows of where tokens are."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from reference import RATIOS, piece

from lightkv_graphs import balanced_cut, exact_count, float32_count, leading_cut
from lightkv_graphs.occupancy import cell_occupancy, largest_piece

SIZES = range(1, 41)
WINDOWS = range(1, 9)


def pieces(cut: object, size: int, windows: int) -> list[int]:
    return cut(torch.arange(size), size, windows).tolist()  # type: ignore[operator]


@pytest.mark.parametrize("windows", WINDOWS)
def test_balanced_cut_begins_pieces_at_rounded_up_borders(windows: int) -> None:
    for size in SIZES:
        expected = [piece(coordinate, size, windows) for coordinate in range(size)]
        assert pieces(balanced_cut, size, windows) == expected


@pytest.mark.parametrize("windows", WINDOWS)
def test_leading_cut_lengthens_the_first_pieces(windows: int) -> None:
    for size in SIZES:
        lengths = [size // windows + (k < size % windows) for k in range(windows)]
        expected = [k for k, length in enumerate(lengths) for _ in range(length)]
        assert pieces(leading_cut, size, windows) == expected


@pytest.mark.parametrize("cut", [balanced_cut, leading_cut])
def test_a_cut_takes_a_size_per_coordinate(cut: object) -> None:
    coordinate, size = torch.tensor([0, 3, 6, 3]), torch.tensor([4, 4, 7, 9])
    together = cut(coordinate, size, 3).tolist()  # type: ignore[operator]
    pairs = zip(coordinate.tolist(), size.tolist(), strict=True)
    assert together == [pieces(cut, s, 3)[c] for c, s in pairs]


@pytest.mark.parametrize("cut", [balanced_cut, leading_cut])
def test_largest_piece(cut: object) -> None:
    for size in SIZES:
        for windows in WINDOWS:
            found = pieces(cut, size, windows)
            assert largest_piece(size, windows, cut) == max(found.count(p) for p in found)


def test_balanced_pieces_differ_by_at_most_one() -> None:
    for size in SIZES:
        for windows in WINDOWS:
            found = pieces(balanced_cut, size, windows)
            lengths = [found.count(p) for p in range(windows)]
            assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("fine", "coarse"), [(4, 2), (4, 1), (6, 3), (6, 2), (8, 4), (5, 1)])
def test_coarse_windows_are_unions_of_the_fine_ones_they_divide(fine: int, coarse: int) -> None:
    for size in SIZES:
        pairs = zip(
            pieces(balanced_cut, size, fine), pieces(balanced_cut, size, coarse), strict=True
        )
        assert all(big == small * coarse // fine for small, big in pairs)


@pytest.mark.parametrize("ratio", [*RATIOS.values(), Fraction(29, 100), Fraction(7, 20)])
def test_exact_count_rounds_the_exact_product_down(ratio: Fraction) -> None:
    n = torch.arange(3000)
    assert exact_count(n, float(ratio)).tolist() == [math.floor(ratio * k) for k in range(3000)]


def test_float32_count_rounds_as_released() -> None:
    assert float32_count(torch.tensor([180, 100, 5, 4]), 0.35).tolist() == [63, 35, 1, 1]
    assert float32_count(torch.tensor([100]), 0.29).tolist() == [29]
    assert int(0.29 * 100) == 28  # what Python's floats would give
    assert float32_count(torch.tensor([7, 8]), 0.9).tolist() == [3, 4]


@pytest.mark.parametrize("windows", [1, 2, 3, 5])
def test_tokens_per_window(windows: int) -> None:
    rows, cols = 7, 4
    taken = (torch.rand(rows, cols, generator=torch.Generator().manual_seed(0)) < 0.6).nonzero()
    occupancy = cell_occupancy(rows, cols, *taken.unbind(1))
    expected = torch.zeros(windows, windows, dtype=torch.int64)
    for row, col in taken.tolist():
        expected[piece(row, rows, windows), piece(col, cols, windows)] += 1
    assert torch.equal(occupancy.in_windows(windows, balanced_cut), expected)
    assert occupancy.tokens == len(taken)


@pytest.mark.parametrize(("rows", "cols"), [(7, 4), (1, 12), (2, 3), (9, 9), (3, 1)])
def test_after_a_stage_windows_are_known_where_they_are_unions(rows: int, cols: int) -> None:
    """Also where a side has fewer cells than windows, and some windows are empty."""
    for fine in WINDOWS:
        known = cell_occupancy(rows, cols, *torch.ones(rows, cols).nonzero().unbind(1))
        per_window = known.in_windows(fine, balanced_cut)
        after = known.merged(per_window, per_window // 2, balanced_cut)
        assert after.tokens == known.tokens - int((per_window // 2).sum())
        for coarse in WINDOWS:
            union = all(
                len({piece(c, size, coarse) for c in range(size) if piece(c, size, fine) == p}) < 2
                for size in (rows, cols)
                for p in range(fine)
            )
            found = after.in_windows(coarse, balanced_cut)
            assert (found is not None) == union, (fine, coarse)
            if fine % coarse == 0:
                assert found is not None
            if found is not None:
                expected = torch.zeros(coarse, coarse, dtype=torch.int64)
                for row in range(rows):
                    for col in range(cols):
                        small = piece(row, rows, fine), piece(col, cols, fine)
                        big = piece(row, rows, coarse), piece(col, cols, coarse)
                        first = all(
                            piece(c - 1, size, fine) != p if c else True
                            for c, size, p in zip((row, col), (rows, cols), small, strict=True)
                        )
                        if first:
                            n = int(per_window[small])
                            expected[big] += n - n // 2
                assert torch.equal(found, expected)


def test_blurring_leaves_one_block() -> None:
    known = cell_occupancy(4, 6, *torch.ones(4, 6).nonzero().unbind(1))
    blurred = known.blurred(5)
    assert blurred.tokens == 19
    assert [list(pairwise(e.tolist())) for e in (blurred.row_edges, blurred.col_edges)] == [
        [(0, 4)],
        [(0, 6)],
    ]
    assert blurred.in_windows(2, balanced_cut) is None
    assert blurred.in_windows(1, balanced_cut).tolist() == [[19]]
    assert blurred.largest_window(2, balanced_cut) == 6
    assert blurred.largest_window(1, balanced_cut) == 19
