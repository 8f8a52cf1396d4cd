"""Lineage: which original tokens each survivor stands for, stage by stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_graphs.build import part_of
from lightkv_graphs.convert import lineage, node_link, write_dot, write_graphml
from lightkv_graphs.files import Parts, read_trace, write_trace
from lightkv_graphs.header import check_prompts
from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.stage import StageTrace

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, eq=False)
class MergeTrace:
    """The stages of one prefill, composed.

    ``stage`` counts from 0; -1 is the last one.  An "original" token is a row of ``layout``.

    Attributes:
        layout: The tokens before the first stage.
        stages: What each stage did, in order.
        prompts: The prompt of each sample, where it is known; else none at all.
    """

    layout: TokenLayout
    stages: tuple[StageTrace, ...]
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_prompts(self.prompts, self.layout.samples)

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[StageTrace]:
        return iter(self.stages)

    def __repr__(self) -> str:
        counts = [len(self.layout), *(len(stage.layout) for stage in self.stages)]
        layers = ", ".join(str(stage.layer) for stage in self.stages)
        path = " -> ".join(map(str, counts))
        return f"MergeTrace(vision tokens {path}, after layers [{layers}])"

    def before(self, stage: int) -> TokenLayout:
        """The tokens that a stage was given."""
        number = self._number(stage)
        return self.stages[number - 1].layout if number > 0 else self.layout

    def relative_guidance(self, stage: int) -> Tensor | None:
        """The prompt's guidance that a stage heard, relative to the mean, `[token before]` float64.

        The mean is that of the mergeable tokens of each sample: 1 is average.  NaN for tokens that
        are never merged; None where the stage heard no prompt.
        """
        before, guidance = self.before(stage), self.stages[self._number(stage)].guidance
        if guidance is None:
            return None
        relative = torch.full((len(before),), torch.nan, dtype=torch.float64, device="cpu")
        relative = relative.to(guidance.device)
        for sample in before.sample.unique():
            here = (before.sample == sample) & ~before.protected
            share = guidance[here].double().softmax(0)
            relative[here] = (share * len(share)).nan_to_num(nan=1.0)
        return relative

    def survivor_of(self, stage: int = -1) -> Tensor:
        """Row of the survivor that stands for each original token, `[original]`."""
        return self._rows()[self._number(stage) + 1]

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

    def path(self, token: int) -> Tensor:
        """The row an original token is in before each stage and after the last, `[stage + 1]`.

        Raises:
            IndexError: No such token.
        """
        if not 0 <= token < len(self.layout):
            raise IndexError(f"token {token}: expected 0..{len(self.layout) - 1}")
        return torch.stack([rows[token] for rows in self._rows()])

    def share(self, stage: int = -1) -> Tensor:
        """What each original token weighs in its survivor, `[original]`.

        This is the product of the weights along its path, so the shares in a survivor sum to one:
        where messages are weighted means, a survivor is the mean of its members with these weights.
        """
        share = torch.ones(len(self.layout), device=self.layout.image.device)
        for done, rows in zip(self.stages[: self._number(stage) + 1], self._rows(), strict=False):
            share = share * done.weight[rows]
        return share

    def unmerge(self, x: Tensor, stage: int = -1) -> Tensor:
        """Gives every original token its survivor's row: `[survivor, ...]` to `[original, ...]`."""
        return x[self.survivor_of(stage)]

    def to(self, device: torch.device | str) -> MergeTrace:
        """The same trace on another device."""
        stages = tuple(done.to(device) for done in self.stages)
        return replace(self, layout=self.layout.to(device), stages=stages)

    def with_prompts(self, prompts: Sequence[str]) -> MergeTrace:
        """The same trace with the prompt of each sample.

        Raises:
            ValueError: Not all are strings, or fewer than samples.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts is {prompts!r}: expected a list, with one for each sample")
        return replace(self, prompts=tuple(prompts))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace to one file, safetensors with a JSON header, for :meth:`load`.

        Integers are kept as they are, other numbers in float32.  A file that is there is replaced,
        and stays as it was if that fails.

        Raises:
            ValueError: The trace is not valid, as by :meth:`StageTrace.from_tokens`.
            OSError: The file cannot be written.
        """
        write_trace(path, Parts(self.layout, self.stages, self.prompts))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MergeTrace:
        """The trace in a file that :meth:`save` wrote, on the CPU.

        The file is checked like any input, and nothing in it is executed.

        Raises:
            TraceFileError: It holds no valid trace.
            OSError: It cannot be read.
        """
        return cls(*read_trace(path))

    def graph(
        self, stage: int = -1, *, image: int | None = None, window: int | None = None
    ) -> HeteroData:
        """The graph that a stage passed its messages over, as from ``handle.graph``.

        It has no prompt tokens; a trace holds their guidance of each vision token only.

        Args:
            stage: Number of the stage.
            image: Only this image's part.
            window: Only this window's part.

        Raises:
            IndexError: No such stage.
            ValueError: No such image or window.
        """
        number = self._number(stage)
        if number < 0:
            raise IndexError("this trace has no stages, and so no graph")
        graph = self.stages[number].to_graph(self.before(number))
        if image is None and window is None:
            return graph
        return part_of(graph, image=image, window=window)

    def to_networkx(self) -> networkx.DiGraph:
        """The lineage as a directed graph for networkx.

        Nodes are ``(stage, row)``, stage 0 being the tokens before the first stage, with
        ``stage``, ``sample``, ``image``, ``row`` and ``col`` in the image's grid, ``mass``, and
        ``guidance`` where the next stage heard the prompt.  An edge leads from each token to the
        node it ends in one stage later, with ``layer``, ``merged`` (False where a token only
        stayed), ``weight`` and ``similarity``.  Guidance and similarities that are not finite
        are left out.
        """
        return lineage(self.layout, self.stages)

    def to_node_link(self) -> dict[str, Any]:
        """The same as plain values for JSON, for ``networkx.node_link_graph(data, edges="edges")``.

        Nodes are named ``"stage/row"`` here and in the files, and have a position ``x``, ``y``:
        stages side by side, images one below the other.
        """
        return node_link(self.to_networkx())

    def write_graphml(self, path: str | os.PathLike[str]) -> None:
        """Writes the lineage as GraphML, as for Gephi, with the nodes of :meth:`to_node_link`."""
        write_graphml(self.to_networkx(), path)

    def write_dot(self, path: str | os.PathLike[str]) -> None:
        """Writes the lineage for Graphviz, with the nodes of :meth:`to_node_link`."""
        write_dot(self.to_networkx(), path)

    def _rows(self) -> list[Tensor]:
        """Row of each original token before each stage and after the last, `[original]` each."""
        rows = [torch.arange(len(self.layout), device=self.layout.image.device)]
        for done in self.stages:
            rows.append(done.survivor[rows[-1]])
        return rows

    def _repr_html_(self) -> str | None:
        """Itself in a notebook: the explorer, without pictures."""
        return _page(self) if _page else None

    def _number(self, stage: int) -> int:
        count = len(self.stages)
        if not -count <= stage < count and not (count == 0 and stage == -1):
            raise IndexError(f"stage {stage}: this trace has {count} stages")
        return stage % count if count else -1


_page: Callable[[MergeTrace], str] | None = None


def show_with(page: Callable[[MergeTrace], str]) -> None:
    """Sets what notebooks show of a trace; the explorer, which stands on traces, does so."""
    global _page
    _page = page
