"""The command ``lightkv-gnn eval``: suites, methods, budgets, depths and seeds to rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lightkv_gnn.baselines import METHODS, NONE, Method
from lightkv_gnn.evaluation import machine
from lightkv_gnn.evaluation.ablations import ABLATIONS
from lightkv_gnn.evaluation.rows import Row, read_rows, write_rows
from lightkv_gnn.evaluation.runner import Evaluation
from lightkv_gnn.evaluation.store import ROWS
from lightkv_gnn.evaluation.suite import Suite
from lightkv_gnn.evaluation.suites import CELLS, SUITES

QUESTIONS = 1000
QUICK_QUESTIONS = 256


def add_parser(commands: Any) -> None:
    """Adds the command to those of a parser."""
    command = commands.add_parser(
        "eval", help="ask trained models questions, without compression and with many methods"
    )
    suites, methods = list(SUITES), list(METHODS)
    command.add_argument(
        "--suite", nargs="+", choices=suites, default=["cued"], metavar="SUITE", help=_one(suites)
    )
    command.add_argument("--group", nargs="+", metavar="GROUP", help="only these of the suites'")
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--methods",
        nargs="+",
        choices=methods,
        default=methods,
        metavar="METHOD",
        help=f"{_one(methods)}; all if not given",
    )
    what.add_argument(
        "--ablation",
        choices=list(ABLATIONS),
        metavar="CHOICE",
        help=f"variants of guided merging instead: {_one(list(ABLATIONS))}",
    )
    command.add_argument(
        "--retention",
        nargs="+",
        type=float,
        metavar="SHARE",
        help="vision tokens to keep, averaged over the layers (default: the suite's)",
    )
    command.add_argument(
        "--depth",
        nargs="+",
        type=int,
        default=[0],
        metavar="LAYER",
        help="first layer after which tokens may leave (default: 0)",
    )
    command.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    command.add_argument(
        "--questions",
        type=int,
        help=f"of each group (default: {QUESTIONS}, quick {QUICK_QUESTIONS})",
    )
    command.add_argument("--quick", action="store_true", help="fewer questions")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("lightkv-eval"),
        help="folder of the rows; a run goes on where one there was stopped",
    )
    command.add_argument(
        "--models",
        type=Path,
        default=Path("lightkv-models"),
        help="folder of trained models, which are trained where they are missing",
    )
    command.add_argument(
        "--cells",
        type=int,
        help="cells per side of the pictures of suites on cells (default: 6; 24 wants a GPU)",
    )
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    command.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of a CPU (default: 1, which these small models are fastest and most repeatable with)",
    )
    command.add_argument("--json", action="store_true", help="print the rows as one JSON list")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Evaluates.

    Raises:
        ValueError: A group that no suite has, numbers out of range, a device that is not there, or
            none of the methods could keep to any of the budgets.
        OSError: The folder cannot be written.
    """
    for name in ("out", "models"):
        folder = getattr(options, name)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"--{name} {folder} is a file: give a folder")
    questions = options.questions
    if questions is None:
        questions = QUICK_QUESTIONS if options.quick else QUESTIONS
    methods: list[Method] = [METHODS[name] for name in options.methods]
    if options.ablation:
        methods = list(ABLATIONS[options.ablation]())
    device, rows = machine.check_device(options.device), []
    with machine.threads(options.threads):
        for suite, groups in _groups(options).items():
            evaluation = Evaluation(
                {suite: groups},
                methods,
                options.retention or suite.retentions,
                options.depth,
                options.seeds,
                questions,
            )
            rows += evaluation.run(options.out, options.models, device, command=options.command)
    write_rows(read_rows(options.out / ROWS), options.out / "rows.csv")  # of earlier runs too
    asked = {method.name for method in methods} - {NONE.name}
    if asked and not asked & {row.method for row in rows}:
        raise ValueError(
            f"no method could be evaluated, and only the rows of {NONE.name!r} are in "
            f"{options.out}: choose another --retention or --depth"
        )
    if options.json:
        print(json.dumps([_told(row) for row in rows], indent=2))
        return
    for row in rows:
        print(_line(row))
    print(f"wrote {options.out / ROWS}; lightkv-gnn report makes a page of it")


def _groups(options: argparse.Namespace) -> dict[Suite, list[str]]:
    """The groups to ask of each suite."""
    if options.cells is not None and (other := sorted(set(options.suite) - set(CELLS))):
        raise ValueError(f"--cells is for {', '.join(CELLS)}: {other[0]} has no such pictures")
    chosen = {} if options.cells is None else {"side": options.cells}
    suites = [SUITES[name](**chosen) for name in options.suite]
    known = {group for suite in suites for group in suite.groups}
    unknown = sorted(set(options.group or ()) - known)
    if unknown:
        raise ValueError(f"--group {unknown[0]}: expected one of {sorted(known)}")
    asked = {
        suite: [group for group in suite.groups if group in (options.group or suite.groups)]
        for suite in suites
    }
    return {suite: groups for suite, groups in asked.items() if groups}


def _told(row: Row) -> dict[str, Any]:
    values = row.to_dict()
    del values["scores"]
    return values


def _line(row: Row) -> str:
    return (
        f"{row.suite:12} {row.group:13} {row.method:28} held {row.held:6.1%} "
        f"layer {row.depth:2} seed {row.seed} {row.accuracy:6.1%} "
        f"[{row.low:6.1%}, {row.high:6.1%}]  KV {row.kv_ratio:4.0%}  FLOPs {row.flops_ratio:4.0%}"
    )


def _one(names: list[str]) -> str:
    return "one or more of " + ", ".join(names)
