"""Objects and signs before photographs that the model has never seen, in six groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from lightkv_gnn.evaluation.suite import Batch, Quick, Subject, Suite
from lightkv_gnn.evaluation.tiny_suite import asked_about, decoded, posed, trained
from lightkv_gnn.tiny.photo.model import load_photo
from lightkv_gnn.tiny.photo.questions import GROUPS, MAX_NEW_TOKENS, ask
from lightkv_gnn.tiny.photo.scenes import CANVAS, PhotoScene, render, sample_scene
from lightkv_gnn.tiny.photo.things import PLURALS
from lightkv_gnn.tiny.questions import Question
from lightkv_gnn.tiny.scenes import Box

BATCH = 25
_FRESH = 2026
"""Keeps the questions' random numbers apart from those of training."""


class PhotoSuite(Suite):
    """Pictures of 576 vision tokens; answers are right if they are equal word by word.

    The model was trained at three resolutions, so that smaller pictures are no surprise to it.
    """

    name: ClassVar[str] = "photo"
    groups: ClassVar[tuple[str, ...]] = GROUPS
    retentions: ClassVar[tuple[float, ...]] = (0.55, 0.3, 0.16)
    resizable: ClassVar[bool] = True
    quick: ClassVar[Quick] = Quick(
        40, ("ours", "guided", "divprune_like", "fastv", "random_pruning"), (0.3,)
    )

    def subject(self, seed: int, folder: Path, device: str = "cpu") -> Subject:
        """The photo LLaVA that ships for seed 0, else one of ``examples/train_photo.py``.

        Raises:
            FileNotFoundError: That has not been trained yet; it takes some hours.
        """
        if seed == 0:
            return Subject(*load_photo(device))
        return trained(self.name, seed, folder, device)

    def batches(
        self, subject: Subject, group: str, questions: int, seed: int, side: float = 1.0
    ) -> Iterator[Batch]:
        """Fresh questions, each from a seed of its own; see :meth:`Suite.batches`."""
        if group not in self.groups:
            raise ValueError(f"{self.name!r} has the groups {self.groups}: not {group!r}")
        for start in range(0, questions, BATCH):
            numbers = range(start, min(start + BATCH, questions))
            chunk = [draw(group, seed, number) for number in numbers]
            yield posed(
                subject,
                [render(scene) for scene, _ in chunk],
                [question for _, question in chunk],
                [boxes_of(*pair) for pair in chunk],
                side,
                CANVAS,
            )

    def answer(self, subject: Subject, group: str, batch: Batch) -> list[str]:
        """Each answer, decoded greedily."""
        return decoded(subject, batch, MAX_NEW_TOKENS[group])


def draw(group: str, seed: int, number: int) -> tuple[PhotoScene, Question]:
    """A scene before a photograph to test on, and a question of the group about it."""
    rng = np.random.default_rng([_FRESH, GROUPS.index(group), seed, number])
    scene = sample_scene(rng, "test", signed=True if group == "read" else None)
    return scene, ask(scene, group, rng)


def boxes_of(scene: PhotoScene, question: Question) -> list[Box]:
    """What an answer depends on: the sign, objects named by colour, else by thing, else all."""
    if question.group == "read" and scene.sign is not None:
        return [scene.sign.box]
    return [item.box for item in asked_about(scene, question, PLURALS)]
