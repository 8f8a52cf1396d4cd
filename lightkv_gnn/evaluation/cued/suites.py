"""The suites: what each asks, and of which model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.evaluation.cued import words
from lightkv_gnn.evaluation.cued.base import CellSuite
from lightkv_gnn.evaluation.cued.drawing import COLOURS
from lightkv_gnn.evaluation.cued.training import CellRecipe, inputs_of
from lightkv_gnn.evaluation.cued.worlds import Counting, Digits, Lesson, Objects, World
from lightkv_gnn.evaluation.suite import Batch, Subject
from lightkv_gnn.seams import CACHE

FEW = 3
"""Objects in a picture that is mostly background."""


class _ObjectSuite(CellSuite):
    """A suite on objects; all of these share one model, which has seen every kind."""

    trained_as = "cued"
    own_recipe = CellRecipe(steps=400, batch=32, layers=2, rate=5e-3)

    def lessons(self) -> Sequence[World]:
        """Mostly as many objects as there are colours; in one picture or in two."""
        half = len(COLOURS) // 2
        kinds: tuple[tuple[int, ...], ...] = ((2 * half,), (half, half), (2 * half,), (FEW,))
        return [Objects(self.side, objects) for objects in kinds]


class Cued(_ObjectSuite):
    """Twelve objects, one of which the prompt asks for: accuracies are known in advance.

    See :mod:`lightkv_gnn.evaluation.cued.closed_forms`.
    """

    name = "cued"
    groups = ("shape",)

    def make_worlds(self) -> Mapping[str, World]:
        """One picture with an object of every colour."""
        return {"shape": Objects(self.side)}


class CuedSymmetric(Cued):
    """The same from a model whose queries and keys are one projection.

    A causal model that reads pictures first never trains their queries on the text's keys, which
    "vision_to_text" guidance asks.  Here they are trained, since both are one: the two directions
    are equal, and what is lost elsewhere by the direction alone can be told.
    """

    name = "cued_symmetric"
    trained_as = "cued_symmetric"
    own_recipe = replace(Cued.own_recipe, symmetric=True)


class Plain(_ObjectSuite):
    """Three objects on a plain background: merging must be free as long as that suffices."""

    name = "plain"
    groups = ("shape",)

    def make_worlds(self) -> Mapping[str, World]:
        """One picture, mostly background."""
        return {"shape": Objects(self.side, (FEW,))}


class TwoImages(_ObjectSuite):
    """A second picture that the question is not about must change nothing.

    Groups: the other picture is "empty", or holds "others", objects of other colours.
    """

    name = "two_images"
    groups = ("empty", "others")

    def make_worlds(self) -> Mapping[str, World]:
        """Two pictures, mostly background, in random order."""
        return {
            "empty": Objects(self.side, (FEW, 0)),
            "others": Objects(self.side, (FEW, FEW)),
        }


@dataclass(frozen=True, eq=False)
class TwoQuestions(Batch):
    """Questions that another one follows.

    Attributes:
        follow_up: Id of the second question, `[batch]`.
    """

    follow_up: Tensor | None = None


class SecondQuestion(_ObjectSuite):
    """Two questions on one cache, as in a conversation; what the first one guided is too late.

    The prefill holds the first question only.  The model's answer to it and the second question
    are then fed into the same cache.  Groups: which of the two answers counts.
    """

    name = "second_question"
    groups = ("first", "second")

    def make_worlds(self) -> Mapping[str, World]:
        """One picture with an object of every colour."""
        return dict.fromkeys(self.groups, Objects(self.side))

    def pose(self, group: str, lesson: Lesson, device: str) -> Batch:
        """The first question, with the second one beside."""
        which = self.groups.index(group)
        return TwoQuestions(
            inputs_of(lesson, lesson.text[:, :1], self.side, device),
            words.spell(lesson.text[:, 2 * which + 1, None]),
            lesson.relevant[:, which].to(device),
            lesson.text[:, 2].to(device),
        )

    @torch.no_grad()
    def answer(self, subject: Subject, group: str, batch: Batch) -> list[str]:
        """One word for each question.

        Raises:
            TypeError: The batch is of another suite.
        """
        if not isinstance(batch, TwoQuestions) or batch.follow_up is None:
            raise TypeError(f"the batch is a {type(batch).__name__}: expected TwoQuestions")
        inputs: dict[str, Any] = dict(batch.inputs)
        output = subject.model(**inputs, use_cache=True)
        answer = output.logits[:, -1].argmax(-1)
        if group == "second":
            mask, cache = inputs["attention_mask"], next(name for name in CACHE if name in output)
            output = subject.model(
                input_ids=torch.stack([answer, batch.follow_up], dim=1),
                attention_mask=torch.cat([mask, mask.new_ones(len(mask), 2)], dim=1),
                **{cache: output[cache]},
            )
            answer = output.logits[:, -1].argmax(-1)
        return [*words.spell(answer[:, None])]


class CountingSuite(CellSuite):
    """How many cells are of a colour: merging two of them must lose one."""

    name = "counting"
    groups = ("count",)
    trained_as = "counting"
    own_recipe = CellRecipe(steps=600, batch=64, layers=2, rate=6e-3)

    def make_worlds(self) -> Mapping[str, World]:
        """One picture of coloured cells."""
        return {"count": Counting(self.side)}


class Dense(CellSuite):
    """A digit in every cell, to be read row by row: nothing is redundant, all of it is asked."""

    name = "dense"
    groups = ("read",)
    trained_as = "dense"
    own_recipe = CellRecipe(steps=200, batch=32, layers=2, rate=3e-3)

    def make_worlds(self) -> Mapping[str, World]:
        """One picture full of digits."""
        return {"read": Digits(self.side)}


SUITES: dict[str, type[CellSuite]] = {
    suite.name: suite
    for suite in (Cued, CuedSymmetric, Plain, TwoImages, SecondQuestion, CountingSuite, Dense)
}
"""By name."""
