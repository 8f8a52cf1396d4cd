"""Conversations of every family become the inputs that its processor makes of each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families.models import FAMILIES, tiny
from families.processors import processor, skipped_without_needs
from PIL import Image

import lightkv_gnn as lk
from lightkv_gnn import tiny as bundled
from lightkv_gnn.asking import prompts
from lightkv_gnn.harness.prompts import as_inputs, as_text, pictures_of

# PaliGemma's processor has NumPy read a tensor in a way that PyTorch does not yet support.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def photo(seed, size=(40, 60)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asked(text, *pictures):
    content = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


CHATS = {
    "with pictures": [asked("what is it?", photo(0)), asked("why", photo(1), photo(2, (60, 40)))],
    "without": [asked("what is it?"), asked("why")],
}


def inputs_of(model, made, chats):
    return as_inputs(model, made, chats, [pictures_of(chat) for chat in chats])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CHATS)
def test_a_batch_is_its_questions_side_by_side(family, kind):
    """Ids are equal where there is no padding, and so are compressed answers."""
    if (family, kind) == ("paligemma", "without"):
        pytest.skip("PaliGemma's processor takes no text without pictures")
    model = tiny(family)
    with skipped_without_needs():
        made = processor(family, model)
    chats = CHATS[kind]
    both = inputs_of(model, made, chats)
    config = lk.LightKVConfig([lk.Stage(lk.adapter_for(model).legal_layers[0], 1, 0.5)])
    options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
    with lk.attach(model, config):
        answers = model.generate(**both, **options)[:, both["input_ids"].shape[1] :]
        for row, chat in enumerate(chats):
            alone = inputs_of(model, made, [chat])
            real = both["attention_mask"][row].bool()
            assert torch.equal(both["input_ids"][row][real], alone["input_ids"][0])
            assert bool(real[-1])
            own = model.generate(**alone, **options)[:, alone["input_ids"].shape[1] :]
            assert torch.equal(answers[row], own[0])
    assert bool((both["attention_mask"] == 0).any())


@pytest.mark.parametrize("family", FAMILIES)
def test_one_question_is_put_as_by_the_rest_of_the_library(family):
    model = tiny(family)
    with skipped_without_needs():
        made = processor(family, model)
    picture = photo(3)
    for template in (made.chat_template, None):
        made.chat_template = template
        found = inputs_of(model, made, [asked("what is it?", picture)])
        expected = prompts.as_inputs(model, made, picture, "what is it?")
        assert torch.equal(found["input_ids"], expected["input_ids"])


def test_texts_begin_once():
    """A template that marks the begin itself, beside a tokenizer that does so too."""
    model, made = bundled.load()
    template = made.chat_template
    for marked in (template, "<s>" + template):
        made.chat_template = marked
        ids = inputs_of(model, made, [asked("what shape is the red object ?", photo(0))])
        assert ids["input_ids"][0].tolist().count(made.tokenizer.bos_token_id) == 1


def test_only_text_and_pictures_are_taken():
    chat = [{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}]}]
    with pytest.raises(lk.UnsupportedInputError, match=r"with video content: .* text and pictures"):
        pictures_of(chat)


def test_pictures_are_colour_whatever_they_were():
    grey = Image.new("L", (4, 6))
    assert [picture.mode for picture in pictures_of(asked("?", grey, photo(0)))] == ["RGB"] * 2


def test_several_turns_need_a_chat_template():
    made = processor("llava", tiny("llava"))
    made.chat_template = None
    chat = [{"role": "system", "content": [{"type": "text", "text": "be brief"}]}, *asked("why")]
    with pytest.raises(lk.UnsupportedInputError, match="LlavaProcessor has no chat template"):
        as_text(made, chat)
