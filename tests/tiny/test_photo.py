"""Scenes before photographs: what is drawn, asked and learnt."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lightkv_gnn.tiny import load
from lightkv_gnn.tiny.photo.model import SIZES, WORDS, begin, features, photo_processor
from lightkv_gnn.tiny.photo.photographs import PHOTOGRAPHS, names, sample_photograph
from lightkv_gnn.tiny.photo.questions import GROUPS, MAX_NEW_TOKENS, ask
from lightkv_gnn.tiny.photo.scenes import CANVAS, PhotoScene, render, sample_scene
from lightkv_gnn.tiny.photo.things import ICONS, PLURALS, THINGS, outline
from lightkv_gnn.tiny.photo.training import RECIPE, PhotoTrainer, patch_labels
from lightkv_gnn.tiny.scenes import COLOURS


def scenes(number: int = 40) -> list[PhotoScene]:
    rng = np.random.default_rng(5)
    return [sample_scene(rng, "test", signed=True) for _ in range(number)]


def test_every_photograph_has_a_licence_and_is_in_one_split_only():
    text = (PHOTOGRAPHS / "LICENCES.md").read_text("utf-8")
    listed = re.findall(r"`((?:train|test)/[\w-]+)`", text)
    files = [f"{split}/{name}" for split in ("train", "test") for name in names(split)]
    assert sorted(listed) == sorted(files)
    parents = [{name.split("-")[0] for name in names(split)} for split in ("train", "test")]
    assert not parents[0] & parents[1]
    for row in re.findall(r"^\| `.*$", text, flags=re.MULTILINE):
        assert re.search(r"CC BY|CC0|public domain", row), row


def test_a_part_of_a_photograph_is_that_part():
    rng = np.random.default_rng(3)
    for _ in range(6):
        part = sample_photograph(rng, "train")
        with Image.open(PHOTOGRAPHS / "train" / f"{part.name}.jpg") as image:
            whole = np.asarray(image.convert("RGB"), dtype=float)
        low = [round(160 * edge) for edge in (part.top, part.left)]
        end = [round(160 * (edge + part.side)) for edge in (part.top, part.left)]
        expected = whole[low[0] : end[0], low[1] : end[1]].mean(axis=(0, 1))
        found = np.asarray(part.pixels(96), dtype=float)
        assert np.allclose(found.mean(axis=(0, 1)), expected, atol=3)
        halves = found[:, :48].mean() - found[:, 48:].mean()
        middle = (low[1] + end[1]) // 2
        left = whole[low[0] : end[0], low[1] : middle].mean()
        right = whole[low[0] : end[0], middle : end[1]].mean()
        assert np.isclose(halves, (right - left) if part.mirrored else (left - right), atol=5)


def test_objects_and_sign_are_apart_and_their_colours_are_seen():
    for scene in scenes():
        boxes = [item.box for item in scene.objects]
        assert scene.sign is not None
        boxes.append(scene.sign.box)
        filled = np.zeros((CANVAS, CANVAS), dtype=int)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= CANVAS
            assert 0 <= top < bottom <= CANVAS
            filled[top:bottom, left:right] += 1
        assert filled.max() == 1
        assert len({item.colour for item in scene.objects}) == len(scene.objects)
        pixels = np.asarray(render(scene))
        for item in scene.objects:
            box = pixels[item.y : item.y + item.size, item.x : item.x + item.size]
            assert (box == COLOURS[item.colour]).all(axis=2).mean() > 0.04


def test_half_an_object_at_most_is_hidden_by_what_is_behind():
    drawn = [sample_scene(np.random.default_rng(seed), "train") for seed in range(200)]
    hidden = sum(len(scene.covers) for scene in drawn)
    assert 0.2 < hidden / sum(len(scene.objects) for scene in drawn) < 0.3
    for scene in drawn:
        behind = np.asarray(scene.photograph.pixels(CANVAS))
        pixels = np.asarray(render(scene))
        for left, top, right, bottom in scene.covers:
            (item,) = (
                item
                for item in scene.objects
                if abs(item.centre[0] - (left + right) / 2) < 20
                and abs(item.centre[1] - (top + bottom) / 2) < 20
                and item.x - 2 <= left
                and right <= item.x + item.size + 2
                and item.y - 2 <= top
                and bottom <= item.y + item.size + 2
            )
            assert np.array_equal(pixels[top:bottom, left:right], behind[top:bottom, left:right])
            assert (right - left) * (bottom - top) < 0.55 * item.size**2


def test_things_differ_and_fill_their_box():
    masks = {thing: np.asarray(outline(thing, 32)) for thing in THINGS}
    for thing, mask in masks.items():
        assert 0.12 < (mask > 127).mean() < 0.9
        if thing in ICONS:
            rows, columns = (mask > 100).any(axis=1), (mask > 100).any(axis=0)
            assert min(rows.sum(), columns.sum()) > 20
        for other, second in masks.items():
            assert other == thing or np.abs(mask.astype(int) - second).mean() > 12
    with pytest.raises(ValueError, match="unknown thing 'boat'"):
        outline("boat", 8)


@pytest.mark.parametrize("group", GROUPS)
def test_answers_are_true(group):
    rng = np.random.default_rng(7)
    tokenizer = photo_processor().tokenizer
    given = Counter()
    for scene in scenes(60):
        question = ask(scene, group, rng)
        words = question.prompt_text.split()
        named = [item for item in scene.objects if item.colour in words]
        if group == "what":
            assert [question.answer] == [item.shape for item in named]
        elif group == "presence":
            there = any(item.shape in words for item in named)
            assert question.answer.endswith("so yes" if there else "so no")
            given[there] += 1
        elif group == "where":
            x, y = named[0].centre
            row, column = question.answer.split()
            assert ("top", "middle", "bottom").index(row) == min(2, int(y // 64))
            assert ("left", "centre", "right").index(column) == min(2, int(x // 64))
        elif group == "count":
            of = [item for item in scene.objects if PLURALS[item.shape] in words]
            assert question.answer == str(len(of))
        elif group == "read":
            assert scene.sign is not None
            assert question.answer == scene.sign.text
        else:
            listed = {tuple(item.split()) for item in question.answer.split(" , ")}
            assert listed == {(item.colour, item.shape) for item in scene.objects}
        ids = tokenizer(f"{question.prompt_text} {question.answer}")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        length = len(tokenizer(question.answer)["input_ids"])  # with the begin mark
        assert length <= MAX_NEW_TOKENS[group]
    assert group != "presence" or min(given.values()) > 15


def test_what_cannot_be_asked_is_refused():
    scene = sample_scene(np.random.default_rng(0), "test", signed=False)
    with pytest.raises(ValueError, match="no sign"):
        ask(scene, "read", np.random.default_rng(0))
    with pytest.raises(ValueError, match="unknown question group 'smell'"):
        ask(scene, "smell", np.random.default_rng(0))


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_of_the_patches_that_show_something(size):
    patches = size // 8
    for scene in scenes(10):
        plain = PhotoScene((), None, (), scene.photograph)
        differs = (
            np.abs(np.asarray(render(scene), dtype=int) - np.asarray(render(plain), dtype=int)).max(
                axis=2
            )
            > 8
        )
        edge = CANVAS // patches
        share = differs.reshape(patches, edge, patches, edge).mean(axis=(1, 3)).ravel()
        labels = patch_labels(scene, patches)
        assert (labels[share == 0, 0] == -1).mean() > 0.9  # but for what is hidden
        assert (labels[share > 0.75, 0] >= 0).all()
        some = labels[:, 0] >= 0
        shown = {list(COLOURS)[index] for index in labels[some, 0]}
        assert shown <= {item.colour for item in scene.objects} | {"white"}
        third = np.arange(patches) * edge // 64
        assert np.array_equal(labels[some, 2], np.repeat(third, patches)[some])
        assert np.array_equal(labels[some, 3], np.tile(third, patches)[some])
        assert (labels[~some] == -1).all()


def test_it_begins_with_what_the_bundled_model_says():
    """The same features for a picture of the bundled size, and the same next word."""
    bundled, _ = load()
    model = begin().eval()
    known = bundled.get_input_embeddings().weight.shape[0]
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == known + len(WORDS)
    assert torch.equal(weight[:known], bundled.get_input_embeddings().weight)
    tables = [
        one.model.vision_tower.embeddings.position_embedding.weight[1:].detach()
        for one in (bundled, model)
    ]
    old, new = (table.T.reshape(1, -1, *[round(len(table) ** 0.5)] * 2) for table in tables)
    back = torch.nn.functional.interpolate(new, old.shape[2:], mode="bicubic")
    assert torch.nn.functional.cosine_similarity(back, old, dim=1).min() > 0.9
    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = torch.stack(list(bundled.model.get_image_features(pixels).pooler_output))
        found = features(model, pixels)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=2).median() > 0.98
    assert features(model, torch.zeros(1, 3, CANVAS, CANVAS)).shape[1] == 576


def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    recipe = replace(RECIPE, steps=4, vision_steps=2, batch_size=2)
    whole, first = PhotoTrainer(recipe), PhotoTrainer(recipe)
    losses = [whole.step() for _ in range(4)]
    assert [first.step() for _ in range(3)] == losses[:3]
    first.save(tmp_path / "state")
    second = PhotoTrainer(recipe)
    second.resume(tmp_path / "state")
    assert second.step() == losses[3]
    for left, right in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(left, right)
