"""The suite: shapes by their colour, and shapes by where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from lightkv_gnn.evaluation.listening import save
from lightkv_gnn.evaluation.rectangles.inputs import asked, inputs_of, seen
from lightkv_gnn.evaluation.rectangles.training import RectangleRecipe, train
from lightkv_gnn.evaluation.rectangles.words import WORDS
from lightkv_gnn.evaluation.rectangles.world import BLOCK, Picture, Question, draw_picture
from lightkv_gnn.evaluation.rectangles.world import questions_of as all_questions
from lightkv_gnn.evaluation.suite import Batch, Subject, Suite

_FRESH = 2026
"""Keeps the questions' random numbers apart from those of training."""


class Rectangles(Suite):
    """Objects of two equal cells, side by side, on grids of many shapes, none a square.

    Neighbouring tokens say the same, so that half of them can go for nothing, if they are merged
    with their neighbours.  Groups: the "shape" of a colour, which is anywhere; and the shape at a
    corner, whose "position" is all that is known.

    Args:
        recipe: How to train.  A model that is there already is taken, however it was trained.
        batch_size: Questions asked at a time.
    """

    name: ClassVar[str] = "rectangles"
    groups: ClassVar[tuple[str, ...]] = ("shape", "position")
    resizable: ClassVar[bool] = True

    def __init__(self, recipe: RectangleRecipe | None = None, batch_size: int = 64) -> None:
        self.recipe = recipe or RectangleRecipe()
        self.batch_size = batch_size

    def subject(self, seed: int, folder: Path, device: str = "cpu") -> Subject:
        """The model of a seed; see :meth:`Suite.subject`."""
        own = Path(folder) / f"{self.name}-{seed}"
        if not own.is_dir():
            save(train(self.recipe, seed, device), own)
        model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(own, local_files_only=True)
        return Subject(model.to(device).eval())

    def batches(
        self, subject: Subject, group: str, questions: int, seed: int, side: float = 1.0
    ) -> Iterator[Batch]:
        """Fresh questions, one a picture, each from a seed of its own; see :meth:`Suite.batches`.

        Pictures of another ``side`` are scaled, to whole cells.
        """
        if group not in self.groups:
            raise ValueError(f"{self.name!r} has the groups {self.groups}: not {group!r}")
        if not 0 < side <= 1:
            raise ValueError(f"side is {side}: expected a fraction of the picture's, above 0 to 1")
        return self._batches(str(subject.model.device), group, questions, seed, side)

    def _batches(
        self, device: str, group: str, questions: int, seed: int, side: float
    ) -> Iterator[Batch]:
        for start in range(0, questions, self.batch_size):
            numbers = range(start, min(start + self.batch_size, questions))
            drawn = [self._draw(group, seed, number) for number in numbers]
            pictures = [seen(picture, side) for picture, _ in drawn]
            yield Batch(
                inputs_of(pictures, [asked(question) for _, question in drawn], device),
                tuple(question.answer for _, question in drawn),
                _relevant(drawn).to(device) if side == 1 else None,
            )

    def _draw(self, group: str, seed: int, number: int) -> tuple[Picture, Question]:
        rng = np.random.default_rng([_FRESH, self.groups.index(group), seed, number])
        picture = draw_picture(rng)
        about = all_questions(picture, group)
        return picture, about[rng.integers(len(about))]

    @torch.no_grad()
    def answer(self, subject: Subject, group: str, batch: Batch) -> list[str]:
        """One word for each question."""
        ids = subject.model.generate(**batch.inputs, max_new_tokens=1, do_sample=False)[:, -1]
        return [WORDS[word] for word in ids.tolist()]


def _relevant(drawn: list[tuple[Picture, Question]]) -> Tensor:
    """Cells of the block that each answer stands in, `[batch, vision]`, padded at the end."""
    marks = []
    for picture, question in drawn:
        (row, col), (rows, cols) = question.block, BLOCK
        mark = torch.zeros(picture.grid, dtype=torch.bool)
        mark[row * rows : (row + 1) * rows, col * cols : (col + 1) * cols] = True
        marks.append(mark.flatten())
    return torch.nn.utils.rnn.pad_sequence(marks, batch_first=True)
