"""Runs methods on suites and leaves one row each; what is done already is not done again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from lightkv_gnn import __version__, machine
from lightkv_gnn.baselines import NONE, Budget, Method
from lightkv_gnn.baselines.downsample import DOWNSAMPLE
from lightkv_gnn.choices import check_retention
from lightkv_gnn.errors import ScheduleError, UnsupportedInputError
from lightkv_gnn.evaluation.asking import Asked, ask_all
from lightkv_gnn.evaluation.hard import agreement, with_hard
from lightkv_gnn.evaluation.rows import Key, Row
from lightkv_gnn.evaluation.shards import Shard, known_rows, merge
from lightkv_gnn.evaluation.statistics import paired_difference, score_interval
from lightkv_gnn.evaluation.store import Store
from lightkv_gnn.evaluation.suite import Subject, Suite

REFERENCES = (NONE.name, DOWNSAMPLE.name)
"""Methods that others are compared with."""


class Cell(NamedTuple):
    """One row to be."""

    group: str
    method: Method
    budget: Budget


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate.

    Attributes:
        suites: The suites, each with the groups of it to ask.
        methods: What to compare; no compression is always run too, and before all others the
            picture scaled down, where a suite has such: what it gets wrong is hard.
        retentions: Vision tokens to hold, averaged over the layers; fractions.
        depths: First decoder layers after which tokens may leave.
        seeds: Of models and questions.
        questions: Of each group.

    Raises:
        ValueError: Numbers out of range.
    """

    suites: Mapping[Suite, Sequence[str]]
    methods: Sequence[Method]
    retentions: Sequence[float]
    depths: Sequence[int]
    seeds: Sequence[int]
    questions: int

    def __post_init__(self) -> None:
        for share in self.retentions:
            check_retention(share)
        for depth in self.depths:
            if depth < 0:
                raise ValueError(f"depth is {depth}: expected a decoder layer, counted from 0")
        if self.questions < 1:
            raise ValueError(f"questions is {self.questions}: expected 1 or more of each group")

    def run(
        self,
        folder: Path,
        models: Path,
        device: str = "cpu",
        *,
        command: str = "",
        progress: bool = True,
        shard: Shard = Shard(),  # noqa: B008 - frozen
    ) -> list[Row]:
        """Asks every question that no row in ``folder`` answers yet.

        Rows are written one by one as they come, so that a run that was stopped goes on where it
        was.  What a method cannot do, such as keeping to a budget from some depth on, is left out,
        said, and noted beside the rows.

        Args:
            folder: For the rows, and what machine each run that added some was on.
            models: For trained models.
            device: Where to run.
            command: That this was called by; noted beside the machine.
            progress: Whether to show a bar.
            shard: The share of this process; rows without compression and of smaller pictures are
                everyone's, since others are compared with them.

        Returns:
            The rows of this evaluation, old and new; of rank 0 in the end those of all processes,
            which it waits for, of others those that are there.

        Raises:
            ValueError: The rows in ``folder`` are of another number of questions, or were made by
                another version of this package.
        """
        run = {**machine.describe(), "device": device, "command": command}
        own = shard.folder(folder)
        store = Store(own, self.questions, run, known_rows(folder))
        keys: list[Key] = []
        shared = count()
        with tqdm(unit="row", total=0, disable=not progress) as bar:
            for suite, groups in self.suites.items():
                for seed in self.seeds:
                    with shard.alone(models):  # the first one trains it
                        subject = suite.subject(seed, models, shard.device(device))
                    cells = list(self._cells(suite, subject, groups))
                    keys += [_key_of(suite, cell, seed) for cell in cells]
                    mine = [
                        cell
                        for cell in cells
                        if cell.method.name in REFERENCES or shard.owns(next(shared))
                    ]
                    bar.total += len(mine)
                    for cell in mine:
                        bar.set_postfix_str(f"{suite.name} {cell.group} {cell.method.name}")
                        key = _key_of(suite, cell, seed)
                        try:
                            self._answer(suite, subject, key, cell, store)
                        except (ScheduleError, UnsupportedInputError) as error:
                            store.leave_out(key, str(error))
                            what = f"{cell.method.name} at {cell.budget.retention:.0%}"
                            bar.write(f"left out: {what}: {error}", file=sys.stderr)
                        bar.update()
        if shard.rank:
            return [row for key in keys if (row := store.get(key)) is not None]
        return merge(folder, keys, wait=shard.world > 1)

    def _cells(self, suite: Suite, subject: Subject, groups: Sequence[str]) -> Iterator[Cell]:
        others = [method for method in self.methods if method.name not in REFERENCES]
        small = suite.resizable and len(others) > 0
        asked_for = any(method.name == DOWNSAMPLE.name for method in self.methods)
        first = (NONE, DOWNSAMPLE) if small or asked_for else (NONE,)
        for group in groups:
            for method in (*first, *others):
                for budget in method.budgets(subject.model, self.retentions, self.depths):
                    yield Cell(group, method, budget)

    def _answer(self, suite: Suite, subject: Subject, key: Key, cell: Cell, store: Store) -> None:
        """Adds the cell's row, if there is none."""
        if store.get(key) is not None:
            return
        asked = ask_all(suite, subject, *cell, self.questions, key.seed)
        full = key._replace(method=NONE.name, retention=1.0, depth=-1)
        row = _row_of(key, asked, None if key == full else store[full])
        small = key._replace(method=DOWNSAMPLE.name, depth=-1)
        reference = row if key == small else store.get(small)
        store.add(row if reference is None else with_hard(row, reference))


def _key_of(suite: Suite, cell: Cell, seed: int) -> Key:
    budget = cell.budget
    return Key(suite.label, cell.group, cell.method.name, budget.retention, budget.depth, seed)


def _row_of(key: Key, asked: Asked, full: Row | None) -> Row:
    """A row; ``full`` is that without compression, and none for that itself."""
    accuracy = sum(asked.scores) / len(asked.scores)
    low, high = score_interval(asked.scores)
    base = asked.scores if full is None else full.scores
    difference = paired_difference(asked.scores, base)
    return Row(
        **key._asdict(),
        questions=len(asked.scores),
        accuracy=accuracy,
        low=low,
        high=high,
        difference=difference.value,
        difference_low=difference.low,
        difference_high=difference.high,
        p_value=difference.p_value,
        held=asked.retention,
        kv_bytes=asked.kv_bytes,
        kv_ratio=1.0 if full is None else asked.kv_bytes / full.kv_bytes,
        flops=asked.flops,
        flops_ratio=1.0 if full is None else asked.flops / full.flops,
        seconds=asked.seconds,
        stages=asked.stages,
        scores=tuple(asked.scores),
        version=__version__,
        agreement=agreement(asked.answers, asked.answers if full is None else full.answers),
        prefill_seconds=asked.prefill_seconds,
        method_seconds=asked.method_seconds,
        effective_rank=asked.effective_rank,
        attention_entropy=asked.attention_entropy,
        answers=asked.answers if full is None else (),
    )
