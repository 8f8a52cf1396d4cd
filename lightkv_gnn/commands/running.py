"""A question about pictures of one's own, answered with compression, and without for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TextStreamer

from lightkv_gnn.adapters import Adapter, AdapterChoice
from lightkv_gnn.asking.answers import generate
from lightkv_gnn.asking.prompts import as_inputs
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.ledger import Ledger
from lightkv_gnn.errors import UnsupportedModelError
from lightkv_gnn.session.attach import attach
from lightkv_gnn.session.pictures import seen_tiles
from lightkv_graphs import MergeTrace, draw_lineage

DRAWN = (".png", ".pdf", ".svg")
"""Kinds of files that figures are written to."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a run gave.

    Attributes:
        compressed: The answer.
        full: The one without compression; None if nobody asked for it.
        ledger: Of the compressed prefill.
        trace: Of its merges, with the prompt.
    """

    compressed: str
    full: str | None
    ledger: Ledger
    trace: MergeTrace


def answer(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    prompt: str,
    config: LightKVConfig,
    *,
    adapter: AdapterChoice = None,
    max_new_tokens: int,
    compare: bool = False,
    report: Callable[[str], None] | None = None,
) -> Answer:
    """Asks once with compression, and if ``compare`` then without.

    ``report`` is told which of them comes next, and answers are printed word by word; if it is
    None, nothing is printed.
    """

    def ask(title: str) -> str:
        streamer = None
        if report:
            if compare:
                report(title)
            streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        return generate(
            model,
            processor,
            list(pictures),
            prompt,
            max_new_tokens=max_new_tokens,
            streamer=streamer,
        )

    with attach(model, config, adapter=adapter) as handle:
        compressed = ask("compressed:")
    ledger, trace = handle.ledger, handle.trace.with_prompts([prompt])
    return Answer(compressed, ask("\nuncompressed:") if compare else None, ledger, trace)


def check_files(trace: Path | None, draw: Path | None) -> None:
    """Raises OSError, ValueError or ImportError for files that could not be written at the end."""
    for name, file in (("trace", trace), ("draw", draw)):
        if file and not file.parent.is_dir():
            raise FileNotFoundError(f"--{name} {file}: there is no folder {file.parent}")
    if draw and draw.suffix not in DRAWN:
        raise ValueError(f"--draw {draw}: expected a name that ends with one of {', '.join(DRAWN)}")
    if draw and find_spec("matplotlib") is None:
        raise ImportError("--draw needs matplotlib: pip install 'lightkv-gnn[draw]'")


def check_drawable(adapter: Adapter) -> None:
    """Raises UnsupportedModelError for an adapter that does not tell where tokens are drawn."""
    if not adapter.placed or type(adapter).seen is Adapter.seen:
        raise UnsupportedModelError(
            f"--draw needs to know which pixels a token covers, which {type(adapter).__name__} "
            "does not tell: leave it out"
        )


def draw_merges(
    adapter: Adapter,
    processor: Any,
    pictures: Sequence[Image.Image],
    prompt: str,
    trace: MergeTrace,
    file: Path,
) -> list[Path]:
    """Draws what became of every tile, numbered if there are several; returns the files."""
    inputs = as_inputs(adapter.model, processor, list(pictures), prompt)
    tiles = seen_tiles(adapter.model, processor, inputs, adapter=adapter)
    files = []
    for number, tile in enumerate(tiles):
        one = len(tiles) == 1
        files.append(file if one else file.with_stem(f"{file.stem}-{number}"))
        draw_lineage(trace, tile, image=number).savefig(files[-1], dpi=120)
    return files
