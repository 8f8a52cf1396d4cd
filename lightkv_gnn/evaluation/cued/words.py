"""The words of the worlds and their token ids."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightkv_gnn.evaluation.cued.drawing import COLOURS, DIGITS, SHAPES

WORDS: tuple[str, ...] = (
    *("<pad>", "<s>", "</s>", "<image>"),
    *COLOURS,
    *SHAPES,
    *("read", *DIGITS),
)

PAD, BEGIN, END, IMAGE = range(4)
COLOUR = WORDS.index(next(iter(COLOURS)))
SHAPE = WORDS.index(next(iter(SHAPES)))
READ = WORDS.index("read")
DIGIT = WORDS.index("0")


def spell(ids: Tensor) -> tuple[str, ...]:
    """Words of each row of `[batch, word]`, with spaces between."""
    return tuple(" ".join(WORDS[number] for number in row) for row in ids.tolist())


def shares(given: Sequence[str], right: Sequence[str]) -> list[float]:
    """Share of the words that are right, at their places, of answers as long as the right ones."""
    pairs = [(a.split(), b.split()) for a, b in zip(given, right, strict=True)]
    return [sum(map(str.__eq__, a, b)) / len(b) for a, b in pairs]
