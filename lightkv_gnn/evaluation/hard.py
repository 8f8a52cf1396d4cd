"""What honest columns are made of: agreement with no compression, and questions that are hard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightkv_gnn.evaluation.rows import Row


def agreement(answers: Sequence[str], full: Sequence[str]) -> float | None:
    """Share of answers that are those without compression, word by word, whether right or wrong.

    Also called loyalty (EffiVLM-Bench, Wang et al. 2025).

    Args:
        answers: Of a method.
        full: To the same questions in the same order, without compression.

    Returns:
        The share; None if one of the two has no answers.

    Raises:
        ValueError: As many answers as questions are expected of both.
    """
    if not answers or not full:
        return None
    pairs = zip(answers, full, strict=True)
    same = sum(one.split() == other.split() for one, other in pairs)
    return same / len(answers)


def hard_ones(small: Sequence[float]) -> list[int]:
    """Numbers of the questions that are not all right with a smaller picture.

    Source: VTC-Bench (Liao et al. 2025), which drops the questions that downsampling at the same
    ratio answers.

    Args:
        small: Scores with the smaller picture.
    """
    return [number for number, score in enumerate(small) if score < 1]


def with_hard(row: Row, small: Row) -> Row:
    """A row with its accuracy on what smaller pictures get wrong.

    Args:
        row: Of any method.
        small: Of smaller pictures at the same budget.

    Raises:
        ValueError: The two are of another number of questions.
    """
    if len(row.scores) != len(small.scores):
        raise ValueError(f"{row.key}: {len(small.scores)} questions were asked of smaller pictures")
    hard = hard_ones(small.scores)
    mean = sum(row.scores[number] for number in hard) / len(hard) if hard else None
    return replace(row, hard_accuracy=mean, hard_questions=len(hard))
