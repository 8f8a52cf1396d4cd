"""The command ``lightkv-gnn batch``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from lightkv_gnn.commands.options import AdapterName, Json, Retention, Stages, make_app
from lightkv_gnn.commands.run import Device, Dtype, Guidance, Matcher, MaxNewTokens, Message
from lightkv_gnn.sources import TINY, check_exists, check_source

app = make_app()

In = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="A folder of pictures, or a .jsonl or .parquet with a column image, and perhaps id, "
        "prompt and others.",
    ),
]
Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="Folder of Parquet parts; a run goes on where one stopped."),
]
Model = Annotated[
    str, typer.Option(help="A hub id, a folder with model and processor, or 'tiny' (bundled).")
]
Prompt = Annotated[
    str | None, typer.Option(help="What to ask where a row has no prompt of its own.")
]
EngineName = Annotated[
    Literal["local", "ray"], typer.Option(help="In this process, or on workers of Ray Data.")
]
Batch = Annotated[int, typer.Option(min=1, help="Pictures answered together.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Of ray, a model each.", show_default="1")]
Gpus = Annotated[
    float | None,
    typer.Option(min=0, help="Of each of ray's workers.", show_default="0"),
]
RowsPerPart = Annotated[int, typer.Option(min=1, help="Answers in a Parquet file.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many rows of IN.")]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="Ask again what could not be answered.")
]


@app.command()
def batch(
    source: In,
    out: Out,
    model: Model,
    prompt: Prompt = None,
    engine: EngineName = "local",
    batch: Batch = 8,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    rows_per_part: RowsPerPart = 256,
    limit: Limit = None,
    retry_errors: RetryErrors = False,
    retention: Retention = 0.55,
    stage: Stages = None,
    adapter: AdapterName = None,
    guidance: Guidance = "text_to_vision",
    message: Message = "guided_mean",
    matcher: Matcher = "coverage",
    max_new_tokens: MaxNewTokens = 128,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Ask about many pictures, with a compressed cache; leave Parquet, and a file of errors."""
    if engine == "local" and (workers is not None or gpus_per_worker is not None):
        raise typer.BadParameter("--workers and --gpus-per-worker are for --engine ray")
    check_exists(source)
    check_source(model, TINY)

    from lightkv_gnn import machine
    from lightkv_gnn.batch import Engine, LocalEngine, RayEngine, Settings, run_batch

    if engine == "local":
        if device:
            machine.check_device(device)
        where: Engine = LocalEngine(batch)
    else:
        where = RayEngine(batch, workers or 1, gpus_per_worker or 0)
    done = run_batch(
        source,
        out,
        Settings(
            model,
            retention=retention,
            stages=tuple(stage or ()),
            adapter=adapter,
            guidance=guidance,
            message=message,
            matcher=matcher,
            max_new_tokens=max_new_tokens,
            device=device,
            dtype=dtype,
        ),
        where,
        prompt=prompt,
        limit=limit,
        rows_per_part=rows_per_part,
        retry_errors=retry_errors,
    )
    if as_json:
        print(json.dumps(done.to_dict(), indent=2))
        return
    before = f"{done.done_before} done before"
    if done.failed_before:
        before += f", {done.failed_before} of them failed"
    print(
        f"{done.rows} {'row' if done.rows == 1 else 'rows'}: {done.answered} answered and "
        f"{done.failed} failed in {done.seconds:.1f} s, {before}"
    )
    print(f"wrote {len(done.parts)} {'part' if len(done.parts) == 1 else 'parts'} in {out}")
    if done.failed or done.failed_before:
        print(f"what failed is in {done.errors}; --retry-errors asks it again")
