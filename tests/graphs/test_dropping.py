"""Dropping: as many as planned, the lowest scores, and heirs that stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import GRIDS, features, make_layout, tokens_of, windows_of
from torch import Tensor

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_gnn.stage.messages import MESSAGES, WeightedMean
from lightkv_graphs import (
    Grid,
    Matching,
    TokenLayout,
    WindowPartition,
    cosine_matching,
    drop_lowest,
    exact_count,
    plan_stage,
    window_partition,
)

every_grid = pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
every_ratio = pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.6, 0.9, 0.99])


def partition_of(layout: TokenLayout, windows: int, ratio: float) -> WindowPartition:
    return window_partition(layout, plan_stage(layout.occupancy, windows, ratio))


@every_grid
@every_ratio
@pytest.mark.parametrize("windows", [1, 2])
def test_the_lowest_of_each_window_leave(
    grids: list[list[Grid]], ratio: float, windows: int
) -> None:
    layout = make_layout(grids, newlines=True, protect=7, holes=5)
    x, score = features(layout)
    partition = partition_of(layout, windows, ratio)
    matching = drop_lowest(score, x, partition)
    matching.check(partition)
    expected, heirs = [], {}
    for window in windows_of(tokens_of(x, layout), layout.grids, windows):
        number = int(exact_count(torch.tensor(len(window)), ratio))
        own = sorted(window, key=lambda n: float(score[n]))[:number]
        expected += own
        left = [n for n in window if n not in own]
        for n in own:
            heirs[n] = next((m for m in left if m > n), left[-1])
    assert matching.edge_index[0].tolist() == sorted(expected)
    assert matching.edge_index[1].tolist() == [heirs[n] for n in sorted(expected)]
    assert matching.dropped is not None
    assert bool(matching.dropped.all())


def test_ties_go_to_the_lowest_index() -> None:
    layout = make_layout([[(3, 4)], [(2, 4)]])
    matching = drop_lowest(torch.zeros(20), torch.ones(20, 2), partition_of(layout, 1, 0.5))
    assert matching.edge_index[0].tolist() == [*range(6), *range(12, 16)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.95])
def test_where_sizes_are_unknown_no_window_is_emptied(seed: int, ratio: float) -> None:
    full = make_layout([[(7, 8), (5, 5)], [(3, 9)]])
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(len(full), generator=generator) < 0.4
    names = ("sample", "image", "row", "col")
    layout = TokenLayout.from_tokens(
        **{name: getattr(full, name)[keep] for name in names}, grids=full.grids
    )
    blurred = tuple(occupancy.blurred(0) for occupancy in layout.occupancy)
    layout = replace(layout, occupancy=blurred)
    partition = partition_of(layout, 3, ratio)
    matching = drop_lowest(
        torch.rand(len(layout), generator=generator), features(layout)[0], partition
    )
    matching.check(partition)
    stays = torch.ones(len(layout), dtype=torch.bool)
    stays[matching.edge_index[0]] = False
    assert set(partition.window[stays].tolist()) == set(partition.window.tolist())


# --- what is dropped is silent ------------------------------------------------------------------


def half_dropped(x: Tensor, partition: WindowPartition) -> Matching:
    """Every other edge of the usual matching drops its source."""
    matching = cosine_matching(x, partition)
    return replace(matching, dropped=torch.arange(len(matching.similarity)) % 2 == 0)


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
def test_survivors_hear_nothing_of_what_is_dropped(message: WeightedMean, scatter: str) -> None:
    layout = make_layout([[(4, 6)], [(5, 5), (2, 8)]], newlines=True, protect=9)
    x, guidance = features(layout)
    plan = plan_stage(layout.occupancy, 2, 0.5)
    compressor = TokenCompressor(message, half_dropped, scatter)
    found = compressor(x, layout, plan, guidance)
    edges = found.graph["vision", "merges_into", "vision"]
    silent = torch.arange(len(edges.weight)) % 2 == 0
    assert not edges.weight[silent].any()
    for row, token in enumerate(found.kept.tolist()):
        members = [s for s, d in edges.edge_index[:, ~silent].t().tolist() if d == token]
        own = torch.tensor([token, *members])
        stays = torch.zeros(len(x), dtype=torch.bool).index_fill(0, found.kept, True)
        log = message.weigh(guidance, layout.mass, stays)[own]
        expected = (log.softmax(0)[:, None] * x[own]).sum(0)
        torch.testing.assert_close(found.hidden_states[row], expected)
    assert found.layout.mass.sum() == layout.mass.sum()  # but they are counted


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
@pytest.mark.parametrize("least", [-5.0, -torch.inf])
def test_where_all_is_dropped_survivors_keep_their_bits(
    message: WeightedMean, least: float, scatter: str
) -> None:
    layout = make_layout([[(4, 6)], [(5, 5)]], newlines=True)
    x, score = features(layout)
    x[score < -1] = torch.nan  # what leaves takes its NaN along
    plan = plan_stage(layout.occupancy, 1, 0.7)
    guidance = torch.full_like(score, least)
    compressor = TokenCompressor(
        message, lambda x, partition: drop_lowest(score, x, partition), scatter
    )
    found = compressor(x.float(), layout, plan, guidance.float())
    torch.testing.assert_close(
        found.hidden_states, x.float()[found.kept], rtol=0, atol=0, equal_nan=True
    )


def test_a_flag_for_every_edge() -> None:
    layout = make_layout([[(4, 4)]])
    partition = partition_of(layout, 1, 0.25)
    matching = cosine_matching(features(layout)[0], partition)
    replace(matching, dropped=torch.zeros(4, dtype=torch.bool)).check(partition)
    with pytest.raises(ValueError, match=r"dropped \[3\]: expected one bool per edge, \[4\]"):
        replace(matching, dropped=torch.zeros(3, dtype=torch.bool)).check(partition)
