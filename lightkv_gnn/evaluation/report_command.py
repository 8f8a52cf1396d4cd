"""The command ``lightkv-gnn report``: a page from files of rows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightkv_gnn.evaluation.report import write_report
from lightkv_gnn.evaluation.rows import Key, Row, read_rows
from lightkv_gnn.evaluation.store import LEFT_OUT, MACHINE, read_notes


def add_parser(commands: Any) -> None:
    """Adds the command to those of a parser."""
    command = commands.add_parser("report", help="make a page of tables and figures from rows")
    command.add_argument("rows", nargs="+", type=Path, metavar="ROWS", help="what eval wrote")
    command.add_argument(
        "--out", type=Path, default=Path("lightkv-report"), help="folder of the page"
    )
    command.add_argument("--title", default="Evaluation", help="of the page")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Writes the page.

    Raises:
        ValueError: A file holds no rows, or rows do not go together.
        OSError: A file cannot be read, or the page not be written.
    """
    if options.out.exists() and not options.out.is_dir():
        raise NotADirectoryError(f"--out {options.out} is a file: give a folder for the page")
    rows = read_all(options.rows)
    machines = {
        f"{file}, run {number}": facts
        for file in options.rows
        for number, facts in enumerate(read_notes(file.with_name(MACHINE)), start=1)
    }
    left_out = read_left_out(options.rows)
    files = write_report(
        rows,
        options.out,
        title=options.title,
        command=options.command,
        machines=machines,
        left_out=left_out,
    )
    if options.json:
        print(json.dumps({"rows": len(rows), "files": [str(file) for file in files]}, indent=2))
    else:
        print(f"wrote {files[0]}, {len(files) - 1} figures, from {len(rows)} rows")


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
