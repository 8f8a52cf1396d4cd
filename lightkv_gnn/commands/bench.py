"""The command ``lightkv-gnn bench``: stages, prefills, decoding, serving, growth."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm
from typer.main import get_command

from lightkv_gnn import machine
from lightkv_gnn.bench import parts
from lightkv_gnn.bench.cases import StageCase
from lightkv_gnn.bench.every import run_all
from lightkv_gnn.bench.parts import Row
from lightkv_gnn.bench.prefill import Contest
from lightkv_gnn.bench.serving import ServeCase
from lightkv_gnn.bench.shapes import SHAPES
from lightkv_gnn.bench.subjects import SUBJECTS, USUAL
from lightkv_gnn.bench.table import as_table
from lightkv_gnn.commands.options import (
    Device,
    DtypeName,
    Json,
    ManyValues,
    Quick,
    Retention,
    Threads,
    make_app,
    one_of,
)

app = make_app(help="Measure time and memory, side by side in one run.", no_args_is_help=True)

Tokens = Annotated[
    list[int] | None,
    typer.Option(metavar="NUMBER...", help="Vision tokens.", show_default="a sweep"),
]
Channels = Annotated[int, typer.Option(min=1, help="Of a token.")]
Windows = Annotated[int, typer.Option(min=1, help="A side.")]
Batch = Annotated[
    list[int] | None,
    typer.Option(metavar="NUMBER...", min=1, help="Samples.", show_default="a sweep"),
]
Samples = Annotated[
    list[int] | None,
    typer.Option("--batch", metavar="NUMBER...", min=1, help="Samples.", show_default="1"),
]
Ragged = Annotated[bool, typer.Option("--ragged", help="Pictures of different sizes.")]
Subjects = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SUBJECT...",
        help=f"Of {', '.join(SUBJECTS)}, or module:function.",
        show_default=", ".join(USUAL),
    ),
]
USUAL_SHAPES = ["small", "mid"]
PREFILLED = [*USUAL_SHAPES, "mid-next"]
"""Decoders that are compared where none is named; decoding of thousands of tokens takes long."""

Shapes = Annotated[
    list[str] | None,
    one_of(SHAPES, metavar="SHAPE...", help=f"Models: one or more of {', '.join(SHAPES)}."),
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Calls of each that count.")]
Dtype = Annotated[DtypeName, typer.Option(help="Of weights and tokens.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="For the rows and the machine, as JSON.")
]
Memory = Annotated[float | None, typer.Option(metavar="GIB", help="How many samples fit.")]
Retentions = Annotated[
    list[float] | None,
    typer.Option(
        "--retention",
        metavar="SHARE...",
        help="Of each picture's tokens, one engine each beside an uncompressed one.",
        show_default="0.5 0.25",
    ),
]
Requests = Annotated[int | None, typer.Option(min=1, help="That come at once.", show_default="24")]
Answer = Annotated[
    int | None, typer.Option(min=2, help="Tokens of each answer.", show_default="16")
]
CacheMemory = Annotated[
    float | None,
    typer.Option(
        "--memory",
        metavar="GIB",
        help="Of keys and values.",
        show_default="a third of the requests fit uncompressed",
    ),
]
Folder = Annotated[Path, typer.Argument(help="For a file of rows of each part; made.")]


@app.command(cls=ManyValues)
def stage(
    context: typer.Context,
    tokens: Tokens = None,
    channels: Channels = 1024,
    windows: Windows = 4,
    batch: Batch = None,
    ragged: Ragged = False,
    subject: Subjects = None,
    quick: Quick = False,
    rounds: Rounds = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """One compression step against references."""

    def rows() -> Iterator[Row]:
        base = _case(tokens, channels, windows, batch, ragged, dtype, device)
        cases = parts.stage_cases(base, tokens, batch, quick=quick)
        return parts.stages(cases, subject or USUAL, rounds)

    _measure(rows, context.obj, device, threads, out, as_json)


@app.command(cls=ManyValues)
def growth(
    context: typer.Context,
    tokens: Tokens = None,
    channels: Channels = 1024,
    windows: Windows = 4,
    batch: Batch = None,
    ragged: Ragged = False,
    subject: Subjects = None,
    quick: Quick = False,
    rounds: Rounds = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """How a step grows with tokens and batch."""

    def rows() -> Iterator[Row]:
        base = _case(tokens, channels, windows, batch, ragged, dtype, device)
        return parts.grown(base, tokens, batch, subject or USUAL, rounds, quick=quick)

    _measure(rows, context.obj, device, threads, out, as_json)


@app.command(cls=ManyValues)
def prefill(
    context: typer.Context,
    shape: Shapes = None,
    batch: Samples = None,
    retention: Retention = 0.55,
    quick: Quick = False,
    rounds: Rounds = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Time to the first token, with and without compression."""

    def rows() -> Iterator[Row]:
        contests = _contests(
            shape or (None if quick else PREFILLED), batch, retention, dtype, device, quick
        )
        return parts.prefills(contests, rounds or (3 if quick else 7))

    _measure(rows, context.obj, device, threads, out, as_json)


