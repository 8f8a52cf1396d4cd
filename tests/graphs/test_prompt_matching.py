"""Matching that hears the prompt equals a loop, and protects what it says it protects."""

from __future__ import annotations

import math

import pytest
import torch
from reference import GRIDS, RATIOS, cosine, features, make_layout, tokens_of, windows_of
from torch import Tensor

from lightkv_graphs import (
    Grid,
    PromptMatching,
    TokenLayout,
    WindowPartition,
    cosine_matching,
    plan_stage,
    protecting_matching,
    resisting_matching,
    window_partition,
)
from lightkv_graphs.prompt_matching import relevance

every_grid = pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())


def partition_of(layout: TokenLayout, windows: int, ratio: float) -> WindowPartition:
    return window_partition(layout, plan_stage(layout.occupancy, windows, ratio))


def expected_edges(
    x: Tensor,
    layout: TokenLayout,
    guidance: Tensor,
    windows: int,
    ratio: float,
    how: PromptMatching,
) -> list[list[int]]:
    """Each step in Python numbers, one image and window at a time."""
    tokens = tokens_of(x, layout)
    logs = guidance.tolist()
    edges = []
    free = [n for n, token in enumerate(tokens) if not token.protected]
    relevance, safe = {}, set()
    for image in range(len(layout.grids)):
        own = [n for n in free if tokens[n].image == image]
        total = sum(math.exp(logs[n]) for n in own)
        for n in own:
            relevance[n] = math.exp(logs[n]) * len(own) / total if total else 1.0
        ranked = sorted(own, key=lambda n: (-logs[n], n))
        safe.update(ranked[: math.floor(how.protect * len(own) + 1e-9)])
    for window in windows_of(tokens, layout.grids, windows):
        candidates = []
        for source in window[0::2]:
            if len(window) == 1:
                continue
            near = [(d in safe, -cosine(tokens[source].x, tokens[d].x), d) for d in window[1::2]]
            _, negative, destination = min(near)
            cost = (1 + negative) * (relevance[source] if how.resist else 1.0)
            candidates.append((source in safe, cost, source, destination))
        gone = math.floor(ratio * len(window) + 1e-9)
        edges += [[source, destination] for *_, source, destination in sorted(candidates)[:gone]]
    return sorted(edges)


@every_grid
@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize(
    "how",
    [
        resisting_matching,
        protecting_matching,
        PromptMatching(resist=False, protect=0.4),
        PromptMatching(resist=True, protect=0.3),
    ],
    ids=str,
)
def test_it_equals_a_loop(grids: list[list[Grid]], windows: int, how: PromptMatching) -> None:
    layout = make_layout(grids, newlines=True, protect=7, holes=5)
    x, guidance = features(layout, seed=windows)
    for ratio in map(float, RATIOS.values()):
        partition = partition_of(layout, windows, ratio)
        matching = how(x, partition, guidance)
        matching.check(partition)
        expected = expected_edges(x, layout, guidance, windows, ratio, how)
        assert matching.edge_index.t().tolist() == expected
        rows = x.tolist()
        assert matching.similarity.tolist() == pytest.approx(
            [cosine(rows[s], rows[d]) for s, d in expected], abs=1e-6
        )


def test_the_most_relevant_tokens_neither_leave_nor_receive() -> None:
    layout = make_layout([[(6, 6), (4, 8)], [(5, 5)]], newlines=True)
    x, guidance = features(layout)
    matching = PromptMatching(resist=False, protect=0.25)(x, partition_of(layout, 1, 0.3), guidance)
    for image, count in enumerate([36, 32, 25]):
        own = ((layout.image == image) & ~layout.protected).nonzero()[:, 0]
        top = own[guidance[own].argsort(descending=True)[: count // 4]]
        assert not torch.isin(matching.edge_index, top).any()


@pytest.mark.parametrize("protect", [0.0, 1.0])
def test_where_all_are_alike_it_is_cosine_matching(protect: float) -> None:
    """Nothing protected, or everything: the order by divergence is the same, to the last digit."""
    layout = make_layout([[(6, 7)], [(5, 5)]])
    x, guidance = features(layout)
    partition = partition_of(layout, 1, 0.25)
    plain = cosine_matching(x, partition)
    for how in (PromptMatching(False, protect), PromptMatching(True, protect)):
        assert torch.equal(
            how(x, partition, torch.zeros_like(guidance)).edge_index, plain.edge_index
        )
    heard = PromptMatching(False, protect)(x, partition, guidance)
    assert torch.equal(heard.edge_index, plain.edge_index)


def test_equal_guidance_protects_the_first_tokens() -> None:
    layout = make_layout([[(4, 4)], [(4, 4)]])
    x = features(layout)[0]
    how = PromptMatching(resist=False, protect=0.5)
    matching = how(x, partition_of(layout, 1, 0.25), torch.zeros(32))
    first = torch.cat([torch.arange(8), torch.arange(16, 24)])
    assert not torch.isin(matching.edge_index, first).any()


def test_tokens_without_guidance_leave_first() -> None:
    layout = make_layout([[(4, 4)], [(3, 4)]])
    x = features(layout)[0]
    guidance = torch.zeros(28, dtype=torch.float64)
    guidance[[2, 6, 14]] = -torch.inf
    guidance[16:] = -torch.inf  # a whole image of them: all alike
    partition = partition_of(layout, 1, 0.2)
    matching = resisting_matching(x, partition, guidance)
    assert matching.edge_index[0].tolist()[:3] == [2, 6, 14]
    rest = matching.edge_index[:, 3:]
    assert torch.equal(rest, cosine_matching(x, partition).edge_index[:, 3:])


@pytest.mark.parametrize("protect", [-0.1, 1.1])
def test_a_share_is_a_fraction(protect: float) -> None:
    with pytest.raises(ValueError, match=r"protect is .*: expected a fraction from 0 to 1"):
        PromptMatching(protect=protect)


def test_relevance_is_one_on_average() -> None:
    layout = make_layout([[(4, 4)], [(3, 5)]], newlines=True)
    guidance = features(layout)[1]
    found = relevance(guidance, partition_of(layout, 2, 0.25))
    for image in range(2):
        own = (layout.image == image) & ~layout.protected
        assert float(found[own].mean()) == pytest.approx(1)
        torch.testing.assert_close(found[own].log().diff(), guidance[own].diff())
