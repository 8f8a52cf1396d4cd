"""A batch's output: a folder that only ever holds whole parts, and every id once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from lightkv_gnn.batch.columns import ANSWERED, ASKED
from lightkv_gnn.batch.worker import Outcome

SETTINGS = "_settings.json"
"""What the answers depend on.  Readers of Parquet folders pass over names that begin so."""

ERRORS = "_errors.jsonl"
"""One JSON object a line: id, image, error and message of what could not be answered."""

PARTS = "part-*.parquet"
LOCK = ".lock"


class Output:
    """Takes outcomes; a context manager, which writes what it still holds when it is left.

    Answers are written a part at a time, under another name until it is whole; errors as they come.

    Args:
        folder: Made if it is not there.
        settings: What the answers depend on.
        table: Of all that is asked.
        rows_per_part: How many answers make a part.
        retry_errors: Whether to forget which ids could not be answered.

    Raises:
        ValueError: Another run is writing there, it has answers that depend on something else, or
            files that no run wrote.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        table: pa.Table,
        *,
        rows_per_part: int,
        retry_errors: bool = False,
    ) -> None:
        if rows_per_part < 1:
            raise ValueError(f"rows per part is {rows_per_part}: expected 1 or more")
        self.folder, self._table, self._rows_per_part = folder, table, rows_per_part
        self.errors = folder / ERRORS
        self.parts: list[Path] = []
        self.answered = self.failed = 0
        self.first_error = ""
        self._held: list[Outcome] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"{folder}: another run is writing there") from error
        try:
            self._check(settings)
            self.failed_before = self._read_failed(retry_errors)
            self.done = self.failed_before | self._read_answered()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self._write()
        finally:
            self._lock.release()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Keeps outcomes of rows that had none."""
        failed = [outcome for outcome in outcomes if outcome.error]
        if failed:
            self.first_error = self.first_error or failed[0].message
            lines = [json.dumps(self._line(outcome)) + "\n" for outcome in failed]
            with self.errors.open("a", encoding="utf-8") as stream:
                stream.writelines(lines)
        answered = [outcome for outcome in outcomes if not outcome.error]
        self.answered += len(answered)
        self.failed += len(failed)
        self._held += answered
        while len(self._held) >= self._rows_per_part:
            self._write()

    def _check(self, settings: Mapping[str, Any]) -> None:
        file = self.folder / SETTINGS
        if not file.is_file():
            others = [one.name for one in self.folder.iterdir() if one.name != LOCK]
            if others:
                raise ValueError(
                    f"{self.folder} has files, such as {others[0]}, and no {SETTINGS}: give a new "
                    "folder, or one that an earlier run wrote"
                )
            _replace(file, (json.dumps(settings, indent=2) + "\n").encode())
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        for name in dict.fromkeys([*before, *settings]):
            if before.get(name) != settings.get(name):
                raise ValueError(
                    f"{self.folder} has answers with {name} = {before.get(name)!r}, this run has "
                    f"{settings.get(name)!r}: choose another folder, or the same {name}"
                )

    def _read_answered(self) -> set[str]:
        """The ids in parts; what a run that was killed left half written goes."""
        for file in self.folder.glob(".*.tmp"):
            file.unlink()
        done: set[str] = set()
        parts = sorted(self.folder.glob(PARTS))
        self._number = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0
        for part in parts:
            done.update(pq.read_table(part, columns=["id"])["id"].to_pylist())
        return done

    def _read_failed(self, retry_errors: bool) -> set[str]:
        """The ids among the errors, unless they are to be asked again; half a line goes."""
        if not self.errors.is_file():
            return set()
        text = self.errors.read_bytes()
        whole = b"" if retry_errors else text[: text.rfind(b"\n") + 1]
        if whole != text:
            _replace(self.errors, whole)
        return {json.loads(line)["id"] for line in whole.splitlines()}

    def _line(self, outcome: Outcome) -> dict[str, Any]:
        own = {name: self._table[name][outcome.row].as_py() for name in ASKED}
        return {**own, "error": outcome.error, "message": outcome.message}

    def _write(self) -> None:
        held = self._held[: self._rows_per_part]
        if not held:
            return
        columns = {
            name: pa.array([getattr(outcome, name) for outcome in held], kind)
            for name, kind in zip(ANSWERED.names, ANSWERED.types, strict=True)
        }
        part = self._table.take([outcome.row for outcome in held])
        for name, values in columns.items():
            part = part.append_column(name, values)
        sink = pa.BufferOutputStream()
        pq.write_table(part, sink)
        file = self.folder / PARTS.replace("*", f"{self._number:06}")
        _replace(file, sink.getvalue())
        self.parts.append(file)
        self._number += 1
        del self._held[: len(held)]


def _replace(file: Path, content: Any) -> None:
    """Writes a file beside its name and renames it: it is as before, or whole."""
    scratch = file.with_name(f".{file.name}.tmp")
    with scratch.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(scratch, file)
