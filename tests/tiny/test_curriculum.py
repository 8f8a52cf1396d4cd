"""The curriculum's pictures show what their questions and patch labels say."""

from __future__ import annotations

import numpy as np
import pytest

from lightkv_gnn.tiny import COLOURS, GROUPS, SHAPES, Background, Scene, SceneObject, render
from lightkv_gnn.tiny.curriculum import (
    STAGES,
    VISION_STAGES,
    Stage,
    patch_labels,
    sample_blocks,
    sample_lesson,
)

GREY = Background(start=(140, 140, 140), end=(140, 140, 140))


def test_patch_labels_of_a_known_scene() -> None:
    scene = Scene(
        (SceneObject("red", "square", 8, 16, 8), SceneObject("blue", "ring", 44, 40, 12)), GREY
    )
    labels = patch_labels(scene).reshape(16, 16, 2)
    red = [list(COLOURS).index("red"), SHAPES.index("square")]
    blue = [list(COLOURS).index("blue"), SHAPES.index("ring")]
    assert labels[2, 1].tolist() == red
    shown = np.argwhere(labels[:, :, 0] == blue[0]).tolist()
    assert shown == [[5, 5], [5, 6], [6, 5], [6, 6]]
    assert (labels[:, :, 0] >= 0).sum() == 5
    assert (labels[:, :, 1] >= 0).sum() == 5


@pytest.mark.parametrize("stage", [*VISION_STAGES, *STAGES])
def test_lessons_ask_about_what_is_drawn(stage: Stage) -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        scene, questions, _ = sample_lesson(rng, stage, GROUPS)
        render(scene)
        drawn = {(item.colour, item.shape) for item in scene.objects}
        for question in questions:
            if question.group == "captioning":
                listed = {tuple(item.split()) for item in question.answer.split(" , ")}
                assert listed == drawn
            if question.group == "vqa":
                assert (question.prompt_text.split()[4], question.answer) in drawn


def test_full_blocks_leave_no_patch_empty() -> None:
    stage = Stage((1, 0, 0, 0), 1.0, blocks=1.0, aligned=True)
    asked, drawn = sample_blocks(np.random.default_rng(7), stage)
    labels = patch_labels(drawn)
    assert (labels >= 0).all()
    assert len(set(labels[:, 0].tolist())) == len(asked.objects) == 12


def test_the_last_stage_asks_every_group_both_ways() -> None:
    rng = np.random.default_rng(8)
    lessons = [sample_lesson(rng, STAGES[-1], GROUPS) for _ in range(200)]
    assert {question.group for _, asked, _ in lessons for question in asked} == set(GROUPS)
    first = np.mean([image_first for _, _, image_first in lessons])
    assert first == pytest.approx(1 - STAGES[-1].question_first, abs=0.1)
