"""Rectangles: the pictures, the model, and what geometry and positions are worth to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightkv_gnn as lk
from lightkv_gnn.baselines.square_folded import SquareFolded
from lightkv_gnn.evaluation.listening import with_listening_layer
from lightkv_gnn.evaluation.rectangles import Rectangles
from lightkv_gnn.evaluation.rectangles.inputs import asked, inputs_of, patches
from lightkv_gnn.evaluation.rectangles.model import build_model
from lightkv_gnn.evaluation.rectangles.training import RectangleRecipe, _side_by_side
from lightkv_gnn.evaluation.rectangles.world import (
    BLOCK,
    CELL,
    GRIDS,
    draw_picture,
    questions_of,
    render,
)
from lightkv_gnn.evaluation.suite import Subject
from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_gnn.stage.messages import Message, guided_mean, mean

QUESTIONS = 256
QUICK = RectangleRecipe(batch=8, layers=2, shapes=2)
"""A smaller model of fewer samples, in half the time; ``--all`` trains the suite's own."""
HALF = [lk.Stage(0, 2, 0.5)]


SUITE = Rectangles()


@pytest.fixture(scope="module")
def subject(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    suite = SUITE if pytestconfig.getoption("--all") else Rectangles(QUICK)
    return suite.subject(0, tmp_path_factory.mktemp("models"))


def accuracy(subject: Subject, group: str) -> float:
    batches = SUITE.batches(subject, group, QUESTIONS, seed=5)
    scores = [score for batch in batches for score in SUITE.ask(subject, group, batch)]
    assert len(scores) == QUESTIONS
    return sum(scores) / QUESTIONS


def compressed(
    subject: Subject,
    group: str,
    stages: list[lk.Stage],
    compressor: type[TokenCompressor] = TokenCompressor,
    message: Message = guided_mean,
    **options: Any,
) -> float:
    config = lk.LightKVConfig(stages, message=message, **options)
    with lk.attach(subject.model, config, compressor=compressor(message)):
        return accuracy(subject, group)


def test_it_has_learnt(subject: Subject) -> None:
    assert accuracy(subject, "shape") >= 0.98
    assert accuracy(subject, "position") >= 0.95


def test_cells_lie_where_they_are_drawn() -> None:
    rng = np.random.default_rng(0)
    grids = set()
    for _ in range(40):
        picture = draw_picture(rng)
        rows, cols = picture.grid
        grids.add((rows, cols))
        pixels = render(picture)
        assert pixels.shape == (3, rows * CELL, cols * CELL)
        cells = pixels.reshape(3, rows, CELL, cols, CELL).permute(1, 3, 0, 2, 4).flatten(2)
        blocks = cells.unflatten(0, (-1, BLOCK[0])).unflatten(2, (-1, BLOCK[1]))
        first = blocks[:, :1, :, :1]
        assert float((blocks - first).abs().max()) < 0.4  # noise
        assert np.unique(picture.colours).size == picture.colours.size
        own = patches(pixels).reshape(rows * cols, -1)
        assert torch.equal(own.sort(1).values, cells.flatten(0, 1).sort(1).values)
        for question in questions_of(picture, "position"):
            down, right = question.cue.split("-")
            place = (0 if down == "top" else rows - 1, 0 if right == "left" else cols - 1)
            assert tuple(np.floor_divide(place, BLOCK)) == question.block
    assert grids == set(GRIDS)


def test_the_listening_layer_says_nothing() -> None:
    model: Any = build_model(3, 2)
    longer: Any = with_listening_layer(model, partial(build_model, 0))
    picture = draw_picture(np.random.default_rng(1))
    inputs = inputs_of([render(picture)], [[3, 4]])
    with torch.no_grad():
        states = longer(**inputs, output_hidden_states=True).hidden_states
        assert torch.equal(longer(**inputs).logits, model(**inputs).logits)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    first, second = longer.get_decoder().layers[:2]
    for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
        assert torch.equal(
            first.self_attn.get_parameter(name), second.self_attn.get_parameter(name)
        )


@torch.no_grad()
def test_questions_side_by_side_are_questions_alone() -> None:
    """Training asks many at once, of pictures of several sizes."""
    model: Any = build_model(0).eval()
    rng = np.random.default_rng(2)
    pictures = [draw_picture(rng) for _ in range(4)]
    texts = [[w for q in questions_of(p, "position") for w in (*asked(q), 20)] for p in pictures]
    inputs = inputs_of([render(picture) for picture in pictures], texts)
    together = model(**inputs | _side_by_side(model, inputs, 12)).logits[:, -12:]
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        for first in range(0, 12, 3):
            alone = inputs_of([render(picture)], [text[first : first + 3]])
            found = together[number, first : first + 3]
            torch.testing.assert_close(model(**alone).logits[0, -3:], found, atol=1e-4, rtol=1e-4)


def test_questions_do_not_depend_on_the_batch(subject: Subject) -> None:
    drawn = [
        [answer for batch in suite.batches(subject, group, 10, 3) for answer in batch.answers]
        for suite in (SUITE, Rectangles(batch_size=3))
        for group in SUITE.groups
    ]
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


def test_pictures_shrink(subject: Subject) -> None:
    [batch] = SUITE.batches(subject, "shape", 4, seed=1, side=0.5)
    [full] = SUITE.batches(subject, "shape", 4, seed=1)
    assert full.relevant is not None
    assert full.relevant.sum(1).tolist() == [2] * 4
    sizes = [
        [max(1, round(n / 4)) * 2 for n in size]
        for size in full.inputs["image_grid_thw"][:, 1:].tolist()
    ]
    assert batch.inputs["image_grid_thw"][:, 1:].tolist() == sizes
    assert len(SUITE.ask(subject, "shape", batch)) == 4
    with pytest.raises(ValueError, match="side is 2"):
        SUITE.batches(subject, "shape", 4, seed=1, side=2)
    with pytest.raises(ValueError, match=r"groups.*not 'colour'"):
        SUITE.batches(subject, "colour", 4, seed=1)


def test_a_trained_model_is_read(tmp_path: Path) -> None:
    suite = Rectangles(RectangleRecipe(steps=2, batch=2))
    first = suite.subject(4, tmp_path).model.state_dict()
    assert [folder.name for folder in tmp_path.iterdir()] == ["rectangles-4"]
    written = (tmp_path / "rectangles-4" / "model.safetensors").stat().st_mtime_ns
    again = suite.subject(4, tmp_path).model.state_dict()
    assert (tmp_path / "rectangles-4" / "model.safetensors").stat().st_mtime_ns == written
    anew = suite.subject(4, tmp_path / "other").model.state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert torch.equal(weight, anew[name])


def test_true_windows_keep_what_square_folding_loses(subject: Subject) -> None:
    """Half of the tokens say nothing new, but folded windows do not hold them together."""
    for message, guidance in ((guided_mean, "text_to_vision"), (mean, "none")):
        options = {"message": message, "guidance": guidance}
        true = compressed(subject, "position", HALF, **options)
        folded = compressed(subject, "position", HALF, SquareFolded, **options)
        assert true >= 0.95
        assert folded <= true - 0.08
        assert compressed(subject, "shape", HALF, **options) >= 0.98


def test_guidance_saves_what_is_asked_for_by_colour(subject: Subject) -> None:
    """Where strangers are merged: the cell that the prompt names outweighs the other one."""
    mixed = compressed(subject, "shape", HALF, SquareFolded, mean, guidance="none")
    assert compressed(subject, "shape", HALF, SquareFolded) >= mixed + 0.06


def test_renumbered_tokens_are_not_where_they_were(subject: Subject) -> None:
    """Which corner a token is in, only the three coordinates tell."""
    kept = compressed(subject, "position", HALF)
    assert compressed(subject, "position", HALF, positions="reindex") <= kept - 0.25
    assert kept >= 0.95
