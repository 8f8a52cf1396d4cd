"""The bundled model's four groups, as a suite."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightkv_gnn import tiny
from lightkv_gnn.baselines import METHODS, Budget
from lightkv_gnn.evaluation import tiny_suite
from lightkv_gnn.evaluation.asking import ask_all
from lightkv_gnn.evaluation.tiny_suite import TinySuite, asked_about, shown
from lightkv_gnn.tiny.model import PATCH_SIZE
from lightkv_gnn.tiny.scenes import IMAGE_SIZE


@pytest.fixture(scope="module")
def subject():
    return TinySuite().subject(0, folder=None)


@pytest.mark.parametrize("group", tiny.GROUPS)
def test_scores_are_those_of_the_tiny_models_own_accuracy(subject, group, monkeypatch):
    monkeypatch.setattr(tiny_suite, "BATCH", 16)
    suite = TinySuite()
    scores = [
        score
        for batch in suite.batches(subject, group, 20, 5)
        for score in suite.ask(subject, group, batch)
    ]
    expected = tiny.accuracy(subject.model, subject.processor, group, 20, 5).correct
    assert scores == list(map(float, expected))


@pytest.mark.parametrize("side", [1.0, 0.75, 0.5])
def test_a_smaller_picture_has_fewer_tokens(subject, side):
    batch = next(iter(TinySuite().batches(subject, "vqa", 2, 0, side)))
    tokens = (batch.inputs["input_ids"] == subject.processor.image_token_id).sum(1)
    assert tokens.tolist() == [(16 * side) ** 2] * 2
    assert batch.relevant.shape == (2, (16 * side) ** 2)


def test_a_method_gets_the_smaller_pictures_that_it_wants(subject):
    method, budget = METHODS["downsample"], Budget.of(subject.model, 0.55, -1)
    asked = ask_all(TinySuite(), subject, "vqa", method, budget, 4, 0)
    assert asked.retention == 0.75**2


@pytest.mark.parametrize("patches", [16, 8])
def test_patches_are_shown_where_a_box_has_pixels(patches):
    for scene, _ in tiny.sample_questions("vqa", 10, 6):
        for items in (scene.objects[:1], scene.objects):
            canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
            for item in items:
                canvas[item.y : item.y + item.size, item.x : item.x + item.size] = True
            size = IMAGE_SIZE // patches
            expected = canvas.reshape(patches, size, patches, size).any((1, 3)).reshape(-1)
            assert shown([item.box for item in items], patches, 128).tolist() == expected.tolist()


def test_batches_know_what_is_relevant_to_each_question(subject):
    pairs = tiny.sample_questions("vqa", 60, 2)
    found = torch.cat([batch.relevant for batch in TinySuite().batches(subject, "vqa", 60, 2)])
    assert torch.equal(
        found,
        torch.stack([shown([item.box for item in asked_about(*pair)], 16, 128) for pair in pairs]),
    )


def test_what_is_relevant_is_what_changes_with_the_object():
    """Drawing the scene without the object changes pixels of the relevant patches alone."""
    for scene, question in tiny.sample_questions("vqa", 30, 3):
        items = asked_about(scene, question)
        assert [item.shape for item in items] == [question.answer]
        without = replace(scene, objects=tuple(o for o in scene.objects if o not in items))
        changed = np.asarray(tiny.render(scene)) != np.asarray(tiny.render(without))
        by_patch = changed.any(2).reshape(16, PATCH_SIZE, 16, PATCH_SIZE).any((1, 3)).reshape(-1)
        relevant = shown([item.box for item in items], 16, 128).numpy()
        assert not (by_patch & ~relevant).any()
        assert by_patch.any()


@pytest.mark.parametrize("group", tiny.GROUPS)
def test_the_objects_asked_about_decide_the_answer(group):
    """Of two or more named colours all are taken, of a shape all objects, of a list everything."""
    for scene, question in tiny.sample_questions(group, 60, 4):
        items, words = asked_about(scene, question), question.prompt_text.split()
        named = [item for item in scene.objects if item.colour in words]
        if group == "captioning":
            assert items == list(scene.objects)
        elif named:
            assert items == named
        elif words[:2] == ["how", "many"]:
            number = int(question.answer)
            assert len(items) == (number or len(scene.objects))
        else:
            assert items == []
            assert question.answer == "none so no"


def test_fewer_questions_are_the_first_of_more(subject):
    few, more = (list(TinySuite().batches(subject, "vqa", n, 7)) for n in (50, 70))
    assert few[0].answers == more[0].answers
    assert torch.equal(few[0].inputs["pixel_values"], more[0].inputs["pixel_values"])


def test_another_seed_has_to_be_trained_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_tiny.py --seed 3 --out .*tiny-3"):
        TinySuite().subject(3, tmp_path)


def test_another_seed_is_loaded_from_its_folder(tmp_path, subject):
    subject.model.save_pretrained(tmp_path / "tiny-3")
    subject.processor.save_pretrained(tmp_path / "tiny-3")
    loaded = TinySuite().subject(3, tmp_path)
    assert not loaded.model.training
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, subject.model.state_dict()[name])
