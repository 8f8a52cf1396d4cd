"""What the suites have in common: a model for each seed, and fresh questions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from lightkv_gnn.evaluation.cued import words
from lightkv_gnn.evaluation.cued.backgrounds import Background, photographs
from lightkv_gnn.evaluation.cued.model import build, load
from lightkv_gnn.evaluation.cued.training import CellRecipe, inputs_of, train
from lightkv_gnn.evaluation.cued.worlds import Lesson, World
from lightkv_gnn.evaluation.listening import save, with_listening_layer
from lightkv_gnn.evaluation.suite import Batch, Subject, Suite

SIDE = 6
"""Cells per side of a picture, if nothing else is asked for."""

_FRESH = 2026
"""Keeps the questions' random numbers apart from those of training."""


class CellSuite(Suite):
    """A suite on pictures of cells, one vision token each.

    Args:
        side: Cells per side of a picture: 6 train in about a minute on one CPU core, 24 want a
            GPU.
        recipe: How to train; the suite's own if not given.  A model that is there already is
            taken, however it was trained.
        batch_size: Questions asked at a time.
        listening: Layers that write nothing and stand before all others; see
            :func:`lightkv_gnn.evaluation.listening.with_listening_layer`.  A stage merges at most
            half of the tokens away, so that closed forms for a quarter need two.
        background: What is behind the cells: "plain" black, or a "photo": other photographs than
            those of training.

    Raises:
        ValueError: No listening layer, too few cells, or an unknown background.
    """

    trained_as: ClassVar[str]
    """Name of the model, which suites may share."""

    own_recipe: ClassVar[CellRecipe] = CellRecipe()
    retentions: ClassVar[tuple[float, ...]] = (0.75, 0.6, 0.47)

    def __init__(
        self,
        side: int = SIDE,
        recipe: CellRecipe | None = None,
        batch_size: int = 64,
        listening: int = 1,
        background: Background = "plain",
    ) -> None:
        if listening < 1:
            raise ValueError(f"listening is {listening}: expected 1 or more layers")
        self.side = side
        self.recipe = recipe or self.own_recipe
        self.batch_size = batch_size
        if background not in get_args(Background):
            raise ValueError(
                f"background is {background!r}: expected one of {get_args(Background)}"
            )
        self.listening = listening
        self.background = background
        self.worlds = self.make_worlds()

    @property
    def label(self) -> str:
        """Its name, with the background if it is not plain."""
        return self.name if self.background == "plain" else f"{self.name}_{self.background}"

    def lessons(self) -> Sequence[World]:
        """Worlds that the model is trained on, in turn; those it is asked about."""
        return list(self.worlds.values())

    @abstractmethod
    def make_worlds(self) -> Mapping[str, World]:
        """World that each group's questions are about."""

    def subject(self, seed: int, folder: Path, device: str = "cpu") -> Subject:
        """The model of a seed; see :meth:`Suite.subject`."""
        size = "" if self.side == SIDE else f"{self.side}x{self.side}-"
        kind = "" if self.background == "plain" else f"{self.background}-"
        own = Path(folder) / f"{self.trained_as}-{kind}{size}{seed}"
        if not own.is_dir():
            model: Any = train(self.lessons(), self.recipe, seed, device, self.background)
            save(model, own)
        model = load(own, self.side)
        for _ in range(self.listening - 1):
            model = with_listening_layer(model, lambda layers: build(self.side, layers, seed=0))
        return Subject(model.to(device).eval())

    def batches(
        self, subject: Subject, group: str, questions: int, seed: int, side: float = 1.0
    ) -> Iterator[Batch]:
        """Fresh questions, each drawn from a seed of its own; see :meth:`Suite.batches`."""
        if group not in self.groups:
            raise ValueError(f"{self.name!r} has the groups {self.groups}: not {group!r}")
        if side != 1.0:
            raise ValueError(
                f"side is {side}: pictures of {self.side} x {self.side} cells cannot shrink, "
                "since a cell is as small as a patch; expected 1.0"
            )
        return self._batches(str(subject.model.device), group, questions, seed)

    def _batches(self, device: str, group: str, questions: int, seed: int) -> Iterator[Batch]:
        for start in range(0, questions, self.batch_size):
            numbers = range(start, min(start + self.batch_size, questions))
            drawn = [self._draw(group, seed, number) for number in numbers]
            lesson = Lesson(
                torch.cat([one.codes for one in drawn]),
                torch.cat([one.text for one in drawn]),
                drawn[0].answer,
                torch.cat([one.relevant for one in drawn]),
                _together([one.behind for one in drawn]),
            )
            yield self.pose(group, lesson, device)

    def _draw(self, group: str, seed: int, number: int) -> Lesson:
        stream = np.random.SeedSequence(
            [_FRESH, *self.name.encode(), *group.encode(), seed, number]
        )
        generator = Generator().manual_seed(int(stream.generate_state(1)[0]))
        lesson = self.worlds[group].draw(generator, 1)
        if self.background == "plain":
            return lesson
        shape = (1, lesson.codes.shape[1])
        return replace(lesson, behind=photographs(shape, self.side, generator, "test"))

    def pose(self, group: str, lesson: Lesson, device: str) -> Batch:
        """The first question of every sample of a lesson."""
        begins = (~lesson.answer).nonzero()[:, 0].tolist()
        end = begins[1] if len(begins) > 1 else lesson.text.shape[1]
        return Batch(
            inputs_of(lesson, lesson.text[:, :1], self.side, device),
            words.spell(lesson.text[:, 1:end]),
            lesson.relevant[:, 0].to(device),
        )

    def answer(self, subject: Subject, group: str, batch: Batch) -> list[str]:
        """As many words as the right answer has, decoded greedily."""
        length = len(batch.answers[0].split())
        ids = subject.model.generate(**batch.inputs, max_new_tokens=length, do_sample=False)
        return [*words.spell(ids[:, -length:])]

    def score(self, group: str, batch: Batch, answers: Sequence[str]) -> list[float]:
        """Share of right words in each answer."""
        return words.shares(answers, batch.answers)


def _together(behind: list[Tensor | None]) -> Tensor | None:
    """Photographs of several lessons, or None if they have none."""
    there = [one for one in behind if one is not None]
    return torch.cat(there) if there else None
