"""Lineage: which original tokens each survivor stands for, stage by stage."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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

    def _repr_html_(self) -> str:
        """Itself in a notebook: the explorer, without pictures."""
        from lightkv_graphs.explore import View, frame

        return frame(View(self))

    def _number(self, stage: int) -> int:
        count = len(self.stages)
        if not -count <= stage < count and not (count == 0 and stage == -1):
            raise IndexError(f"stage {stage}: this trace has {count} stages")
        return stage % count if count else -1
