"""The words of the worlds and their token ids."""

from __future__ import annotations

from lightkv_gnn.evaluation.cued.drawing import COLOURS, DIGITS, SHAPES

MOST = 6
"""Most cells of one colour in a picture to count in."""

WORDS: tuple[str, ...] = (
    *("<pad>", "<s>", "</s>", "<image>"),
    *COLOURS,
    *SHAPES,
    *(f"{count} cells" for count in range(1, MOST + 1)),
    *("read", *DIGITS),
)

PAD, BEGIN, END, IMAGE = range(4)
COLOUR = WORDS.index(next(iter(COLOURS)))
SHAPE = WORDS.index(next(iter(SHAPES)))
COUNT = WORDS.index("1 cells") - 1  # so that COUNT + n is the id of n
READ = WORDS.index("read")
DIGIT = WORDS.index("0")
