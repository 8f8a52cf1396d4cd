"""The processor built from code: every word known, roles kept, users' spelling forgiven."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlavaProcessor

from lightkv_gnn.tiny import GROUPS, ask, build_processor, format_prompt, render, sample_scene

QUESTION = "what shape is the red object ?"


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    """Build the processor once."""
    return build_processor()


@pytest.mark.parametrize("group", GROUPS)
def test_questions_and_answers_round_trip(processor: LlavaProcessor, group: str) -> None:
    rng = np.random.default_rng(4)
    tokenizer = processor.tokenizer
    for _ in range(300):
        question = ask(sample_scene(rng), group, rng)
        for text in (question.prompt_text, question.answer):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_prompt_is_laid_out_like_llava(processor: LlavaProcessor) -> None:
    image = render(sample_scene(np.random.default_rng(0)))
    ids = processor(images=image, text=format_prompt(QUESTION), return_tensors="pt")["input_ids"]
    tokens = processor.tokenizer.convert_ids_to_tokens(ids[0])
    assert tokens == ["<s>", "USER:", *["<image>"] * 256, *QUESTION.split(), "ASSISTANT:"]
    text = format_prompt(QUESTION, image_first=False)
    ids = processor(images=image, text=text, return_tensors="pt")["input_ids"]
    tokens = processor.tokenizer.convert_ids_to_tokens(ids[0])
    assert tokens == ["<s>", "USER:", *QUESTION.split(), *["<image>"] * 256, "ASSISTANT:"]


def test_spelling_and_unknown_words(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    plain = tokenizer(format_prompt(QUESTION))["input_ids"]
    assert tokenizer(format_prompt("What SHAPE is the red object?"))["input_ids"] == plain
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("is there a purple zebra?")["input_ids"])
    assert tokens == ["<s>", "is", "there", "a", "purple", "<unk>", "?"]


def test_batches_are_padded_on_the_left(processor: LlavaProcessor) -> None:
    batch = processor.tokenizer(["list the objects .", QUESTION], padding=True)
    assert batch["attention_mask"][0] == [0] * 3 + [1] * 5
    assert batch["input_ids"][0][:4] == [processor.tokenizer.pad_token_id] * 3 + [
        processor.tokenizer.bos_token_id
    ]


def test_chat_template_matches_the_prompt(processor: LlavaProcessor) -> None:
    content: Any = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    talk: Any = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(talk, add_generation_prompt=True) == format_prompt(
        QUESTION
    )


def test_pictures_of_any_size_are_accepted(processor: LlavaProcessor) -> None:
    image = render(sample_scene(np.random.default_rng(0)), 200).crop((0, 0, 200, 150))
    values = processor(images=image, text=format_prompt(QUESTION), return_tensors="pt")
    assert values["pixel_values"].shape == (1, 3, 128, 128)
