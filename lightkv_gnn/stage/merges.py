"""One stage in tensors alone, as ``torch.compile`` and CUDA graphs can take it.

There are no graph objects in it until one is asked for, nothing looks at the device, and shapes
come from the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_gnn.stage.scatter import ScatterBackend, softmax_per_target
from lightkv_graphs import (
    Matching,
    StagePlan,
    TokenLayout,
    WindowPartition,
    merge_graph,
    survivors,
)
from lightkv_graphs.partition import lay_windows

Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``weigh(guidance, mass, stays)``; see :class:`lightkv_gnn.stage.messages.WeightedMean`."""


class Merges(NamedTuple):
    """Who merges into whom, and what each weighs.

    Attributes:
        layout: The tokens before the stage.
        partition: The windows.
        matching: The taken edges.
        kept: The tokens that stay, ascending, `[survivor]`.
        survivor: Row of each token's survivor, `[token]`.
        mass: Of each survivor, `[survivor]`.
        edges: Every token's edge to its survivor.
    """

    layout: TokenLayout
    partition: WindowPartition
    matching: Matching
    kept: Tensor
    survivor: Tensor
    mass: Tensor
    edges: Edges

    @property
    def graph(self) -> HeteroData:
        """The graph that the messages pass over, made when it is asked for."""
        weight = self.edges.weight_of_token
        return merge_graph(self.layout, self.partition, self.matching, self.kept, weight)

    def detach(self) -> Merges:
        """The same without the autograd graph."""
        matching = replace(self.matching, similarity=self.matching.similarity.detach())
        edges = self.edges._replace(weight=self.edges.weight.detach())
        return self._replace(matching=matching, edges=edges)


class Edges(NamedTuple):
    """Every token's edge to its survivor, its own or another.

    Attributes:
        source: Token, `[token]`.
        target: Row of its survivor, ascending, `[token]`.
        weight: Its share in that, `[token]`.
    """

    source: Tensor
    target: Tensor
    weight: Tensor

    @property
    def weight_of_token(self) -> Tensor:
        """Share of each token in its survivor, in the order of the tokens, `[token]`."""
        return torch.zeros_like(self.weight).index_copy(0, self.source, self.weight)

    def means(self, x: Tensor, size: int, scatter: ScatterBackend) -> Tensor:
        """Weighted means of ``x`` `[token, channel]`, `[size, channel]`, in its dtype."""
        return scatter.weighted_sum(x, self.source, self.weight, self.target, size)


def merges_of(
    x: Tensor,
    layout: TokenLayout,
    plan: StagePlan,
    guidance: Tensor,
    *,
    match: Callable[[Tensor, WindowPartition], Matching],
    weigh: Weigh,
    scatter: ScatterBackend,
) -> Merges:
    """Lays the windows, matches, and weighs.

    Args:
        x: Features, `[token, channel]`.
        layout: Where the tokens are.
        plan: The stage's sizes, from the layout's own occupancy.
        guidance: Logarithm of the prompt's guidance, `[token]`.
        match: The matcher.
        weigh: What weights are made of.
        scatter: The reductions.
    """
    partition = lay_windows(layout, plan)
    matching = match(x, partition)
    kept, survivor = survivors(matching, len(layout))
    stays = torch.zeros_like(layout.protected).index_fill_(0, kept, True)
    log_weight = weigh(guidance, layout.mass, stays).to(guidance.dtype)
    if matching.dropped is not None:
        silent = stays.index_copy(0, matching.edge_index[0], matching.dropped) & ~stays
        least = torch.finfo(log_weight.dtype).min / 4
        log_weight = log_weight.clamp(min=least).masked_fill(silent, -torch.inf)
    source = survivor.argsort(stable=True)
    target = survivor[source]
    share = softmax_per_target(log_weight[source], target, len(kept), scatter)
    mass = layout.mass.new_zeros(len(kept)).index_add_(0, survivor, layout.mass)
    return Merges(layout, partition, matching, kept, survivor, mass, Edges(source, target, share))
