"""One stage of compression as a PyG graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.matching import Matching
from lightkv_graphs.partition import WindowPartition

MERGES = ("vision", "merges_into", "vision")
KEEPS = ("vision", "keeps", "vision")
GUIDES = ("text", "guides", "vision")


def survivors(matching: Matching, tokens: int) -> tuple[Tensor, Tensor]:
    """Which tokens stay, and in which survivor each token ends.

    Args:
        matching: The taken edges.
        tokens: Tokens before the stage.

    Returns:
        The tokens that stay, ascending, `[survivor]`, and the row of each token's survivor among
        them, `[token]`.  Shapes follow from the number of edges: nothing is read back.
    """
    source, destination = matching.edge_index
    gone = source.new_zeros(tokens).index_fill_(0, source, 1)
    kept = gone.argsort(stable=True)[: tokens - source.shape[0]]
    target = torch.arange(tokens, device=source.device).scatter_(0, source, destination)
    return kept, ((1 - gone).cumsum(0) - 1).index_select(0, target)


def merge_graph(
    layout: TokenLayout,
    partition: WindowPartition,
    matching: Matching,
    kept: Tensor,
    weight: Tensor,
) -> HeteroData:
    """The graph that one stage passes its messages over.

    See :func:`stage_graph` for its nodes and edges.

    Args:
        layout: The tokens before the stage.
        partition: Their windows.
        matching: The taken edges.
        kept: The tokens that stay; see :func:`survivors`.
        weight: Share of each token in its survivor, `[token]`.
    """
    return stage_graph(layout, partition.window, matching, kept, weight)


def stage_graph(
    layout: TokenLayout, window: Tensor, matching: Matching, kept: Tensor, weight: Tensor
) -> HeteroData:
    """A stage's graph, from the window of each token.

    Node type ``vision`` has one node per token before the stage, with ``sample``, ``image``,
    ``row``, ``col``, ``mass``, ``protected``, ``window`` and ``token`` (its number in the batch).
    Edge type ``merges_into`` holds the taken edges with their ``similarity`` (cosine) and
    ``weight``; ``keeps`` the self-loops of the tokens that stay, with their ``weight``.  The
    weights into one node sum to one.

    Args:
        layout: The tokens before the stage.
        window: Window of each token, `[token]`.
        matching: The taken edges.
        kept: The tokens that stay; see :func:`survivors`.
        weight: Share of each token in its survivor, `[token]`.
    """
    graph = HeteroData()
    vision = graph["vision"]
    vision.num_nodes = len(layout)
    vision.token = torch.arange(len(layout), device=weight.device)
    for name in ("sample", "image", "row", "col", "mass", "protected"):
        vision[name] = getattr(layout, name)
    vision.window = window
    graph[MERGES].edge_index = matching.edge_index
    graph[MERGES].similarity = matching.similarity
    graph[MERGES].weight = weight[matching.edge_index[0]]
    graph[KEEPS].edge_index = torch.stack([kept, kept])
    graph[KEEPS].weight = weight[kept]
    return graph


def message_edges(graph: HeteroData) -> tuple[Tensor, Tensor]:
    """The edges messages travel on: every token sends one, to its survivor.

    Returns:
        ``edge_index`` `[2, token]` (from token, to survivor row, sorted by survivor with its own
        message first) and ``weight`` `[token]`.
    """
    kept = graph[KEEPS].edge_index[0]
    row = kept.new_zeros(graph["vision"].num_nodes)
    row[kept] = torch.arange(kept.shape[0], device=kept.device)
    edge_index = torch.cat([graph[KEEPS].edge_index, graph[MERGES].edge_index], dim=1)
    weight = torch.cat([graph[KEEPS].weight, graph[MERGES].weight])
    target = row[edge_index[1]]
    order = target.argsort(stable=True)
    return torch.stack([edge_index[0][order], target[order]]), weight[order]


def add_text(
    graph: HeteroData, sample: Tensor, position: Tensor, edge_index: Tensor, weight: Tensor
) -> HeteroData:
    """A copy of ``graph`` with the prompt's tokens and their guidance edges.

    Args:
        graph: From :func:`merge_graph`.
        sample: Sample of each text token, `[text]`.
        position: Position of each text token in its prompt, `[text]`.
        edge_index: From text token, to vision token, `[2, edge]`.
        weight: Share of the text token's guidance, `[edge]`.

    Returns:
        A graph with node type ``text`` (``sample``, ``position``) and edges ``guides`` with their
        ``weight``.
    """
    graph = graph.clone()
    graph["text"].num_nodes = sample.shape[0]
    graph["text"].sample = sample
    graph["text"].position = position
    graph[GUIDES].edge_index = edge_index
    graph[GUIDES].weight = weight
    return graph


def part_of(
    graph: HeteroData, *, image: int | None = None, window: int | None = None
) -> HeteroData:
    """The part of a stage's graph that lies in one image, or in one window.

    Args:
        graph: From :func:`merge_graph`.
        image: Image number in the batch; None for all.
        window: Window number in the batch; None for all.

    Raises:
        ValueError: There is no such image or window.
    """
    vision = graph["vision"]
    keep = torch.ones(vision.num_nodes, dtype=torch.bool, device=vision.image.device)
    for name, number in (("image", image), ("window", window)):
        if number is not None:
            keep &= vision[name] == number
    if not bool(keep.any()):
        raise ValueError(
            f"no token lies in image {image}, window {window}: the graph has images "
            f"0..{int(vision.image.max())} and windows 0..{int(vision.window.max())}"
        )
    nodes = {"vision": keep}
    if "text" in graph.node_types:
        nodes["text"] = torch.isin(graph["text"].sample, vision.sample[keep])
    return graph.subgraph(nodes)
