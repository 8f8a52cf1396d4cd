"""Questions and pictures as a model takes them."""

import numpy as np
import pytest

from lightkv_gnn import tiny
from lightkv_gnn.asking import prompts


def test_a_prompt_that_begins_as_text_does_not_begin_twice():
    model, processor = tiny.load()
    picture = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
    once = prompts.as_inputs(model, processor, picture, "list the objects .")["input_ids"]
    processor.chat_template = "<s>" + processor.chat_template
    again = prompts.as_inputs(model, processor, picture, "list the objects .")["input_ids"]
    begin = processor.tokenizer.bos_token_id
    assert (again == begin).sum() == 1
    assert once[once != begin].tolist() == again[again != begin].tolist()


def test_prompts_follow_the_chat_template():
    processor = tiny.build_processor()
    question = "what shape is the red object ?"
    assert prompts.as_chat(processor, question) == tiny.format_prompt(question)
    processor.chat_template = None
    assert prompts.as_chat(processor, question) == f"USER: <image>\n{question} ASSISTANT:"


@pytest.mark.parametrize(
    ("name", "tokens", "prompt"),
    [
        ("LlavaProcessor", {"image_token": "<image>"}, "USER: <image>\nwhat? ASSISTANT:"),
        ("PixtralProcessor", {"image_token": "[IMG]"}, "USER: [IMG]\nwhat? ASSISTANT:"),
        (
            "Qwen2VLProcessor",
            {"image_token": "<|image_pad|>"},
            "USER: <|vision_start|><|image_pad|><|vision_end|>\nwhat? ASSISTANT:",
        ),
        (
            "Gemma3Processor",
            {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>"},
            "USER: <start_of_image>\nwhat? ASSISTANT:",
        ),
        ("PaliGemmaProcessor", {"image_token": "<image>"}, "<image>what?"),
    ],
)
def test_without_a_template_the_prompt_names_the_image_token(name, tokens, prompt):
    processor = type(name, (), tokens)()
    assert prompts.as_chat(processor, "what?") == prompt
