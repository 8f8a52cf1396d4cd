"""Runs a batch: what is not answered yet goes through an engine into the output."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from lightkv_gnn import __version__
from lightkv_gnn.batch.items import read_items
from lightkv_gnn.batch.output import Output
from lightkv_gnn.batch.pictures import Asked, Pictures
from lightkv_gnn.batch.worker import Outcome, Settings, Worker


class NothingAnsweredError(ValueError):
    """Every question of a run failed; why is in its file of errors."""


class Engine(Protocol):
    """Answers questions, somewhere."""

    def outcomes(
        self, asked: Sequence[Asked], pictures: Pictures, settings: Settings
    ) -> Iterator[list[Outcome]]:
        """One outcome of each question, in any order, as they come."""


@dataclass(frozen=True)
class LocalEngine:
    """One worker in this process.

    Attributes:
        batch: Questions that are answered together.
    """

    batch: int = 8

    def __post_init__(self) -> None:
        check_batch(self.batch)

    def outcomes(
        self, asked: Sequence[Asked], pictures: Pictures, settings: Settings
    ) -> Iterator[list[Outcome]]:
        """See :class:`Engine`."""
        with Worker.opened(settings, pictures) as worker:
            for start in range(0, len(asked), self.batch):
                yield worker.answer(asked[start : start + self.batch])


def check_batch(batch: int) -> None:
    """Raises ValueError for a batch of nothing."""
    if batch < 1:
        raise ValueError(f"batch is {batch}: expected 1 or more questions")


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        rows: Of the input.
        done_before: Of them, those that were in the output already, answered or not.
        failed_before: Of those, the ones that could not be answered.
        answered: In this run.
        failed: In this run, with a line each in ``errors``.
        parts: Parquet files that it wrote.
        errors: JSON Lines of all that could not be answered; there if any could not.
        seconds: Wall time, with that of loading the model.
    """

    rows: int
    done_before: int
    failed_before: int
    answered: int
    failed: int
    parts: tuple[Path, ...]
    errors: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        parts = [str(part) for part in self.parts]
        return {**asdict(self), "parts": parts, "errors": str(self.errors)}


def run_batch(
    source: str | Path,
    out: str | Path,
    settings: Settings,
    engine: Engine | None = None,
    *,
    prompt: str | None = None,
    limit: int | None = None,
    rows_per_part: int = 256,
    retry_errors: bool = False,
    progress: bool = True,
) -> Summary:
    """Answers all questions of an input that its output does not have yet.

    A run that was stopped, even killed, goes on where its last whole part ends.  In the end every
    id is in the output once: in a part, or among the errors.

    Args:
        source: What to ask; see :func:`read_items`.
        out: Folder of the output.
        settings: Who answers, and how.
        engine: Where; ``LocalEngine()`` if not given.
        prompt: For rows that have none.
        limit: How many rows of the input, from the first on; all if not given.
        rows_per_part: Answers in a file; so many may have to be given again after a kill.
        retry_errors: Whether to ask again what could not be answered before.
        progress: Whether to show a bar.

    Raises:
        FileNotFoundError: There is no such input.
        ValueError: The input cannot be read, or the output is of other settings or in use.
        NothingAnsweredError: All that was asked failed.
    """
    source, out, started = Path(source), Path(out), time.perf_counter()
    if source.is_dir() and source.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} is in {source}, which is read: choose a folder elsewhere")
    items = read_items(source, prompt, limit)
    kept = {
        "version": __version__,
        "input": str(source.resolve()),
        "prompt": prompt,
        **settings.to_dict(),
        "columns": {field.name: str(field.type) for field in items.table.schema},
    }
    output = Output(out, kept, items.table, rows_per_part=rows_per_part, retry_errors=retry_errors)
    with output:
        asked = items.asked(without=output.done)
        outcomes = _outcomes(engine or LocalEngine(), asked, items.pictures, settings)
        before = len(items.table) - len(asked)
        failed_before = sum(own in output.failed_before for own in items.ids)
        with (
            closing(outcomes),
            tqdm(total=len(items.table), initial=before, unit="row", disable=not progress) as bar,
        ):
            for some in outcomes:
                output.add(some)
                bar.update(len(some))
                bar.set_postfix_str(f"{output.failed} failed" if output.failed else "")
    if output.failed and not output.answered:
        raise NothingAnsweredError(
            f"none of the {output.failed} rows could be answered; the first says: "
            f"{output.first_error}; all are in {output.errors}"
        )
    return Summary(
        rows=len(items.table),
        done_before=before,
        failed_before=failed_before,
        answered=output.answered,
        failed=output.failed,
        parts=tuple(output.parts),
        errors=output.errors,
        seconds=time.perf_counter() - started,
    )


def _outcomes(
    engine: Engine, asked: Sequence[Asked], pictures: Pictures, settings: Settings
) -> Generator[list[Outcome], None, None]:
    """The engine's outcomes, which have to be one of each question."""
    waiting = {one.row for one in asked}
    for some in engine.outcomes(asked, pictures, settings) if asked else ():
        for outcome in some:
            if outcome.row not in waiting:
                raise RuntimeError(f"{type(engine).__name__} answered row {outcome.row} unasked")
            waiting.remove(outcome.row)
        yield some
    if waiting:
        raise RuntimeError(f"{type(engine).__name__} left out {len(waiting)} rows")
