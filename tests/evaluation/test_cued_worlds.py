"""The worlds of cells without a trained model: pictures, questions, closed forms, models' files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightkv_gnn.evaluation.cued import SUITES, CellRecipe, Cued, closed_forms, words
from lightkv_gnn.evaluation.cued.drawing import (
    COLOURS,
    DIGITS,
    PATCH,
    SHAPES,
    digit_code,
    draw,
    object_code,
    patch_code,
)
from lightkv_gnn.evaluation.cued.model import build, load
from lightkv_gnn.evaluation.cued.training import inputs_of, train
from lightkv_gnn.evaluation.cued.worlds import Counting, Digits, Objects
from lightkv_gnn.evaluation.listening import save, with_listening_layer
from lightkv_gnn.evaluation.suite import Subject

GROUPS = [(name, group) for name, suite in SUITES.items() for group in suite.groups]
UNTRAINED = Subject(build(6, 1, seed=0).eval())


def fresh(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [3, 5])
def test_a_cell_is_drawn_where_the_patch_embedding_finds_it(side: int) -> None:
    codes = torch.randint(0, 95, (2, side * side), generator=fresh())
    pixels = draw(codes, side)
    assert pixels.shape == (2, 3, side * PATCH, side * PATCH)
    for cell in range(side * side):
        row, column = PATCH * (cell // side), PATCH * (cell % side)
        alone = draw(codes[:, cell, None], 1)
        assert torch.equal(pixels[:, :, row : row + PATCH, column : column + PATCH], alone)


def test_no_two_codes_look_the_same() -> None:
    colour, shape = torch.arange(len(COLOURS)), torch.arange(len(SHAPES))
    objects = object_code(colour[:, None], shape).flatten()
    codes = torch.cat(
        [torch.tensor([0]), objects, patch_code(colour), digit_code(torch.arange(len(DIGITS)))]
    )
    assert codes.tolist() == list(range(len(codes)))
    assert len({tuple(picture.flatten().tolist()) for picture in draw(codes[:, None], 1)}) == 95


@pytest.mark.parametrize("objects", [(12,), (3,), (3, 0), (4, 5)])
def test_objects_are_asked_for_once_each_and_are_where_they_should_be(
    objects: tuple[int, ...],
) -> None:
    lesson = Objects(5, objects).draw(fresh(), 40)
    flat = lesson.codes.flatten(1)
    assert (flat != 0).sum(1).tolist() == [sum(objects)] * 40
    per_picture = (lesson.codes != 0).sum(2).sort(1).values.tolist()
    assert per_picture == [sorted(objects)] * 40
    asked, told = lesson.text[:, ~lesson.answer], lesson.text[:, lesson.answer]
    assert all(len(set(row)) == sum(objects) for row in asked.tolist())
    code = object_code(asked - words.COLOUR, told - words.SHAPE)
    where = lesson.relevant.int().argmax(2)
    assert torch.equal(lesson.relevant.sum(2), torch.ones_like(asked))
    assert torch.equal(flat.gather(1, where), code)
    if len(objects) == 2:  # the fuller picture is not always the same one
        assert len({tuple(row) for row in (lesson.codes != 0).sum(2).tolist()}) == 2


def test_counts_are_those_in_the_picture() -> None:
    lesson = Counting(6).draw(fresh(), 40)
    asked, told = lesson.text[:, ~lesson.answer], lesson.text[:, lesson.answer]
    seen = lesson.codes[:, 0, None, :] == patch_code(asked - words.COLOUR)[:, :, None]
    assert torch.equal(seen, lesson.relevant)
    assert torch.equal(seen.sum(2), told - words.DIGIT)
    assert (told - words.DIGIT).unique().tolist() == [1, 2, 3, 4]


def test_digits_are_read_row_by_row() -> None:
    lesson = Digits(4).draw(fresh(), 3)
    assert torch.equal(digit_code(lesson.text[:, 1:] - words.DIGIT), lesson.codes[:, 0])
    assert (lesson.text[:, 0] == words.READ).all()
    assert lesson.relevant.all()


def test_worlds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="side is 3: Objects needs 12 cells"):
        Objects(3)
    with pytest.raises(ValueError, match="there are 12 colours"):
        Objects(6, (7, 6))


@pytest.mark.parametrize(("name", "group"), GROUPS)
def test_questions_depend_on_the_seed_alone(name: str, group: str) -> None:
    def asked(batch_size: int, questions: int, seed: int) -> list[tuple]:
        found = []
        suite = SUITES[name](batch_size=batch_size)
        for batch in suite.batches(UNTRAINED, group, questions, seed):
            pixels = batch.inputs["pixel_values"].reshape(len(batch.answers), -1)
            parts = (pixels, batch.inputs["input_ids"], batch.relevant)
            found += zip(*(part.tolist() for part in parts), batch.answers, strict=True)
        return found

    long = asked(batch_size=5, questions=11, seed=3)
    assert len(long) == 11
    assert asked(batch_size=4, questions=7, seed=3) == long[:7]
    assert asked(batch_size=5, questions=11, seed=4) != long
    assert len({str(one) for one in long}) == 11


def test_both_groups_of_the_second_question_see_different_questions_with_right_answers() -> None:
    suite = SUITES["second_question"]()
    for group in suite.groups:
        (batch,) = suite.batches(UNTRAINED, group, 20, seed=0)
        asked = batch.inputs["input_ids"][:, -1] if group == "first" else batch.follow_up
        shape = torch.tensor([words.WORDS.index(answer) for answer in batch.answers])
        codes = object_code(asked - words.COLOUR, shape - words.SHAPE)
        pixels = batch.inputs["pixel_values"].unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        cells = pixels.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        assert torch.equal(cells[batch.relevant], draw(codes[:, None], 1))


def test_unknown_groups_and_smaller_pictures_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"'cued' has the groups .*: not 'colour'"):
        Cued().batches(UNTRAINED, "colour", 4, seed=0)
    with pytest.raises(ValueError, match=r"side is 0\.5: .* cannot shrink"):
        Cued().batches(UNTRAINED, "shape", 4, seed=0, side=0.5)


@pytest.mark.parametrize("form", ["random_pruning", "prompt_blind_saliency"])
def test_closed_forms_agree_with_a_draw(form: str) -> None:
    generator, trials, kept, cells, objects, choices = fresh(), 20_000, 7, 20, 9, 4
    score = torch.rand(trials, cells, generator=generator)
    if form == "prompt_blind_saliency":
        score[:, :objects] += 1
    alive = (score.argsort(dim=1, descending=True)[:, :kept] == 0).any(1)  # the asked one is 0
    guess = torch.randint(choices, (trials,), generator=generator) == 0
    extra = (objects,) if form == "prompt_blind_saliency" else ()
    expected = getattr(closed_forms, form)(kept, cells, *extra, choices)
    assert (alive | guess).float().mean().item() == pytest.approx(expected, abs=0.011)  # 3 sigma


def test_closed_forms_at_their_ends() -> None:
    assert closed_forms.random_pruning(36, 36, 6) == 1
    assert closed_forms.random_pruning(0, 36, 6) == pytest.approx(1 / 6)
    assert closed_forms.prompt_blind_saliency(12, 36, 12, 6) == 1
    assert closed_forms.oracle(1, 36, 6) == 1
    assert closed_forms.oracle(0, 36, 6) == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="37 of 36 cells"):
        closed_forms.oracle(37, 36, 6)
    with pytest.raises(ValueError, match="expected 1 to 36"):
        closed_forms.prompt_blind_saliency(3, 36, 0, 6)


def test_training_is_the_same_twice_and_leaves_the_random_state_alone() -> None:
    recipe = CellRecipe(steps=3, batch=4, layers=1)
    before = torch.get_rng_state()
    one, two, other = (train([Objects(4)], recipe, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = zip(one.parameters(), two.parameters(), other.parameters(), strict=True)
    pairs = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in weights]
    assert all(same for same, _ in pairs)
    assert not all(same for _, same in pairs)


def test_the_listening_layer_changes_no_bit_and_asks_what_the_next_layer_asks() -> None:
    short = build(4, 2, seed=5).eval()
    long = with_listening_layer(short, lambda layers: build(4, layers, seed=0)).eval()
    lesson = Objects(4).draw(fresh(), 3)
    inputs = inputs_of(lesson, lesson.text, 4, "cpu")
    with torch.no_grad():
        ours = long(**inputs, output_hidden_states=True)
        theirs = short(**inputs, output_hidden_states=True)
    assert torch.equal(ours.hidden_states[0], ours.hidden_states[1])
    assert torch.equal(ours.logits, theirs.logits)
    first, second = long.model.language_model.layers[:2]
    for part in ("self_attn.q_proj", "self_attn.k_proj", "input_layernorm"):
        weights = [layer.get_submodule(part).weight for layer in (first, second)]
        assert torch.equal(*weights)


def test_models_are_kept_whole_and_read_back_equal(tmp_path: Path) -> None:
    model = build(4, 1, seed=1)
    save(model, tmp_path / "deep" / "own")
    again = load(tmp_path / "deep" / "own", 4)
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    save(build(4, 1, seed=2), tmp_path / "deep" / "own")  # another process was faster: stays
    kept = load(tmp_path / "deep" / "own", 4)
    assert torch.equal(kept.lm_head.weight, model.lm_head.weight)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["own"]
    with pytest.raises(ValueError, match="pictures of 16 cells: expected 6 x 6"):
        load(tmp_path / "deep" / "own", 6)


def test_a_batch_of_one_question_is_no_batch_of_two() -> None:
    (batch,) = Cued().batches(UNTRAINED, "shape", 2, seed=0)
    with pytest.raises(TypeError, match="expected TwoQuestions"):
        SUITES["second_question"]().ask(UNTRAINED, "first", batch)


def test_every_size_and_seed_has_a_folder_of_its_own_and_is_trained_once(tmp_path: Path) -> None:
    recipe = CellRecipe(steps=1, batch=2, layers=1)
    for side, seed in ((6, 0), (6, 1), (5, 0)):
        Cued(side, recipe).subject(seed, tmp_path)
    names = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(names) == ["cued-0", "cued-1", "cued-5x5-0"]
    suite = SUITES["plain"](6, recipe)
    assert suite.subject(0, tmp_path).model.training is False
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == names
