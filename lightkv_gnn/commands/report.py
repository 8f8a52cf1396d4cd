"""The command ``lightkv-gnn report``: a page from files of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lightkv_gnn.commands.options import Json, make_app
from lightkv_gnn.evaluation.report import write_report
from lightkv_gnn.evaluation.rows import Key, Row, read_rows
from lightkv_gnn.evaluation.store import LEFT_OUT, MACHINE, read_notes

app = make_app()


@app.command()
def report(
    context: typer.Context,
    rows: Annotated[list[Path], typer.Argument(metavar="ROWS...", help="What eval wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("lightkv-report"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Evaluation",
    as_json: Json = False,
) -> None:
    """Make a page of tables and figures from rows."""
    number, files = make_page(rows, out, title, context.obj)
    if as_json:
        print(json.dumps({"rows": number, "files": [str(file) for file in files]}, indent=2))
    else:
        print(f"wrote {files[0]}, {len(files) - 1} figures, from {number} rows")


def make_page(
    files: Sequence[Path], out: Path, title: str, command: str
) -> tuple[int, Sequence[Path]]:
    """Writes the page; returns the number of rows, and what was written.

    Raises:
        ValueError: A file holds no rows, or rows do not go together.
        OSError: A file cannot be read, or the page not be written.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file: give a folder for the page")
    rows = read_all(files)
    machines = {
        f"{file}, run {number}": facts
        for file in files
        for number, facts in enumerate(read_notes(file.with_name(MACHINE)), start=1)
    }
    left_out = read_left_out(files)
    written = write_report(
        rows, out, title=title, command=command, machines=machines, left_out=left_out
    )
    return len(rows), written


def read_all(files: Sequence[Path]) -> list[Row]:
    """The rows of all files.

    Raises:
        ValueError: A file is not JSON Lines, or has no rows.
    """
    rows = []
    for file in files:
        if file.suffix != ".jsonl":
            raise ValueError(f"{file}: expected rows as JSON Lines (.jsonl), which has the scores")
        try:
            found = read_rows(file)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not text: expected rows as JSON Lines") from error
        if not found:
            raise ValueError(f"{file} has no rows")
        rows += found
    return rows


def read_left_out(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What is noted beside the rows as left out.

    Raises:
        ValueError: A note lacks a field.
    """
    found = []
    for folder in dict.fromkeys(file.parent for file in files):
        for note in read_notes(folder / LEFT_OUT):
            if missing := sorted({*Key._fields, "reason"} - set(note)):
                raise ValueError(f"{folder / LEFT_OUT}: a note without {missing[0]!r}: {note}")
            found.append(note)
    return found
