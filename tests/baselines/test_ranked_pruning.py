"""Methods that rank tokens keep just those with the highest true attention, or the most diverse."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_TOKEN, batch, prompt, tiny_llava
from reference import cosine, features, make_layout
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.baselines import METHODS, Budget, StageMethod, keep_top
from lightkv_gnn.baselines.blind_pruning import drop_at_random, drop_evenly
from lightkv_gnn.baselines.divprune import keep_diverse
from lightkv_gnn.baselines.sparsevlm import clusters, recycling
from lightkv_graphs import TokenLayout, WindowPartition, plan_stage, window_partition

PROMPTS = [
    prompt(4, "image", 6),
    prompt(2, "image", 3, "image", 4, seed=1),
    prompt("image", 9, seed=2),
]


def partition_of(layout: TokenLayout, ratio: float, windows: int = 1) -> WindowPartition:
    return window_partition(layout, plan_stage(layout.occupancy, windows, ratio))


def vision_of(inputs: dict[str, Tensor]) -> list[list[int]]:
    """Positions of each sample's vision tokens."""
    return [(row == IMAGE_TOKEN).nonzero()[:, 0].tolist() for row in inputs["input_ids"]]


def highest(score: Tensor, images: list[int], number: int) -> list[int]:
    """Of each image in turn, the tokens with the highest scores, in order."""
    kept, start = [], 0
    for tokens in images:
        own = sorted(range(start, start + tokens), key=lambda n: -float(score[n]))[:number]
        kept += sorted(own)
        start += tokens
    return kept


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_fastv_keeps_what_the_last_token_attends_to_most(depth: int, padding: str) -> None:
    model = tiny_llava(attention="eager")
    inputs = batch(*PROMPTS, padding=padding)
    attention = model(**inputs, output_attentions=True).attentions[depth].mean(1)
    with METHODS["fastv"].applied(model, Budget.of(model, 0.7, depth)) as applied:
        model(**inputs)
        kept = applied.handle.trace.kept().tolist()
    last = [row.nonzero()[-1, 0] for row in inputs["attention_mask"]]
    score = torch.cat(
        [attention[b, last[b], columns] for b, columns in enumerate(vision_of(inputs))]
    )
    (stage,) = METHODS["fastv"].stages(Budget.of(model, 0.7, depth))  # type: ignore[attr-defined]
    number = 16 - int(16 * stage.ratio)
    assert 0 < number < 16
    assert kept == highest(score, [16] * 4, number)


@torch.no_grad()
def test_pyramid_drop_ranks_anew_at_every_stage() -> None:
    model = tiny_llava(attention="eager", side=6)
    inputs = batch(prompt(4, "image", 6, side=6), side=6)
    budget = Budget.of(model, 0.55, 0)
    with METHODS["pyramid_drop"].applied(model, budget) as applied:
        attentions = model(**inputs, output_attentions=True).attentions
        trace = applied.handle.trace
    assert len(trace) == 3
    plain = model(**inputs, output_attentions=True).attentions
    tokens = 36
    for number, stage in enumerate(trace):
        assert attentions[stage.layer].shape[-1] == tokens + 10
        score = attentions[stage.layer].mean(1)[0, -1, 4 : 4 + tokens]
        if number == 0:
            torch.testing.assert_close(score, plain[stage.layer].mean(1)[0, -1, 4:40])
        assert stage.windows == 1
        assert stage.kept.tolist() == highest(score, [tokens], len(stage.kept))
        tokens = len(stage.kept)
    assert tokens < 16


