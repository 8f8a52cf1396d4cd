"""What a run leaves in its folder: rows as they come, its machine, and what it left out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightkv_gnn import __version__
from lightkv_gnn.evaluation.rows import Key, Row, read_rows

ROWS = "rows.jsonl"
"""One JSON object a line."""

MACHINE = "machine.json"
"""What each run that added rows says of itself, as a JSON list."""

LEFT_OUT = "left_out.json"
"""What methods could not do, and why, as a JSON list."""


class Store:
    """The rows of a folder, in a file that grows line by line.

    A last line without an end was being written when a run was stopped; it is taken away.

    Args:
        folder: Where they are, or will be.
        questions: Of each row.
        run: What is noted of the run beside the rows, once it adds any.
        known: Rows that are in other files.

    Raises:
        ValueError: The file has rows of another number of questions, or made by another version
            of this package.
    """

    def __init__(
        self,
        folder: Path,
        questions: int,
        run: dict[str, Any],
        known: Mapping[Key, Row] = MappingProxyType({}),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._run: dict[str, Any] | None = run
        self._file = file = folder / ROWS
        if file.is_file():
            text = file.read_bytes()
            if not text.endswith(b"\n"):
                file.write_bytes(text[: text.rfind(b"\n") + 1])
        self._rows = dict(known)
        if file.is_file():
            self._rows |= {row.key: row for row in read_rows(file)}
        rows = self._rows.values()
        if others := sorted({row.questions for row in rows} - {questions}):
            raise ValueError(
                f"{file} has rows of {others} questions, this run asks {questions}: choose "
                "another folder, or ask as many"
            )
        if versions := sorted({row.version for row in rows} - {__version__}):
            raise ValueError(
                f"{file} has rows made by version {versions[0]}, this is {__version__}: choose "
                "another folder"
            )

    def get(self, key: Key) -> Row | None:
        """The row of that key, if there is one."""
        return self._rows.get(key)

    def __getitem__(self, key: Key) -> Row:
        return self._rows[key]

    def add(self, row: Row) -> None:
        """Keeps a row."""
        self._rows[row.key] = row
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row.to_dict()) + "\n")
        if self._run is not None:
            note(self._folder / MACHINE, self._run)
            self._run = None

    def leave_out(self, key: Key, reason: str) -> None:
        """Notes why there is no row of that key."""
        note(self._folder / LEFT_OUT, {**key._asdict(), "reason": reason})


def note(file: Path, what: dict[str, Any]) -> None:
    """Notes something, once, after what came before it; others may read the file meanwhile."""
    notes = read_notes(file)
    if what not in notes:
        scratch = file.with_name(f".{file.name}")
        scratch.write_text(json.dumps([*notes, what], indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, file)


def read_notes(file: Path) -> list[dict[str, Any]]:
    """What runs noted in a file; nothing if there is no such file.

    Raises:
        ValueError: It is there and cannot be read.
    """
    if not file.is_file():
        return []
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(notes, list) or not all(isinstance(note, dict) for note in notes):
        raise ValueError(f"{file}: expected a JSON list of objects, one for each note")
    return notes
