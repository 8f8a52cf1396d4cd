"""Rows of several seeds as one, and which of them a group of rows has to choose from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from lightkv_gnn.evaluation.rows import Row, StageLoss
from lightkv_gnn.evaluation.statistics import (
    Difference,
    difference_over_seeds,
    over_seeds,
    t_interval,
    t_test,
)
from lightkv_gnn.intervals import Interval

BASELINE = "none"
"""The method that compresses nothing."""

CEILINGS = (BASELINE, "oracle", "oracle_pruning")
"""Methods that nobody can choose: they spend more, or know the answer."""

SAME_BUDGET = 0.02
"""Retentions that differ by less count as one budget; fraction."""

SIGNIFICANT = 0.05


class Group(NamedTuple):
    """Questions that methods are compared on."""

    suite: str
    group: str


@dataclass(frozen=True)
class Pooled:
    """One method at one budget and depth, over its seeds.

    Attributes:
        rows: One for each seed, in order of the seeds.
        accuracy: Mean of theirs.
        interval: Its 95 % interval.
        difference: To no compression.
    """

    rows: tuple[Row, ...]
    accuracy: float
    interval: Interval
    difference: Difference

    @property
    def first(self) -> Row:
        """The row of the first seed, for what is the same in all."""
        return self.rows[0]

    @property
    def group(self) -> Group:
        """What it is compared on."""
        return Group(self.first.suite, self.first.group)

    def mean(self, field: str) -> float:
        """Of a numeric field of the rows that have it; NaN if none has."""
        known = [value for row in self.rows if (value := getattr(row, field)) is not None]
        return fmean(known) if known else math.nan

    @property
    def stages(self) -> tuple[StageLoss, ...]:
        """What each stage lost, averaged over the seeds; as many stages as all seeds have."""
        return tuple(
            StageLoss(
                stages[0].layer,
                *(
                    fmean(getattr(stage, name) for stage in stages)
                    for name in ("before", "after", "divergence", "error")
                ),
            )
            for stages in zip(*(row.stages for row in self.rows), strict=False)
        )


def pool(rows: Iterable[Row]) -> list[Pooled]:
    """Rows that differ in the seed alone as one, in order of first appearance."""
    rows = list(rows)
    base = {(Group(row.suite, row.group), row.seed): row for row in rows if row.method == BASELINE}
    together: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        together.setdefault(row.key[:-1], []).append(row)
    return [_pooled(sorted(seeds, key=lambda row: row.seed), base) for seeds in together.values()]


def _pooled(rows: Sequence[Row], base: Mapping[tuple[Group, int], Row]) -> Pooled:
    first = rows[0]
    if len(rows) == 1:
        interval = Interval(first.low, first.high)
        difference = Difference(
            first.difference, first.difference_low, first.difference_high, first.p_value
        )
    else:
        interval = over_seeds([row.scores for row in rows])
        difference = _difference(rows, base)
    return Pooled(tuple(rows), fmean(row.accuracy for row in rows), interval, difference)


def _difference(rows: Sequence[Row], base: Mapping[tuple[Group, int], Row]) -> Difference:
    """From the scores where those without compression are at hand, else from the rows' own."""
    others = [base.get((Group(row.suite, row.group), row.seed)) for row in rows]
    pairs = [
        (row.scores, other.scores)
        for row, other in zip(rows, others, strict=True)
        if other is not None and len(row.scores) == len(other.scores)
    ]
    if len(pairs) == len(rows):
        return difference_over_seeds(pairs)
    values = [row.difference for row in rows]
    return Difference(fmean(values), *t_interval(values), t_test(values))


def best_at_budget(entries: Sequence[Pooled]) -> list[Pooled]:
    """The best of each budget, where it is significantly better than every other there.

    It must not hold noticeably more vision tokens than another, and all must have answered the
    same questions.  Methods that save nothing of the prefill are not in the contest: they cannot
    lose an answer's first token.

    Args:
        entries: Of one group and depth.
    """
    found = []
    for retention in {entry.first.retention for entry in entries}:
        rivals = [
            entry
            for entry in entries
            if entry.first.retention == retention
            and entry.first.method not in CEILINGS
            and entry.mean("flops_ratio") < 1
        ]
        rivals.sort(key=lambda entry: entry.accuracy, reverse=True)
        if len(rivals) > 1 and all(_beats(rivals[0], rival) for rival in rivals[1:]):
            found.append(rivals[0])
    return found


def _beats(entry: Pooled, other: Pooled) -> bool:
    """Whether an entry of no less accuracy is significantly better."""
    if entry.mean("held") > other.mean("held") + SAME_BUDGET:
        return False
    asked = [[(row.seed, len(row.scores)) for row in each.rows] for each in (entry, other)]
    if asked[0] != asked[1]:
        return False
    pairs = [(a.scores, b.scores) for a, b in zip(entry.rows, other.rows, strict=True)]
    return difference_over_seeds(pairs).p_value < SIGNIFICANT
