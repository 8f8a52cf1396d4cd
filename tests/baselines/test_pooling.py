"""Pooling is the mean of blocks, as many as asked, evenly over the picture."""

from __future__ import annotations

import pytest
import torch
from reference import features, make_layout
from torch import Tensor

from lightkv_gnn import ScheduleError, mean
from lightkv_gnn.baselines import METHODS, Budget
from lightkv_gnn.baselines.pooling import pool
from lightkv_gnn.stage.compressor import Compressed, TokenCompressor
from lightkv_graphs import Grid, TokenLayout, plan_stage


def pooled(x: Tensor, layout: TokenLayout, ratio: float) -> Compressed:
    return TokenCompressor(mean, pool)(x, layout, plan_stage(layout.occupancy, 1, ratio))


def test_everything_pooled_is_average_pooling() -> None:
    grids: list[list[Grid]] = [[(4, 6)], [(2, 2), (8, 4)]]
    layout = make_layout(grids)
    x = features(layout)[0]
    found = pooled(x, layout, 0.75)
    expected, start = [], 0
    for rows, cols in (grid for own in grids for grid in own):
        image = x[start : start + rows * cols].T.reshape(1, -1, rows, cols)
        expected.append(torch.nn.functional.avg_pool2d(image, 2).flatten(2)[0].T)
        start += rows * cols
    torch.testing.assert_close(found.hidden_states, torch.cat(expected))
    assert found.layout.mass.unique().tolist() == [4]
    assert not (found.layout.row % 2).any()
    assert not (found.layout.col % 2).any()


def test_the_edge_of_an_odd_grid_has_smaller_blocks() -> None:
    layout = make_layout([[(3, 5)]])
    x = features(layout)[0]
    found = pooled(x, layout, 0.6)  # 9 of 15: all that six blocks can lose
    assert found.layout.mass.tolist() == [4, 4, 2, 2, 2, 1]
    torch.testing.assert_close(found.hidden_states[2], x[[4, 9]].mean(0))
    with pytest.raises(ValueError, match=r"\[10\] tokens are to leave: blocks have \[9\] to lose"):
        pooled(x, layout, 0.67)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.3, 0.51, 0.74])
def test_as_many_leave_as_planned(ratio: float) -> None:
    layout = make_layout([[(8, 8)], [(6, 4), (4, 10)]], newlines=True)
    x = features(layout)[0]
    plan = plan_stage(layout.occupancy, 1, ratio)
    found = TokenCompressor(mean, pool)(x, layout, plan)
    for image, gone in enumerate(plan.merges):
        own = (found.layout.image == image) & ~found.layout.protected
        mass = found.layout.mass[own]
        assert int((mass == 4).sum()) == gone // 3
        assert int(((mass > 1) & (mass < 4)).sum()) == (gone % 3 > 0)
    untouched = found.layout.mass == 1
    assert torch.equal(found.hidden_states[untouched], x[found.kept[untouched]])
    assert int(found.layout.protected.sum()) == int(layout.protected.sum())
    for survivor in (found.layout.mass > 1).nonzero()[:, 0].tolist():
        members = (found.survivor == survivor).nonzero()[:, 0]
        assert (layout.row[members] // 2).unique().numel() == 1
        assert (layout.col[members] // 2).unique().numel() == 1
        assert layout.image[members].unique().numel() == 1
        torch.testing.assert_close(found.hidden_states[survivor], x[members].mean(0))


@pytest.mark.parametrize("ratio", [0.1875, 0.375, 0.5625])
def test_blocks_lie_evenly(ratio: float) -> None:
    """Every quarter of the picture, and every row of blocks, has its share."""
    layout = make_layout([[(16, 16)]])
    found = pooled(features(layout)[0], layout, ratio)
    full = found.layout.mass == 4
    row, col = found.layout.row[full] // 2, found.layout.col[full] // 2
    share = ratio / 0.75
    quarters = torch.bincount(row // 4 * 2 + col // 4, minlength=4)
    assert int((quarters - 16 * share).abs().max()) <= 1
    for side in (row, col):
        assert float((torch.bincount(side, minlength=8) - 8 * share).abs().max()) < 2


def test_more_than_blocks_have_to_lose_is_refused() -> None:
    method = METHODS["pooling"]
    assert method.stages(Budget(0.55, 2, 8, (16, 16)))[0].ratio == 0.72  # type: ignore[attr-defined]
    with pytest.raises(ScheduleError, match=r"pooling after layer 3 has to take 90% .* lose 75%"):
        method.stages(Budget(0.55, 3, 8, (16, 16)))  # type: ignore[attr-defined]
    with pytest.raises(ScheduleError, match=r"72% .* blocks of 2x2 lose 67%"):
        method.stages(Budget(0.55, 2, 8, (7, 7)))  # type: ignore[attr-defined]