def test_any_score_makes_a_method() -> None:
    score = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    method = keep_top("mine", "a test", lambda block: score[: len(block.vision), :])
    model = tiny_llava()
    inputs = batch(*[prompt(3, "image", 3, seed=n) for n in range(4)])
    with method.applied(model, Budget.of(model, 0.5, 0)) as applied:
        model(**inputs)
        kept = applied.handle.trace.kept().tolist()
    assert method.name == "mine"
    assert method.source == "a test"
    assert kept == highest(score.flatten(), [16] * 4, len(kept) // 4)


# --- blind --------------------------------------------------------------------------------------


def test_random_pruning_is_uniform() -> None:
    layout = make_layout([[(6, 6)], [(4, 7)]], newlines=True)
    x, partition = features(layout)[0], partition_of(layout, 0.4)
    torch.manual_seed(0)
    draws = 600
    left = torch.zeros(len(layout))
    for _ in range(draws):
        left[drop_at_random(x, partition).edge_index[0]] += 1
    assert not left[layout.protected].any()
    for image, gone in enumerate(partition.plan.merges):
        own = left[(layout.image == image) & ~layout.protected]
        share = gone / len(own)
        expected = draws * share
        statistic = float(((own - expected).square() / (expected * (1 - share))).sum())
        freedom = len(own) - 1
        assert freedom - 5 * (2 * freedom) ** 0.5 < statistic < freedom + 5 * (2 * freedom) ** 0.5
    pairs = [drop_at_random(x, partition).edge_index[0].tolist() for _ in range(2)]
    assert pairs[0] != pairs[1]


def test_random_pruning_stands_in_tables_of_any_budget() -> None:
    """In the stages of merging, and in one where none of those could take as much as it must."""
    random, merging = METHODS["random_pruning"], METHODS["stride"]
    assert isinstance(random, StageMethod)
    assert isinstance(merging, StageMethod)
    usual, small = Budget(0.55, 0, 4), Budget(0.4, 0, 4)
    assert random.stages(usual) == merging.stages(usual)
    assert random.stages(small) == (lk.Stage(0, 1, 0.8),)
    with pytest.raises(lk.ScheduleError, match="no stages from layer 0 of 4 on keep 40%"):
        merging.stages(small)
    with pytest.raises(lk.ScheduleError, match="no stages from layer 0 of 4 on keep 20%"):
        random.stages(Budget(0.2, 0, 4))


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.7, 0.9])
def test_stride_is_even(ratio: float) -> None:
    layout = make_layout([[(6, 6)], [(5, 8)]], newlines=True)
    matching = drop_evenly(features(layout)[0], partition_of(layout, ratio))
    matching.check(partition_of(layout, ratio))
    for image, count in enumerate([36, 40]):
        own = ((layout.image == image) & ~layout.protected).nonzero()[:, 0]
        stays = ~torch.isin(own, matching.edge_index[0])
        # As many of the first n stay as should, but for one.
        kept = stays.cumsum(0) - (1 - ratio) * torch.arange(1, count + 1)
        assert float(kept.abs().max()) <= 1.01


# --- diversity ----------------------------------------------------------------------------------


def most_diverse(rows: list[list[float]], number: int) -> list[int]:
    """Greedy farthest points, one comparison after the other."""
    apart = [[1 - cosine(a, b) for b in rows] for a in rows]
    every = range(len(rows))
    chosen = [max(every, key=lambda n: (min(apart[n][m] for m in every if m != n), -n))]
    while len(chosen) < number:
        left = [n for n in every if n not in chosen]
        chosen.append(max(left, key=lambda n: (min(apart[n][m] for m in chosen), -n)))
    return sorted(chosen)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_diversity_equals_a_slow_greedy_loop(ratio: float, seed: int) -> None:
    layout = make_layout([[(4, 5)], [(3, 3), (5, 5)]], newlines=True)
    x = features(layout, seed)[0]
    partition = partition_of(layout, ratio)
    matching = keep_diverse(x, partition)
    matching.check(partition)
    stays = torch.ones(len(layout), dtype=torch.bool)
    stays[matching.edge_index[0]] = False
    for image in range(3):
        own = ((layout.image == image) & ~layout.protected).nonzero()[:, 0]
        expected = most_diverse(x[own].tolist(), int(stays[own].sum()))
        assert own[stays[own]].tolist() == own[expected].tolist()


