"""What the demo says of the bundled model to who brings something of their own."""

from __future__ import annotations

import numpy as np
import pytest

from lightkv_gnn import tiny
from lightkv_gnn.commands import bundled
from lightkv_gnn.tiny.words import vocabulary


def test_unknown_are_the_words_that_the_tokenizer_cannot_read() -> None:
    tokenizer = tiny.build_processor().tokenizer
    for prompt in ("Is there a purple ZEBRA?", "what shape is the red object ?", "who?! who... me"):
        words = bundled.unknown_words(prompt, vocabulary())
        tokens = tokenizer.tokenize(prompt)
        assert bool(words) == (tokenizer.unk_token in tokens)
        assert all(tokenizer.tokenize(word) == [tokenizer.unk_token] for word in words)
        rest = prompt.lower()
        for word in words:
            rest = rest.replace(word, " ")
        assert tokenizer.unk_token not in tokenizer.tokenize(rest)
    assert bundled.unknown_words("Is there a purple ZEBRA, zebra?", vocabulary()) == ["zebra"]


@pytest.mark.parametrize("question", bundled.QUESTIONS)
def test_it_claims_questions_that_it_was_trained_on(question: str) -> None:
    """Each has the form of a question of the three groups that the demo scores."""
    rng = np.random.default_rng(0)
    names = {*tiny.COLOURS, *tiny.SHAPES}

    def form(text: str) -> list[str]:
        words = ["a" if word == "an" else word for word in text.split()]
        return ["*" if word in names else word for word in words]

    groups = ("vqa", "hallucination", "captioning")
    asked = [tiny.ask(tiny.sample_scene(rng), group, rng).prompt_text for group in groups]
    assert form(question) in [form(text) for text in asked]


def test_it_names_what_it_knows_and_what_it_cannot_read() -> None:
    told = bundled.limits(["what breed is the dog ?"], vocabulary())
    assert all(word in told for word in (*tiny.SHAPES, *tiny.COLOURS, "never seen"))
    assert told.endswith("unknown word: breed dog")
    assert "unknown word" not in bundled.limits(["list the objects ."], vocabulary())
