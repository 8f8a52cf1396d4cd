"""Requests of lmms-eval for the likelihoods of given answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmms_eval.api.instance import GenerationResult, Instance

from lightkv_gnn.asking.scores import Score
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.harness.prompts import Chat


class Likelihood(NamedTuple):
    """What lmms-eval's metrics take.

    Attributes:
        value: A logarithm, or minus it.
        greedy: Whether the model would say the answer of itself.
    """

    value: float
    greedy: bool

    def strip(self) -> str:
        """Nothing: the cache of ``--use_cache``, which would give a text back, stores no blanks."""
        return ""


NOTHING = Likelihood(0.0, False)
"""What a request gets that only makes processes alike; lmms-eval drops it."""


def told(likelihood: Likelihood) -> GenerationResult:
    """What lmms-eval 0.7.3 gets through to its metrics: a bare pair it would make a text of.

    Source: ``unwrap_generation_output`` in ``lmms_eval/api/instance.py``, and
    ``_is_valid_response`` in ``lmms_eval/caching/response_cache.py``.
    """
    result = GenerationResult("")
    result.text = likelihood
    return result


class Wanted(NamedTuple):
    """An answer that a request wants the likelihood of.

    Attributes:
        number: Of the request.
        answer: The text.
        choice: Whether it is one of several choices.
    """

    number: int
    answer: str
    choice: bool

    def of(self, score: Score) -> Likelihood:
        """The logarithm; of a choice minus it, since lmms-eval takes the least."""
        value = -score.log_likelihood if self.choice else score.log_likelihood
        return Likelihood(value, score.greedy)


@dataclass(frozen=True)
class Question:
    """One question, and all answers that are wanted.

    Attributes:
        task: That it is from.
        chat: The question.
        wanted: The answers.
    """

    task: str
    chat: Chat
    wanted: list[Wanted] = field(default_factory=list)


def questions(
    requests: Sequence[Instance], numbers: Sequence[int], task_dict: Mapping[str, Any]
) -> Iterator[Question]:
    """Requests by question, in order; the choices of one stand together.

    A request's arguments are the context, the answer or a function from the document to it, a
    function from the document to its pictures, the document's number, the task and the split.

    Raises:
        UnsupportedInputError: A request wants the likelihood of an answer without its question.
    """
    last, found = None, None
    for number in numbers:
        arguments = requests[number].args
        if len(arguments) != _ARGUMENTS:
            raise UnsupportedInputError(
                f"a request comes with {len(arguments)} arguments, as for the metric "
                f"acc_mutual_info: expected {_ARGUMENTS}, an answer with its question; leave that "
                "metric out"
            )
        context, target, to_pictures, document, task, split = arguments
        row = task_dict[task][split][document]
        if found is None or last != (context, document, task, split):
            if found is not None:
                yield found
            last = context, document, task, split
            found = Question(
                task, [{"role": "user", "content": contents(context, to_pictures, row)}]
            )
        choice = isinstance(target, str)
        found.wanted.append(Wanted(number, str(target if choice else target(row)), choice))
    if found is not None:
        yield found


_ARGUMENTS = 6


def contents(
    context: str, to_pictures: Callable[[Any], Any] | None, row: Any, key: str = "image"
) -> list[dict[str, Any]]:
    """A document's pictures and its text, as a message has them; ``key`` names the pictures."""
    pictures = (None if to_pictures is None else to_pictures(row)) or []
    shown = [{"type": "image", key: picture} for picture in pictures]
    return [*shown, {"type": "text", "text": context}]
