"""Lineage as graphs for other tools: networkx, GraphML for Gephi, DOT for Graphviz, JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.stage import StageTrace

if TYPE_CHECKING:
    import networkx

_PLACE = ("sample", "image", "row", "col", "mass")


def lineage(first: TokenLayout, stages: Sequence[StageTrace]) -> networkx.DiGraph:
    """The lineage of the tokens of ``first`` as a directed graph.

    See :meth:`lightkv_graphs.MergeTrace.to_networkx`.
    """
    import networkx

    stages = [done.to("cpu") for done in stages]
    layouts = [first.to("cpu"), *(done.layout for done in stages)]
    graph = networkx.DiGraph()
    for number, layout in enumerate(layouts):
        columns = zip(*(getattr(layout, name).tolist() for name in _PLACE), strict=True)
        for row, values in enumerate(columns):
            graph.add_node((number, row), stage=number, **dict(zip(_PLACE, values, strict=True)))
    for number, done in enumerate(stages):
        if done.guidance is not None:
            for row, value in enumerate(done.guidance.tolist()):
                graph.nodes[number, row].update(_finite(guidance=value))
        of_token = (done.survivor, ~done.stays, done.weight, done.similarity)
        rows = zip(*(column.tolist() for column in of_token), strict=True)
        for row, (survivor, merged, weight, similarity) in enumerate(rows):
            ends = (number, row), (number + 1, survivor)
            known = {"layer": done.layer, "merged": merged, "weight": weight}
            graph.add_edge(*ends, **known, **_finite(similarity=similarity))
    return graph


def named(graph: networkx.DiGraph) -> networkx.DiGraph:
    """The lineage for a file: nodes are named ``"stage/row"`` and have a position, x and y.

    Stages stand side by side and images one below the other, each with its tokens where they lie;
    a token without a place stands right of its row.
    """
    import networkx

    copy = networkx.relabel_nodes(graph, {node: "/".join(map(str, node)) for node in graph})
    places = copy.nodes.values()
    width = max((place["col"] for place in places), default=0) + 1
    height: dict[int, int] = {}
    for place in places:
        height[place["image"]] = max(height.get(place["image"], 0), place["row"] + 2)
    tops = list(accumulate((height[image] for image in sorted(height)), initial=0))
    last: dict[tuple[int, int], int] = {}
    for place in places:
        group = place["stage"], place["image"]
        outside = place["row"] < 0 or place["col"] < 0
        last[group] = last.get(group, 0) if outside else place["row"]
        place["x"] = float(place["stage"] * (width + 2) + (width if outside else place["col"]))
        place["y"] = float(-tops[place["image"]] - last[group])
    return copy


def write_graphml(graph: networkx.DiGraph, path: str | os.PathLike[str]) -> None:
    """Writes the lineage as GraphML; see :func:`named`."""
    import networkx

    networkx.write_graphml(named(graph), os.fspath(path))


def node_link(graph: networkx.DiGraph) -> dict[str, Any]:
    """The lineage as plain values for JSON: ``nodes`` and ``edges``; see :func:`named`."""
    import networkx

    return dict(networkx.node_link_data(named(graph), edges="edges"))


def write_dot(graph: networkx.DiGraph, path: str | os.PathLike[str]) -> None:
    """Writes the lineage in Graphviz's language, a rank per stage; see :func:`named`.

    Merges are solid and as wide as their weight, tokens that only stay dotted.
    """
    lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box, fontsize=8];"]
    ranks: dict[int, list[str]] = {}
    for node, values in named(graph).nodes(data=True):
        x, y = values.pop("x"), values.pop("y")
        label = f"{values['row']},{values['col']}" + f" x{values['mass']}" * (values["mass"] > 1)
        lines.append(f"  {_quoted(node)} [{_listed(label=label, pos=f'{x},{y}', **values)}];")
        ranks.setdefault(values["stage"], []).append(_quoted(node))
    for (start, end), values in graph.edges.items():
        ends = (_quoted("/".join(map(str, node))) for node in (start, end))
        width = round(0.5 + 2 * values["weight"], 3)
        style = "solid" if values["merged"] else "dotted"
        lines.append(f"  {' -> '.join(ends)} [{_listed(style=style, penwidth=width, **values)}];")
    lines += [f"  {{ rank=same; {'; '.join(nodes)}; }}" for nodes in ranks.values()]
    Path(path).write_text("\n".join([*lines, "}", ""]), encoding="utf-8")


def _finite(**values: float) -> dict[str, float]:
    """Those that a file of any kind can hold."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _listed(**values: object) -> str:
    return ", ".join(f"{name}={_quoted(value)}" for name, value in values.items())


def _quoted(value: object) -> str:
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
