"""A question about pictures of one's own, answered with compression, and without for comparison."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer

from lightkv_gnn import tiny
from lightkv_gnn.commands import comparison as demo
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.ledger import Ledger
from lightkv_gnn.session.attach import attach
from lightkv_gnn.session.pictures import seen_tiles
from lightkv_gnn.sources import check_source, loading
from lightkv_graphs import MergeTrace, draw_lineage

TINY = "tiny"
"""What the bundled model is called."""

AUTO = "auto"
"""Every device there is: layers that do not fit on one go on the next."""

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


def load(
    source: str, device: str | None = None, dtype: str = "auto", attention: str | None = None
) -> tuple[Any, Any]:
    """A model and its processor.

    Args:
        source: A folder that ``save_pretrained`` wrote, a hub id, or "tiny" for the bundled model.
        device: A GPU if there is one, else the CPU, if not given; "auto" spreads a model over all
            GPUs, and what is left over the CPU's memory (needs accelerate).
        dtype: Of the weights, by name; "auto" is float32 on a CPU, else the checkpoint's.
        attention: Of transformers' attention implementations; the model's default if not given.

    Raises:
        ImportError: The processor needs a package that is not installed.
        OSError: There is no such model.
        ValueError: It is no model that answers questions about pictures, or accelerate is missing.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = not torch.cuda.is_available() if device == AUTO else torch.device(device).type == "cpu"
    if dtype == "auto" and on_cpu:
        dtype = "float32"
    if source == TINY and device != AUTO:
        model, processor = tiny.load(device)
        if attention:
            model.set_attn_implementation(attention)
        return model if dtype == "auto" else model.to(getattr(torch, dtype)), processor
    source = str(tiny.WEIGHTS) if source == TINY else source
    check_source(source)
    with loading(source):
        processor = AutoProcessor.from_pretrained(source)
    if sys.stderr.isatty():
        transformers.logging.enable_progress_bar()
    spread = {"device_map": AUTO} if device == AUTO else {}
    with loading(source):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, attn_implementation=attention, **spread
        )
    transformers.logging.disable_progress_bar()
    return (loaded if spread else loaded.to(device)).eval(), processor


def answer(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    prompt: str,
    config: LightKVConfig,
    *,
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
        return demo.generate(
            model,
            processor,
            list(pictures),
            prompt,
            max_new_tokens=max_new_tokens,
            streamer=streamer,
        )

    with attach(model, config) as handle:
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


def draw_merges(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    prompt: str,
    trace: MergeTrace,
    file: Path,
) -> list[Path]:
    """Draws what became of every tile, numbered if there are several; returns the files."""
    inputs = demo.as_inputs(model, processor, list(pictures), prompt)
    tiles = seen_tiles(model, processor, inputs)
    files = []
    for number, tile in enumerate(tiles):
        one = len(tiles) == 1
        files.append(file if one else file.with_stem(f"{file.stem}-{number}"))
        draw_lineage(trace, tile, image=number).savefig(files[-1], dpi=120)
    return files
