"""The command ``lightkv-gnn eval``: suites, methods, budgets, depths and seeds to rows."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lightkv_gnn import machine
from lightkv_gnn.baselines import METHODS, NONE, Method
from lightkv_gnn.baselines.blind_pruning import RANDOM_PRUNING
from lightkv_gnn.commands.options import Device, Json, ManyValues, Threads, make_app, one_of
from lightkv_gnn.evaluation.ablations import ABLATIONS
from lightkv_gnn.evaluation.cued.backgrounds import Background
from lightkv_gnn.evaluation.rows import Row, read_rows, write_rows
from lightkv_gnn.evaluation.runner import Evaluation
from lightkv_gnn.evaluation.shards import Shard
from lightkv_gnn.evaluation.store import ROWS
from lightkv_gnn.evaluation.suite import Quick, Suite
from lightkv_gnn.evaluation.suites import CELLS, SUITES

QUESTIONS = 1000


app = make_app()


def _several(names: Collection[str], default: str) -> Any:
    return one_of(
        names, metavar="NAME...", help=f"One or more of {', '.join(names)}.", show_default=default
    )


SuiteNames = Annotated[list[str] | None, _several(SUITES, "cued")]
Groups = Annotated[
    list[str] | None, typer.Option(metavar="GROUP...", help="Only these of the suites'.")
]
MethodNames = Annotated[list[str] | None, _several(METHODS, "all")]
Ablation = Annotated[
    str | None,
    one_of(
        ABLATIONS,
        metavar="NAME",
        help=f"Variants of guided merging instead of methods: one of {', '.join(ABLATIONS)}.",
    ),
]
Retentions = Annotated[
    list[float] | None,
    typer.Option(
        metavar="SHARE...",
        help="Vision tokens to hold, averaged over the layers.",
        show_default="the suite's",
    ),
]
Depths = Annotated[
    list[int] | None,
    typer.Option(
        metavar="LAYER...", help="First layer after which tokens may leave.", show_default="0"
    ),
]
Seeds = Annotated[
    list[int] | None, typer.Option(metavar="SEED...", help="Of the models.", show_default="0")
]
Questions = Annotated[
    int | None,
    typer.Option(help="Of each group.", show_default=f"{QUESTIONS}, quick {Quick().questions}"),
]
Behind = Annotated[
    Background,
    typer.Option(help="Behind the cells of suites on cells: photographs that training never saw."),
]
Fewer = Annotated[
    bool,
    typer.Option("--quick", help="Fewer questions; of photo fewer methods and budgets, too."),
]
Out = Annotated[
    Path, typer.Option(help="Folder of the rows; a run goes on where one there was stopped.")
]
Models = Annotated[
    Path, typer.Option(help="Folder of trained models, which are trained where they are missing.")
]
Cells = Annotated[
    int | None,
    typer.Option(
        help="Cells per side of the pictures of suites on cells; 24 wants a GPU.", show_default="6"
    ),
]


@app.command("eval", cls=ManyValues)
def evaluate(
    context: typer.Context,
    suite: SuiteNames = None,
    group: Groups = None,
    methods: MethodNames = None,
    ablation: Ablation = None,
    retention: Retentions = None,
    depth: Depths = None,
    seeds: Seeds = None,
    questions: Questions = None,
    quick: Fewer = False,
    out: Out = Path("lightkv-eval"),
    models: Models = Path("lightkv-models"),
    cells: Cells = None,
    background: Behind = "plain",
    device: Device = "cpu",
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Ask trained models questions, without compression and with many methods.

    Random pruning, and smaller pictures where a suite has them, are always among them.
    Small models are fastest and most repeatable with one thread.  Started by "accelerate launch -m
    lightkv_gnn eval", or by torchrun, several processes share the work.
    """
    if methods and ablation:
        raise typer.BadParameter("--ablation takes the place of --methods: give one of them")
    for name, folder in (("out", out), ("models", models)):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"--{name} {folder} is a file: give a folder")
    shard = Shard.of_process()
    machine.check_device(shard.device(device))
    rows: list[Row] = []
    asked: set[str] = set()
    with machine.threads(threads):
        for one, groups in asked_groups(suite or ["cued"], group, cells, background).items():
            usual = one.quick if quick else Quick(QUESTIONS)
            names = methods or usual.methods or METHODS
            chosen = ABLATIONS[ablation]() if ablation else [METHODS[name] for name in names]
            asked |= {method.name for method in chosen}
            rows += Evaluation(
                {one: groups},
                with_random(chosen),
                retention or usual.retentions or one.retentions,
                depth or [0],
                seeds or [0],
                usual.questions if questions is None else questions,
            ).run(out, models, device, command=context.obj, progress=not shard.rank, shard=shard)
    if shard.rank:  # the first process tells of all rows
        return
    write_rows(read_rows(out / ROWS), out / "rows.csv")  # of earlier runs too
    check_rows(rows, asked, out)
    if as_json:
        print(json.dumps([_told(row) for row in rows], indent=2))
        return
    for row in rows:
        print(_line(row))
    print(f"wrote {out / ROWS}; lightkv-gnn report {out / ROWS} makes a page of it")


def with_random(methods: Sequence[Method]) -> list[Method]:
    """The methods, with random pruning if there are any: it stands in every table."""
    names = {method.name for method in methods}
    if RANDOM_PRUNING.name in names or names <= {NONE.name}:
        return [*methods]
    return [*methods, RANDOM_PRUNING]


def asked_groups(
    names: Sequence[str],
    groups: Sequence[str] | None,
    cells: int | None,
    background: Background = "plain",
) -> dict[Suite, list[str]]:
    """The groups to ask of each suite.

    Raises:
        ValueError: A group that no suite has, or options of cells for a suite without any.
    """
    options: dict[str, Any] = {} if cells is None else {"side": cells}
    if background != "plain":
        options["background"] = background
    if options and (other := sorted(set(names) - set(CELLS))):
        option = "--cells" if cells is not None else "--background"
        raise ValueError(f"{option} is for {', '.join(CELLS)}: {other[0]} has no such pictures")
    suites = [SUITES[name](**options) for name in names]
    known = {group for suite in suites for group in suite.groups}
    unknown = sorted(set(groups or ()) - known)
    if unknown:
        raise ValueError(f"--group {unknown[0]}: expected one of {sorted(known)}")
    asked = {
        suite: [group for group in suite.groups if group in (groups or suite.groups)]
        for suite in suites
    }
    return {suite: own for suite, own in asked.items() if own}


def check_rows(rows: Sequence[Row], methods: Collection[str], out: Path) -> None:
    """Raises ValueError if none of the methods could keep to any of the budgets."""
    asked = {*methods} - {NONE.name}
    if asked and not asked & {row.method for row in rows}:
        raise ValueError(
            f"no method could be evaluated, and only the rows of {NONE.name!r} are in "
            f"{out}: choose another --retention or --depth"
        )


def _told(row: Row) -> dict[str, Any]:
    values = row.to_dict()
    del values["scores"], values["answers"]
    return values


def _line(row: Row) -> str:
    return (
        f"{row.suite:12} {row.group:13} {row.method:28} retention {row.held:6.1%} "
        f"layer {row.depth:2} seed {row.seed} {row.accuracy:6.1%} "
        f"[{row.low:6.1%}, {row.high:6.1%}]  KV {row.kv_ratio:4.0%}  FLOPs {row.flops_ratio:4.0%}"
    )
