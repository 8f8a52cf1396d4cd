"""What tasks ask of decoding reaches ``generate``, and answers end where they should."""

from __future__ import annotations

import pytest
import torch
from families.processors import LLAVA_TOKENS, tokenizer
from models import batch, prompt, tiny_llava
from transformers import GenerationConfig

from lightkv_gnn.harness.decoding import GREEDY, Decoding, FirstToken, Stop

POPE = {"max_new_tokens": 128, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ({}, GREEDY),
        (POPE, GREEDY | {"max_new_tokens": 128}),
        ({"temperature": 0, "do_sample": True}, GREEDY),
        ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
        ({"temperature": 0.7, "do_sample": False}, GREEDY),
        ({"do_sample": True, "top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"num_beams": 3}, GREEDY | {"num_beams": 3}),
    ],
)
def test_options_are_those_of_generate(task, options):
    decoding = Decoding.of(task, 7)
    assert decoding.options == {"max_new_tokens": 7, "num_beams": 1} | options
    assert not decoding.ignored
    assert set(decoding.options) <= set(vars(GenerationConfig()))


def test_options_that_generate_does_not_have_are_told():
    decoding = Decoding.of({"until": "x", "image_aspect_ratio": "original", "fps": 1}, 7)
    assert decoding.ignored == ("fps", "image_aspect_ratio")
    assert not set(decoding.ignored) & set(decoding.options)
    assert "until" not in decoding.options


@pytest.mark.parametrize(
    ("until", "answer"), [("B", "a"), (["D", "B"], "a"), ([""], "a B c D"), (None, "a B c D")]
)
def test_answers_end_before_the_first_text_that_ends_them(until, answer):
    assert Decoding.of({"until": until}, 7).cut(" a B c D ") == answer


def test_texts_that_end_answers_must_be_texts():
    with pytest.raises(TypeError, match=r"until is \[3\]: expected a text"):
        Decoding.of({"until": [3]}, 7)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_generating_stops_at_a_text(length):
    """Each row stops where its own answer first has the text, and not because of its prompt."""
    model, words = tiny_llava(), tokenizer(LLAVA_TOKENS, {})
    inputs = batch(prompt("image", 5), prompt("image", 9))
    width = inputs["input_ids"].shape[1]
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    free = model.generate(**inputs, max_new_tokens=12, **options)[:, width:]
    answers = words.batch_decode(free, skip_special_tokens=True)
    text = answers[0][4 : 4 + length]
    assert len(text) == length
    stop = Stop([text], words, width)
    found = model.generate(**inputs, max_new_tokens=12, stopping_criteria=[stop], **options)
    found = found[:, width:]
    decoding = Decoding((), (text,), ())
    for row, answer in zip(found, answers, strict=True):
        ended, before = (
            words.decode(tokens, skip_special_tokens=True)
            for tokens in (row[row != 0], row[row != 0][:-1])
        )
        assert decoding.cut(ended) == decoding.cut(answer)
        assert (text in ended) == (text in answer)
        assert text not in before
    assert text in answers[0]


def test_a_prompt_ends_no_answer():
    words = tokenizer(LLAVA_TOKENS, {})
    ids = torch.tensor([words.convert_tokens_to_ids(list("stop it")) for _ in range(2)])
    assert Stop(["stop"], words, 4)(ids, None).tolist() == [False, False]
    assert Stop(["stop"], words, 0)(ids[:, :5], None).tolist() == [True, True]


def test_nothing_ends_at_no_text():
    stop = Stop([], tokenizer(LLAVA_TOKENS, {}), 2)
    assert stop(torch.full((3, 5), 7), None).tolist() == [False] * 3


def test_the_first_token_is_timed_once_and_stops_nothing():
    first = FirstToken(torch.device("cpu"))
    assert first.seconds is None
    tokens = torch.zeros(2, 5, dtype=torch.long)
    assert first(tokens, None).tolist() == [False, False]
    seconds = first.seconds
    assert seconds is not None
    first(tokens, None)
    assert first.seconds == seconds
