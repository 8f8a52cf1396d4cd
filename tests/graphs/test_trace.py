"""Lineage composes over stages and exports."""

from __future__ import annotations

from collections.abc import Sequence

import networkx
import pytest
import torch
import traces
from reference import make_layout
from traces import SCHEDULE

from lightkv_graphs import MergeTrace


def traced(schedule: Sequence[tuple[int, int]] = SCHEDULE, ratio: float = 0.5) -> MergeTrace:
    return traces.traced([[(6, 5), (3, 3)], [(4, 4)]], schedule, ratio, newlines=True)


def lineage(trace: MergeTrace, stage: int) -> tuple[list[int], list[set[int]]]:
    """For each survivor of a stage the original whose place it has, and all it stands for."""
    place = list(range(len(trace.layout)))
    members = [{token} for token in place]
    for done in trace.stages[: stage + 1]:
        place = [place[token] for token in done.kept.tolist()]
        merged: list[set[int]] = [set() for _ in place]
        for token, row in enumerate(done.survivor.tolist()):
            merged[row] |= members[token]
        members = merged
    return place, members


@pytest.mark.parametrize("stage", [0, 1, 2, -1, -2, -3])
def test_composition_equals_a_loop(stage: int) -> None:
    trace = traced()
    place, members = lineage(trace, stage % 3)
    assert trace.kept(stage).tolist() == place
    assert [set(trace.members(row, stage).tolist()) for row in range(len(place))] == members
    rows = trace.survivor_of(stage).tolist()
    assert all(token in members[row] for token, row in enumerate(rows))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_survivors_partition_the_originals(stage: int) -> None:
    trace = traced()
    after = trace.stages[stage].layout
    members = [trace.members(row, stage) for row in range(len(after))]
    assert torch.cat(members).sort()[0].tolist() == list(range(len(trace.layout)))
    assert [len(tokens) for tokens in members] == after.mass.tolist()
    assert int(after.mass.sum()) == len(trace.layout)
    for name in ("sample", "image", "row", "col", "protected"):  # a survivor keeps its place
        assert torch.equal(getattr(after, name), getattr(trace.layout, name)[trace.kept(stage)])
    for tokens in members:  # and its group never left the image or the sample
        assert len(trace.layout.image[tokens].unique()) == 1
    assert bool((trace.kept(stage).diff() > 0).all())


def test_unmerge_gives_every_original_its_survivors_row() -> None:
    trace = traced()
    x = torch.randn(len(trace.stages[1].layout), 2, 3)
    spread = trace.unmerge(x, 1)
    assert spread.shape == (len(trace.layout), 2, 3)
    for row in range(len(x)):
        for token in trace.members(row, 1).tolist():
            assert torch.equal(spread[token], x[row])
    assert torch.equal(trace.unmerge(x, 1)[trace.kept(1)], x)


@pytest.mark.parametrize("guided", [False, True])
def test_weights_and_similarities_of_each_stage(guided: bool) -> None:
    trace = traces.traced([[(6, 5)], [(4, 4)]], guided=guided)
    for done in trace:
        total = torch.zeros(len(done.layout))
        total.index_add_(0, done.survivor, done.weight.float())
        assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
        stays = torch.zeros(len(done.survivor), dtype=torch.bool).index_fill_(0, done.kept, True)
        assert bool((done.similarity[stays] == 1).all())
        assert bool((done.similarity[~stays] < 1).all())
        assert torch.equal(done.divergence, 1 - done.similarity)
        assert (done.guidance is not None) == guided
    assert any(float(done.weight.std()) > 0.01 for done in trace)


def test_no_stages() -> None:
    trace = MergeTrace(make_layout([[(2, 3)]]), ())
    assert len(trace) == 0
    assert trace.survivor_of().tolist() == trace.kept().tolist() == list(range(6))
    assert trace.members(4).tolist() == [4]
    assert repr(trace) == "MergeTrace(vision tokens 6, after layers [])"
    assert len(trace.to_networkx()) == 6


def test_length_iteration_and_repr() -> None:
    trace = traced()
    assert len(trace) == 3
    assert list(trace) == list(trace.stages)
    counts = [len(trace.layout), *(len(stage.layout) for stage in trace)]
    assert counts == sorted(counts, reverse=True)
    path = " -> ".join(map(str, counts))
    assert repr(trace) == f"MergeTrace(vision tokens {path}, after layers [3, 7, 9])"


@pytest.mark.parametrize("stage", [3, -4, 99])
def test_no_such_stage(stage: int) -> None:
    trace = traced()
    for ask in (trace.kept, trace.survivor_of, lambda s: trace.members(0, s)):
        with pytest.raises(IndexError, match=f"stage {stage}: this trace has 3 stages"):
            ask(stage)


@pytest.mark.parametrize("survivor", [-1, 10_000])
def test_no_such_survivor(survivor: int) -> None:
    trace = traced()
    count = len(trace.stages[-1].layout)
    with pytest.raises(
        IndexError, match=f"survivor {survivor} of {count}: expected 0..{count - 1}"
    ):
        trace.members(survivor)


def test_to_moves_every_tensor() -> None:
    moved = traces.traced([[(6, 5)], [(4, 4)]], guided=True).to("meta")
    tensors = [moved.layout.row]
    for done in moved:
        tensors += [done.window, done.kept, done.survivor, done.layout.mass]
        tensors += [done.weight, done.similarity, done.guidance]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert traced().to("meta").stages[0].guidance is None
    assert [(done.layer, done.windows) for done in moved] == list(SCHEDULE)


def test_networkx_has_a_node_per_token_and_stage() -> None:
    trace = traced()
    graph = trace.to_networkx()
    layouts = [trace.layout, *(done.layout for done in trace)]
    assert set(graph) == {
        (number, row) for number, layout in enumerate(layouts) for row in range(len(layout))
    }
    assert graph.number_of_edges() == sum(len(layout) for layout in layouts[:-1])
    for (number, row), values in graph.nodes(data=True):
        for name in ("sample", "image", "row", "col", "mass"):
            assert values[name] == int(getattr(layouts[number], name)[row])


def test_networkx_leads_each_original_to_its_survivor() -> None:
    trace = traced()
    graph = trace.to_networkx()
    assert networkx.is_directed_acyclic_graph(graph)
    last = len(trace)
    for token, row in enumerate(trace.survivor_of().tolist()):
        assert networkx.shortest_path_length(graph, (0, token), (last, row)) == last
    sinks = {node for node in graph if graph.out_degree(node) == 0}
    assert sinks == {(last, row) for row in range(len(trace.stages[-1].layout))}
    assert all(graph.out_degree(node) == 1 for node in set(graph) - sinks)
    for _, row in sinks:
        above = {token for stage, token in networkx.ancestors(graph, (last, row)) if stage == 0}
        assert above == set(trace.members(row).tolist())


def test_networkx_marks_merges() -> None:
    trace = traced()
    graph = trace.to_networkx()
    merged = [
        ((number, token), (number + 1, row))
        for number, done in enumerate(trace)
        for token, row in enumerate(done.survivor.tolist())
        if token not in done.kept.tolist()
    ]
    edges = list(graph.edges(data=True))
    assert sorted(e[:2] for e in edges if e[2]["merged"]) == sorted(merged)
    layers = {number: layer for number, (layer, _) in enumerate(SCHEDULE)}
    assert all(values["layer"] == layers[start[0]] for start, _, values in edges)
