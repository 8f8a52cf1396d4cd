"""Lineage for other tools says what the trace says."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import networkx
import pytest
import torch
import traces
from reference import features, make_layout

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import MergeTrace, StageTrace, part_of, plan_stage
from lightkv_graphs.build import KEEPS, MERGES


def traced(guided: bool = True, **variant: Any) -> MergeTrace:
    return traces.traced([[(6, 5), (3, 3)], [(4, 4)]], guided=guided, newlines=True, **variant)


def attributes(graph: networkx.DiGraph) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Nodes and edges by their names in files, without positions."""

    def name(node: Any) -> str:
        return node if isinstance(node, str) else f"{node[0]}/{node[1]}"

    nodes = {
        name(node): {key: value for key, value in values.items() if key not in ("x", "y")}
        for node, values in graph.nodes(data=True)
    }
    return nodes, {(name(a), name(b)): values for a, b, values in graph.edges(data=True)}


@pytest.mark.parametrize("guided", [False, True])
def test_edges_and_nodes_carry_what_the_stages_say(guided: bool) -> None:
    trace = traced(guided)
    graph = trace.to_networkx()
    for number, done in enumerate(trace):
        for row in range(len(done.survivor)):
            edge = graph.edges[(number, row), (number + 1, int(done.survivor[row]))]
            assert edge["layer"] == done.layer
            assert edge["weight"] == float(done.weight[row])
            assert edge["similarity"] == float(done.similarity[row])
            node = graph.nodes[number, row]
            assert node["stage"] == number
            assert ("guidance" in node) == guided
            assert not guided or node["guidance"] == float(done.guidance[row])  # type: ignore[index]
    for row in range(len(trace.stages[-1].layout)):
        assert "guidance" not in graph.nodes[len(trace), row]
        parts = graph.in_edges((len(trace), row), data="weight")
        assert sum(weight for *_, weight in parts) == pytest.approx(1)


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    trace = traced()
    done = trace.stages[0]
    assert done.guidance is not None
    done.guidance[0], done.similarity[1] = -torch.inf, torch.nan
    graph = trace.to_networkx()
    trace.write_dot(tmp_path / "merges.dot")
    assert "guidance" not in graph.nodes[0, 0]
    assert "guidance" in graph.nodes[0, 1]
    assert [set(v) for *_, v in graph.out_edges((0, 1), data=True)] == [
        {"layer", "merged", "weight"}
    ]
    json.dumps(trace.to_node_link(), allow_nan=False)


@pytest.mark.parametrize("guided", [False, True])
def test_graphml_round_trip(guided: bool, tmp_path: Path) -> None:
    trace = traced(guided)
    trace.write_graphml(tmp_path / "merges.graphml")
    read = networkx.read_graphml(tmp_path / "merges.graphml")
    assert attributes(read) == attributes(trace.to_networkx())


def test_node_link_round_trip() -> None:
    trace = traced()
    data = json.loads(json.dumps(trace.to_node_link()))
    read = networkx.node_link_graph(data, edges="edges")
    assert attributes(read) == attributes(trace.to_networkx())


def test_positions_show_stages_side_by_side_as_the_tokens_lie() -> None:
    trace = traced()
    nodes = {node["id"]: node for node in trace.to_node_link()["nodes"]}
    assert len({(node["x"], node["y"]) for node in nodes.values()}) == len(nodes)
    groups: dict[Any, list[Any]] = {}
    for node in nodes.values():
        groups.setdefault((node["stage"], node["image"]), []).append(node)
    for (stage, image), group in groups.items():
        placed = [node for node in group if node["row"] >= 0]
        corners = {(node["x"] - node["col"], node["y"] + node["row"]) for node in placed}
        assert len(corners) == 1
        for other, members in groups.items():
            if other[0] > stage:  # to the right
                assert max(n["x"] for n in group) < min(n["x"] for n in members)
            if other[1] > image:  # below
                assert min(n["y"] for n in group) > max(n["y"] for n in members)


NODE = re.compile(r'^  "(\d+/\d+)" \[(.*)\];$')
EDGE = re.compile(r'^  "(\d+/\d+)" -> "(\d+/\d+)" \[(.*)\];$')
PAIR = re.compile(r'(\w+)="([^"\\]*)"')


def test_dot_names_every_node_and_edge(tmp_path: Path) -> None:
    trace = traced()
    trace.write_dot(tmp_path / "merges.dot")
    lines = (tmp_path / "merges.dot").read_text().splitlines()
    assert lines[0] == "digraph lineage {"
    assert lines[-1] == "}"
    nodes, edges = attributes(trace.to_networkx())
    found = {m[1]: dict(PAIR.findall(m[2])) for line in lines if (m := NODE.match(line))}
    assert found.keys() == nodes.keys()
    for node, values in nodes.items():
        assert {key: found[node][key] for key in values} == {k: str(v) for k, v in values.items()}
        assert found[node]["label"].startswith(f"{values['row']},{values['col']}")
    drawn = {m.group(1, 2): dict(PAIR.findall(m[3])) for line in lines if (m := EDGE.match(line))}
    assert drawn.keys() == edges.keys()
    for ends, values in edges.items():
        assert {key: drawn[ends][key] for key in values} == {k: str(v) for k, v in values.items()}
        assert drawn[ends]["style"] == ("solid" if values["merged"] else "dotted")
    ranks = [re.findall(r'"(\d+)/\d+"', line) for line in lines if "rank=same" in line]
    assert [set(rank) for rank in ranks] == [{"0"}, {"1"}, {"2"}, {"3"}]
    assert Counter(map(len, ranks)) == Counter(
        [len(trace.layout), *(len(done.layout) for done in trace)]
    )


