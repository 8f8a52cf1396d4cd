"""LLaVA-1.5 on the real engine, beside transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from asking import BLOCK, Reference, close, start
from vllm.multimodal.parse import ImageEmbeddingItems, MultiModalDataItems

import lightkv_gnn as lk
from lightkv_gnn import tiny

QUARTER = {"retention": 0.25}


def test_stock_answers_as_transformers(engines: Any, reference: Reference, questions: Any) -> None:
    """The encoder, too, is transformers'."""
    engine = engines()
    for picture, _ in questions:
        pixels = reference.processor(images=picture, text="", return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = reference.model.model.get_image_features(pixels).pooler_output[0]
        found = engine.embed(picture, "<image>")
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for found, asked in zip(engine.ask(questions), questions, strict=True):
        close(found, reference.ask(asked, engine))


@pytest.mark.parametrize("settings", [QUARTER, {"retention": 0.5, "windows": 4}], ids=str)
def test_compressed_answers_as_transformers_on_the_same_embeddings(
    engines: Any, reference: Reference, questions: Any, settings: dict[str, Any]
) -> None:
    engine = engines(settings)
    found = engine.ask(questions)
    for one, asked in zip(found, questions, strict=True):
        close(one, reference.ask(asked, engine))
    full = engines().ask(questions[:1])[0].prompt
    assert full - found[0].prompt == 256 - settings["retention"] * 256


def test_merged_are_the_encoders_tokens_compressed(engines: Any, questions: Any) -> None:
    picture = questions[0][0]
    full = engines().embed(picture, "<image>")
    layout = lk.graphs.TokenLayout.from_grids([[(16, 16)]])
    plan = lk.graphs.plan_stage(layout.occupancy, 2, 0.75)
    compressor = lk.TokenCompressor(lk.mean, lk.graphs.coverage_matching)
    found = engines(QUARTER).embed(picture, "<image>")
    assert torch.equal(found, compressor(full, layout, plan).hidden_states)


@pytest.mark.parametrize(
    "options",
    [
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 96, "max_num_seqs": 4},
        {"mm_processor_cache_gb": 0},
        pytest.param({"enforce_eager": False}, marks=pytest.mark.full),
    ],
    ids=["no prefix cache", "chunks", "no processor cache", "compiled"],
)
def test_how_it_is_run_changes_no_answer(
    engines: Any, reference: Reference, questions: Any, options: dict[str, Any]
) -> None:
    """A prompt of 71 tokens, four at once, is read in pieces of 96."""
    engine = engines(QUARTER, **options)
    expected = [reference.ask(one, engine).tokens for one in questions]
    for _ in range(2):
        assert [one.tokens for one in engine.ask(questions)] == expected


def test_one_picture_in_many_ways(engines: Any, reference: Reference, questions: Any) -> None:
    (first, _), (second, _) = questions[:2]
    text = tiny.format_prompt("list the objects .")
    twice = text.replace("<image>", "<image>\n<image>")
    asked = [(first, prompt) for _, prompt in questions[:6]]
    asked += [(first, text), ([first, first], twice), ([first, second], twice)]
    asked += [([second, first], twice), (second, text)]
    engine = engines(QUARTER)
    expected = [reference.ask(one, engine) for one in asked]
    for order in (asked, asked[::-1]):
        engine.forget()
        alone = [engine.ask([one])[0] for one in order]
        together = engine.ask(order)
        wanted = expected if order is asked else expected[::-1]
        for found in (alone, together):
            for one, other in zip(found, wanted, strict=True):
                close(one, other)


def test_blocks_fall_as_planned(engines: Any, questions: Any) -> None:
    asked = questions[0]
    held = {}
    for settings in (None, {"retention": 0.5, "windows": 4}, QUARTER):
        engine = engines(settings)
        held[str(settings)] = engine.blocks(asked)
        assert held[str(settings)] == math.ceil(engine.ask([asked])[0].prompt / BLOCK)
    assert list(held.values()) == [9, 5, 3]


def test_second_turns_find_the_first_in_the_cache(engines: Any, questions: Any) -> None:
    engine = engines(QUARTER)
    engine.forget()
    picture, prompt = questions[2]
    first = engine.ask([(picture, prompt)])[0]
    assert first.cached == 0
    again = prompt + " red circle </s> USER: list the objects . ASSISTANT:"
    second = engine.ask([(picture, again)])[0]
    assert second.cached == first.prompt // BLOCK * BLOCK > 0


def test_other_settings_other_hashes(engines: Any, questions: Any) -> None:
    picture, prompt = questions[0]
    hashes = []
    for settings in (None, QUARTER, {"retention": 0.5, "windows": 4}):
        renderer = engines(settings).llm.llm_engine.renderer
        processor = renderer.get_mm_processor()
        items = processor.info.parse_mm_data({"image": picture})
        hashes += processor(prompt, items)["mm_hashes"]["image"]
    assert len(set(hashes)) == 3


def test_a_refused_request_leaves_the_engine_running(
    engines: Any, reference: Reference, questions: Any
) -> None:
    engine = engines(QUARTER)
    small = {"size": {"height": 64, "width": 64}, "crop_size": {"height": 64, "width": 64}}
    with pytest.raises(ValueError, match="64x64 pixels, and 128x128 were planned for"):
        engine.ask(questions[:1], mm_processor_kwargs=small)
    assert engine.ask(questions[:1])[0].tokens == reference.ask(questions[0], engine).tokens


def test_embeddings_are_refused(engines: Any) -> None:
    processor = engines(QUARTER).llm.llm_engine.renderer.get_mm_processor()
    given = MultiModalDataItems({"image": ImageEmbeddingItems([torch.zeros(64, 96)])})
    with pytest.raises(ValueError, match="image embeddings came in place of a picture"):
        processor._get_prompt_updates(given, {}, {})


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"lightkv": {"retention": 2.0}}, "retention is 2.0"),
        ({"lightkv": {"retentoin": 0.5}}, "did you mean retention"),
        ({"lightkv": {"retention": 0.25, "windows": 32}}, "too few for 32x32 windows"),
        ({}, "without settings"),
        (
            {"lightkv": {"retention": 0.25}, "vision_feature_select_strategy": "full"},
            "expected the patches alone",
        ),
    ],
    ids=["range", "name", "windows", "none", "class token"],
)
def test_what_cannot_be_is_said_at_the_start(
    checkpoint: Any, overrides: dict[str, Any], says: str
) -> None:
    named = {"architectures": ["LightKVLlavaForConditionalGeneration"], **overrides}
    with pytest.raises(Exception, match=says):
        start(checkpoint, hf_overrides=named)
