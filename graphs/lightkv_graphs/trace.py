"""Lineage: which original tokens each survivor stands for, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_graphs.build import KEEPS, MERGES
from lightkv_graphs.layout import TokenLayout

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, eq=False)
class StageTrace:
    """What one stage did.

    Attributes:
        layer: The decoder layer (0-based) the stage ran after.
        windows: Windows per side.
        window: Window of each token before the stage, `[token]`.
        kept: Tokens before the stage that stay, ascending, `[survivor]`.
        survivor: Row of the survivor each token before the stage ends in, `[token]`.
        weight: Share of each token before the stage in its survivor, `[token]`; 0 for a token that
            was dropped.
        similarity: Cosine of each token before the stage and the one it ends in, `[token]`; 1 for
            those that stay.
        guidance: Logarithm of the prompt's guidance of each token before the stage, `[token]`; None
            where none was heard.
        layout: The tokens after the stage.
    """

    layer: int
    windows: int
    window: Tensor
    kept: Tensor
    survivor: Tensor
    weight: Tensor
    similarity: Tensor
    guidance: Tensor | None
    layout: TokenLayout

    @classmethod
    def from_graph(
        cls,
        graph: HeteroData,
        survivor: Tensor,
        layout: TokenLayout,
        *,
        layer: int,
        windows: int,
        guidance: Tensor | None = None,
    ) -> StageTrace:
        """What the messages' graph of a stage, from ``merge_graph``, tells of it.

        Args:
            graph: The graph.
            survivor: Row of each token's survivor, `[token]`.
            layout: The tokens after the stage.
            layer: The decoder layer (0-based) the stage ran after.
            windows: Windows per side.
            guidance: Logarithm of the prompt's guidance, `[token]`.
        """
        kept, source = graph[KEEPS].edge_index[0], graph[MERGES].edge_index[0]
        weight = torch.zeros_like(survivor, dtype=graph[KEEPS].weight.dtype)
        weight = weight.index_copy(0, kept, graph[KEEPS].weight)
        weight = weight.index_copy(0, source, graph[MERGES].weight)
        cosine = graph[MERGES].similarity
        similarity = torch.ones_like(survivor, dtype=cosine.dtype).index_copy(0, source, cosine)
        window = graph["vision"].window
        return cls(layer, windows, window, kept, survivor, weight, similarity, guidance, layout)

    @property
    def divergence(self) -> Tensor:
        """Feature divergence of each token before the stage and the one it ends in, `[token]`."""
        return 1 - self.similarity

    def to(self, device: torch.device | str) -> StageTrace:
        """The same stage on another device."""
        names = ("window", "kept", "survivor", "weight", "similarity")
        moved = {name: getattr(self, name).to(device) for name in names}
        guidance = None if self.guidance is None else self.guidance.to(device)
        return replace(self, **moved, guidance=guidance, layout=self.layout.to(device))


@dataclass(frozen=True, eq=False)
class MergeTrace:
    """The stages of one prefill, composed.

    ``stage`` counts from 0; -1 is the last one.  An "original" token is a row of ``layout``.

    Attributes:
        layout: The tokens before the first stage.
        stages: What each stage did, in order.
    """

    layout: TokenLayout
    stages: tuple[StageTrace, ...]

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[StageTrace]:
        return iter(self.stages)

    def __repr__(self) -> str:
        counts = [len(self.layout), *(len(stage.layout) for stage in self.stages)]
        layers = ", ".join(str(stage.layer) for stage in self.stages)
        path = " -> ".join(map(str, counts))
        return f"MergeTrace(vision tokens {path}, after layers [{layers}])"

    def survivor_of(self, stage: int = -1) -> Tensor:
        """Row of the survivor that stands for each original token, `[original]`."""
        rows = torch.arange(len(self.layout), device=self.layout.image.device)
        for done in self.stages[: self._number(stage) + 1]:
            rows = done.survivor[rows]
        return rows

    def kept(self, stage: int = -1) -> Tensor:
        """The original token whose place each survivor has, `[survivor]`."""
        tokens = torch.arange(len(self.layout), device=self.layout.image.device)
        for done in self.stages[: self._number(stage) + 1]:
            tokens = tokens[done.kept]
        return tokens

    def members(self, survivor: int, stage: int = -1) -> Tensor:
        """The original tokens that a survivor stands for, ascending, `[member]`.

        Raises:
            IndexError: No such survivor after that stage.
        """
        rows = self.survivor_of(stage)
        count = len(self.stages[self._number(stage)].layout) if self.stages else len(self.layout)
        if not 0 <= survivor < count:
            raise IndexError(f"survivor {survivor} of {count}: expected 0..{count - 1}")
        return (rows == survivor).nonzero()[:, 0]

    def unmerge(self, x: Tensor, stage: int = -1) -> Tensor:
        """Gives every original token its survivor's row: `[survivor, ...]` to `[original, ...]`."""
        return x[self.survivor_of(stage)]

    def to(self, device: torch.device | str) -> MergeTrace:
        """The same trace on another device."""
        return MergeTrace(self.layout.to(device), tuple(done.to(device) for done in self.stages))

    def to_networkx(self) -> networkx.DiGraph:
        """The lineage as a directed graph for networkx.

        Nodes are ``(stage, row)``, stage 0 being the tokens before the first stage, with ``image``,
        ``row``, ``col`` and ``mass``; an edge leads from each token to the node it ends in one
        stage later, with ``layer`` and ``merged`` (False where a token only stayed).
        """
        import networkx

        trace = self.to("cpu")
        graph = networkx.DiGraph()
        layouts = [trace.layout, *(done.layout for done in trace.stages)]
        names = ("sample", "image", "row", "col", "mass")
        for number, layout in enumerate(layouts):
            columns = zip(*(getattr(layout, name).tolist() for name in names), strict=True)
            graph.add_nodes_from(
                ((number, row), dict(zip(names, values, strict=True)))
                for row, values in enumerate(columns)
            )
        for number, done in enumerate(trace.stages):
            stays = set(done.kept.tolist())
            graph.add_edges_from(
                ((number, token), (number + 1, row), {"layer": done.layer, "merged": merged})
                for token, row in enumerate(done.survivor.tolist())
                for merged in [token not in stays]
            )
        return graph

    def _number(self, stage: int) -> int:
        count = len(self.stages)
        if not -count <= stage < count and not (count == 0 and stage == -1):
            raise IndexError(f"stage {stage}: this trace has {count} stages")
        return stage % count if count else -1
