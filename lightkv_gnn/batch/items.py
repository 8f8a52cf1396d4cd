"""What is asked: a table of ids, pictures' names, prompts, and columns that are carried along."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lightkv_gnn.batch.columns import ANSWERED, ASKED
from lightkv_gnn.batch.pictures import COLUMN, Asked, FilePictures, ParquetPictures, Pictures
from lightkv_gnn.sources import check_exists


@dataclass(frozen=True, eq=False)
class Items:
    """The rows of an input.

    Attributes:
        table: With the columns id, image and prompt, of text, then those carried along.
        pictures: Reads the pictures.
    """

    table: pa.Table
    pictures: Pictures

    @property
    def ids(self) -> list[str]:
        """Of all rows."""
        ids: list[str] = self.table["id"].to_pylist()
        return ids

    def asked(self, without: set[str]) -> list[Asked]:
        """All rows but those of the ids ``without``."""
        images, prompts = (self.table[name].to_pylist() for name in ("image", "prompt"))
        return [
            Asked(row, image, prompt)
            for row, (own, image, prompt) in enumerate(zip(self.ids, images, prompts, strict=True))
            if own not in without
        ]


def read_items(source: Path, prompt: str | None = None, limit: int | None = None) -> Items:
    """Reads what to ask; the pictures themselves are not opened yet.

    Args:
        source: A folder of pictures, in folders of their own too; a ``.jsonl`` or ``.parquet``
            file, or a folder of ``.parquet`` files, with a column image and, if they like, id,
            prompt and others.  Paths in it are relative to the file.
        prompt: For rows that have none.
        limit: How many rows, from the first on; all if not given.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It is of another kind, has no rows or no pictures, a row without a prompt, or
            an id twice.
    """
    check_exists(source)
    if source.is_dir():
        columns, pictures = _from_folder(source)
    elif source.suffix == ".jsonl":
        columns, pictures = _from_lines(source)
    elif source.suffix == ".parquet":
        columns, pictures = _from_parquet([source], source.parent)
    else:
        raise ValueError(f"{source}: expected a folder, or a file that ends in .jsonl or .parquet")
    table = _table(columns, prompt, source).slice(0, limit)
    twice = [one for one, count in Counter(table["id"].to_pylist()).items() if count > 1]
    if twice:
        raise ValueError(
            f"{source}: {len(twice)} ids are there more than once, such as {twice[0]!r}: give each "
            "row an id of its own, or leave the column id out and rows are numbered"
        )
    return Items(table, pictures)


Columns = dict[str, Any]
"""Arrow arrays by name."""


def _from_folder(folder: Path) -> tuple[Columns, Pictures]:
    endings = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = [file for file in files if file.suffix.lower() in endings]
    tables = [file for file in files if file.suffix == ".parquet"]
    if tables and found:
        raise ValueError(
            f"{folder} has pictures, such as {found[0].name}, and Parquet files, such as "
            f"{tables[0].name}: expected one kind"
        )
    if tables:
        return _from_parquet(tables, folder)
    if not found:
        raise ValueError(f"{folder} has no pictures: no file that ends like one")
    names = pa.array([file.relative_to(folder).as_posix() for file in found], pa.string())
    return {"id": names, COLUMN: names}, FilePictures(folder)


def _from_lines(file: Path) -> tuple[Columns, Pictures]:
    rows: list[dict[str, Any]] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_row(line, f"{file}, line {number}"))
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"{file}: {name!r} is not of one kind in all lines: {error}"
            ) from error
    return columns, FilePictures(file.parent)


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get(COLUMN), str):
        raise ValueError(f"{where}: expected an object with {COLUMN!r}, a path; here: {line!r}")
    return row


def _from_parquet(files: Sequence[Path], folder: Path) -> tuple[Columns, Pictures]:
    schema = pq.read_schema(files[0])
    if COLUMN not in schema.names:
        raise ValueError(f"{files[0]} has no column {COLUMN!r}, only {schema.names}")
    kind = schema.field(COLUMN).type
    others = [name for name in schema.names if name != COLUMN]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        table = _together(files, [COLUMN, *others])
        return _columns(table), FilePictures(folder)
    paths = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not plain and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise ValueError(
            f"{files[0]}: {COLUMN!r} is {kind}: expected paths, bytes, or a struct of bytes and "
            "path"
        )
    table = _together(files, [f"{COLUMN}.path", *others] if paths else others)
    sizes = [pq.read_metadata(file).num_rows for file in files]
    numbered = [
        f"{file.relative_to(folder).as_posix()}#{row}"
        for file, size in zip(files, sizes, strict=True)
        for row in range(size)
    ]
    columns = _columns(table)
    if paths:
        named = [(value or {}).get("path") for value in columns[COLUMN].to_pylist()]
        numbered = [name or number for name, number in zip(named, numbered, strict=True)]
    return {**columns, COLUMN: pa.array(numbered, pa.string())}, ParquetPictures(files, sizes)


def _together(files: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    return pa.concat_tables(pq.ParquetFile(file).read(list(columns)) for file in files)


def _columns(table: pa.Table) -> Columns:
    return dict(zip(table.column_names, table.columns, strict=True))


def _table(columns: Columns, prompt: str | None, source: Path) -> pa.Table:
    """The columns in order: those of every input as text, then others under names that are free."""
    rows = len(columns.get(COLUMN, ()))
    if not rows:
        raise ValueError(f"{source} has no rows")
    given = {"id": pa.array(range(rows)), "prompt": pa.nulls(rows), **columns}
    made = {name: _as_text(given.pop(name), source, name, prompt) for name in ASKED}
    for name, values in given.items():
        free = f"input_{name}" if name in ANSWERED.names else name
        if free in made or (free != name and free in given):
            raise ValueError(
                f"{source}: {name!r} is carried along as {free!r}, which is there already: rename "
                "it"
            )
        made[free] = values
    return pa.table(made)


def _as_text(values: Any, source: Path, name: str, prompt: str | None) -> Any:
    try:
        text = values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{source}: {name!r} is {values.type}: expected text") from error
    if name == "prompt" and prompt is not None:
        text = text.fill_null(prompt)
    if text.null_count:
        row = text.is_null().index(True).as_py()
        mends = {
            "id": "give each row one, or leave the column out and rows are numbered",
            "prompt": "give them one, or all with --prompt",
        }
        mend = f": {mends[name]}" if name in mends else ""
        raise ValueError(
            f"{source}: {text.null_count} of {len(text)} rows have no {name}, such as row {row}, "
            f"counted from 0{mend}"
        )
    return text
