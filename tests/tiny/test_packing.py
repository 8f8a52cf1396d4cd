"""Packed questions give the logits of the same questions asked one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightkv_gnn.tiny import GROUPS, Question, ask, format_prompt, render, sample_scene
from lightkv_gnn.tiny.packing import pack
from lightkv_gnn.tiny.recipe import Recipe
from lightkv_gnn.tiny.training import Trainer


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """Build an untrained model once, with weights large enough for attention to matter."""
    trainer = Trainer(Recipe(batch_size=2, steps=4))
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "language_model.layers" in name and weight.ndim == 2:
                weight.mul_(5)
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize("image_first", [True, False])
def test_packed_logits_equal_single_logits(trainer: Trainer, image_first: bool) -> None:
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng) for _ in range(2)]
    lessons = [[ask(scene, group, rng) for group in GROUPS] for scene in scenes]
    images = [render(scene) for scene in scenes]
    pixels = trainer.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    batch = pack([trainer.encode(lesson, image_first) for lesson in lessons], pad_id=0)
    with torch.no_grad():
        packed = trainer.model(
            input_ids=batch.input_ids,
            pixel_values=pixels,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
        ).logits
    for row, (image, lesson) in enumerate(zip(images, lessons, strict=True)):
        got = packed[row, (batch.groups[row] >= 0).nonzero().flatten() - 1]
        texts = [format_prompt(question.prompt_text) for question in lesson]
        if not image_first:
            texts = [text.replace("<image>", f"{lesson[0].prompt_text} <image>") for text in texts]
            texts[0] = format_prompt(lesson[0].prompt_text, image_first=False)
        expected = torch.cat(
            [single(trainer, image, *pair) for pair in zip(texts, lesson, strict=True)]
        )
        assert got.shape == expected.shape
        assert torch.allclose(got, expected, atol=1e-4)


def single(trainer: Trainer, image: Image.Image, text: str, question: Question) -> torch.Tensor:
    """Return the logits ``[answer token, vocabulary]`` of one question on its own."""
    inputs = trainer.processor(images=image, text=f"{text} {question.answer}", return_tensors="pt")
    with torch.no_grad():
        return trainer.model(**inputs).logits[0, -len(question.answer.split()) - 1 :]


def test_nothing_to_pack() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        pack([], pad_id=0)


def test_a_resumed_run_repeats_the_unbroken_one(tmp_path: Path) -> None:
    whole = Trainer(Recipe(batch_size=1, steps=4))
    losses = [whole.step() for _ in range(4)]
    half = Trainer(Recipe(batch_size=1, steps=4))
    for _ in range(2):
        half.step()
    half.save(tmp_path)
    rest = Trainer(Recipe(batch_size=1, steps=4, seed=9))
    rest.resume(tmp_path)
    assert [rest.step() for _ in range(2)] == pytest.approx(losses[2:], abs=1e-5)


def test_resuming_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no state\.json"):
        Trainer(Recipe()).resume(tmp_path)
