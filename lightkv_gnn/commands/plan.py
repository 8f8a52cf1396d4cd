"""The command ``lightkv-gnn plan``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lightkv_gnn.commands.options import AdapterName, DtypeName, Json, Retention, Stages, make_app
from lightkv_gnn.sources import TINY, check_source
from lightkv_gnn.units import BYTES, FLOPS, Unit, fitting

if TYPE_CHECKING:
    from lightkv_gnn.costs.ledger import LayerRow
    from lightkv_gnn.planning.model import Forecast, Memory
    from lightkv_graphs import Grid

app = make_app()


def _size(text: str) -> Any:
    """(height, width) of WIDTHxHEIGHT."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(f"{text!r}: expected WIDTHxHEIGHT in pixels, such as 1344x896")
    return int(height), int(width)


Model = Annotated[
    str,
    typer.Argument(help="A hub id, a folder, a config.json alone, or tiny; weights are not read."),
]
Sizes = Annotated[
    list[Any],
    typer.Option(
        "--image",
        parser=_size,
        metavar="WIDTHxHEIGHT",
        help="A picture's size in pixels; repeat it for several in a prompt.",
    ),
]
Text = Annotated[
    int,
    typer.Option(min=0, help="Tokens of a prompt that are no vision tokens; they follow those."),
]
Batch = Annotated[int, typer.Option(min=1, help="Prompts, all alike.")]
Dtype = Annotated[DtypeName, typer.Option(help="Of weights and cache.")]


@app.command()
def plan(
    model: Model,
    image: Sizes,
    text_tokens: Text = 64,
    retention: Retention = 0.55,
    stage: Stages = None,
    adapter: AdapterName = None,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    as_json: Json = False,
) -> None:
    """Tell what compression will save: tokens, cache, operations and memory.

    The model is built from its configuration, without weights, and nothing runs.
    """
    check_source(model, TINY)

    import torch

    from lightkv_gnn import tiny
    from lightkv_gnn.planning.model import forecast

    planned = forecast(
        str(tiny.WEIGHTS) if model == TINY else model,
        image,
        text=text_tokens,
        retention=retention,
        stages=stage or (),
        batch=batch,
        dtype=getattr(torch, dtype),
        adapter=adapter,
    )
    asked = {
        "source": model,
        "images": [
            {"width": width, "height": height, "vision_tokens": tokens}
            for (height, width), tokens in zip(image, planned.pictures, strict=True)
        ],
        "text_tokens": text_tokens,
        "batch": batch,
        "dtype": dtype,
    }
    if as_json:
        print(json.dumps(asked | _result(planned), indent=2))
    else:
        print("\n".join(_lines(planned, image, text_tokens, batch, dtype)))


def _result(planned: Forecast) -> dict[str, Any]:
    return {
        "model": planned.model,
        "config": planned.config.to_dict(),
        "ledger": planned.ledger.to_dict(),
        "memory": {
            name: {**asdict(memory), "total": memory.total}
            for name, memory in (("full", planned.full), ("compressed", planned.light))
        },
    }


def _lines(
    planned: Forecast, sizes: Sequence[Grid], text: int, batch: int, dtype: str
) -> Iterator[str]:
    from lightkv_gnn.costs.schedule import in_words

    yield f"{planned.model}, {len(planned.ledger.rows)} layers, {dtype}, batch {batch}"
    for (height, width), tokens in zip(sizes, planned.pictures, strict=True):
        yield f"a picture of {width}x{height} pixels: {tokens} vision tokens"
    yield f"{text} tokens of text"
    yield f"merged away: {in_words(planned.config.stages)}\n"
    costs = [cost for row in planned.ledger.rows for cost in (row.planned, row.full)]
    cache = fitting([cost.kv_bytes for cost in costs], BYTES)
    work = fitting([cost.flops for cost in costs], FLOPS)
    heads = ("vision", "tokens", f"KV {cache.name}", "share", work.name, "share")
    yield _row("layers, whole batch", *heads)
    for _, alike in groupby(planned.ledger.rows, lambda row: (row.planned, row.full)):
        yield _layers(list(alike), cache, work)
    totals = planned.ledger.totals()
    yield (
        f"retention {totals['retention']:.1%}, KV bytes {totals['kv_ratio']:.1%}, prefill FLOPs "
        f"{totals['flops_ratio']:.1%} of full\n"
    )
    memory = fitting([planned.full.total, planned.light.total], BYTES)
    yield _row(f"memory, {memory.name}", "without", "with", "share")
    for label, name in MEMORY.items():
        yield _memory(label, name, planned.full, planned.light, memory)
    yield "not in it: what attention and feed-forward layers take while they compute"


MEMORY = {
    "weights": "weights",
    "KV of vision": "vision_kv",
    "KV of text": "text_kv",
    "first layer's hidden states": "hidden_states",
    "total": "total",
}
"""Rows of the table, and the attributes of Memory in them."""


def _layers(rows: Sequence[LayerRow], cache: Unit, work: Unit) -> str:
    """Layers that cost the same, each of them."""
    first, last = rows[0], rows[-1].layer
    planned, full = first.planned, first.full
    return _row(
        f"{first.layer}" if last == first.layer else f"{first.layer}-{last}, each",
        planned.vision_tokens,
        planned.tokens,
        cache.text(planned.kv_bytes),
        f"{planned.kv_bytes / full.kv_bytes:.0%}",
        work.text(planned.flops),
        f"{planned.flops / full.flops:.0%}",
    )


def _memory(label: str, name: str, full: Memory, light: Memory, unit: Unit) -> str:
    before, after = getattr(full, name), getattr(light, name)
    share = f"{after / before:.0%}" if before else "-"
    return _row(label, f"{before / unit.size:.3f}", f"{after / unit.size:.3f}", share)


def _row(label: object, *cells: object) -> str:
    return f"{label!s:28}" + "".join(f"{cell!s:>9}" for cell in cells)
