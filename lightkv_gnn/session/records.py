"""What is kept of a prefill for inspection: its graphs, its guidance, its time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_gnn.costs.schedule import Stage
from lightkv_gnn.stage.guidance import Guidance
from lightkv_gnn.stage.merges import Merges
from lightkv_graphs import StageTrace, TokenLayout, add_text


class RecordedGuidance(NamedTuple):
    """Guidance, and the text tokens it came from.

    Attributes:
        guidance: Of the vision tokens.
        position: Position in the call of each text token, `[batch, text]`.
        mask: True for real text tokens, `[batch, text]`.
    """

    guidance: Guidance
    position: Tensor
    mask: Tensor


class StageRecord(NamedTuple):
    """What a stage did, kept for inspection without its autograd graph.

    Attributes:
        stage: Of the schedule.
        merges: Who merged into whom.
        layout: The survivors'.
        guidance: Of the vision tokens before it, `[token]`; None where none was recorded.
        recorded: The same with the text it came from.
        vision_counts: Vision tokens of each sample before it.
    """

    stage: Stage
    merges: Merges
    layout: TokenLayout
    guidance: Tensor | None
    recorded: RecordedGuidance | None
    vision_counts: tuple[int, ...]

    def trace(self) -> StageTrace:
        """Where each token went, and with what weight."""
        return StageTrace.from_graph(
            self.merges.graph,
            self.merges.survivor,
            self.layout,
            layer=self.stage.layer,
            windows=self.stage.windows,
            guidance=self.guidance,
            certificate=self.merges.matching.certificate,
        )

    def with_text(self) -> HeteroData:
        """The stage's graph with the prompt's tokens and guidance edges, where there are any."""
        by_text = None if self.recorded is None else self.recorded.guidance.by_text
        graph = self.merges.graph
        if self.recorded is None or by_text is None:
            return graph
        _, position, mask = self.recorded
        sample, rank = mask.nonzero(as_tuple=True)
        owner = graph["vision"].sample
        place = torch.cat([torch.arange(count, device="cpu") for count in self.vision_counts]).to(
            owner.device
        )
        vision, text = (owner[:, None] == sample[None, :]).nonzero(as_tuple=True)
        share = by_text[owner[vision], rank[text], place[vision]].exp()
        edge_index = torch.stack([text, vision])
        return add_text(graph, sample, position[sample, rank], edge_index, share)


class Stopwatch:
    """Adds up the time of blocks of code without waiting for the device they run on."""

    def __init__(self) -> None:
        self._host = 0.0
        self._device: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Counts the block."""
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            yield
            end.record(stream)
            self._device.append((begin, end))
        else:
            started = time.perf_counter()
            yield
            self._host += time.perf_counter() - started

    def seconds(self) -> float:
        """The sum; waits for the device if blocks ran on one."""
        for _, end in self._device:
            end.synchronize()
        return self._host + sum(begin.elapsed_time(end) for begin, end in self._device) / 1e3
