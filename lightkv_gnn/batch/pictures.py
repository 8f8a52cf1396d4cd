"""Where a batch's pictures are: in files of their own, or in columns of Parquet files.

Both are opened where they are read, so that they can be sent to another process.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow.parquet as pq
from PIL import Image

from lightkv_gnn.sources import read_picture

COLUMN = "image"
READ_AHEAD = 16
"""Rows of a Parquet file that are decoded at a time."""


class Asked(NamedTuple):
    """A question about a picture.

    Attributes:
        row: Of the input, counted from 0.
        image: What the input calls the picture.
        prompt: The question.
    """

    row: int
    image: str
    prompt: str


class Pictures(Protocol):
    """Reads the pictures that are asked about."""

    def read(self, asked: Asked) -> Image.Image:
        """The picture; raises whatever its decoder does where it is broken."""


class FilePictures:
    """Pictures in files.

    Args:
        folder: That their names are relative to, where they are not absolute.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, asked: Asked) -> Image.Image:
        """The picture in the file; see :func:`read_picture`."""
        return read_picture(self._folder / asked.image, asked.image)


class ParquetPictures:
    """Pictures as bytes in Parquet: plain, or beside a path as Hugging Face's datasets have them.

    Rows are best asked for in ascending order: row groups that are not needed are skipped, and
    only a few rows are in memory at a time.

    Args:
        files: One after the other.
        rows: How many each has.
    """

    def __init__(self, files: Sequence[Path], rows: Sequence[int]) -> None:
        self._files = list(files)
        self._starts = [sum(rows[:number]) for number in range(len(rows))]
        self._open: _Cursor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def read(self, asked: Asked) -> Image.Image:
        """The picture in that row."""
        number = bisect_right(self._starts, asked.row) - 1
        file = self._files[number]
        if self._open is None or self._open.path != file:
            self._open = _Cursor(file)
        value = self._open.at(asked.row - self._starts[number])
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            value = path if content is None else content
        if value is None:
            raise ValueError(f"{asked.image}: the row has no picture")
        if isinstance(value, bytes):
            return read_picture(BytesIO(value), asked.image)
        return read_picture(file.parent / value, asked.image)


class _Cursor:
    """The pictures of a Parquet file from some row on, which moves forward as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = pq.ParquetFile(path, buffer_size=1 << 20)
        sizes = [
            self._file.metadata.row_group(group).num_rows
            for group in range(self._file.metadata.num_row_groups)
        ]
        self._starts = [sum(sizes[:group]) for group in range(len(sizes))]
        self._group = self._next = -1
        self._values: Iterator[Any] = iter(())

    def at(self, row: int) -> Any:
        """The value in a row; goes back to the start of its row group if it has passed it."""
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._next:
            self._group, self._next = group, self._starts[group]
            self._values = self._from(group)
        for _ in range(row - self._next):
            next(self._values)
        self._next = row + 1
        return next(self._values).as_py()

    def _from(self, group: int) -> Iterator[Any]:
        batches = self._file.iter_batches(READ_AHEAD, row_groups=[group], columns=[COLUMN])
        for batch in batches:
            yield from batch.column(0)
