"""An evaluation shared out over processes, as ``accelerate launch`` and ``torchrun`` start them.

They meet in files alone: each process has a part of the output folder to itself, and reads those of
the others.  So nothing is held up by a process that died, and whatever it had written is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lightkv_gnn.evaluation.rows import Key, Row, parse_rows, write_rows
from lightkv_gnn.evaluation.store import LEFT_OUT, MACHINE, ROWS, note, read_notes

PARTS = "parts"
"""Folder of the processes' own folders, by rank."""

PAUSE = 0.5
"""Seconds between two looks at the parts of others."""


@dataclass(frozen=True)
class Shard:
    """One process's share.

    Attributes:
        rank: Of the process, from 0.
        world: How many there are.
        local_rank: Among those of its machine; chooses its GPU.

    Raises:
        ValueError: No such rank.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank is {self.rank}: expected 0 to {self.world - 1}")

    @classmethod
    def of_process(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """As a launcher says; everything if there is none.

        Raises:
            ValueError: ``RANK`` or ``WORLD_SIZE`` is no number, or one is missing.
        """
        given = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if name in environment}
        if not given:
            return cls()
        try:
            local = int(environment.get("LOCAL_RANK", 0))
            return cls(int(given["RANK"]), int(given["WORLD_SIZE"]), local)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"the environment has {given}: expected RANK and WORLD_SIZE, as launchers set them"
            ) from error

    def owns(self, number: int) -> bool:
        """Whether piece of work ``number`` is its own."""
        return number % self.world == self.rank

    def folder(self, out: Path) -> Path:
        """Where it writes its rows."""
        return out if self.world == 1 else out / PARTS / str(self.rank)

    def device(self, name: str) -> str:
        """A GPU of its own for "cuda"."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.world > 1 else name

    @contextmanager
    def alone(self, folder: Path) -> Iterator[None]:
        """Lets one process after the other use a folder; one that dies lets the next one in."""
        if self.world > 1:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                yield
        else:
            yield


def known_rows(out: Path) -> dict[Key, Row]:
    """All whole rows of a folder, of its parts too; lines still being written are passed over."""
    files = [out / ROWS, *(part / ROWS for part in _parts(out))]
    found: dict[Key, Row] = {}
    for file in files:
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            for row in parse_rows(text[: text.rfind("\n") + 1], file):
                found.setdefault(row.key, row)
    return found


def merge(out: Path, keys: Sequence[Key], *, wait: bool) -> list[Row]:
    """Brings the parts together in the folder's own file, in the order of one process's run.

    Args:
        out: The folder.
        keys: Of the rows of this evaluation; rows of others stay before them.
        wait: Whether to wait until the other processes have theirs.

    Returns:
        The rows of those keys, but for those left out.
    """
    while wait and _missing(out, keys):
        time.sleep(PAUSE)
    found, own = known_rows(out), set(keys)
    rows = [found[key] for key in keys if key in found]
    if not _parts(out):
        return rows
    scratch = out / f".{ROWS}"
    write_rows([row for key, row in found.items() if key not in own] + rows, scratch)
    os.replace(scratch, out / ROWS)
    for name in (MACHINE, LEFT_OUT):
        for part in _parts(out):
            for one in read_notes(part / name):
                note(out / name, one)
    return rows


def _missing(out: Path, keys: Sequence[Key]) -> set[Key]:
    left_out = {
        Key(*(one[name] for name in Key._fields))
        for part in (out, *_parts(out))
        for one in read_notes(part / LEFT_OUT)
    }
    return set(keys) - left_out - set(known_rows(out))


def _parts(out: Path) -> list[Path]:
    return sorted((out / PARTS).glob("[0-9]*"), key=lambda part: int(part.name))
