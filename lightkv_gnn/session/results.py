"""What a prefill with pictures tells: its trace, its bill, its graphs."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_gnn.costs.ledger import Ledger
from lightkv_gnn.session.call import Call
from lightkv_graphs import LayerBar, MergeTrace, View, part_of, write_page
from lightkv_graphs.explore import frame


class Results:
    """What a prefill with pictures tells; RuntimeError where there is none.

    Args:
        missing: Why there is none yet.
        tokenizer: Makes text of the prompts that traces then carry.
    """

    def __init__(self, missing: str, tokenizer: Any = None) -> None:
        self._call: Call | None = None
        self._missing, self._tokenizer = missing, tokenizer

    def _tell_of(self, call: Call | None) -> None:
        """From now on tells of this prefill; None for one without pictures."""
        self._call = call
        if call is None:
            self._missing = "the last prefill had no pictures"

    @property
    def trace(self) -> MergeTrace:
        """Lineage of the vision tokens; with the prompts, if ``attach`` was given a processor.

        They are the text that guided, in the model's chat format.
        """
        prefill = self._last().prefill
        trace, ids = prefill.trace, prefill.prompt_ids
        if self._tokenizer is None or ids is None:
            return trace
        texts = [self._tokenizer.decode(one, skip_special_tokens=True).strip() for one in ids]
        return trace.with_prompts(texts)

    @property
    def has_pictures(self) -> bool:
        """Whether the last prefill had any, so that there is something to tell."""
        return self._call is not None

    @property
    def masks(self) -> tuple[Tensor, Tensor]:
        """Which tokens of the call are vision tokens, and which are no padding.

        Each `[batch, token]` bool, on the CPU.
        """
        prefill = self._last().prefill
        return prefill.host_vision, prefill.host_real

    @property
    def ledger(self) -> Ledger:
        """The bill."""
        return self._last().ledger

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """The bill of each sample of the batch, planned as if it had run alone: no padding."""
        return self._last().ledgers

    def graph(
        self, stage: int, *, image: int | None = None, window: int | None = None
    ) -> HeteroData:
        """The graph that a stage passed its messages over, with the prompt's guidance.

        Args:
            stage: Number of the stage, from 0, among those that merged anything.
            image: Only this image's part.
            window: Only this window's part.

        Raises:
            IndexError: No such stage.
        """
        records = self._last().prefill.records
        if not -len(records) <= stage < len(records):
            raise IndexError(f"stage {stage}: the prefill had {len(records)} stages")
        graph = records[stage].with_text()
        if image is None and window is None:
            return graph
        return part_of(graph, image=image, window=window)

    def view(
        self,
        *,
        image: Image | Sequence[Image] = (),
        prompt: str | Sequence[str] | None = None,
        answer: str = "",
        name: str = "",
    ) -> View:
        """The prefill as the explorer shows it, for pages of several: ``graphs.write_page``.

        Args:
            image: What the model saw, as from ``seen_tiles``: a picture for each image of the
                trace, or the only one.
            prompt: The text that guided; if not given, what the trace has.
            answer: What the model said.
            name: Heads the view where a page has several.

        Raises:
            ValueError: There are not as many pictures as images.
        """
        one = Results("", self._tokenizer)
        one._call = self._last()  # another thread's prefill may end meanwhile
        bars = [
            LayerBar(
                row.planned.vision_tokens,
                row.full.vision_tokens,
                row.planned.kv_bytes,
                row.full.kv_bytes,
            )
            for row in one.ledger.rows
        ]
        return View(one.trace, image, prompt, answer, bars, name)

    def explore(
        self,
        path: str | PathLike[str],
        *,
        image: Image | Sequence[Image] = (),
        prompt: str | Sequence[str] | None = None,
        answer: str = "",
    ) -> Path:
        """Writes a page that shows how the tokens merged: one HTML file that loads nothing.

        Args:
            path: Where to; an existing file is replaced.
            image: As for :meth:`view`.
            prompt: As for :meth:`view`.
            answer: What the model said.

        Returns:
            The path.

        Raises:
            ValueError: There are not as many pictures as images.
            OSError: The file cannot be written.
        """
        return write_page(path, self.view(image=image, prompt=prompt, answer=answer))

    def _repr_html_(self) -> str | None:
        """Itself in a notebook: the explorer, once something ran."""
        return None if self._call is None else frame(self.view())

    def _last(self) -> Call:
        call = self._call
        if call is None:
            raise RuntimeError(f"nothing to tell: {self._missing}")
        return call


class Watch(Results):
    """What the calls of a block and thread tell, made by ``Handle.watch``; by itself, the last one.

    It goes on telling after the block, and holds what it tells of.  A call that fails changes
    nothing: what is told is of the last one that came to its end.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        missing = (
            "no prefill with pictures has run in this block and thread; where another thread calls "
            "the model, watch there"
        )
        super().__init__(missing, tokenizer)
        self._calls: list[Results] = []

    def _tell_of(self, call: Call | None) -> None:
        """One more prefill; None for one without pictures."""
        super()._tell_of(call)
        if call is not None:
            one = Results("", self._tokenizer)
            one._tell_of(call)
            self._calls.append(one)

    @property
    def calls(self) -> tuple[Results, ...]:
        """What each prefill with pictures tells, in the order they ended in."""
        return tuple(self._calls)
