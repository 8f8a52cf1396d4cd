"""Objects asked for by colour: closed forms, guidance, what must be free and what must fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

import lightkv_gnn as lk
from evaluation.cued_scores import (
    LAST,
    MEAN,
    ORACLE,
    PRUNE,
    RANDOM,
    Exam,
    binomial_band,
    keep_top,
    quickly,
    saliency,
)
from lightkv_gnn.baselines import METHODS
from lightkv_gnn.evaluation.asking import ask_all
from lightkv_gnn.evaluation.cued import SUITES, CellRecipe, closed_forms

CELLS, OBJECTS, CHOICES = 36, 12, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def recipe(pytestconfig: pytest.Config) -> CellRecipe:
    return quickly(SUITES["cued"], pytestconfig, batch=16)


@pytest.fixture(scope="module")
def exams(folder: Path, recipe: CellRecipe) -> dict[str, Exam]:
    """One model, trained once, and every suite that asks it."""
    questions = {"cued": 768, "plain": 256, "two_images": 256, "second_question": 384}
    suites = [SUITES[name](recipe=recipe) for name in questions]
    return {
        suite.name: Exam(suite, suite.subject(0, folder), questions[suite.name]) for suite in suites
    }


@pytest.fixture(scope="module")
def twice(folder: Path, recipe: CellRecipe, exams: dict[str, Exam]) -> Exam:
    """The same model behind two listening layers: closed forms for a quarter."""
    suite = SUITES["cued"](listening=2, recipe=recipe)
    return Exam(suite, suite.subject(0, folder))


def test_the_model_knows_everything_uncompressed(exams: dict[str, Exam]) -> None:
    for exam in exams.values():
        for group in exam.suite.groups:
            assert exam.accuracy(group=group) >= 0.99, (exam.suite.name, group)


def test_the_listening_layers_write_nothing(twice: Exam) -> None:
    batch = twice.batches(None)[1][0]
    with torch.no_grad():
        states = twice.subject.model(**batch.inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[2], states[3])


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_random_pruning_is_as_good_as_its_closed_form(exams: dict[str, Exam], ratio: float) -> None:
    kept = CELLS - int(CELLS * ratio)
    expected = closed_forms.random_pruning(kept, CELLS, CHOICES)
    found = exams["cued"].accuracy(ratio, **RANDOM)
    assert abs(found - expected) < binomial_band(expected) + 0.01  # the model itself may err


def test_closed_forms_hold_where_a_quarter_is_kept(twice: Exam) -> None:
    kept = CELLS // 4
    expected = closed_forms.random_pruning(kept, CELLS, CHOICES)
    assert abs(twice.accuracy(0.5, 0.5, **RANDOM) - expected) < binomial_band(expected) + 0.01
    matcher = keep_top(saliency(twice.subject, 6))
    expected = closed_forms.prompt_blind_saliency(kept, CELLS, OBJECTS, CHOICES)
    assert 0.7 < expected < 0.9
    found = twice.accuracy(0.5, 0.5, matcher=matcher, **PRUNE)
    assert abs(found - expected) < binomial_band(expected) + 0.01


@pytest.mark.parametrize("name", ["random_pruning", "oracle"])
def test_methods_are_as_good_as_their_closed_forms(twice: Exam, name: str) -> None:
    """As ``lightkv-gnn eval`` runs them, on its budgets."""
    method, model = METHODS[name], twice.subject.model
    for budget in method.budgets(model, twice.suite.retentions, [0]):
        kept = CELLS
        for stage in method.stages(budget):
            if stage.layer < twice.suite.listening:
                kept -= int(kept * stage.ratio + 1e-9)
        assert kept < CELLS
        expected = getattr(closed_forms, name)(kept, CELLS, CHOICES)
        found = ask_all(twice.suite, twice.subject, "shape", method, budget, twice.questions, 1)
        accuracy = fmean(found.scores)
        assert abs(accuracy - expected) < binomial_band(expected) + 0.01, budget


def test_objects_survive_before_background_where_there_is_room(exams: dict[str, Exam]) -> None:
    matcher = keep_top(saliency(exams["cued"].subject, 6))
    assert exams["cued"].accuracy(0.5, matcher=matcher, **PRUNE) >= 0.99


def test_the_prompt_matters(exams: dict[str, Exam]) -> None:
    """By ten points, three times what chance makes of a difference."""
    mean = exams["cued"].accuracy(0.5, **MEAN)
    expected = closed_forms.oracle(CELLS // 2, CELLS, CHOICES)
    assert exams["cued"].accuracy(0.5, **ORACLE) >= expected - 0.01
    assert exams["cued"].accuracy(0.5, **LAST) > mean + 0.2
    assert exams["cued"].accuracy(0.5) > mean + 0.05


def test_deep_down_nothing_is_left_to_lose(exams: dict[str, Exam]) -> None:
    """Behind the first layer that reads the picture the answer stands in the text."""
    assert exams["cued"].accuracy(0.0, 0.5, **RANDOM) >= 0.98


@pytest.mark.parametrize("options", [{}, MEAN], ids=["guided", "mean"])
def test_what_is_mostly_background_is_free(exams: dict[str, Exam], options: dict) -> None:
    for name, group in (("plain", "shape"), ("two_images", "empty"), ("two_images", "others")):
        assert exams[name].accuracy(0.4, group=group, **options) >= 0.99, (name, group)


def test_the_second_question_finds_what_the_first_one_left(exams: dict[str, Exam]) -> None:
    exam = exams["second_question"]
    first = exam.accuracy(0.5, group="first", **LAST)
    second = exam.accuracy(0.5, group="second", **LAST)
    assert second < first - 0.2
    foreseen = exam.accuracy(0.5, group="second", **ORACLE)  # guided by the second in advance
    assert foreseen >= 0.98


def test_symmetric_attention_makes_both_directions_of_guidance_equal(folder: Path) -> None:
    symmetric = SUITES["cued_symmetric"]
    suite = symmetric(recipe=replace(symmetric.own_recipe, steps=2, batch=2))
    exam = Exam(suite, suite.subject(0, folder), questions=8)
    model = exam.subject.model
    batch = exam.batches(None)[1][0]
    logits = []
    for guidance in ("vision_to_text", "text_to_vision", "none"):
        config = lk.LightKVConfig([lk.Stage(0, 1, 0.5)], guidance=guidance)
        with torch.no_grad(), lk.attach(model, config):
            logits.append(model(**batch.inputs).logits[:, -1])
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not torch.allclose(logits[0], logits[2], atol=1e-5)
