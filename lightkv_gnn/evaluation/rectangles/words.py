"""The vocabulary: every word is a token."""

from __future__ import annotations

from lightkv_gnn.evaluation.rectangles.world import COLOURS, CORNERS, SHAPES

WORDS = (
    *("<pad>", "<image>", "<video>", "<start>", "<end>", "<eos>"),
    "shape",
    *CORNERS,
    *COLOURS,
    *SHAPES,
)
IDS = {word: number for number, word in enumerate(WORDS)}
