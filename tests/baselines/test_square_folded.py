"""Square folding: the release's windows, the plan's numbers, the true layout."""

from __future__ import annotations

import pytest
import torch

from lightkv_gnn.baselines.square_folded import SquareFolded
from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_gnn.stage.official import compress_sequence
from lightkv_graphs import TokenLayout, plan_stage


def features(count: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_on_a_square_it_is_the_same(windows: int) -> None:
    layout = TokenLayout.from_grids([[(6, 6)], [(12, 12), (6, 6)]])
    plan, x = plan_stage(layout.occupancy, windows, 0.5), features(len(layout))
    true, folded = TokenCompressor()(x, layout, plan), SquareFolded()(x, layout, plan)
    assert torch.equal(folded.hidden_states, true.hidden_states)
    for name in ("row", "col", "image", "sample", "mass"):
        assert torch.equal(getattr(folded.layout, name), getattr(true.layout, name))


@pytest.mark.parametrize("grid", [(4, 12), (12, 4), (6, 8), (3, 16)])
def test_elsewhere_it_is_the_release(grid: tuple[int, int]) -> None:
    """The windows there give up half of 48 tokens, as planned here."""
    layout = TokenLayout.from_grids([[grid]])
    plan, x = plan_stage(layout.occupancy, 2, 0.5), features(48)
    assert plan.total == 24
    done = SquareFolded()(x, layout, plan)
    official = compress_sequence(
        torch.cat([x, features(3)])[None],
        torch.zeros(1, 1, 51, 51),
        [(0, 48)],
        windows=2,
        ratio=0.5,
    )
    assert torch.equal(done.kept, official.kept[0])
    torch.testing.assert_close(done.hidden_states, official.hidden_states[0, :24])
    assert not torch.equal(done.kept, TokenCompressor()(x, layout, plan).kept)


def test_plans_are_kept_and_places_stay_true() -> None:
    """Also where windows fold into odd sizes, in later stages, and with tokens never merged."""
    grids = [(3, 12), (5, 7), (10, 4), (1, 9), (4, 6)]
    row = torch.cat([torch.arange(r).repeat_interleave(c) for r, c in grids])
    col = torch.cat([torch.arange(c).repeat(r) for r, c in grids])
    image = torch.arange(len(grids)).repeat_interleave(torch.tensor([r * c for r, c in grids]))
    layout = TokenLayout.from_tokens(
        sample=torch.zeros_like(image),
        image=image,
        row=row,
        col=col,
        grids=grids,
        protected=(col == 2) & (image == 4),
    )
    x, number = features(len(layout)), torch.arange(len(layout))
    occupancy = layout.occupancy
    for windows, ratio in ((2, 0.5), (1, 0.5), (1, 0.25)):
        plan = plan_stage(occupancy, windows, ratio)
        before, occupancy = layout, plan.occupancy
        done = SquareFolded()(x, before, plan)
        left = torch.bincount(image[number][done.kept], minlength=len(grids))
        expected = [n - gone for n, gone in zip(before.counts, plan.merges, strict=True)]
        assert left.tolist() == expected == list(done.layout.counts)
        x, layout, number = done.hidden_states, done.layout, number[done.kept]
        assert torch.equal(layout.row, row[number])
        assert torch.equal(layout.col, col[number])
        assert int(layout.mass.sum()) == len(row)
    assert int(layout.protected.sum()) == 4


def test_what_cannot_be_folded() -> None:
    layout = TokenLayout.from_grids([[(2, 4)]])
    plan = plan_stage(layout.occupancy, 2, 0.5)
    assert SquareFolded()(features(8), layout, plan).hidden_states.shape == (4, 8)
    layout = TokenLayout.from_grids([[(1, 5)]])
    plan = plan_stage(layout.occupancy, 3, 0.5)
    with pytest.raises(ValueError, match=r"image 0, of 5 tokens .* can give up \d in 3x3 windows"):
        SquareFolded()(features(5), layout, plan)
