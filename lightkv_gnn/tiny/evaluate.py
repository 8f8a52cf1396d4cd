"""Greedy, exact-match accuracy of a model on fresh pictures and questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch

from lightkv_gnn.intervals import wilson
from lightkv_gnn.tiny.questions import GROUPS, Question, ask
from lightkv_gnn.tiny.scenes import COLOURS, Scene, render, sample_scene
from lightkv_gnn.tiny.words import format_prompt

__all__ = ["MAX_NEW_TOKENS", "Evaluation", "accuracy", "object_f1", "sample_questions"]

# Lists hold a colour and a shape per object, a comma between two, and the end mark.
MAX_NEW_TOKENS: dict[str, int] = {
    "vqa": 2,
    "reasoning": 2,
    "hallucination": 5,
    "captioning": 3 * len(COLOURS),
}


@dataclass(frozen=True)
class Evaluation:
    """Answers of a model to the questions of one group, in the order they were drawn."""

    group: str
    questions: tuple[Question, ...]
    predictions: tuple[str, ...]

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether each prediction is exactly the right answer."""
        pairs = zip(self.predictions, self.questions, strict=True)
        return tuple(prediction == question.answer for prediction, question in pairs)

    @property
    def accuracy(self) -> float:
        """Share of exactly right predictions."""
        return fmean(self.correct)

    @property
    def f1(self) -> float:
        """Mean F1 of the listed objects; equals the accuracy for one-word answers."""
        pairs = zip(self.predictions, self.questions, strict=True)
        return fmean(object_f1(prediction, question.answer) for prediction, question in pairs)

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson score interval of the accuracy, 95 % by default."""
        return wilson(sum(self.correct), len(self.correct), z)


def object_f1(prediction: str, answer: str) -> float:
    """Return the F1 of the comma-separated items of a prediction, in any order."""
    found = {item.strip() for item in prediction.split(",") if item.strip()}
    wanted = {item.strip() for item in answer.split(",") if item.strip()}
    if not found and not wanted:
        return 1.0
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def sample_questions(group: str, n: int, seed: int) -> list[tuple[Scene, Question]]:
    """Draw ``n`` fresh scenes with one question each; a seed always gives the same ones."""
    if group not in GROUPS:
        raise ValueError(f"unknown question group {group!r}; expected one of {', '.join(GROUPS)}")
    if n < 1:
        raise ValueError(f"expected n >= 1 questions, got {n}")
    # The leading constant keeps these streams apart from the seeds that training uses.
    rng = np.random.default_rng([2026, GROUPS.index(group), seed])
    pairs = []
    for _ in range(n):
        scene = sample_scene(rng)
        pairs.append((scene, ask(scene, group, rng)))
    return pairs


def accuracy(
    model: Any,
    processor: Any,
    group: str,
    n: int,
    seed: int,
    batch_size: int = 50,
    image_first: bool = True,
) -> Evaluation:
    """Ask a model fresh questions of one group, decoding greedily.

    Args:
        model: the tiny model, in whatever state the caller has prepared it.
        processor: the processor that belongs to it.
        group: one of ``GROUPS``.
        n: number of fresh scenes, each with one question.
        seed: seed of the scenes and questions.
        batch_size: questions answered at a time.
        image_first: whether the picture precedes the question.

    Returns:
        Every question with the model's answer to it.
    """
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    pairs = sample_questions(group, n, seed)
    predictions: list[str] = []
    for start in range(0, n, batch_size):
        chunk = pairs[start : start + batch_size]
        predictions += _answer(model, processor, chunk, MAX_NEW_TOKENS[group], image_first)
    return Evaluation(group, tuple(question for _, question in pairs), tuple(predictions))


def _answer(
    model: Any,
    processor: Any,
    pairs: Sequence[tuple[Scene, Question]],
    max_new_tokens: int,
    image_first: bool,
) -> list[str]:
    inputs = processor(
        images=[render(scene) for scene, _ in pairs],
        text=[format_prompt(question.prompt_text, image_first) for _, question in pairs],
        padding=True,
        return_tensors="pt",
    ).to(model.device)
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    new_tokens = output[:, inputs["input_ids"].shape[1] :]
    answers: list[str] = processor.batch_decode(new_tokens, skip_special_tokens=True)
    return [answer.strip() for answer in answers]