@app.command(cls=ManyValues)
def decode(
    context: typer.Context,
    shape: Shapes = None,
    batch: Samples = None,
    retention: Retention = 0.55,
    memory: Memory = None,
    quick: Quick = False,
    rounds: Rounds = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Tokens a second afterwards, and samples that fit."""

    def rows() -> Iterator[Row]:
        contests = _contests(shape, batch, retention, dtype, device, quick)
        return parts.decodes(contests, rounds or (2 if quick else 5), memory)

    _measure(rows, context.obj, device, threads, out, as_json)


@app.command(cls=ManyValues)
def serve(
    context: typer.Context,
    shape: Shapes = None,
    retention: Retentions = None,
    requests: Requests = None,
    answer: Answer = None,
    memory: CacheMemory = None,
    quick: Quick = False,
    rounds: Rounds = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Requests of vLLM with fewer tokens per picture, and as it is."""

    def rows() -> Iterator[Row]:
        cases = [
            ServeCase(
                name,
                SHAPES[name],
                retention or (0.5, 0.25),
                requests or (6 if quick else 24),
                answer or (4 if quick else 16),
                None if memory is None else int(memory * 2**30),
                dtype,
                device.partition(":")[0],
                rounds or (2 if quick else 3),
            )
            for name in shape or ["small"]
        ]
        return parts.serves(cases, threads)

    _measure(rows, context.obj, device, threads, out, as_json)


@app.command(cls=ManyValues)
def check(
    context: typer.Context,
    tokens: Tokens = None,
    channels: Channels = 1024,
    windows: Windows = 4,
    batch: Samples = None,
    ragged: Ragged = False,
    shape: Shapes = None,
    retention: Retention = 0.55,
    quick: Quick = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What has to hold on a device before figures count."""

    def rows() -> Iterator[Row]:
        contests = _contests(shape, batch, retention, dtype, device, quick)
        base = _case(tokens, channels, windows, batch, ragged, dtype, device)
        return parts.checks(base, contests)

    _measure(rows, context.obj, device, threads, out, as_json)


@app.command("all")
def everything(
    folder: Folder, device: Device = "cpu", quick: Quick = False, as_json: Json = False
) -> None:
    """Check a device, and run every benchmark on it."""
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        files = run_all(folder, device, _call, quick=quick)
    if as_json:
        print(json.dumps({"files": [str(file) for file in files]}, indent=2))


def _call(arguments: Sequence[str]) -> None:
    """Runs ``lightkv-gnn bench`` with these arguments."""
    command = " ".join(["lightkv-gnn bench", *arguments])
    get_command(app).main(list(arguments), standalone_mode=False, obj=command)


def _measure(
    rows: Callable[[], Iterator[Row]],
    command: str,
    device: str,
    threads: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measures, writes and prints.

    Raises:
        ValueError: Sizes or subjects that cannot be.
        ImportError: A subject of one's own cannot be imported.
        OSError: The file cannot be written.
    """
    if out and not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}")
    machine.check_device(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # memory is read from its profiler: not a word
    with machine.threads(threads):
        found = list(tqdm(rows(), unit="row", file=sys.stderr))
        about = {**machine.describe(), "device": device, "command": command}
    if out:
        out.write_text(json.dumps({"machine": about, "rows": found}, indent=2) + "\n")
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(f"{name}: {value}" for name, value in about.items() if value))
        print(as_table(found))


def _case(
    tokens: Sequence[int] | None,
    channels: int,
    windows: int,
    batch: Sequence[int] | None,
    ragged: bool,
    dtype: str,
    device: str,
) -> StageCase:
    """The base of a sweep."""
    return StageCase(
        tokens=tokens[0] if tokens else 2880,
        channels=channels,
        windows=windows,
        batch=batch[0] if batch else 1,
        ragged=ragged,
        dtype=getattr(torch, dtype),
        device=torch.device(device),
    )


def _contests(
    shapes: Sequence[str] | None,
    batch: Sequence[int] | None,
    retention: float,
    dtype: str,
    device: str,
    quick: bool,
) -> Iterator[Contest]:
    """One for every shape and batch, made when its turn comes."""
    for name in shapes or (USUAL_SHAPES[:1] if quick else USUAL_SHAPES):
        for samples in batch or [1]:
            yield Contest(
                name, SHAPES[name], samples, retention, getattr(torch, dtype), torch.device(device)
            )