# --- the graphs of stages ---------------------------------------------------------------------


@pytest.mark.parametrize("matcher", ["cosine_matching", "stride_matching"])
def test_a_stages_graph_is_the_one_its_messages_passed_over(matcher: str) -> None:
    import lightkv_graphs

    layout = make_layout([[(6, 5), (3, 3)], [(4, 4)]], newlines=True)
    x, guidance = features(layout)
    compressor = TokenCompressor(matcher=getattr(lightkv_graphs, matcher))
    done = compressor(x, layout, plan_stage(layout.occupancy, 2, 0.4), guidance)
    stage = StageTrace.from_graph(done.graph, done.survivor, done.layout, layer=1, windows=2)
    trace = MergeTrace(layout, (stage,))
    for options in ({}, {"image": 1}, {"window": 5}, {"image": 2, "window": 8}):
        live = part_of(done.graph, **options) if options else done.graph
        again = trace.graph(0, **options)
        assert again.node_types == live.node_types
        assert again.edge_types == live.edge_types
        for kind in ("vision", MERGES, KEEPS):
            assert list(again[kind].keys()) == list(live[kind].keys())
            for name, value in live[kind].items():
                assert torch.equal(torch.as_tensor(again[kind][name]), torch.as_tensor(value))
    assert trace.graph(0)[MERGES].edge_index.shape[1] > 5


def test_graphs_of_later_stages_and_of_loaded_traces(tmp_path: Path) -> None:
    trace = traced()
    trace.save(tmp_path / "a")
    loaded = MergeTrace.load(tmp_path / "a")
    layouts = [trace.layout, *(done.layout for done in trace)]
    for stage in (0, 1, 2, -1):
        graph, again = trace.graph(stage), loaded.graph(stage)
        assert torch.equal(graph["vision"].row, layouts[stage % 3].row)
        assert torch.equal(graph[MERGES].edge_index, again[MERGES].edge_index)
        assert torch.equal(graph[MERGES].similarity.float(), again[MERGES].similarity)
        assert torch.equal(graph[KEEPS].weight.float(), again[KEEPS].weight)


def test_no_such_graph() -> None:
    with pytest.raises(IndexError, match="stage 3: this trace has 3 stages"):
        traced().graph(3)
    with pytest.raises(ValueError, match="no token lies in image 7"):
        traced().graph(0, image=7)
    with pytest.raises(IndexError, match="no stages"):
        MergeTrace(traced().layout, ()).graph()


# --- paths and shares -------------------------------------------------------------------------


def test_paths_are_those_in_networkx() -> None:
    trace = traced()
    graph = trace.to_networkx()
    for token in range(len(trace.layout)):
        node, rows = (0, token), [token]
        while graph.out_degree(node):
            (node,) = graph.successors(node)
            rows.append(node[1])
        assert trace.path(token).tolist() == rows
    with pytest.raises(IndexError, match=r"token -1: expected 0\.\."):
        trace.path(-1)


@pytest.mark.parametrize("stage", [0, 1, 2, -1])
def test_shares_are_products_along_paths_and_sum_to_one(stage: int) -> None:
    trace = traced()
    share = trace.share(stage)
    for token, rows in enumerate(trace.path(t).tolist() for t in range(len(trace.layout))):
        product = 1.0
        for done, row in zip(trace.stages[: stage % 3 + 1], rows, strict=False):
            product *= float(done.weight[row])
        assert float(share[token]) == pytest.approx(product)
    total = torch.zeros(len(trace.stages[stage].layout), dtype=share.dtype)
    total.index_add_(0, trace.survivor_of(stage), share)
    assert torch.allclose(total, torch.ones_like(total))
    assert float(share.std()) > 0.05


def test_survivors_are_means_of_their_members_by_share() -> None:
    first = layout = make_layout([[(6, 5), (3, 3)], [(4, 4)]], newlines=True)
    x, _ = features(layout)
    hidden, stages = x, []
    for layer, windows in traces.SCHEDULE:
        _, guidance = features(layout, seed=layer)
        done = TokenCompressor()(
            hidden, layout, plan_stage(layout.occupancy, windows, 0.5), guidance
        )
        stages.append(
            StageTrace.from_graph(
                done.graph, done.survivor, done.layout, layer=layer, windows=windows
            )
        )
        hidden, layout = done.hidden_states, done.layout
        trace = MergeTrace(first, tuple(stages))
        expected = torch.zeros_like(hidden)
        expected.index_add_(0, trace.survivor_of(), trace.share()[:, None] * x)
        assert torch.allclose(hidden, expected, atol=1e-12)
        assert hidden.dtype == torch.float64


def test_without_stages_each_token_is_its_own() -> None:
    trace = MergeTrace(make_layout([[(2, 3)]]), ())
    assert trace.share().tolist() == [1] * 6
    assert trace.path(4).tolist() == [4]
    assert len(trace.before(-1)) == 6
