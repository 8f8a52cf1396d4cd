"""Questions: the answers agree with a second, word-by-word reading of the scene."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lightkv_gnn.tiny import GROUPS, Question, Scene, ask, sample_scene


def read_answer(scene: Scene, text: str) -> str:
    """Work the answer out from the words of the question alone."""
    words = text.split()
    by_colour = {item.colour: item for item in scene.objects}
    if words[:3] == ["what", "shape", "is"]:
        return by_colour[words[4]].shape
    if words[:2] == ["how", "many"]:
        names = {"crosses": "cross"}
        wanted = names.get(words[2], words[2].removesuffix("s"))
        return str(len([item for item in scene.objects if item.shape == wanted]))
    if words[:2] == ["is", "there"]:
        if words[3] not in by_colour:
            return "none so no"
        shown = by_colour[words[3]].shape
        return f"{words[3]} {shown} so " + ("yes" if shown == words[4] else "no")
    if words[:2] == ["is", "the"]:
        first, second = by_colour[words[2]], by_colour[words[-3]]
        if "left" in words:
            return "yes" if first.x * 2 + first.size < second.x * 2 + second.size else "no"
        return "yes" if first.y * 2 + first.size < second.y * 2 + second.size else "no"
    palette = ["red", "orange", "yellow", "lime", "green", "cyan"]
    palette += ["blue", "purple", "pink", "brown", "black", "white"]
    listed = [by_colour[colour] for colour in palette if colour in by_colour]
    return " , ".join(f"{item.colour} {item.shape}" for item in listed)


def draw(group: str, n: int) -> list[tuple[Scene, Question]]:
    """Draw scenes with a question each."""
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng) for _ in range(n)]
    return [(scene, ask(scene, group, rng)) for scene in scenes]


@pytest.mark.parametrize("group", GROUPS)
def test_answers_agree_with_a_second_reading(group: str) -> None:
    for scene, question in draw(group, 300):
        assert question.group == group
        assert question.answer == read_answer(scene, question.prompt_text), question


@pytest.mark.parametrize("group", ["reasoning", "hallucination"])
def test_yes_and_no_are_balanced(group: str) -> None:
    tally = Counter(question.answer.split()[-1] for _, question in draw(group, 1500))
    asked = tally["yes"] + tally["no"]
    assert abs(tally["yes"] / asked - 0.5) < 0.06


def test_wrong_objects_share_a_colour_or_a_shape_with_a_real_one() -> None:
    shared: Counter[str] = Counter()
    for scene, question in draw("hallucination", 400):
        if question.answer.endswith("no"):
            colour, shape = question.prompt_text.split()[3:5]
            has_colour = any(item.colour == colour for item in scene.objects)
            has_shape = any(item.shape == shape for item in scene.objects)
            assert has_colour or has_shape, question
            shared["colour" if has_colour else "shape"] += 1
    assert min(shared["colour"], shared["shape"]) > 50


def test_articles_fit_the_colour() -> None:
    for _, question in draw("hallucination", 300):
        article, colour = question.prompt_text.split()[2:4]
        assert article == ("an" if colour == "orange" else "a")


def test_bad_requests_say_what_was_expected() -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    with pytest.raises(ValueError, match="unknown question group 'colour'"):
        ask(scene, "colour", rng)
    with pytest.raises(ValueError, match="at least 1 object, got none"):
        ask(Scene((), scene.background), "vqa", rng)
