"""The command ``lightkv-gnn run``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from lightkv_gnn.choices import GuidanceName, MatcherName, MessageName
from lightkv_gnn.commands.options import AdapterName, Json, Retention, Stages, make_app
from lightkv_gnn.sources import TINY, check_source, read_picture

app = make_app()

Model = Annotated[
    str, typer.Argument(help="A hub id, a folder with model and processor, or 'tiny' (bundled).")
]
Images = Annotated[
    list[Path], typer.Option(metavar="FILE", help="A picture; repeat it for several.")
]
Prompt = Annotated[str, typer.Option(help="What to ask about them.")]
Guidance = Annotated[GuidanceName, typer.Option(help="How the prompt is heard.")]
Message = Annotated[MessageName, typer.Option(help="What a survivor becomes.")]
Matcher = Annotated[MatcherName, typer.Option(help="Who stays, and who joins whom.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Of the answer.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, or auto: over all GPUs (needs accelerate).",
        show_default="cuda if there is one",
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Of the weights; auto is float32 on a CPU, else the checkpoint's."),
]
Compare = Annotated[bool, typer.Option("--compare", help="Answer without compression too.")]
Trace = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the merges, for MergeTrace.load.")
]
Draw = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw the merges: a .png, .pdf or .svg for each tile."),
]


@app.command()
def run(
    model: Model,
    image: Images,
    prompt: Prompt,
    retention: Retention = 0.55,
    stage: Stages = None,
    adapter: AdapterName = None,
    guidance: Guidance = "text_to_vision",
    message: Message = "guided_mean",
    matcher: Matcher = "coverage",
    max_new_tokens: MaxNewTokens = 128,
    device: Device = None,
    dtype: Dtype = "auto",
    compare: Compare = False,
    trace: Trace = None,
    draw: Draw = None,
    as_json: Json = False,
) -> None:
    """Answer a question about pictures, with a compressed cache; tell what it cost."""
    pictures = [read_picture(file) for file in image]
    check_source(model, TINY)

    from lightkv_gnn import machine
    from lightkv_gnn.adapters import adapter_for
    from lightkv_gnn.asking import loading
    from lightkv_gnn.commands import running
    from lightkv_gnn.config import LightKVConfig
    from lightkv_gnn.costs.schedule import in_words

    running.check_files(trace, draw)
    if device and device != loading.AUTO:
        machine.check_device(device)
    loaded, processor = loading.load(model, device, dtype)
    chosen = adapter_for(loaded, adapter)
    if draw:
        running.check_drawable(chosen)
    parts = {"guidance": guidance, "message": message, "matcher": matcher}
    config = LightKVConfig.for_model(
        loaded, retention, stages=stage or None, adapter=chosen, **parts
    )
    answered = running.answer(
        loaded,
        processor,
        pictures,
        prompt,
        config,
        adapter=chosen,
        max_new_tokens=max_new_tokens,
        compare=compare,
        report=None if as_json else print,
    )
    files = []
    if trace:
        answered.trace.save(trace)
        files.append(trace)
    if draw:
        files += running.draw_merges(chosen, processor, pictures, prompt, answered.trace, draw)
    if not as_json:
        print(f"\nmerged away: {in_words(config.stages)}\n{answered.ledger}")
        if files:
            print("wrote " + ", ".join(map(str, files)))
        return
    result = {
        "model": type(loaded).__name__,
        "images": [str(file) for file in image],
        "prompt": prompt,
        "config": config.to_dict(),
        "answer": answered.compressed,
        **({"uncompressed": answered.full} if compare else {}),
        "ledger": answered.ledger.to_dict(),
        "files": [str(file) for file in files],
    }
    print(json.dumps(result, indent=2))
