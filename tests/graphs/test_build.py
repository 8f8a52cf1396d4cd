"""The merge graph holds all that a stage did."""

from __future__ import annotations

import pytest
import torch
from reference import GRIDS, features, make_layout
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_graphs import (
    Grid,
    Matching,
    TokenLayout,
    WindowPartition,
    add_text,
    cosine_matching,
    merge_graph,
    message_edges,
    part_of,
    plan_stage,
    survivors,
    window_partition,
)

MERGES = ("vision", "merges_into", "vision")
KEEPS = ("vision", "keeps", "vision")
GUIDES = ("text", "guides", "vision")
every_grid = pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())


def built(
    grids: list[list[Grid]], ratio: float = 0.5
) -> tuple[TokenLayout, WindowPartition, Matching, Tensor, HeteroData]:
    layout = make_layout(grids, newlines=True)
    partition = window_partition(layout, plan_stage(layout.occupancy, 2, ratio))
    matching = cosine_matching(features(layout)[0], partition)
    weight = torch.rand(len(layout), generator=torch.Generator().manual_seed(0))
    kept, _ = survivors(matching, len(layout))
    graph = merge_graph(layout, partition, matching, kept, weight)
    return layout, partition, matching, weight, graph


@every_grid
def test_survivors(grids: list[list[Grid]]) -> None:
    layout, _, matching, _, _ = built(grids)
    kept, survivor = survivors(matching, len(layout))
    into = dict(matching.edge_index.t().tolist())
    expected = [token for token in range(len(layout)) if token not in into]
    assert kept.tolist() == expected
    assert survivor.tolist() == [
        expected.index(into.get(token, token)) for token in range(len(layout))
    ]


def test_survivors_without_edges() -> None:
    none = Matching(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0))
    kept, survivor = survivors(none, 3)
    assert kept.tolist() == survivor.tolist() == [0, 1, 2]


@every_grid
def test_graph_describes_the_stage(grids: list[list[Grid]]) -> None:
    layout, partition, matching, weight, graph = built(grids)
    kept, _ = survivors(matching, len(layout))
    vision = graph["vision"]
    assert vision.num_nodes == len(layout)
    assert torch.equal(vision.token, torch.arange(len(layout)))
    for name in ("sample", "image", "row", "col", "mass", "protected"):
        assert torch.equal(vision[name], getattr(layout, name))
    assert torch.equal(vision.window, partition.window)
    assert torch.equal(graph[MERGES].edge_index, matching.edge_index)
    assert torch.equal(graph[MERGES].similarity, matching.similarity)
    assert torch.equal(graph[MERGES].weight, weight[matching.edge_index[0]])
    assert torch.equal(graph[KEEPS].edge_index, torch.stack([kept, kept]))
    assert torch.equal(graph[KEEPS].weight, weight[kept])
    assert graph.validate()


@every_grid
def test_message_edges(grids: list[list[Grid]]) -> None:
    layout, _, matching, weight, graph = built(grids)
    kept, survivor = survivors(matching, len(layout))
    edge_index, edge_weight = message_edges(graph)
    assert sorted(edge_index[0].tolist()) == list(range(len(layout)))
    assert torch.equal(edge_index[1], survivor[edge_index[0]])
    assert bool((edge_index[1][1:] >= edge_index[1][:-1]).all())
    assert torch.equal(edge_weight, weight[edge_index[0]])
    first = [edge_index[1].tolist().index(row) for row in range(len(kept))]
    assert edge_index[0][first].tolist() == kept.tolist()  # its own message comes first


def test_text_guides_the_vision_tokens_of_its_sample() -> None:
    layout, *_, graph = built([[(2, 3)], [(2, 2), (1, 3)]])
    sample, position = torch.tensor([0, 0, 1]), torch.tensor([0, 7, 2])
    guidance = torch.arange(3.0 * len(layout)).reshape(len(layout), 3)
    vision, text = (layout.sample[:, None] == sample).nonzero(as_tuple=True)
    edge_index = torch.stack([text, vision])
    with_text = add_text(graph, sample, position, edge_index, guidance[vision, text])
    edges = {
        (text, vision): float(guidance[vision, text])
        for text in range(3)
        for vision in range(len(layout))
        if sample[text] == layout.sample[vision]
    }
    found = zip(
        map(tuple, with_text[GUIDES].edge_index.t().tolist()),
        with_text[GUIDES].weight.tolist(),
        strict=True,
    )
    assert dict(found) == edges
    assert with_text[GUIDES].edge_index.shape[1] == len(edges)
    assert with_text["text"].num_nodes == 3
    assert torch.equal(with_text["text"].sample, sample)
    assert torch.equal(with_text["text"].position, position)
    assert with_text.validate()
    assert graph.node_types == ["vision"]  # a copy was changed


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ({}, lambda vision: torch.ones_like(vision.image, dtype=torch.bool)),
        ({"image": 1}, lambda vision: vision.image == 1),
        ({"window": 5}, lambda vision: vision.window == 5),
        ({"image": 1, "window": 5}, lambda vision: vision.window == 5),
    ],
)
def test_part_of(choice: dict[str, int], chosen: object) -> None:
    layout, _, matching, weight, graph = built([[(4, 4), (5, 3)], [(2, 6)]])
    here = chosen(graph["vision"])  # type: ignore[operator]
    part = part_of(graph, **choice)
    vision = part["vision"]
    assert vision.num_nodes == int(here.sum()) > 0
    for name in ("token", "sample", "image", "row", "col", "mass", "protected", "window"):
        assert torch.equal(vision[name], graph["vision"][name][here])
    inside = here[matching.edge_index[0]]
    assert torch.equal(vision.token[part[MERGES].edge_index], matching.edge_index[:, inside])
    assert torch.equal(part[MERGES].similarity, matching.similarity[inside])
    kept, _ = survivors(matching, len(layout))
    assert torch.equal(vision.token[part[KEEPS].edge_index[0]], kept[here[kept]])
    assert torch.equal(part[KEEPS].weight, weight[kept[here[kept]]])
    edge_index, _ = message_edges(part)
    assert edge_index.shape == (2, vision.num_nodes)  # still one message per token
    assert part.validate()


def test_part_of_keeps_the_text_of_its_sample() -> None:
    layout, *_, graph = built([[(2, 2)], [(3, 3)]])
    sample = torch.tensor([0, 1, 1])
    vision, text = (layout.sample[:, None] == sample).nonzero(as_tuple=True)
    edge_index = torch.stack([text, vision])
    graph = add_text(graph, sample, torch.arange(3), edge_index, torch.rand(len(vision)))
    part = part_of(graph, image=1)
    assert part["text"].position.tolist() == [1, 2]
    assert part[GUIDES].edge_index.shape[1] == 2 * part["vision"].num_nodes


@pytest.mark.parametrize("choice", [{"image": 2}, {"window": 99}, {"image": 0, "window": 5}])
def test_no_such_part(choice: dict[str, int]) -> None:
    *_, graph = built([[(2, 2)], [(3, 3)]])
    with pytest.raises(ValueError, match=r"no token lies in image .* images 0..1 and windows 0..8"):
        part_of(graph, **choice)
