"""One stage on flat tokens: layout, features and guidance in; survivors out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MessagePassing

from lightkv_gnn.choices import ScatterName, named
from lightkv_gnn.stage.merges import Merges, merges_of
from lightkv_gnn.stage.messages import (
    MESSAGES,
    MergeConv,
    Message,
    WeightedMean,
    forgets_weight,
    guided_mean,
)
from lightkv_gnn.stage.ranks import Ranks
from lightkv_gnn.stage.scatter import backend
from lightkv_graphs import (
    Matcher,
    Matching,
    PromptMatching,
    StagePlan,
    TokenLayout,
    WindowPartition,
    cosine_matching,
    coverage_matching,
    message_edges,
    protecting_matching,
    random_matching,
    resisting_matching,
    stride_matching,
)

MATCHERS: dict[str, Matcher] = {
    "cosine_matching": cosine_matching,
    "random_matching": random_matching,
    "stride_matching": stride_matching,
    "resisting_matching": resisting_matching,
    "protecting_matching": protecting_matching,
    "coverage_matching": coverage_matching,
}
"""Matchers that have a name in a file; elsewhere it may be given without ``_matching``."""

_ALTERNATE = (cosine_matching, random_matching, stride_matching)

Part = TypeVar("Part")


def by_name(field: str, value: Part | str, table: Mapping[str, Part]) -> Part:
    """What a name stands for, with or without ``_matching``; anything else is returned as it is.

    Raises:
        ValueError: The table does not have the name.
    """
    if not isinstance(value, str):
        return value
    name = named(value, table)
    if name is not None:
        return table[name]
    raise ValueError(f"{field} is {value!r}: expected one of {sorted(table)}, or a callable")


def check_ratio(matcher: Matcher, ratio: float) -> None:
    """Raises ValueError if one that alternates sources and destinations is to merge most away."""
    if ratio > 0.5 and (matcher in _ALTERNATE or isinstance(matcher, PromptMatching)):
        name = getattr(matcher, "__name__", matcher)
        raise ValueError(
            f"ratio is {ratio}, but {name} merges every other token away at most: expected 0 to "
            "0.5, or another matcher, such as lightkv_gnn.graphs.coverage_matching"
        )


def check_callable(name: str, value: object, example: str) -> None:
    """Raises TypeError for what cannot be called, or is a class, which would make an instance."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name} is {value!r}: expected a callable, such as lightkv_gnn.{example}")


class Compressed(NamedTuple):
    """What a stage leaves.

    Attributes:
        hidden_states: `[survivor, channel]`, in the dtype that came in.
        layout: The survivors' layout.
        merges: Who merged into whom.
    """

    hidden_states: Tensor
    layout: TokenLayout
    merges: Merges

    @property
    def kept(self) -> Tensor:
        """The tokens that stay, ascending, `[survivor]`."""
        return self.merges.kept

    @property
    def survivor(self) -> Tensor:
        """Row of each token's survivor, `[token]`."""
        return self.merges.survivor

    @property
    def graph(self) -> HeteroData:
        """The graph the messages passed over."""
        return self.merges.graph


