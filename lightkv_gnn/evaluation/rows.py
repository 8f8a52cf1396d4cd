"""One row per suite, group, method, budget, depth and seed: what an evaluation leaves."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """What tells rows apart."""

    suite: str
    group: str
    method: str
    retention: float
    depth: int
    seed: int


LISTS = ("stages", "scores", "answers")
"""Fields of a row that have an entry for each stage or question."""


@dataclass(frozen=True)
class StageLoss:
    """What one stage lost.

    Attributes:
        layer: The stage ran after this decoder layer.
        before: Vision tokens before it, a question.
        after: Vision tokens after it, a question.
        divergence: Mean feature divergence ``1 - cos`` of the tokens that left from the survivors
            they are counted with.
        error: Relative error of the vision tokens' hidden states when every token is given its
            survivor's: ``|x - unmerge(x')| / |x|`` in the Frobenius norm.
    """

    layer: int
    before: float
    after: float
    divergence: float
    error: float


@dataclass(frozen=True)
class Row:
    """The result of one method on one group of questions.

    Attributes:
        suite: Name of the suite.
        group: Group of questions in it.
        method: Name of the method.
        retention: Vision tokens held, averaged over the layers, as asked for; fraction.
        depth: First decoder layer after which tokens leave; -1 where none do.
        seed: Of the model and of the questions.
        questions: How many were asked.
        accuracy: Mean score.
        low: Lower end of its 95 % interval.
        high: Upper end.
        difference: Accuracy less that without compression, on the same questions.
        difference_low: Lower end of the 95 % bootstrap interval of the paired difference.
        difference_high: Upper end.
        p_value: Of McNemar's exact test where every score is 0 or 1, else of the bootstrap.
        held: Retention as observed; fraction.
        kv_bytes: Keys and values after the prefill, text included, a question.
        kv_ratio: Of those without compression.
        flops: Floating-point operations of the prefill, a question.
        flops_ratio: Of those without compression.
        seconds: Wall time, a question, on the machine of the run.
        stages: What each stage lost.
        scores: Score of each question, in the order they were drawn.
        version: Of this package, by which the row was made.
        agreement: Share of answers that are those without compression, word by word, right or not;
            None where a suite has scores alone.
        hard_accuracy: Mean score of the questions that the picture scaled down to the same budget
            gets wrong; None where there is no such picture, or no such question.
        hard_questions: How many those are.
        prefill_seconds: Wall time of the prefill, a question, the method's own included.
        method_seconds: Wall time of the method itself, in the prefill, a question.
        effective_rank: Of the vision tokens left, in the layer after the last stage (the second one
            if there is none), mean of the first questions; see
            ``lightkv_gnn.baselines.inspection.effective_rank``.
        attention_entropy: Of the last token's attention to them there, in nats, likewise; without
            what mass adds.
        answers: To the questions, of rows without compression; none in others.

    What follows the version is missing in rows of before it was measured.
    """

    suite: str
    group: str
    method: str
    retention: float
    depth: int
    seed: int
    questions: int
    accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    held: float
    kv_bytes: float
    kv_ratio: float
    flops: float
    flops_ratio: float
    seconds: float
    stages: tuple[StageLoss, ...]
    scores: tuple[float, ...]
    version: str
    agreement: float | None = None
    hard_accuracy: float | None = None
    hard_questions: int = 0
    prefill_seconds: float | None = None
    method_seconds: float | None = None
    effective_rank: float | None = None
    attention_entropy: float | None = None
    answers: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What tells it from other rows."""
        return Key(*(getattr(self, name) for name in Key._fields))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; scores that are all 0 or 1 as one string of digits."""
        values = asdict(self)
        if all(score in (0, 1) for score in self.scores):
            values["scores"] = "".join(str(int(score)) for score in self.scores)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """The reverse of :meth:`to_dict`.

        Raises:
            ValueError: Fields are missing, unknown, or of another shape.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(values, dict) or not needed <= set(values) <= known:
            given = sorted(values) if isinstance(values, dict) else values
            raise ValueError(f"a row has the fields {sorted(known)}; here: {given}")
        try:
            stages = tuple(StageLoss(**stage) for stage in values["stages"])
            scores = tuple(float(score) for score in values["scores"])
        except TypeError as error:
            raise ValueError(f"a row's stages or scores cannot be read: {error}") from error
        answers = tuple(values.get("answers", ()))
        return cls(**{**values, "stages": stages, "scores": scores, "answers": answers})


def write_rows(rows: Iterable[Row], file: Path) -> None:
    """Writes rows as JSON Lines (``.jsonl``), or without the scores as CSV (``.csv``).

    Raises:
        ValueError: Another ending.
    """
    rows = list(rows)
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(row.to_dict()) + "\n" for row in rows)
        file.write_text(text, encoding="utf-8")
    elif file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            names = [field.name for field in fields(Row) if field.name not in LISTS]
            names += ["divergence", "error"]
            table = csv.writer(stream)
            table.writerow(names)
            table.writerows(_flat(row, names) for row in rows)
    else:
        raise ValueError(f"{file.name} ends in {file.suffix!r}: expected .jsonl or .csv")


def _flat(row: Row, names: Sequence[str]) -> list[Any]:
    lost = {
        name: " ".join(f"{getattr(stage, name):.6g}" for stage in row.stages)
        for name in ("divergence", "error")
    }
    return [lost.get(name, getattr(row, name, None)) for name in names]


def read_rows(file: Path) -> list[Row]:
    """Reads what :func:`write_rows` wrote as JSON Lines.

    Raises:
        ValueError: A line is no row.
    """
    return parse_rows(file.read_text(encoding="utf-8"), file)


def parse_rows(text: str, file: Path) -> list[Row]:
    """The rows in a text that was read from ``file``.

    Raises:
        ValueError: A line is no row.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            rows.append(Row.from_dict(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
    return rows
