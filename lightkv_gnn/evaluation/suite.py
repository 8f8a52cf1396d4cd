"""What a suite is: a model, questions with exact answers, and how to ask them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model, in evaluation mode, with what turns questions into its inputs.

    Attributes:
        model: The model.
        processor: Its processor; None where the suite makes the inputs itself.
    """

    model: Any
    processor: Any = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Some questions, ready to be asked.

    Attributes:
        inputs: What the model takes.
        answers: The right answer to each.
        relevant: Vision tokens that the answer depends on, `[batch, vision]` bool, each sample's
            in the order of the sequence, padded at the end; None where that is not known.
    """

    inputs: Mapping[str, Tensor]
    answers: tuple[str, ...]
    relevant: Tensor | None = None


class Quick(NamedTuple):
    """What a first look at a suite takes.

    Attributes:
        questions: Of each group.
        methods: Their names; all if empty.
        retentions: Budgets; the suite's if empty.
    """

    questions: int = 256
    methods: tuple[str, ...] = ()
    retentions: tuple[float, ...] = ()


class Suite(ABC):
    """Questions of one kind, in groups, and a model that was trained to answer them.

    A suite overrides :meth:`answer`, and :meth:`score` where an answer may be right in part; or
    :meth:`ask`, if it has scores alone: then nobody can tell how often two methods agree.
    """

    name: ClassVar[str]
    groups: ClassVar[tuple[str, ...]]
    retentions: ClassVar[tuple[float, ...]] = (0.75, 0.55, 0.4)
    """Budgets that are within reach of its model, and tell something."""
    resizable: ClassVar[bool] = False
    """Whether its pictures can be made smaller."""
    quick: ClassVar[Quick] = Quick()
    """What takes minutes, where the whole takes hours."""

    @property
    def label(self) -> str:
        """What rows call it; its name, and what else its pictures depend on."""
        return self.name

    @abstractmethod
    def subject(self, seed: int, folder: Path, device: str = "cpu") -> Subject:
        """The model of a seed: read from ``folder``, or trained and kept there.

        Args:
            seed: Of the initial weights and of the pictures to train on.
            folder: For trained models; every suite and seed has a folder of its own in it.
            device: Where to put it.
        """

    @abstractmethod
    def batches(
        self, subject: Subject, group: str, questions: int, seed: int, side: float = 1.0
    ) -> Iterator[Batch]:
        """Fresh questions; a seed always gives the same ones, whatever the batches.

        Args:
            subject: Who is asked.
            group: One of :attr:`groups`.
            questions: How many.
            seed: Of pictures and questions; apart from those that training uses.
            side: Side of the pictures as a fraction of the full one, for fewer vision tokens.

        Raises:
            ValueError: An unknown group, or a ``side`` that the model cannot take.
        """

    def ask(self, subject: Subject, group: str, batch: Batch) -> list[float]:
        """Score of each answer, 0 to 1; arguments as of :meth:`answer`."""
        return self.score(group, batch, self.answer(subject, group, batch))

    def answer(self, subject: Subject, group: str, batch: Batch) -> list[str]:
        """Each answer; runs the model, compressed or not, as the caller left it.

        Args:
            subject: Who is asked.
            group: Of the batch.
            batch: The questions.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither answer() nor ask()")

    def score(self, group: str, batch: Batch, answers: Sequence[str]) -> list[float]:
        """Score of each answer, 0 to 1: 1 if it is the right one, blanks around it aside.

        Args:
            group: Of the batch.
            batch: The questions.
            answers: From :meth:`answer`.
        """
        pairs = zip(answers, batch.answers, strict=True)
        return [float(text.strip() == answer) for text, answer in pairs]

    @property
    def has_answers(self) -> bool:
        """Whether there are answers to compare, and not only scores."""
        return type(self).ask is Suite.ask
