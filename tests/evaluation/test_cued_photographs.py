"""Cells before photographs: what is drawn, and which photographs."""

from __future__ import annotations

import pytest
import torch

from lightkv_gnn.evaluation.cued import CellRecipe, base, training
from lightkv_gnn.evaluation.cued.backgrounds import DIM, photographs
from lightkv_gnn.evaluation.cued.drawing import PATCH, draw, object_code, patch_code
from lightkv_gnn.evaluation.suites import CELLS


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_photographs_are_seen_where_cells_are_black_and_nowhere_else():
    codes = torch.tensor([[0, object_code(3, 1), patch_code(torch.tensor(5)), 0]])
    behind = torch.rand(1, 3, 2 * PATCH, 2 * PATCH, generator=generator())
    plain, drawn = draw(codes, 2), draw(codes, 2, behind)
    black = (plain == -1).all(dim=1, keepdim=True).expand_as(plain)
    assert 0 < black.float().mean() < 1
    assert torch.equal(drawn[~black], plain[~black])
    assert torch.equal(drawn[black], (2 * behind - 1)[black])


def test_photographs_to_test_on_are_others_and_follow_from_the_generator():
    train, test = (photographs((9, 2), 6, generator(), split) for split in ("train", "test"))
    assert train.shape == test.shape == (9, 2, 3, 6 * PATCH, 6 * PATCH)
    assert not torch.equal(train, test)
    assert torch.equal(test, photographs((9, 2), 6, generator(), "test"))
    assert 0 <= test.min() < 0.2 < test.max() <= DIM


@pytest.mark.parametrize("name", ["cued", "two_images", "second_question"])
def test_only_the_background_differs(name, tmp_path):
    """The same objects and questions, before photographs; models are kept apart."""
    recipe = CellRecipe(steps=1, batch=2, layers=2)
    plain, photo = (CELLS[name](recipe=recipe, background=kind) for kind in ("plain", "photo"))
    assert (plain.label, photo.label) == (name, f"{name}_photo")
    subjects = [suite.subject(0, tmp_path) for suite in (plain, photo)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cued-0", "cued-photo-0"]
    group = photo.groups[-1]
    (first,), (second,) = (
        list(suite.batches(subject, group, 5, 0))
        for suite, subject in zip((plain, photo), subjects, strict=True)
    )
    assert torch.equal(first.inputs["input_ids"], second.inputs["input_ids"])
    assert (first.answers, first.relevant.tolist()) == (second.answers, second.relevant.tolist())
    pixels = [batch.inputs["pixel_values"] for batch in (first, second)]
    shown = (pixels[0] > -1).any(dim=1, keepdim=True).expand_as(pixels[0])
    assert torch.equal(pixels[0][shown], pixels[1][shown])
    assert pixels[1][~shown].std() > 0.05
    alone = list(
        CELLS[name](recipe=recipe, batch_size=2, background="photo").batches(
            subjects[1], group, 5, 0
        )
    )
    assert torch.equal(torch.cat([batch.inputs["pixel_values"] for batch in alone]), pixels[1])


def test_a_suite_is_trained_and_asked_before_different_photographs(monkeypatch, tmp_path):
    seen = []
    for module in (base, training):

        def recorded(shape, side, generator, split, name=module.__name__):
            seen.append((name.rpartition(".")[2], split))
            return photographs(shape, side, generator, split)

        monkeypatch.setattr(module, "photographs", recorded)
    suite = CELLS["cued"](recipe=CellRecipe(steps=1, batch=2, layers=2), background="photo")
    list(suite.batches(suite.subject(0, tmp_path), "shape", 2, 0))
    assert set(seen) == {("training", "train"), ("base", "test")}


def test_what_is_no_background_is_refused():
    with pytest.raises(ValueError, match="background is 'sea': expected one of"):
        CELLS["cued"](background="sea")
