"""Coverage matching equals a loop, comes near the best choice, and hears the prompt."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
import torch
from reference import GRIDS, Token, cosine, features, make_layout, tokens_of, windows_of
from torch import Tensor

from lightkv_graphs import (
    CoverageMatching,
    Matching,
    TokenLayout,
    WindowPartition,
    coverage_matching,
    plan_stage,
    window_partition,
)

RATIOS = [Fraction(1, 4), Fraction(1, 2), Fraction(4, 5), Fraction(99, 100)]
HOW = {
    "default": coverage_matching,
    "blind": CoverageMatching(0),
    "steep": CoverageMatching(2.0, anchors=1 / 3),
    "centre": CoverageMatching(1.0, objective="max"),
    "anchored centre": CoverageMatching(0.5, 0.5, "max"),
}
SUMMED_UP = [*range(9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]
ways = pytest.mark.parametrize("how", HOW.values(), ids=HOW)


def partition_of(layout: TokenLayout, windows: int, ratio: float) -> WindowPartition:
    return window_partition(layout, plan_stage(layout.occupancy, windows, ratio))


def matched(
    how: CoverageMatching, x: Tensor, layout: TokenLayout, guidance: Tensor, ratio: float
) -> Matching:
    """In one window per image; checked."""
    partition = partition_of(layout, 1, ratio)
    matching = how(x, partition, guidance, layout)
    matching.check(partition)
    return matching


def staying(matching: Matching, tokens: int) -> list[int]:
    return sorted(set(range(tokens)) - set(matching.edge_index[0].tolist()))


# --- the reference --------------------------------------------------------------------------------


def counts(tokens: list[Token], guidance: list[float], power: float) -> tuple[list, list]:
    """Guidance relative to the mean of each image, and what every token counts."""
    heard, weight = [0.0] * len(tokens), [0.0] * len(tokens)
    for image in {token.image for token in tokens}:
        own = [n for n, t in enumerate(tokens) if t.image == image and not t.protected]
        total = sum(math.exp(guidance[n]) for n in own)
        for n in own:
            heard[n] = math.exp(guidance[n]) * len(own) / total
            weight[n] = tokens[n].mass * heard[n] ** power
    return heard, weight


def covered(tokens: list[Token], stay: list[int], j: int) -> float:
    near = [1.0 if i == j else cosine(tokens[i].x, tokens[j].x) for i in stay]
    return max(near, default=0.0)


def coverage(tokens: list[Token], weight: list[float], window: list[int], stay: list[int]) -> float:
    """F(S) of one window."""
    return sum(weight[j] * max(0.0, covered(tokens, stay, j)) for j in window)


def chosen(
    how: CoverageMatching, tokens: list[Token], guidance: list[float], window: list[int], k: int
) -> list[int]:
    """Who stays in a window, one by one."""
    heard, weight = counts(tokens, guidance, how.guidance_power)
    stay: list[int] = []
    summed: list[int] = []  # those that stayed when gains were summed up
    for step in range(k):
        if step in SUMMED_UP:
            summed = list(stay)

        def gain(i: int, step: int = step, summed: list[int] = summed) -> float:
            bare = 1 - max(0.0, covered(tokens, stay, i))
            if step < math.floor(how.anchors * k + 1e-6):
                return heard[i]
            if how.objective == "max":
                return weight[i] * bare
            more = coverage(tokens, weight, window, [*summed, i])
            more -= coverage(tokens, weight, window, summed)
            before = 1 - max(0.0, covered(tokens, summed, i))
            more = more if summed == stay else more * bare / max(before, 1e-6)
            return round(more, 9)  # two that cover each other alone add the same

        stay.append(max((i for i in window if i not in stay), key=gain))
    return stay


@ways
@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("ratio", RATIOS, ids=str)
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_it_equals_the_loop(
    grids: list, windows: int, ratio: Fraction, how: CoverageMatching
) -> None:
    layout = make_layout(grids, newlines=True, protect=7)
    masses = torch.arange(len(layout)) % 3 + 1
    layout = replace(layout, mass=masses)
    x, guidance = features(layout, seed=windows)
    partition = partition_of(layout, windows, float(ratio))
    matching = how(x, partition, guidance, layout)
    matching.check(partition)
    tokens = tokens_of(x, layout)
    edges = []
    for window in windows_of(tokens, layout.grids, windows):
        stay = chosen(
            how, tokens, guidance.tolist(), window, len(window) - math.floor(ratio * len(window))
        )
        for source in set(window) - set(stay):
            near = [(-cosine(tokens[source].x, tokens[d].x), d) for d in stay]
            edges.append([source, min(near)[1]])
    assert matching.edge_index.T.tolist() == sorted(edges)
    found = [cosine(tokens[s].x, tokens[d].x) for s, d in sorted(edges)]
    assert matching.similarity.tolist() == pytest.approx(found, abs=1e-5)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_greedy_choice_is_nearly_the_best(seed: int) -> None:
    """By exhaustive search; of so few tokens the choice is greedy."""
    layout = make_layout([[(2, 5)]])
    x, guidance = features(layout, seed, channels=3)
    tokens, window = tokens_of(x, layout), list(range(10))
    _, weight = counts(tokens, guidance.tolist(), 0.5)
    for ratio in (0.5, 0.7):
        stay = staying(matched(coverage_matching, x, layout, guidance, ratio), 10)
        best = max(
            coverage(tokens, weight, window, list(some)) for some in combinations(window, len(stay))
        )
        assert coverage(tokens, weight, window, stay) >= (1 - 1 / math.e) * best


@pytest.mark.parametrize("seed", range(8))
def test_farthest_points_are_within_twice_the_best_radius(seed: int) -> None:
    """In angles, which are a metric; their order is that of ``1 - cos``."""
    layout = make_layout([[(2, 5)]])
    x, guidance = features(layout, seed, channels=3)
    x = x + 4  # where all cosines are positive, nothing is cut off
    tokens = tokens_of(x, layout)

    def radius(stay: list[int]) -> float:
        return max(math.acos(min(1.0, covered(tokens, stay, j))) for j in range(10))

    blind = CoverageMatching(0, objective="max")
    stay = staying(matched(blind, x, layout, guidance, 0.7), 10)
    best = min(radius(list(some)) for some in combinations(range(10), len(stay)))
    assert radius(stay) <= 2 * best + 1e-6


@ways
def test_those_that_stay_of_few_stay_of_many(how: CoverageMatching) -> None:
    """Unless anchors, whose number grows with them, come first: coverage grows with k."""
    layout = make_layout([[(4, 5)]])
    x, guidance = features(layout, seed=3)
    kept = [
        set(staying(matched(replace(how, anchors=0), x, layout, guidance, ratio), 20))
        for ratio in (0.95, 0.8, 0.5, 0.25, 0.0)
    ]
    assert [len(some) for some in kept] == [1, 4, 10, 15, 20]
    for few, many in pairwise(kept):
        assert few < many


@ways
def test_the_order_in_a_window_does_not_matter(how: CoverageMatching) -> None:
    layout = make_layout([[(4, 5)]])
    x, guidance = features(layout, seed=4)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    one = staying(matched(how, x, layout, guidance, 0.6), 20)
    other = staying(matched(how, x[order], layout, guidance[order], 0.6), 20)
    assert sorted(order[other].tolist()) == one


@ways
def test_equal_tokens_collapse_first(how: CoverageMatching) -> None:
    """Four kinds of token, and room for four: one of each stays, and the others join their like."""
    layout = make_layout([[(4, 5)]])
    kinds = torch.randint(4, (20,), generator=torch.Generator().manual_seed(1))
    assert len(kinds.unique()) == 4
    x = torch.eye(4)[kinds] * torch.rand(20, 1, generator=torch.Generator().manual_seed(2)).add(1)
    matching = matched(replace(how, anchors=0), x, layout, torch.zeros(20), 0.8)
    assert sorted(kinds[staying(matching, 20)].tolist()) == [0, 1, 2, 3]
    source, destination = matching.edge_index
    assert torch.equal(kinds[source], kinds[destination])
    torch.testing.assert_close(matching.similarity, torch.ones(16))


@ways
def test_what_the_prompt_ignores_does_not_stay_for_it(how: CoverageMatching) -> None:
    layout = make_layout([[(4, 5)]])
    x, guidance = features(layout, seed=5)
    for token in range(20):
        ignored = guidance.clone()
        ignored[token] = -math.inf
        before = staying(matched(how, x, layout, guidance, 0.6), 20)
        after = staying(matched(how, x, layout, ignored, 0.6), 20)
        assert token in before or token not in after


def test_the_prompt_decides_who_stays() -> None:
    layout = make_layout([[(4, 5)]])
    x, _ = features(layout, seed=6)
    for token in range(20):
        heard = torch.zeros(20)
        heard[token] = 6.0
        assert token in staying(matched(coverage_matching, x, layout, heard, 0.9), 20)
        anchored = CoverageMatching(0, anchors=0.5)
        assert token in staying(matched(anchored, x, layout, heard, 0.9), 20)
    blind = [
        staying(matched(CoverageMatching(0), x, layout, guidance, 0.6), 20)
        for guidance in (torch.zeros(20), torch.randn(20))
    ]
    assert blind[0] == blind[1]


@ways
def test_a_batch_is_its_images(how: CoverageMatching) -> None:
    layout = make_layout([[(4, 5), (3, 3)], [], [(6, 2)]])
    x, guidance = features(layout, seed=7)
    together = matched(how, x, layout, guidance, 0.6)
    first, edges, certificates = 0, [], []
    for grid in layout.grids:
        single = make_layout([[grid]])
        own = slice(first, first + len(single))
        alone = matched(how, x[own], single, guidance[own], 0.6)
        edges.append(alone.edge_index + first)
        certificates.append(alone.certificate)
        first += len(single)
    assert torch.equal(together.edge_index, torch.cat(edges, dim=1))
    for value, *parts in zip(together.certificate, *certificates, strict=True):
        torch.testing.assert_close(value, torch.cat(parts))


@ways
def test_windows_of_unknown_sizes_give_up_what_is_planned(how: CoverageMatching) -> None:
    """After a stage in other windows, how many tokens each holds is known to the device alone."""
    layout = make_layout([[(7, 9)], [(5, 4)]])
    x, guidance = features(layout, seed=8)
    partition = partition_of(layout, 3, 0.5)
    first = how(x, partition, guidance, layout)
    stays = torch.tensor(staying(first, len(layout)))
    columns = ("sample", "image", "row", "col", "protected")
    after = TokenLayout.from_tokens(
        **{name: getattr(layout, name)[stays] for name in columns}, grids=layout.grids
    )
    after = replace(after, occupancy=partition.plan.occupancy)
    for ratio in (0.3, 0.5, 0.7):
        plan = plan_stage(after.occupancy, 2, ratio)
        assert plan.leaving is None
        again = window_partition(after, plan)
        how(x[stays], again, guidance[stays], after).check(again)


@ways
def test_broken_tokens_stay_and_tokens_of_no_length_are_like_no_other(
    how: CoverageMatching,
) -> None:
    layout = make_layout([[(4, 5)]])
    x, guidance = features(layout, seed=9)
    x[[3, 11], 2] = torch.tensor([math.nan, math.inf], dtype=x.dtype)
    x[7] = 0
    matching = matched(how, x, layout, guidance, 0.6)
    assert {3, 11} <= set(staying(matching, 20))
    assert not torch.isin(matching.edge_index[1], torch.tensor([3, 11])).any()
    x[5:] = math.nan
    assert staying(matched(how, x, layout, guidance, 0.6), 20) == [3, *range(5, 12)]
    x[:] = math.nan
    matching = matched(how, x, layout, guidance, 0.6)
    assert staying(matching, 20) == list(range(8))
    assert matching.similarity.tolist() == [-math.inf] * 12


def test_ties_go_to_the_lowest_index() -> None:
    layout = make_layout([[(4, 5)]])
    for how in HOW.values():
        matching = matched(how, torch.ones(20, 3), layout, torch.zeros(20), 0.8)
        assert staying(matching, 20) == [0, 1, 2, 3]
        assert matching.edge_index[1].tolist() == [0] * 16


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"guidance_power": -1}, ValueError, "guidance_power is -1: expected a finite exponent"),
        ({"guidance_power": math.inf}, ValueError, "guidance_power is inf"),
        ({"guidance_power": math.nan}, ValueError, "guidance_power is nan"),
        ({"guidance_power": "1"}, TypeError, "guidance_power is '1': expected a number"),
        ({"anchors": 1.5}, ValueError, r"anchors is 1.5: expected a fraction from 0 to 1"),
        ({"anchors": True}, TypeError, "anchors is True: expected a number"),
        ({"objective": "mean"}, ValueError, "objective is 'mean': expected one of"),
    ],
)
def test_bad_options(given: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CoverageMatching(**given)


# --- the certificate ------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("seed", range(4))
def test_no_choice_loses_less_than_the_certificate_says(seed: int, how: CoverageMatching) -> None:
    """Nor covers more: by exhaustive search, whatever was chosen, and whatever share leaves."""
    layout = make_layout([[(2, 5)]])
    layout = replace(layout, mass=torch.arange(10) % 3 + 1)
    x, guidance = features(layout, seed, channels=3)
    guidance[: 2 * (seed % 3)] = -math.inf  # tokens that the prompt does not care for
    tokens, window = tokens_of(x, layout), list(range(10))
    _, weight = counts(tokens, guidance.tolist(), how.guidance_power)
    bounds = []
    for ratio in (0.2, 0.5, 0.7, 0.9):
        matching = matched(how, x, layout, guidance, ratio)
        stay = staying(matching, 10)

        def lost(some: list[int]) -> float:
            return sum(weight) - coverage(tokens, weight, window, some)

        assert matching.certificate is not None
        total, told, least = (float(value) for value in matching.certificate)
        assert total == pytest.approx(sum(weight), rel=1e-5)
        assert told == pytest.approx(lost(stay), rel=1e-4, abs=1e-5)
        best = min(lost(list(some)) for some in combinations(window, len(stay)))
        assert 0 <= least <= best + 1e-5
        bounds.append(least / best if best > 1e-3 else 1.0)
    assert max(bounds) > 0.5  # a bound that says something


def test_the_certificate_of_copies_is_nothing_and_of_broken_tokens_no_nan() -> None:
    layout = make_layout([[(4, 5)]])
    certificate = matched(coverage_matching, torch.ones(20, 3), layout, torch.zeros(20), 0.5)
    assert certificate.certificate.shares() == pytest.approx((0.0, 0.0), abs=1e-6)
    x, guidance = features(layout, seed=9)
    x[:5] = math.nan
    lost, least = matched(coverage_matching, x, layout, guidance, 0.6).certificate.shares()
    assert 0 < least <= lost < 1
    x[:] = math.nan
    told = matched(coverage_matching, x, layout, guidance, 0.6).certificate.shares()
    assert 0 <= told[1] <= told[0] <= 1


@ways
def test_guidance_beyond_all_bounds_keeps_the_laws(how: CoverageMatching) -> None:
    """Powers overflow: who is asked for most stays, all are chosen once, losses are numbers."""
    layout = make_layout([[(6, 6)]])
    x, _ = features(layout)
    guidance = torch.linspace(-60, 60, 36)
    how = replace(how, guidance_power=40.0)
    matching = matched(how, x, layout, guidance, Fraction(1, 2))
    stays = staying(matching, 36)
    assert len(stays) == 18
    assert 35 in stays
    assert matching.certificate is not None
    lost, least = matching.certificate.shares()
    assert 0 <= least <= lost <= 1


def test_autocast_changes_nothing() -> None:
    layout = make_layout([[(4, 4)]])
    x, guidance = features(layout)
    expected = matched(coverage_matching, x, layout, guidance, Fraction(1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        found = matched(coverage_matching, x, layout, guidance, Fraction(1, 2))
    assert found.similarity.dtype == torch.float32
    assert found.edge_index.shape == expected.edge_index.shape
