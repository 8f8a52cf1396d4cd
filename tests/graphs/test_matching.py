"""Matchers agree with the reference, keep their contract, and are caught when they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from reference import (
    GRIDS,
    RATIOS,
    Token,
    cosine,
    features,
    make_layout,
    run_stage,
    tokens_of,
    windows_of,
)
from torch import Tensor

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import (
    Grid,
    Matcher,
    Matching,
    TokenLayout,
    WindowPartition,
    bipartition,
    cosine_matching,
    edge_cosine,
    plan_stage,
    random_matching,
    stride_matching,
    take_edges,
    window_partition,
)

every_grid = pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
every_matcher = pytest.mark.parametrize(
    "matcher", [cosine_matching, random_matching, stride_matching], ids=lambda m: m.__name__
)


def partition_of(layout: TokenLayout, windows: int, ratio: float) -> WindowPartition:
    return window_partition(layout, plan_stage(layout.occupancy, windows, ratio))


def expected_edges(x: Tensor, layout: TokenLayout, windows: int, ratio: float) -> list[list[int]]:
    (share,) = (r for r in RATIOS.values() if float(r) == ratio)
    edges = run_stage(tokens_of(x, layout), layout.grids, windows, share).edges
    return [list(edge) for edge in edges]


@every_grid
@pytest.mark.parametrize("windows", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_cosine_matching_equals_the_reference(
    grids: list[list[Grid]], windows: int, dtype: torch.dtype
) -> None:
    layout = make_layout(grids, newlines=True, protect=7, holes=5)
    x = features(layout, seed=windows)[0].to(dtype)
    for ratio in map(float, RATIOS.values()):
        matching = cosine_matching(x, partition_of(layout, windows, ratio))
        edges = matching.edge_index.t().tolist()
        assert edges == expected_edges(x.double(), layout, windows, ratio)
        rows = x.double().tolist()
        assert matching.similarity.tolist() == pytest.approx(
            [cosine(rows[s], rows[d]) for s, d in edges], abs=1e-6
        )


@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("seed", range(2))
def test_exact_ties_go_to_the_lowest_index(channels: int, seed: int) -> None:
    """Signs have lengths and products without rounding, and many equal cosines."""
    layout = make_layout([[(6, 7)], [(5, 5)]])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (len(layout), channels), generator=generator).double() * 2 - 1
    for windows in (1, 2):
        for ratio in map(float, RATIOS.values()):
            matching = cosine_matching(x, partition_of(layout, windows, ratio))
            expected = expected_edges(x, layout, windows, ratio)
            assert matching.edge_index.t().tolist() == expected


def test_identical_tokens_join_the_first_destination() -> None:
    layout = make_layout([[(3, 4)]])
    matching = cosine_matching(torch.ones(12, 5), partition_of(layout, 1, 0.25))
    assert matching.edge_index.tolist() == [[0, 2, 4], [1, 1, 1]]


def test_length_does_not_matter() -> None:
    layout = make_layout([[(5, 6)]])
    x = features(layout)[0].float()
    scale = 2.0 ** torch.randint(-8, 9, (len(layout), 1))
    before, after = (cosine_matching(v, partition_of(layout, 2, 0.25)) for v in (x, x * scale))
    assert torch.equal(before.edge_index, after.edge_index)


def test_half_precision_does_not_overflow() -> None:
    """Lengths beyond the largest float16 are measured in float32."""
    layout = make_layout([[(6, 6)]])
    x = (features(layout)[0] * 20000).clamp(-60000, 60000).half()
    assert x.isfinite().all()
    assert x.norm(dim=1).isinf().any()
    matching = cosine_matching(x, partition_of(layout, 2, 0.25))
    assert matching.edge_index.t().tolist() == expected_edges(x.double(), layout, 2, 0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("bad", [(0,), (1,), (3, 4, 14), tuple(range(0, 36, 5))])
def test_tokens_without_direction(value: float, bad: tuple[int, ...]) -> None:
    layout = make_layout([[(6, 6)]])
    x = features(layout)[0]
    x[list(bad)] = value
    for windows in (1, 2):
        for ratio in map(float, RATIOS.values()):
            matching = cosine_matching(x, partition_of(layout, windows, ratio))
            expected = expected_edges(x, layout, windows, ratio)
            assert matching.edge_index.t().tolist() == expected


def test_nan_tokens_are_merged_last_and_never_merged_into() -> None:
    layout = make_layout([[(4, 6)]])
    x = features(layout)[0]
    bad = [0, 1, 6, 7]
    x[bad] = math.nan
    matching = cosine_matching(x, partition_of(layout, 1, 0.25))
    assert not set(matching.edge_index.flatten().tolist()) & set(bad)


def test_matching_has_no_gradient() -> None:
    layout = make_layout([[(4, 4)]])
    x = features(layout)[0].requires_grad_()
    for matcher in (cosine_matching, random_matching, stride_matching):
        assert not matcher(x, partition_of(layout, 2, 0.5)).similarity.requires_grad


# --- contracts --------------------------------------------------------------------------------


@every_matcher
@every_grid
@pytest.mark.parametrize("windows", [1, 2, 3])
def test_matchers_keep_the_contract(
    matcher: Matcher, grids: list[list[Grid]], windows: int
) -> None:
    layout = make_layout(grids, newlines=True, protect=7)
    x = features(layout)[0]
    for ratio in map(float, RATIOS.values()):
        partition = partition_of(layout, windows, ratio)
        matching = matcher(x, partition)
        matching.check(partition)
        source, destination = matching.edge_index
        assert bool((source[1:] > source[:-1]).all())
        assert not layout.protected[torch.cat([source, destination])].any()
        rows = x.tolist()
        assert matching.similarity.tolist() == pytest.approx(
            [cosine(rows[s], rows[d]) for s, d in matching.edge_index.t().tolist()], abs=1e-6
        )


def test_random_matching_draws_from_torch() -> None:
    layout = make_layout([[(8, 8)]])
    x, partition = features(layout)[0], partition_of(layout, 2, 0.25)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(random_matching(x, partition).edge_index)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    sources = torch.cat([random_matching(x, partition).edge_index[0] for _ in range(60)])
    assert set(sources.tolist()) == set(range(64))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_stride_matching_pairs_neighbours(ratio: float) -> None:
    layout = make_layout([[(3, 7)], [(4, 4)]])
    expected = []
    for window in windows_of(tokens_of(features(layout)[0], layout), layout.grids, 2):
        expected += list(zip(window[0::2], window[1::2], strict=False))[: int(ratio * len(window))]
    matching = stride_matching(features(layout)[0], partition_of(layout, 2, ratio))
    assert matching.edge_index.t().tolist() == [list(edge) for edge in sorted(expected)]


def test_bipartition_alternates() -> None:
    sources, destinations = bipartition(torch.arange(12).reshape(2, 6))
    assert sources.tolist() == [[0, 2, 4], [6, 8, 10]]
    assert destinations.tolist() == [[1, 3, 5], [7, 9, 11]]


def test_edge_cosine() -> None:
    x = torch.tensor([[2.0, 0], [1, 1], [0, -3], [0, 0]], dtype=torch.float16)
    edges = torch.tensor([[0, 0, 1, 0, 0], [0, 1, 2, 2, 3]])
    half = math.sqrt(0.5)
    assert edge_cosine(x, edges).tolist() == pytest.approx([1, half, -half, 0, 0])


# --- windows of unknown sizes -----------------------------------------------------------------


def least_divergent(
    windows: Sequence[Sequence[int]],
    images: Sequence[int],
    cost: dict[int, float],
    share: float,
    totals: Sequence[int],
) -> list[int]:
    """Sources that leave: each window's share first, then the image's cheapest, up to half."""
    leaving: list[int] = []
    for image, total in enumerate(totals):
        tiers: list[list[int]] = [[], []]
        for window in (w for w, i in zip(windows, images, strict=True) if i == image):
            ranked = sorted(window[0::2], key=lambda source: (cost[source], source))
            own, half = math.floor(share * len(window)), len(window) // 2
            tiers[0] += ranked[:own]
            tiers[1] += ranked[own:half]
        queue = [s for tier in tiers for s in sorted(tier, key=lambda source: cost[source])]
        leaving += queue[:total]
    return sorted(leaving)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_where_sizes_are_unknown_the_cheapest_edges_of_the_image_make_up_the_total(
    ratio: float, seed: int
) -> None:
    layout = make_layout([[(7, 8), (5, 5)], [(3, 9)]], newlines=True)
    generator = torch.Generator().manual_seed(seed)
    drop = torch.rand(len(layout), generator=generator) < 0.5
    keep = ~drop | layout.protected
    names = ("sample", "image", "row", "col", "protected")
    thinned = TokenLayout.from_tokens(
        **{name: getattr(layout, name)[keep] for name in names}, grids=layout.grids
    )
    blurred = tuple(occupancy.blurred(0) for occupancy in thinned.occupancy)
    thinned = replace(thinned, occupancy=blurred)
    partition = window_partition(thinned, plan_stage(blurred, 2, ratio))
    sources, destinations = bipartition(partition.slots())
    destinations = destinations[:, :1].expand_as(sources)
    divergence = torch.rand(sources.shape, generator=generator)
    edges, cost = take_edges(partition, sources, destinations, divergence)

    tokens: list[Token] = tokens_of(torch.zeros(len(thinned), 1), thinned)
    windows = windows_of(tokens, thinned.grids, 2)
    price = dict(zip(sources.flatten().tolist(), divergence.flatten().tolist(), strict=True))
    images = [tokens[window[0]].image for window in windows]
    expected = least_divergent(windows, images, price, ratio, partition.plan.merges)
    assert edges[0].tolist() == expected
    assert cost.tolist() == pytest.approx([price[source] for source in expected])
    Matching(edges, cost).check(partition)


@pytest.mark.parametrize(("windows", "ratio"), [(1, 0.5), (2, 0.5), (3, 0.25), (4, 0.5), (3, 0.0)])
def test_what_the_host_knows_of_windows_changes_no_edge(windows: int, ratio: float) -> None:
    """Sizes known before the stage spare the search of whole images, and find the same edges."""
    layout = make_layout([[(7, 8), (5, 5)], [(3, 9)]], newlines=True)
    partition = partition_of(layout, windows, ratio)
    assert partition.plan.leaving is not None
    assert sum(partition.plan.leaving) == partition.plan.total
    unaware = replace(partition, plan=replace(partition.plan, leaving=None))
    sources, destinations = bipartition(partition.slots())
    destinations = destinations[:, :1].expand_as(sources)
    divergence = torch.randint(0, 9, sources.shape).float()  # with ties
    known, searched = (
        take_edges(which, sources, destinations, divergence) for which in (partition, unaware)
    )
    assert torch.equal(known[0], searched[0])
    assert torch.equal(known[1], searched[1])


@pytest.mark.parametrize("known", [True, False])
def test_a_divergence_of_nan_comes_last_but_before_padding(known: bool) -> None:
    layout = make_layout([[(3, 3)]])  # windows of 4, 2, 2 and 1 tokens

    def taken(ratio: float) -> list[int]:
        partition = partition_of(layout, 2, ratio)
        if not known:
            partition = replace(partition, plan=replace(partition.plan, leaving=None))
        sources, destinations = bipartition(partition.slots())
        divergence = torch.zeros(sources.shape)
        divergence[(sources == 0) | (sources == 2)] = torch.nan
        return take_edges(partition, sources, destinations, divergence)[0][0].tolist()

    assert taken(0.5) == [0, 2, 3, 6]  # all there are: half of each window is a source
    assert taken(0.25) == [3]


def test_features_without_channels_are_all_alike() -> None:
    layout = make_layout([[(4, 4)]])
    matching = cosine_matching(torch.zeros(16, 0), partition_of(layout, 2, 0.5))
    assert matching.similarity.tolist() == [0] * 8


@pytest.mark.parametrize("grids", [[[(6, 6)]], [[(5, 7)], [(3, 3)]]])
def test_more_edges_than_there_are_sources(grids: list[list[tuple[int, int]]]) -> None:
    """A matcher that merges seven tenths of half the tokens is told so."""

    def greedy(x: Tensor, partition: WindowPartition) -> Matching:
        sources, destinations = bipartition(partition.slots())
        edges, cost = take_edges(partition, sources, destinations, torch.rand(sources.shape))
        return Matching(edges, torch.zeros_like(cost))

    layout = make_layout(grids)
    plan = plan_stage(layout.occupancy, 2, 0.7)
    with pytest.raises(ValueError, match="the matcher"):
        TokenCompressor(matcher=greedy)(torch.randn(len(layout), 4), layout, plan)


# --- wrong matchers ---------------------------------------------------------------------------

# One image of 4x8 in four windows of 2x4: from each, two of eight tokens leave.
GOOD = [[0, 2, 4, 6, 16, 18, 20, 22], [1, 1, 5, 5, 17, 17, 21, 21]]


def matching_of(edges: Sequence[Sequence[int]], dtype: torch.dtype = torch.int64) -> Matching:
    return Matching(torch.tensor(edges, dtype=dtype), torch.zeros(len(edges[0])))


def changed(place: int, source: int, destination: int) -> Matching:
    edges = [list(row) for row in GOOD]
    edges[0][place], edges[1][place] = source, destination
    return matching_of(edges)


def test_a_right_matching_passes() -> None:
    matching_of(GOOD).check(partition_of(make_layout([[(4, 8)]]), 2, 0.25))
    unknown = torch.tensor([torch.nan, -torch.inf] + [1.0] * 6)
    Matching(torch.tensor(GOOD), unknown).check(partition_of(make_layout([[(4, 8)]]), 2, 0.25))


@pytest.mark.parametrize(
    ("matching", "message"),
    [
        (
            matching_of([row[1:] for row in GOOD]),
            r"\[2, 7\] .*expected \[2, 8\] and \[8\], one edge",
        ),
        (matching_of([[*row, 3] for row in GOOD]), r"returned edge_index \[2, 9\]"),
        (Matching(torch.tensor(GOOD).t(), torch.zeros(8)), r"returned edge_index \[8, 2\]"),
        (Matching(torch.tensor(GOOD), torch.zeros(8, 1)), r"similarity \[8, 1\]"),
        (Matching(torch.tensor(GOOD), torch.full((8,), 50.0)), "outside -1 to 1: expected the cos"),
        (matching_of(GOOD, torch.int32), r"named a token that is no int64 in 0..31"),
        (changed(0, -32, 1), r"named a token that is no int64 in 0..31"),
        (changed(0, 0, -31), r"named a token that is no int64 in 0..31"),
        (changed(0, 32, 1), r"named a token that is no int64 in 0..31"),
        (changed(1, 0, 1), "merged one source twice: a token leaves at most once"),
        (changed(1, 2, 0), "merged into a token that leaves: destinations must stay"),
        (changed(1, 2, 2), "merged into a token that leaves"),
        (changed(1, 2, 7), "drew an edge between windows: merges stay inside one"),
        (changed(1, 3, 23), "drew an edge between windows"),
        (changed(7, 24, 17), r"left \[6, 6, 5, 7\] tokens in the windows of image 0: expected \[6"),
    ],
)
def test_wrong_matchings_are_caught(matching: Matching, message: str) -> None:
    partition = partition_of(make_layout([[(4, 8)]]), 2, 0.25)
    with pytest.raises(ValueError, match=message):
        matching.check(partition)


def test_merges_are_counted_per_image() -> None:
    partition = partition_of(make_layout([[(2, 4)], [(2, 4)]]), 1, 0.25)
    matching_of([[0, 2, 8, 10], [1, 1, 9, 9]]).check(partition)
    with pytest.raises(ValueError, match=r"took \[3, 1\] edges per image: expected \[2, 2\]"):
        matching_of([[0, 2, 4, 10], [1, 1, 1, 9]]).check(partition)


def test_protected_tokens_may_not_be_merged() -> None:
    layout = make_layout([[(2, 4)]], newlines=True)
    with pytest.raises(ValueError, match=r"took \[1, 1\] edges per image: expected \[2\]"):
        matching_of([[0, 4], [1, 9]]).check(partition_of(layout, 1, 0.25))
