"""Traces carry the prompts that guided, where the tokenizer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import batch, prompt, tiny_llava

import lightkv_gnn as lk
from lightkv_gnn import tiny

QUESTIONS = ("list the objects .", "what shape is the red object ?")
STAGES = [lk.Stage(0, 2, 0.5)]


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any, Any]:
    """The bundled model, its processor, and a batch with padding."""
    model, processor = tiny.load()
    processor.tokenizer.padding_side = "left"
    pictures = [tiny.render(tiny.sample_scene(np.random.default_rng(seed))) for seed in (0, 1)]
    texts = [tiny.format_prompt(question) for question in QUESTIONS]
    return (
        model,
        processor,
        processor(images=pictures, text=texts, padding=True, return_tensors="pt"),
    )


@pytest.mark.parametrize("name", ["processor", "tokenizer"])
def test_traces_of_a_handle_carry_the_prompts(bundled: Any, name: str, tmp_path: Path) -> None:
    model, processor, inputs = bundled
    known = processor if name == "processor" else processor.tokenizer
    attached = lk.attach(model, lk.LightKVConfig(STAGES), processor=known)
    with attached as handle, handle.watch() as call:
        model.generate(**inputs, do_sample=False, max_new_tokens=2)
    for trace in (handle.trace, call.trace, call.calls[0].trace):
        for found, question in zip(trace.prompts, QUESTIONS, strict=True):
            assert question in found
            assert found.startswith("USER:")
            assert not {"<s>", "<image>", "<pad>"} & set(found.split())
    handle.trace.save(tmp_path / "trace.safetensors")
    assert lk.MergeTrace.load(tmp_path / "trace.safetensors").prompts == handle.trace.prompts
    assert handle.view().prompts == handle.trace.prompts


def test_an_answer_in_the_call_is_no_prompt(bundled: Any) -> None:
    model, processor, inputs = bundled
    answer = processor.tokenizer("red circle", add_special_tokens=False, return_tensors="pt")
    ids = torch.cat([inputs["input_ids"][1:], answer["input_ids"]], 1)
    mask = torch.ones_like(ids).bool()
    mask[:, -answer["input_ids"].shape[1] :] = False
    attached = lk.attach(model, lk.LightKVConfig(STAGES), processor=processor)
    with attached as handle, handle.prompt(mask), torch.no_grad():
        model(input_ids=ids, pixel_values=inputs["pixel_values"][1:])
    (found,) = handle.trace.prompts
    assert QUESTIONS[1] in found
    assert "circle" not in found


def test_without_a_tokenizer_or_ids_there_are_none() -> None:
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        model(**inputs)
        assert handle.trace.prompts == ()
    ids = inputs.pop("input_ids")
    with lk.attach(model, lk.LightKVConfig(STAGES), processor=tiny.build_processor()) as handle:
        model(**inputs, inputs_embeds=model.get_input_embeddings()(ids))
        assert len(handle.trace) == 1
        assert handle.trace.prompts == ()


def test_something_else_is_no_processor() -> None:
    with pytest.raises(TypeError, match="processor is 3: expected the model's processor"):
        lk.attach(tiny_llava(), lk.LightKVConfig(STAGES), processor=3)
