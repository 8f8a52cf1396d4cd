"""The command ``lightkv-gnn bench``: stages, prefills, decoding, growth."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightkv_gnn.arguments import positive
from lightkv_gnn.bench.cases import StageCase
from lightkv_gnn.bench.check import check_all
from lightkv_gnn.bench.growth import growth
from lightkv_gnn.bench.prefill import Contest, compare_decode, compare_prefill
from lightkv_gnn.bench.shapes import SHAPES
from lightkv_gnn.bench.stage import compare, sweep
from lightkv_gnn.bench.subjects import SUBJECTS, USUAL
from lightkv_gnn.bench.table import as_table
from lightkv_gnn.evaluation import machine

Row = dict[str, Any]


def add_parser(commands: Any) -> None:
    """Adds the command to those of a parser."""
    command = commands.add_parser("bench", help="time and memory, side by side in one run")
    parts = command.add_subparsers(required=True, metavar="part")
    stage = parts.add_parser("stage", help="one compression step against references")
    _add_case(stage)
    stage.set_defaults(part=_stage)
    grown = parts.add_parser("growth", help="how a step grows with tokens and batch")
    _add_case(grown)
    grown.set_defaults(part=_growth)
    for name, part, text in (
        ("prefill", _prefill, "time to the first token, with and without compression"),
        ("decode", _decode, "tokens a second afterwards, and samples that fit"),
    ):
        whole = parts.add_parser(name, help=text)
        whole.add_argument("--shape", nargs="+", choices=list(SHAPES), metavar="SHAPE")
        whole.add_argument("--batch", nargs="+", type=positive, default=[1])
        whole.add_argument("--retention", type=float, default=0.55, help="default: 0.55")
        whole.set_defaults(part=part)
        if part is _decode:
            whole.add_argument("--memory", type=float, metavar="GIB", help="how many samples fit")
        _add_common(whole)
    checked = parts.add_parser("check", help="what has to hold on a device before figures count")
    _add_case(checked)
    checked.add_argument("--shape", nargs="+", choices=list(SHAPES), metavar="SHAPE")
    checked.add_argument("--retention", type=float, default=0.55, help="default: 0.55")
    checked.set_defaults(part=_check)
    command.set_defaults(run=run)


def _add_case(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tokens", nargs="+", type=int, help="vision tokens (default: a sweep)")
    command.add_argument("--channels", type=positive, default=1024)
    command.add_argument("--windows", type=positive, default=4, help="a side")
    command.add_argument("--batch", nargs="+", type=positive, help="default: a sweep")
    command.add_argument("--ragged", action="store_true", help="pictures of different sizes")
    command.add_argument(
        "--subject",
        nargs="+",
        default=list(USUAL),
        metavar="SUBJECT",
        help=f"of {', '.join(SUBJECTS)}, or module:function (default: {', '.join(USUAL)})",
    )
    _add_common(command)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quick", action="store_true", help="fewer and smaller")
    command.add_argument("--rounds", type=positive, help="calls of each that count")
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    command.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    command.add_argument("--threads", type=positive, default=1, help="of a CPU (default: 1)")
    command.add_argument("--out", type=Path, help="file for the rows and the machine, as JSON")
    command.add_argument("--json", action="store_true", help="print the rows as one JSON list")


def run(options: argparse.Namespace) -> None:
    """Measures.

    Raises:
        ValueError: Sizes or subjects that cannot be.
        ImportError: A subject of one's own cannot be imported.
        OSError: The file cannot be written.
    """
    if options.out and not options.out.parent.is_dir():
        raise FileNotFoundError(f"--out {options.out}: there is no folder {options.out.parent}")
    machine.check_device(options.device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # memory is read from its profiler: not a word
    with machine.threads(options.threads):
        rows = list(tqdm(options.part(options), unit="row", file=sys.stderr))
        about = {**machine.describe(), "device": options.device, "command": options.command}
    if options.out:
        options.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n")
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(f"{name}: {value}" for name, value in about.items() if value))
        print(as_table(rows))


def _case(options: argparse.Namespace) -> StageCase:
    """The base of a sweep."""
    return StageCase(
        tokens=options.tokens[0] if options.tokens else 2880,
        channels=options.channels,
        windows=options.windows,
        batch=options.batch[0] if options.batch else 1,
        ragged=options.ragged,
        dtype=getattr(torch, options.dtype),
        device=torch.device(options.device),
    )


def _stage(options: argparse.Namespace) -> Iterator[Row]:
    base = _case(options)
    if options.tokens or options.batch or options.ragged:
        cases: Sequence[StageCase] = [
            replace(base, tokens=tokens, batch=batch)
            for tokens in options.tokens or [base.tokens]
            for batch in options.batch or [base.batch]
        ]
    else:
        cases = sweep(base, quick=options.quick)
    for case in cases:
        for row in compare(case, options.subject, options.rounds or 20):
            yield asdict(row)


def _check(options: argparse.Namespace) -> Iterator[Row]:
    options.batch = options.batch or [1]
    for contest in _contests(options):
        for row in check_all(_case(options), contest):
            yield asdict(row)


def _growth(options: argparse.Namespace) -> Iterator[Row]:
    base = _case(options)
    tokens = options.tokens or ([256, 576, 1024] if options.quick else [256, 576, 1024, 2880, 5760])
    batch = options.batch or ([1, 2, 4] if options.quick else [1, 2, 4, 8])
    names = [name for name in options.subject if name != "full_logits"]
    small = replace(base, tokens=tokens[0])
    for start, over, values in ((base, "tokens", tokens), (small, "batch", batch)):
        for row in growth(start, over, values, names, options.rounds or 20):
            yield asdict(row)


def _prefill(options: argparse.Namespace) -> Iterator[Row]:
    for contest in _contests(options):
        yield asdict(compare_prefill(contest, options.rounds or (3 if options.quick else 7)))


def _decode(options: argparse.Namespace) -> Iterator[Row]:
    memory = None if options.memory is None else int(options.memory * 2**30)
    for contest in _contests(options):
        rounds = options.rounds or (2 if options.quick else 5)
        yield asdict(compare_decode(contest, rounds, memory))


def _contests(options: argparse.Namespace) -> Iterator[Contest]:
    """One for every shape and batch, made when its turn comes."""
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    for name in options.shape or (["small"] if options.quick else ["small", "mid"]):
        for batch in options.batch:
            yield Contest(name, SHAPES[name], batch, options.retention, dtype, device)
