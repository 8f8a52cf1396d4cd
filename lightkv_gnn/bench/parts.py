"""The parts of the benchmarks: which cases they measure, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from lightkv_gnn.bench.cases import StageCase
from lightkv_gnn.bench.check import check_all
from lightkv_gnn.bench.growth import growth
from lightkv_gnn.bench.prefill import Contest, compare_decode, compare_prefill
from lightkv_gnn.bench.serving import ServeCase, compare_serving
from lightkv_gnn.bench.stage import compare, sweep

Row = dict[str, Any]


def stages(
    cases: Sequence[StageCase], subjects: Sequence[str], rounds: int | None = None
) -> Iterator[Row]:
    """Of every case, one row for each subject."""
    for case in cases:
        for row in compare(case, subjects, rounds or 20):
            yield asdict(row)


def stage_cases(
    base: StageCase, tokens: Sequence[int] | None, batch: Sequence[int] | None, *, quick: bool
) -> Sequence[StageCase]:
    """All combinations of what is asked for, or if nothing is, a sweep."""
    if not (tokens or batch or base.ragged):
        return sweep(base, quick=quick)
    return [
        replace(base, tokens=number, batch=samples)
        for number in tokens or [base.tokens]
        for samples in batch or [base.batch]
    ]


def grown(
    base: StageCase,
    tokens: Sequence[int] | None,
    batch: Sequence[int] | None,
    subjects: Sequence[str],
    rounds: int | None = None,
    *,
    quick: bool,
) -> Iterator[Row]:
    """Over tokens, then over the batch, one row for each subject."""
    tokens = tokens or ([256, 576, 1024] if quick else [256, 576, 1024, 2880, 5760])
    batch = batch or ([1, 2, 4] if quick else [1, 2, 4, 8])
    names = [name for name in subjects if name != "full_logits"]
    small = replace(base, tokens=tokens[0])
    for start, over, values in ((base, "tokens", tokens), (small, "batch", batch)):
        for row in growth(start, over, values, names, rounds or 20):
            yield asdict(row)


def checks(base: StageCase, contests: Iterator[Contest]) -> Iterator[Row]:
    """Of every contest, one row for each check."""
    for contest in contests:
        for row in check_all(base, contest):
            yield asdict(row)


def prefills(contests: Iterator[Contest], rounds: int) -> Iterator[Row]:
    """One row for each contest."""
    for contest in contests:
        yield asdict(compare_prefill(contest, rounds))


def decodes(contests: Iterator[Contest], rounds: int, memory: float | None) -> Iterator[Row]:
    """One row for each contest; ``memory`` in GiB, which is asked about once for each shape."""
    limit = None if memory is None else int(memory * 2**30)
    fits: dict[str, Row] = {}
    for contest in contests:
        row = asdict(compare_decode(contest, rounds, None if contest.name in fits else limit))
        known = {name: row[name] for name in ("largest_batch", "largest_batch_full")}
        yield row | fits.setdefault(contest.name, known)


def serves(cases: Iterable[ServeCase], threads: int) -> Iterator[Row]:
    """Of every case, one row for each engine."""
    for case in cases:
        for row in compare_serving(case, threads):
            yield asdict(row)