def test_diversity_drops_copies_first() -> None:
    layout = make_layout([[(4, 4)]])
    x = torch.eye(8).repeat_interleave(2, 0)
    matching = keep_diverse(x, partition_of(layout, 0.5))
    assert (matching.edge_index[0] // 2).tolist() == list(range(8))


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_token_without_direction_is_not_the_most_diverse(value: float) -> None:
    layout = make_layout([[(2, 2)]])
    x = torch.tensor([[1.0, 0], [-1, 0], [value, value], [0.9, 0.1]])
    matching = keep_diverse(x, partition_of(layout, 0.5))
    assert matching.edge_index[0].tolist() == [2, 3]


# --- recycling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_recycling_keeps_the_best_and_as_many_as_planned(ratio: float, seed: int) -> None:
    layout = make_layout([[(8, 8)], [(2, 3), (9, 7)]], newlines=True, protect=11)
    x, score = features(layout, seed)
    partition = partition_of(layout, ratio)
    matching = recycling(x, partition, score)
    matching.check(partition)
    assert matching.dropped is not None
    stays = torch.ones(len(layout), dtype=torch.bool)
    stays[matching.edge_index[0]] = False
    recycled = matching.edge_index[:, ~matching.dropped]
    for image, gone in enumerate(partition.plan.merges):
        own = ((layout.image == image) & ~layout.protected).nonzero()[:, 0]
        ranked = own[score[own].argsort(descending=True)]
        centres = min(len(own) - gone, int(0.3 * gone) // 10 + 1) if gone else 0
        kept = len(own) - gone - centres
        assert bool(stays[ranked[:kept]].all())
        pool = max(centres, int(0.3 * (gone + centres))) if gone else 0
        inside = ranked[kept : kept + pool]
        assert int(stays[inside].sum()) == centres
        assert not stays[ranked[kept + pool :]].any()
        members = recycled[0][torch.isin(recycled[0], own)]
        assert set(members.tolist()) == set(inside[~stays[inside]].tolist())
        heads = inside[stays[inside]]
        for source, destination in recycled[:, torch.isin(recycled[0], own)].t().tolist():
            nearest = heads[torch.cdist(x[source][None], x[heads])[0].argmin()]
            assert destination == int(nearest)


def test_recycling_wants_the_whole_picture() -> None:
    layout = make_layout([[(4, 4)]])
    with pytest.raises(ValueError, match="2 windows per side: expected the whole picture"):
        recycling(features(layout)[0], partition_of(layout, 0.5, 2), torch.zeros(16))


def test_clusters_form_around_peaks() -> None:
    """Three heaps of points, and a lonely one that is not asked to be clustered."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.tensor([[0.0, 0], [10, 0], [0, 10]]).repeat_interleave(6, 0)
    x = middle + 0.1 * torch.randn(18, 2, generator=generator)
    x = torch.cat([x, torch.tensor([[50.0, 50]])])[None]
    taken = torch.ones(1, 19, dtype=torch.bool)
    taken[0, 18] = False
    centre, nearest = clusters(x, taken, torch.tensor([[3]]))
    assert sorted((centre[0].nonzero()[:, 0] // 6).tolist()) == [0, 1, 2]
    assert (nearest[0, :18] // 6).tolist() == (torch.arange(18) // 6).tolist()


# --- an oracle ----------------------------------------------------------------------------------


def relevant_tokens(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 72, generator=generator) < 0.15


def ask(name: str, hint: Tensor | None, seed: int = 0) -> lk.Handle:
    model = tiny_llava(side=6)
    torch.manual_seed(seed)
    inputs = batch(
        prompt(4, "image", 6, side=6), prompt(2, "image", 3, "image", 4, side=6, seed=1), side=6
    )
    with METHODS[name].applied(model, Budget.of(model, 0.55, 0)) as applied:
        applied.hints.relevant = hint
        with torch.no_grad():
            model(**inputs)
    return applied.handle


def test_oracle_pruning_keeps_all_that_matters() -> None:
    relevant = relevant_tokens()
    flat = torch.cat([relevant[0, :36], relevant[1]])
    draws = []
    for seed in (0, 0, 1):
        kept = ask("oracle_pruning", relevant, seed).trace.kept()
        assert bool(torch.isin(flat.nonzero()[:, 0], kept).all())
        draws.append(kept.tolist())
    assert draws[0] == draws[1] != draws[2]


def test_oracle_pruning_drops_what_matters_last() -> None:
    relevant = torch.ones(2, 72, dtype=torch.bool)
    relevant[0, :19] = False
    handle = ask("oracle_pruning", relevant)
    kept = handle.trace.kept()
    assert len(kept) == 3 * 17
    assert not torch.isin(torch.arange(19), kept).any()


def test_the_oracle_guides_all_stages() -> None:
    relevant = relevant_tokens()
    handle = ask("oracle", relevant)
    matters = torch.cat([relevant[0, :36], relevant[1]])
    assert len(handle.trace) == 3
    for number, stage in enumerate(handle.trace):
        graph = handle.graph(number)
        weight = torch.zeros(len(stage.survivor))
        for kind in ("merges_into", "keeps"):
            edges = graph["vision", kind, "vision"]
            weight[edges.edge_index[0]] = edges.weight.float()
        after = torch.zeros(len(stage.kept), dtype=torch.bool)
        after[stage.survivor[matters]] = True
        share = torch.zeros(len(stage.kept)).index_add(0, stage.survivor, weight * matters)
        assert bool((share[after] > 0.999).all())
        assert not share[~after].any()
        matters = after


def test_the_oracle_has_to_be_told() -> None:
    for name in ("oracle", "oracle_pruning"):
        with pytest.raises(ValueError, match=r"needs to be told which tokens matter"):
            ask(name, None)
        with pytest.raises(ValueError, match=r"shape \[2, 40\]: expected .* at least \[2, 72\]"):
            ask(name, torch.ones(2, 40))