class TokenCompressor:
    """Partition, matching, message passing, pooling: a whole batch as one disjoint graph.

    Args:
        message: A name, a callable ``(x_i, x_j, weight)``, or a ``MessagePassing`` called as
            ``conv((x, x_survivor), edge_index, edge_weight=weight)``, in float32 at least; one row
            per survivor; its own aggregation counts then.
        matcher: A name, or see :data:`lightkv_graphs.Matcher`.
        scatter: Backend of the reductions.

    Attributes:
        fused: Whether messages are summed as they are read, which weighted means allow, and never
            written down one by one.
        ranks: The processes that have to merge alike; set where a compressor is attached.
    """

    ranks = Ranks()

    def __init__(
        self,
        message: Message | MessagePassing | str = guided_mean,
        matcher: Matcher | str = cosine_matching,
        scatter: ScatterName = "torch",
    ) -> None:
        message = by_name("message", message, MESSAGES)
        matcher = by_name("matcher", matcher, MATCHERS)
        check_callable("message", message, "guided_mean")
        check_callable("matcher", matcher, "graphs.cosine_matching")
        self.message = message
        self.matcher = matcher
        self._matcher_wants = _wants(matcher)
        self.scatter = backend(scatter)
        if isinstance(message, MessagePassing):
            if "edge_weight" not in inspect.signature(message.forward).parameters:
                raise TypeError(
                    f"{type(message).__name__} takes no edge_weight: expected a MessagePassing to "
                    "be called as conv((x, x_survivor), edge_index, edge_weight=weight), such as "
                    "SimpleConv or GraphConv; wrap yours, or pass a callable (x_i, x_j, weight)"
                )
            self.conv = message
        else:
            if forgets_weight(message):
                warnings.warn(
                    f"lightkv_gnn: the message {_name(message)} does not look at its weight. "
                    "Messages are summed, so that a survivor of n tokens becomes n times as large: "
                    "multiply by weight[:, None], which sums to one; or call the argument _weight, "
                    "if that is meant",
                    stacklevel=2,
                )
            self.conv = MergeConv(message, self.scatter)
        self.fused = isinstance(message, WeightedMean)

    def __call__(
        self, x: Tensor, layout: TokenLayout, plan: StagePlan, guidance: Tensor | None = None
    ) -> Compressed:
        """Runs one stage.

        Args:
            x: Features, `[token, channel]`, floating point.
            layout: Where the tokens are.
            plan: The stage's sizes, from ``plan_stage(layout.occupancy, ...)``.
            guidance: Logarithm of the prompt's guidance, `[token]`; equal for all if not given.

        Raises:
            ValueError: Features or guidance do not fit the layout, the ratio is too large for
                the matcher, or the matcher or the message broke its contract.
            TypeError: Features or guidance are no floating-point numbers, the matcher returned no
                ``Matching``, or the message no tensor.
        """
        for name, value in (("x", x), ("guidance", guidance)):
            if value is not None and not (isinstance(value, Tensor) and value.is_floating_point()):
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name} is of {kind}: expected a tensor of a floating-point type")
        if x.ndim != 2 or x.shape[0] != len(layout):
            raise ValueError(
                f"x has shape {list(x.shape)}: expected [token, channel] with {len(layout)} tokens"
            )
        if guidance is None:
            guidance = x.new_zeros(len(layout), dtype=_accumulator(x))
        elif guidance.shape != x.shape[:1]:
            raise ValueError(
                f"guidance has shape {list(guidance.shape)}: expected [token] = [{len(layout)}]"
            )
        check_ratio(self.matcher, plan.ratio)
        plan.check(layout)
        merges = self.merges(x, layout, plan, guidance)
        hidden_states = self.means(x, merges) if self.fused else self._pass_messages(x, merges)
        return Compressed(hidden_states, _after(layout, merges, plan), merges)

    def merges(self, x: Tensor, layout: TokenLayout, plan: StagePlan, guidance: Tensor) -> Merges:
        """The stage up to its messages, in tensors alone; arguments as above, all given.

        With :meth:`means`, what ``torch.compile`` or a CUDA graph takes of a stage.
        """
        message = self.message if isinstance(self.message, WeightedMean) else guided_mean

        def match(x: Tensor, partition: WindowPartition) -> Matching:
            known = {
                "guidance": guidance,
                "layout": layout,
                "nearest": self.scatter.nearest,
                "greedy": self.scatter.greedy,
            }
            wanted = {name: known[name] for name in self._matcher_wants}
            matching = self.matcher(x, partition, **wanted)
            if self.matcher not in MATCHERS.values():
                if not isinstance(matching, Matching):
                    raise TypeError(f"the matcher returned {type(matching)}: expected a Matching")
                matching.check(partition)
            return self.ranks.agreed(matching)

        return merges_of(
            x, layout, plan, guidance, match=match, weigh=message.weigh, scatter=self.scatter
        )

    def means(self, x: Tensor, merges: Merges) -> Tensor:
        """The survivors' weighted means, `[survivor, channel]`, in the dtype of ``x``."""
        return merges.edges.means(x, len(merges.kept), self.scatter)

    def _pass_messages(self, x: Tensor, merges: Merges) -> Tensor:
        edge_index, weight = message_edges(merges.graph)
        kept = merges.kept
        wide = x.to(_accumulator(x))
        own = wide[kept]
        out = self.conv((wide, own), edge_index, edge_weight=weight.to(wide.dtype))
        if out.shape != own.shape:
            raise ValueError(
                f"the messages summed to shape {list(out.shape)}: expected [survivor, channel] = "
                f"{list(own.shape)}, from a message [edge, channel] per edge"
            )
        number = edge_index[1].new_zeros(len(kept))
        number.index_add_(0, edge_index[1], torch.ones_like(edge_index[1]))
        return torch.where((number == 1)[:, None], own, out).to(x.dtype)


def _name(message: object) -> str:
    return getattr(message, "__name__", type(message).__name__)


def _wants(matcher: Matcher) -> list[str]:
    """What a matcher takes besides features and windows."""
    try:
        parameters = inspect.signature(matcher).parameters
    except ValueError:  # some callables have no signature
        return []
    names = ("guidance", "layout", "nearest", "greedy")
    return [name for name in names if name in parameters]


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _after(layout: TokenLayout, merges: Merges, plan: StagePlan) -> TokenLayout:
    names = ("sample", "image", "row", "col", "protected")
    moved = {name: getattr(layout, name).index_select(0, merges.kept) for name in names}
    pairs = zip(layout.counts, plan.merges, strict=True)
    counts = tuple(count - gone for count, gone in pairs)
    return replace(layout, **moved, mass=merges.mass, counts=counts, occupancy=plan.occupancy)
