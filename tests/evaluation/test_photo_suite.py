"""The suite on photographs: its questions, asked of the photo LLaVA."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from lightkv_gnn.commands.cli import app
from lightkv_gnn.evaluation.photo_suite import PhotoSuite, boxes_of, draw
from lightkv_gnn.tiny.photo.photographs import names
from lightkv_gnn.tiny.photo.questions import GROUPS


@pytest.mark.parametrize("group", GROUPS)
def test_questions_are_about_unseen_photographs_and_what_they_name(group):
    for number in range(20):
        scene, question = draw(group, 0, number)
        assert draw(group, 0, number) == (scene, question)
        assert scene.photograph.name in names("test")
        assert question.group == group
        boxes, words = boxes_of(scene, question), question.prompt_text.split()
        if group == "read":
            assert scene.sign is not None
            assert boxes == [scene.sign.box]
        elif group in ("what", "where"):
            assert boxes == [item.box for item in scene.objects if item.colour in words]
            assert len(boxes) == 1
        elif group == "presence":
            assert len(boxes) == (not question.answer.startswith("none"))
        elif group == "count" and question.answer != "0":
            assert len(boxes) == int(question.answer)
        else:
            assert len(boxes) == len(scene.objects)
    assert draw(group, 0, 0) != draw(group, 1, 0) != draw(group, 0, 1)


@pytest.mark.parametrize(("side", "patches"), [(1.0, 24), (0.5, 12)])
def test_batches_have_a_token_for_every_patch(tmp_path, side, patches):
    suite = PhotoSuite()
    subject = suite.subject(0, tmp_path)
    batches = list(suite.batches(subject, "what", 27, 0, side))
    assert [len(batch.answers) for batch in batches] == [25, 2]
    inputs, relevant = batches[1].inputs, batches[1].relevant
    image = inputs["input_ids"] == subject.model.config.image_token_id
    assert image.sum(1).tolist() == [patches**2] * 2
    assert inputs["pixel_values"].shape == (2, 3, 8 * patches, 8 * patches)
    assert relevant.shape == (2, patches**2)
    for mask, number in zip(relevant, (25, 26), strict=True):
        ((left, top, right, bottom),) = boxes_of(*draw("what", 0, number))
        edge = 192 / patches
        rows, columns = torch.arange(patches)[:, None], torch.arange(patches)
        touched = (rows * edge < bottom) & (rows * edge + edge > top)
        touched = touched & (columns * edge < right) & (columns * edge + edge > left)
        assert torch.equal(mask, touched.flatten())


@pytest.mark.parametrize(("group", "floor"), [("what", 0.7), ("where", 0.7)])
def test_it_answers_about_photographs_that_it_never_saw_and_not_without(group, floor, tmp_path):
    suite = PhotoSuite()
    subject = suite.subject(0, tmp_path)
    (batch,) = suite.batches(subject, group, 25, 3)
    assert sum(suite.ask(subject, group, batch)) / 25 >= floor
    batch.inputs["pixel_values"].zero_()
    assert sum(suite.ask(subject, group, batch)) / 25 < floor / 2


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_photo\.py --seed 3"):
        PhotoSuite().subject(3, tmp_path)
    with pytest.raises(ValueError, match="'photo' has the groups"):
        next(PhotoSuite().batches(None, "smell", 1, 0))


def test_it_is_evaluated_with_smaller_pictures_too(tmp_path):
    result = CliRunner().invoke(
        app,
        [
            *("eval", "--suite", "photo", "--group", "presence", "--questions", "4", "--json"),
            *("--methods", "coverage", "--methods", "downsample", "--retention", "0.25"),
            *("--models", str(tmp_path), "--out", str(tmp_path / "out")),
        ],
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    held = {row["method"]: row["held"] for row in rows}
    quarter = pytest.approx(0.25, abs=0.02)
    others = dict.fromkeys(("coverage", "random_pruning", "downsample"), quarter)
    assert held == {"none": 1.0, **others}
