"""Guided by the prompt on the real engine: two questions about one picture are never mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import BLOCK, Engine, Reference, close, start
from families.processors import save_checkpoint
from test_qwen_families import (
    FAMILIES,
    HEADS,
    ONE,
    ROPE,
    SIZES,
    Case,
    data,
    picture,
    processed,
)
from test_qwen_families import (
    reference as qwen_reference,
)
from test_tiled_families import FAMILIES as TILED
from test_tiled_families import HEADS as TILED_HEADS
from test_tiled_families import prompts as tiled_prompts
from tiny_models import rename
from transformers import AutoProcessor
from vllm import envs

import lightkv_gnn as lk
from lightkv_gnn import tiny
from lightkv_gnn.stage.guidance import GuidanceBlock, prompt_guidance
from lightkv_gnn.vllm.settings import Settings

QUARTER = {"retention": 0.25}
GUIDED = {**QUARTER, "guidance": "text_to_vision"}
UNCACHED = {
    "enable_prefix_caching": False,
    "mm_processor_cache_gb": 0,
    "max_num_batched_tokens": 96,
    "max_num_seqs": 4,
}


def first_layer(layer: Any, heads: int, words: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Guidance of a picture's tokens, by a layer of transformers, without positions."""
    attention = layer.self_attn
    states = layer.input_layernorm(torch.cat([seen, words]))
    sides = []
    for side in ("q", "k"):
        found = getattr(attention, f"{side}_proj")(states).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, f"{side}_norm"):
            found = getattr(attention, f"{side}_norm")(found)
        sides.append(found.transpose(0, 1)[None])
    assert sides[0].shape[1] == heads
    place = torch.arange(len(states))[None]
    real = torch.ones_like(place, dtype=torch.bool)
    vision = slice(0, len(seen)), slice(len(seen), None)
    block = GuidanceBlock(
        *sides,
        *(place[:, part] for part in vision),
        *(real[:, part] for part in vision),
        attention.scaling,
    )
    return prompt_guidance(block, "text_to_vision").weight[0]


def merged(
    features: torch.Tensor, compared: int, grid: tuple[int, int], guidance: torch.Tensor
) -> torch.Tensor:
    """A quarter of a picture's tokens."""
    layout = lk.graphs.TokenLayout.from_grids([[grid]])
    plan = lk.graphs.plan_stage(layout.occupancy, 2, 0.75)
    compress = lk.TokenCompressor(lk.mean, lk.graphs.coverage_matching)
    done = compress(features[:, :compared], layout, plan, guidance)
    sums = torch.zeros(len(done.kept), features.shape[1]).index_add(0, done.survivor, features)
    return sums / torch.bincount(done.survivor)[:, None]


@torch.no_grad()
def test_merged_by_the_first_layers_attention(
    engines: Any, reference: Reference, questions: Any
) -> None:
    for one, prompt in questions[:3]:
        full, found = (engines(own).embed(one, prompt) for own in (None, GUIDED))
        ids = reference.processor.tokenizer(prompt, return_tensors="pt")["input_ids"][0]
        assert ids[-1] == reference.processor.tokenizer(tiny.format_prompt(""))["input_ids"][-1]
        words = reference.model.get_input_embeddings()(ids[ids != 4][:-1])
        guidance = first_layer(reference.model.model.language_model.layers[0], 4, words, full)
        expected = merged(full, full.shape[1], (16, 16), guidance)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert not torch.equal(found, engines(QUARTER).embed(one, prompt))


@pytest.mark.parametrize("options", [{}, UNCACHED], ids=["usual", "uncached, in pieces"])
def test_answers_as_transformers_on_the_same_embeddings(
    engines: Any, reference: Reference, questions: Any, options: dict[str, Any]
) -> None:
    engine = engines(GUIDED, **options)
    for _ in range(2):
        for found, one in zip(engine.ask(questions), questions, strict=True):
            close(found, reference.ask(one, engine))
    blind = engines(QUARTER).ask(questions)
    assert [one.prompt for one in engine.ask(questions)] == [one.prompt for one in blind]


def of_one_picture(questions: Any) -> list[Any]:
    """Eight questions about the first picture, three of them about another as well."""
    (first, _), (second, _) = questions[:2]
    twice = tiny.format_prompt("list the objects .").replace("<image>", "<image>\n<image>")
    asked: list[Any] = [(first, prompt) for _, prompt in questions[:5]]
    return [*asked, ([first, first], twice), ([first, second], twice), ([second, first], twice)]


def alone(engine: Engine, asked: Sequence[Any]) -> list[Any]:
    """Each answer of an engine that has seen nothing before."""
    found = []
    for one in asked:
        engine.forget()
        found += engine.ask([one])
    engine.forget()
    return found


