"""The vocabulary: every word is a token."""

from __future__ import annotations

from lightkv_gnn.evaluation.rectangles.world import COLOURS, SHAPES

WORDS = (
    *("<pad>", "<image>", "<video>", "<start>", "<end>", "<eos>"),
    *("shape", "right", "below"),
    *COLOURS,
    *SHAPES,
)
IDS = {word: number for number, word in enumerate(WORDS)}
