"""The bundled tiny LLaVA and its four groups of questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from lightkv_gnn import tiny
from lightkv_gnn.baselines.downsample import smaller
from lightkv_gnn.evaluation.suite import Batch, Subject, Suite
from lightkv_gnn.tiny.model import PATCH_SIZE
from lightkv_gnn.tiny.questions import PLURALS, Objects
from lightkv_gnn.tiny.scenes import IMAGE_SIZE, Box

BATCH = 50


class TinySuite(Suite):
    """Drawn pictures of small objects; answers are right if they are equal word by word."""

    name: ClassVar[str] = "tiny"
    groups: ClassVar[tuple[str, ...]] = tiny.GROUPS
    resizable: ClassVar[bool] = True

    def subject(self, seed: int, folder: Path, device: str = "cpu") -> Subject:
        """The bundled model for seed 0, else one that ``examples/train_tiny.py`` trained.

        Raises:
            FileNotFoundError: That has not been trained yet; it takes most of an hour.
        """
        if seed == 0:
            return Subject(*tiny.load(device))
        return trained("tiny", seed, folder, device)

    def batches(
        self, subject: Subject, group: str, questions: int, seed: int, side: float = 1.0
    ) -> Iterator[Batch]:
        """Fresh questions; see :meth:`Suite.batches`."""
        pairs = tiny.sample_questions(group, questions, seed)
        for start in range(0, questions, BATCH):
            chunk = pairs[start : start + BATCH]
            yield posed(
                subject,
                [tiny.render(scene) for scene, _ in chunk],
                [question for _, question in chunk],
                [[item.box for item in asked_about(*pair)] for pair in chunk],
                side,
                IMAGE_SIZE,
            )

    def answer(self, subject: Subject, group: str, batch: Batch) -> list[str]:
        """Each answer, decoded greedily."""
        return decoded(subject, batch, tiny.MAX_NEW_TOKENS[group])


def trained(name: str, seed: int, folder: Path, device: str) -> Subject:
    """The LLaVA of a seed that ``examples/train_NAME.py`` has left in a folder of models.

    Raises:
        FileNotFoundError: It has not been trained yet.
    """
    own = folder / f"{name}-{seed}"
    if not own.is_dir():
        raise FileNotFoundError(
            f"there is no {name} LLaVA of seed {seed} in {folder}: train it, "
            f"python examples/train_{name}.py --seed {seed} --out {own}"
        )
    return Subject(*tiny.load(device, folder=own))


def posed(
    subject: Subject,
    images: Sequence[Image],
    questions: Sequence[tiny.Question],
    boxes: Sequence[Sequence[Box]],
    side: float,
    size: int,
) -> Batch:
    """Questions, one a picture, as a batch.

    Args:
        subject: Who is asked.
        images: The pictures.
        questions: One about each.
        boxes: What each answer depends on.
        side: Of the pictures that the model sees, as a fraction of the full one.
        size: Side of a full picture, in pixels.
    """
    inputs = subject.processor(
        images=list(images),
        text=[tiny.format_prompt(question.prompt_text) for question in questions],
        images_kwargs=smaller(subject.processor, side),
        padding=True,
        return_tensors="pt",
    )
    patches = round(side * size / PATCH_SIZE)
    relevant = torch.stack([shown(own, patches, size) for own in boxes])
    answers = tuple(question.answer for question in questions)
    return Batch(inputs.to(subject.model.device), answers, relevant)


def decoded(subject: Subject, batch: Batch, words: int) -> list[str]:
    """Answers of ``words`` words at most, decoded greedily."""
    with torch.no_grad():
        tokens = subject.model.generate(**batch.inputs, do_sample=False, max_new_tokens=words)
    new = tokens[:, batch.inputs["input_ids"].shape[1] :]
    found: list[str] = subject.processor.batch_decode(new, skip_special_tokens=True)
    return found


def asked_about(
    scene: Objects, question: tiny.Question, plurals: Mapping[str, str] = PLURALS
) -> list[tiny.SceneObject]:
    """The objects that an answer depends on: those named by colour, else by shape, else all."""
    words = question.prompt_text.split()
    by_colour = [item for item in scene.objects if item.colour in words]
    if by_colour or any(colour in words for colour in tiny.COLOURS):
        return by_colour
    by_shape = [item for item in scene.objects if plurals[item.shape] in words]
    return by_shape or list(scene.objects)


def shown(boxes: Sequence[Box], patches: int, size: int) -> Tensor:
    """True for patches that one of the boxes touches, `[patch]`, in raster order.

    Args:
        boxes: Left, top, right and bottom edge of each, in pixels.
        patches: Patches per side.
        size: Side of the picture, in pixels.
    """
    edge = np.arange(patches) * (size / patches)
    ends = edge + size / patches
    mask = np.zeros((patches, patches), dtype=bool)
    for left, top, right, bottom in boxes:
        mask |= ((edge < bottom) & (ends > top))[:, None] & ((edge < right) & (ends > left))
    return torch.from_numpy(mask.reshape(-1))