def test_questions_about_one_picture_are_kept_apart(engines: Any, questions: Any) -> None:
    engine, asked = engines(GUIDED), of_one_picture(questions)
    expected = alone(engine, asked)
    for order in (1, -1):
        one_by_one = [engine.ask([one])[0] for one in asked[::order]]
        for found in (one_by_one, engine.ask(asked[::order])):
            for one, other in zip(found, expected[::order], strict=True):
                close(one, other)


def test_without_the_text_in_the_hash_they_would_not_be(
    engines: Any, questions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = engines(GUIDED), of_one_picture(questions)
    expected = alone(engine, asked)
    sign = Settings.sign
    monkeypatch.setattr(Settings, "sign", lambda self, found, text=None: sign(self, found))
    found = engine.ask(asked)
    engine.forget()
    wrong = 0
    for one, other in zip(found, expected, strict=True):
        try:
            close(one, other)
        except AssertionError:
            wrong += 1
    assert wrong >= 4


def hashes(engine: Engine, one: Any, prompt: str, **kwargs: Any) -> tuple[str, ...]:
    processor = engine.llm.llm_engine.renderer.get_mm_processor()
    made = processor(prompt, processor.info.parse_mm_data({"image": one}), **kwargs)
    return tuple(made["mm_hashes"]["image"])


def test_the_prompt_is_in_the_hash_of_guided_pictures_alone(engines: Any, questions: Any) -> None:
    one, prompts = questions[0][0], [prompt for _, prompt in questions[:3]]
    assert len({hashes(engines(QUARTER), one, prompt) for prompt in prompts}) == 1
    assert len({hashes(engines(GUIDED), one, prompt) for prompt in prompts}) == 3
    later = f"{prompts[0]} red circle </s> USER: list the objects . ASSISTANT:"
    assert hashes(engines(GUIDED), one, later) == hashes(engines(GUIDED), one, prompts[0])


def test_second_turns_find_the_first_in_the_cache(
    engines: Any, reference: Reference, questions: Any
) -> None:
    engine = engines(GUIDED)
    engine.forget()
    (one, prompt), (other, _) = questions[2], questions[3]
    first = engine.ask([(one, prompt)])[0]
    again = prompt + " red circle </s> USER: list the objects . ASSISTANT:"
    with_another = prompt + " red circle </s> USER: <image>\nlist the objects . ASSISTANT:"
    for asked in [(one, again), ([one, other], with_another)]:
        second = engine.ask([asked])[0]
        assert second.cached == first.prompt // BLOCK * BLOCK > 0
        close(second, reference.ask(asked, engine))


def test_a_failed_request_fails_alone(engines: Any, questions: Any) -> None:
    """And what it left in caches makes none of the next wrong."""
    engine, (one, prompt) = engines(GUIDED), questions[0]
    (expected,) = alone(engine, [(one, prompt)])
    small = {"size": {"height": 64, "width": 64}, "crop_size": {"height": 64, "width": 64}}
    for asked, options, says in [
        ((one, prompt.replace("<image>", "")), {}, "0 placeholders for 1 items of image"),
        (([one, one], prompt), {}, "1 placeholders for 2 items of image"),
        ((one, prompt), {"mm_processor_kwargs": small}, "64x64 pixels"),
        ((one, prompt + " red" * 700), {}, "maximum model length"),
        ((one, [4, 10**6]), {}, "out of vocabulary"),
    ]:
        with pytest.raises(Exception, match=says):
            engine.ask([asked], **options)
        close(engine.ask([(one, prompt)])[0], expected)


def test_what_goes_from_prompts_to_pictures_is_no_option(engines: Any, questions: Any) -> None:
    one, prompt = questions[0]
    mine = {"lightkv_guides": {"image": [(1, 2)]}}
    for settings in (QUARTER, GUIDED):
        known = hashes(engines(settings), one, prompt)
        assert hashes(engines(settings), one, prompt, hf_processor_mm_kwargs=mine) == known


def middle(block: GuidanceBlock) -> torch.Tensor:
    """A guidance of one's own: the tokens next to the middle."""
    place = block.vision - block.vision.float().mean()
    return (-place.square()).exp()


def test_a_function_guides(engines: Any, questions: Any) -> None:
    """One that has no name, where no cache needs one."""
    one, prompt = questions[0]
    own = {**QUARTER, "guidance": partial(middle)}
    found = engines(own, **UNCACHED).embed(one, prompt)
    full = engines().embed(one, prompt)
    guidance = (-(torch.arange(256) - 127.5).square()).exp().log()
    torch.testing.assert_close(found, merged(full, full.shape[1], (16, 16), guidance))
    assert engines(own, **UNCACHED).ask([(one, prompt)])[0].tokens


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"guidance": partial(middle)}, "has no name to be told from others by"),
        ({"guidance": "no_such:one"}, "No module named 'no_such'"),
        ({"guidance": "text_to_vision", "matcher": "stride", "retention": 0.5}, "does not look"),
    ],
    ids=["nameless", "missing", "matcher"],
)
def test_what_cannot_be_is_said_at_the_start(
    checkpoint: Any, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(Exception, match=says):
        start(checkpoint, {**QUARTER, **settings})


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory, closing: list[Engine]) -> Case:
    """Qwen3-VL, its queries and keys normed, with features for several layers."""
    folder, name = tmp_path_factory.mktemp("checkpoints") / "qwen", "qwen3_vl"
    text = {**HEADS, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    model = save_checkpoint(name, folder, text=text).eval()
    options = {"max_model_len": 512, "limit_mm_per_prompt": {"image": 2, "video": 0}}
    engines = [start(folder, one, FAMILIES[name], **options) for one in (None, GUIDED)]
    closing.extend(engines)
    return Case(name, model, AutoProcessor.from_pretrained(folder), *engines)


def test_qwen_answers_as_transformers_on_the_same_embeddings(qwen: Case) -> None:
    """Several questions about pictures that are the same, at once and again."""
    pictures = [picture(*size) for size in SIZES]
    prompts: list[Any] = [([one], f"A {ONE} {word}") for one in pictures for word in ("b", "c d e")]
    prompts += [(pictures[:2], f"A {ONE} b {ONE} c"), ([pictures[0]] * 2, f"{ONE} a {ONE} b c")]
    every = [(data(own), prompt) for own, prompt in prompts]
    expected = [
        qwen_reference(qwen, qwen.quarter, *one, qwen.quarter.embed_each(*given))
        for one, given in zip(prompts, every, strict=True)
    ]
    for order in (1, -1):
        found = qwen.quarter.ask(every[::order], 6, ends=False)
        for one, other in zip(found, expected[::order], strict=True):
            close(one, other)


@torch.no_grad()
def test_qwen_is_merged_by_the_first_layers_attention(qwen: Case) -> None:
    one, prompt = picture(*SIZES[0]), f"A {ONE} b c"
    full, found = (engine.embed(one, prompt) for engine in (qwen.stock, qwen.quarter))
    decoder = qwen.model.model.language_model
    ids = torch.tensor(qwen.processor.tokenizer(prompt)["input_ids"])
    words = decoder.embed_tokens(ids[ids != qwen.model.config.image_token_id])
    compared = words.shape[1]
    guidance = first_layer(decoder.layers[0], 2, words, full[:, :compared])
    _, rows, cols = processed(qwen, [one], prompt)["image_grid_thw"][0].tolist()
    expected = merged(full, compared, (rows // 2, cols // 2), guidance)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert full.shape[1] > compared


@pytest.mark.full
@pytest.mark.parametrize("name", TILED)
def test_tiles_and_frames(name: str, tmp_path: Path, closing: list[Engine]) -> None:
    """As many are left as blind, others for each question, and no two are mixed up."""
    family = TILED[name]
    save_checkpoint(name, tmp_path / name, text=TILED_HEADS, **family.options)
    if name != "internvl":
        rename(tmp_path / name)
    architecture = f"LightKV{family.architecture}"
    options = {"max_model_len": 768, "limit_mm_per_prompt": {"image": 2, "video": 1}}
    blind, guided = (
        start(tmp_path / name, own, architecture, **options) for own in (QUARTER, GUIDED)
    )
    closing += [blind, guided]
    asked: list[Any] = [
        (one.data(), one.text(family) + more)
        for one in tiled_prompts(family)
        for more in ("", " c d e")
    ]
    expected = alone(guided, asked)
    lengths = [one.prompt for one in blind.ask(asked)]
    for order in (1, -1):
        found = guided.ask(asked[::order])
        for one, other in zip(found, expected[::order], strict=True):
            close(one, other)
        assert [one.prompt for one in found][::order] == lengths
    embedded = [guided.embed_each(*one)[0] for one in asked]
    for short, long in zip(embedded[::2], embedded[1::2], strict=True):
        assert short.shape == long.shape
        assert not torch.equal(short, long)


@pytest.mark.full
def test_two_processes_answer_as_one(
    checkpoint: Any,
    closing: list[Engine],
    engines: Any,
    questions: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of two workers has two heads of four."""
    for told in (partial(monkeypatch.setenv), partial(monkeypatch.setattr, envs)):
        told("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # a socket for each may be more than there are
    engine = start(checkpoint, GUIDED, tensor_parallel_size=2)
    closing.append(engine)
    for found, expected in zip(engine.ask(questions), engines(GUIDED).ask(questions), strict=True):
        close(found, expected)
