"""Windows lie where the reference puts them, and sizes are known before a stage runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace
from fractions import Fraction

import pytest
import torch
from reference import GRIDS, RATIOS, make_layout, tokens_of, windows_of
from torch import Tensor

from lightkv_graphs import (
    Grid,
    Tile,
    TokenLayout,
    balanced_cut,
    exact_count,
    float32_count,
    leading_cut,
    plan_stage,
    window_partition,
)

VARIANTS = {
    "full": {},
    "newlines": {"newlines": True},
    "holes": {"holes": 3},
    "protected": {"newlines": True, "protect": 4, "holes": 5},
}
every_grid = pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


def reference_windows(layout: TokenLayout, windows: int) -> list[list[int]]:
    tokens = tokens_of(torch.zeros(len(layout), 1), layout)
    return windows_of(tokens, layout.grids, windows)


@every_grid
@every_variant
@pytest.mark.parametrize("windows", [1, 2, 3, 4])
def test_windows_equal_the_reference(
    grids: list[list[Grid]], variant: dict[str, int], windows: int
) -> None:
    layout = make_layout(grids, **variant)
    expected = reference_windows(layout, windows)
    partition = window_partition(layout, plan_stage(layout.occupancy, windows, 0.5))
    sizes = partition.sizes()
    assert sizes[sizes > 0].tolist() == [len(window) for window in expected]
    assert partition.total == len(sizes) == len(layout.counts) * windows**2
    assert partition.images == len(layout.counts)
    slots = partition.slots()
    assert slots.shape[1] % 2 == 0
    found = [[n for n in row if n < len(layout)] for row in slots.tolist()]
    assert [row for row in found if row] == expected
    padding = slots == len(layout)
    assert not (padding[:, :-1] & ~padding[:, 1:]).any()  # never before a token


@every_grid
@every_variant
@pytest.mark.parametrize("windows", [1, 2, 3, 4])
def test_the_plan_of_a_first_stage_is_exact(
    grids: list[list[Grid]], variant: dict[str, int], windows: int
) -> None:
    layout = make_layout(grids, **variant)
    expected = reference_windows(layout, windows)
    before = [occupancy.tokens for occupancy in layout.occupancy]
    for ratio in RATIOS.values():
        plan = plan_stage(layout.occupancy, windows, float(ratio))
        merges = [0] * len(layout.counts)
        for window in expected:
            merges[int(layout.image[window[0]])] += math.floor(ratio * len(window))
        assert plan.merges == tuple(merges)
        assert plan.total == sum(merges)
        assert plan.largest == max(map(len, expected))
        after = [occupancy.tokens for occupancy in plan.occupancy]
        assert [b - a for b, a in zip(before, after, strict=True)] == merges


def test_protected_tokens_lie_in_no_window() -> None:
    layout = make_layout([[(3, 4), (2, 2)]], newlines=True, protect=5)
    partition = window_partition(layout, plan_stage(layout.occupancy, 2, 0.5))
    assert (partition.window[layout.protected] == partition.total).all()
    assert (partition.window[~layout.protected] < partition.total).all()


def test_windows_of_other_cuts() -> None:
    layout = make_layout([[(5, 7)]])
    cuts = {
        cut: plan_stage(layout.occupancy, 3, 0.5, cut=cut) for cut in (leading_cut, balanced_cut)
    }
    for cut, plan in cuts.items():
        window = window_partition(layout, plan).window.reshape(5, 7)
        rows, cols = (cut(torch.arange(size), size, 3) for size in (5, 7))
        assert torch.equal(window, rows[:, None] * 3 + cols[None, :])
    assert window_partition(layout, cuts[leading_cut]).sizes().tolist() == [
        a * b for a in (2, 2, 1) for b in (3, 2, 2)
    ]


def test_another_count_is_planned_and_remembered() -> None:
    layout = make_layout([[(10, 10)]])
    plan = plan_stage(layout.occupancy, 1, 0.29, count=float32_count)
    assert plan.merges == (29,)
    assert plan.count is float32_count
    assert plan_stage(layout.occupancy, 2, 0.29, count=float32_count).merges == (4 * 7,)


@pytest.mark.parametrize("schedule", [(4, 2, 1), (4, 4), (3, 1), (2, 2, 2), (6, 2)])
@every_grid
def test_nested_schedules_take_the_share_of_every_window(
    grids: list[list[Grid]], schedule: tuple[int, ...]
) -> None:
    """All windows' sizes stay known: each of n tokens gives up half."""
    occupancy = make_layout(grids).occupancy
    sizes = [list(itertools.chain(*o.counts.tolist())) for o in occupancy]
    cells = [list(itertools.product(range(r), range(c))) for r, c in itertools.chain(*grids)]
    shapes = list(itertools.chain(*grids))
    for windows in schedule:
        plan = plan_stage(occupancy, windows, 0.5)
        for image, (rows, cols) in enumerate(shapes):
            # Which cells are left depends on the data; how many per window does not.
            groups: dict[tuple[int, int], int] = {}
            for (row, col), size in zip(cells[image], sizes[image], strict=True):
                key = (row * windows // rows, col * windows // cols)
                groups[key] = groups.get(key, 0) + size
            assert plan.merges[image] == sum(n // 2 for n in groups.values())
            first: dict[tuple[int, int], tuple[int, int]] = {}
            for row, col in cells[image]:
                first.setdefault((row * windows // rows, col * windows // cols), (row, col))
            places = {place: groups[key] - groups[key] // 2 for key, place in first.items()}
            sizes[image] = [places.get(cell, 0) for cell in cells[image]]
        occupancy = plan.occupancy


@pytest.mark.parametrize("windows", [2, 3, 4])
@pytest.mark.parametrize("tokens", range(1, 20))
def test_unknown_windows_give_up_what_every_distribution_allows(windows: int, tokens: int) -> None:
    """The fewest halves over all ways to spread the tokens over the windows."""
    occupancy = make_layout([[(1, tokens)]]).occupancy[0].blurred(0)
    plan = plan_stage((occupancy,), windows, 0.5)
    odd = next(k for k in range(windows**2, -1, -1) if k <= tokens and (tokens - k) % 2 == 0)
    assert plan.merges == (min(tokens // 2, (tokens - odd) // 2),)


@pytest.mark.parametrize("ratio", [Fraction(1, 10), Fraction(1, 4), Fraction(1, 2)])
def test_unknown_windows_never_give_up_more_than_the_share_of_the_image(ratio: Fraction) -> None:
    for tokens in range(1, 60):
        occupancy = make_layout([[(1, tokens)]]).occupancy[0].blurred(0)
        plan = plan_stage((occupancy,), 2, float(ratio))
        assert plan.total <= math.floor(ratio * tokens)
        assert plan.total >= math.floor(ratio * tokens) - 2
        assert plan.occupancy[0].tokens == tokens - plan.total


def test_a_plan_holds_no_device() -> None:
    """All that it is made from, and all that it holds, is on the host."""
    layout = make_layout([[(5, 7)], [(4, 4)]]).to("meta")
    plan = plan_stage(layout.occupancy, 3, 0.5)
    again = plan_stage(plan.occupancy, 2, 0.5)
    assert all(isinstance(number, int) for number in (*plan.merges, plan.largest, again.total))
    for occupancy in (*plan.occupancy, *again.occupancy):
        for field in fields(occupancy):
            assert getattr(occupancy, field.name).device.type == "cpu"


@pytest.mark.parametrize("windows", [0, -1])
def test_windows_out_of_range(windows: int) -> None:
    with pytest.raises(ValueError, match=f"windows is {windows}: expected at least one"):
        plan_stage((), windows, 0.5)


@pytest.mark.parametrize("ratio", [-0.1, 0.991, 1.0, math.nan])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"expected a fraction merged away from 0 to 0\.99"):
        plan_stage((), 1, ratio)


def test_what_leaves_each_window_adds_up_to_what_leaves_the_image() -> None:
    layout = make_layout([[(6, 6), (4, 4)]])
    plan = plan_stage(layout.occupancy, 2, 0.5)
    assert plan.leaving == (4, 4, 4, 4, 2, 2, 2, 2)
    assert replace(plan, merges=(9, 8), leaving=None).total == 17
    for merges in ((9, 8), (8, 16), (24,)):
        with pytest.raises(ValueError, match="sum to merges"):
            replace(plan, merges=merges)


@pytest.mark.parametrize("other", [[[(4, 4)]], [[(8, 8), (8, 8)]], [[(4, 4), (4, 5)]]])
def test_a_plan_of_another_layout(other: list[list[tuple[int, int]]]) -> None:
    plan = plan_stage(make_layout(other).occupancy, 2, 0.5)
    with pytest.raises(ValueError, match=r"made from another layout .* layout.occupancy"):
        window_partition(make_layout([[(4, 4), (4, 4)]]), plan)


def test_equal_pictures_are_planned_once() -> None:
    asked: list[int] = []

    def count(n: Tensor, ratio: float) -> Tensor:
        asked.append(len(n))
        return exact_count(n, ratio)

    for _ in range(2):
        layout = TokenLayout.from_grids([[(4, 6)] * 3, [(4, 6)], [(8, 4)]])
        plan = plan_stage(layout.occupancy, 2, 0.5, count=count)
        plan_stage(plan.occupancy, 1, 0.5, count=count)
    assert plan.merges == (12, 12, 12, 12, 16)
    assert len(asked) == 2 * 2  # of two sizes, in two stages


@pytest.mark.parametrize("tile", [Tile(4, 6), Tile(3, 5, before=1, row_end=2, after=3)])
def test_what_is_remembered_of_tiles_is_what_their_tokens_say(tile: Tile) -> None:
    layout = TokenLayout.from_tiles([[tile], [tile]])
    names = ("sample", "image", "row", "col", "mass", "protected")
    tokens = {name: getattr(layout, name) for name in names}
    again = TokenLayout.from_tokens(**tokens, grids=layout.grids)
    assert again.counts == layout.counts
    for ours, theirs in zip(layout.occupancy, again.occupancy, strict=True):
        for name in ("row_edges", "col_edges", "counts"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
