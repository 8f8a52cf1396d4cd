"""Sliding windows: they are windows of original tokens, whatever was merged within them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from families.loop import FamilyLoop
from marks import NO_PLACEHOLDER, attentions, policies, ways
from models import (
    CACHE,
    RESETS,
    alone,
    batch,
    cache_lengths,
    check_ledger,
    greedy,
    loop_logits,
    near,
    prompt,
    tiny_llava,
)
from transformers import DynamicCache, StaticCache

import lightkv_gnn as lk

SCHEDULE = ((0, 2, 0.25), (2, 2, 0.5), (4, 1, 0.5))
STAGES = [lk.Stage(*stage) for stage in SCHEDULE]
PROMPT = (4, "image", 6)  # 26 tokens
SEED = 1  # of a prompt without close calls; see check_decoding
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]
ALTERNATING = ["full_attention", "sliding_attention"] * 3
STEPS = 12


windows = pytest.mark.parametrize("window", [5, 26, 32])
kinds = pytest.mark.parametrize("kind", ["dynamic", "static"])


def configured(positions: str, **options: Any) -> lk.LightKVConfig:
    return lk.LightKVConfig(STAGES, positions=positions, **options)


def mistral(attention: str, window: int) -> torch.nn.Module:
    """All layers slide."""
    return tiny_llava("mistral", attention, text_options={"sliding_window": window})


def qwen2(attention: str, window: int, layer_types: list[str]) -> torch.nn.Module:
    """Some layers slide, as in Gemma."""
    options = {"use_sliding_window": True, "sliding_window": window, "layer_types": layer_types}
    return tiny_llava("qwen2", attention, text_options=options)


def cache_for(kind: str, model: torch.nn.Module, room: int = 64) -> Any:
    config = model.config.text_config
    if kind == "static":
        return StaticCache(config=config, max_cache_len=room)
    return DynamicCache(config=config)


def check_decoding(model: Any, loop: FamilyLoop, cache: Any, inputs: Any, kind: str) -> None:
    """Asserts that a prefill and greedy decoding equal the loop's."""
    expected = loop_logits(loop, inputs)
    call = {"input_ids": inputs["input_ids"], "pixel_values": inputs.get("pixel_values")}
    logits = model(**call, **{CACHE: cache}).logits[0]
    near(logits, expected)
    for _ in range(STEPS):
        if kind == "dynamic":
            assert cache_lengths(cache) == loop.lengths
        assert {int(layer.get_seq_length()) for layer in cache.layers} == {loop.seen}
        token = int(expected[-1].argmax())
        expected = loop.run_text([token])
        logits = model(input_ids=torch.tensor([[token]]), **{CACHE: cache}).logits[0]
        near(logits, expected)
    assert loop.margin > 1e-4


@kinds
@policies
@attentions
@windows
@torch.no_grad()
def test_prefill_and_decoding_equal_the_loop(
    window: int, attention: str, positions: str, kind: str
) -> None:
    """The prompt is longer than the window, as long, shorter, and outgrows it in decoding."""
    model = mistral(attention, window)
    loop = FamilyLoop(model, "llava", SCHEDULE, positions=positions)
    assert [layer.window for layer in loop.layers] == [window] * 6
    with lk.attach(model, configured(positions)) as handle:
        check_decoding(model, loop, cache_for(kind, model), batch(prompt(*PROMPT)), kind)
        assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in handle.ledger.rows)


@kinds
@ways
@pytest.mark.parametrize("first", [0, 1], ids=["full first", "sliding first"])
@pytest.mark.parametrize("window", [6, 20])
@torch.no_grad()
def test_alternating_layers_equal_the_loop(
    window: int, first: int, attention: str, positions: str, kind: str
) -> None:
    model = qwen2(attention, window, [*ALTERNATING, *ALTERNATING][first : first + 6])
    later = [(layer + first, *rest) for layer, *rest in SCHEDULE]  # layers of full attention
    stages = [stage for stage in later if stage[0] < len(ALTERNATING) - 1]
    loop = FamilyLoop(model, "llava", stages, positions=positions)
    assert [layer.window for layer in loop.layers[first:]][:2] == [None, window]
    config = lk.LightKVConfig([lk.Stage(*stage) for stage in stages], positions=positions)
    with lk.attach(model, config) as handle:
        check_decoding(
            model, loop, cache_for(kind, model), batch(prompt(*PROMPT, seed=SEED), seed=SEED), kind
        )
        assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in handle.ledger.rows)


@kinds
@pytest.mark.parametrize("window", [9, 26, 32])
@torch.no_grad()
def test_masks_are_sized_as_if_nothing_were_merged(window: int, kind: str) -> None:
    model, inputs = mistral("sdpa", window), batch(prompt(*PROMPT))
    cache, plain = cache_for(kind, model), cache_for(kind, model)
    model(**inputs, **{CACHE: plain})
    with lk.attach(model, configured("preserve")):
        model(**inputs, **{CACHE: cache})
    for queries in (1, 3, 8):
        expected = plain.get_mask_sizes(queries, 0)
        assert [cache.get_mask_sizes(queries, n) for n in range(6)] == [expected] * 6


@ways
@torch.no_grad()
def test_layers_that_keep_all_tokens_of_a_windowed_model(attention: str, positions: str) -> None:
    """``DynamicCache()`` does not know of windows; the masks do."""
    model = mistral(attention, 14)
    loop, cache = FamilyLoop(model, "llava", SCHEDULE, positions=positions), DynamicCache()
    with lk.attach(model, configured(positions)):
        check_decoding(model, loop, cache, batch(prompt(*PROMPT)), "lazy")
    assert cache_lengths(cache) == [len(layer.keys) for layer in loop.layers]


@policies
@attentions
@torch.no_grad()
def test_a_sliding_window_counts_original_tokens(attention: str, positions: str) -> None:
    model, inputs = mistral(attention, 14), batch(prompt(*PROMPT))
    expected = loop_logits(FamilyLoop(model, "llava", SCHEDULE, positions=positions), inputs)
    with lk.attach(model, configured(positions)) as handle:
        near(model(**inputs, use_cache=False).logits[0], expected)
        check_ledger(handle.ledger, None)


TURNS = {
    "text": [(5,), (4,)],
    "an image": [(3, "image", 4)],
    "text, images": [(2,), (1, "image", "image", 3)],
}


@kinds
@ways
@pytest.mark.parametrize("window", [9, 40])
@pytest.mark.parametrize("turns", TURNS)
@torch.no_grad()
def test_later_turns_equal_the_loop(
    turns: str, window: int, attention: str, positions: str, kind: str
) -> None:
    model = mistral(attention, window)
    loop = FamilyLoop(model, "llava", SCHEDULE, positions=positions)
    cache = cache_for(kind, model, 90)
    with lk.attach(model, configured(positions)) as handle:
        for number, parts in enumerate([PROMPT, *TURNS[turns]]):
            inputs = batch(prompt(*parts, seed=number + 5), seed=number)
            ids, images = inputs["input_ids"], inputs.get("pixel_values")
            before = loop.lengths
            logits = model(input_ids=ids, pixel_values=images, **{CACHE: cache}).logits[0]
            near(logits, loop_logits(loop, inputs))
            if images is not None:
                added = [after - old for after, old in zip(loop.lengths, before, strict=True)]
                if kind == "static":  # it has room for one more
                    added = [row.planned.kv_bytes // 256 for row in handle.ledger.rows]
                seen = [row.observed_kv_bytes for row in handle.ledger.rows]
                assert seen == [256 * entries for entries in added]
                assert seen == [row.planned.kv_bytes for row in handle.ledger.rows]
        check_decoding(model, loop, cache, batch(prompt(1, seed=9)), kind)


@kinds
@ways
@pytest.mark.parametrize("window", [7, 20, 44])
@torch.no_grad()
def test_a_ragged_batch_equals_each_alone(
    window: int, attention: str, positions: str, kind: str
) -> None:
    model, inputs = mistral(attention, window), batch(*RAGGED)
    mask = inputs["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with lk.attach(model, configured(positions)):
        cache = cache_for(kind, model)
        logits = model(**inputs, position_ids=places, **{CACHE: cache}).logits
        own = []
        for number, (where, single) in enumerate(alone(inputs, *RAGGED)):
            own.append(cache_for(kind, model))
            near(logits[number, where], model(**single, **{CACHE: own[-1]}).logits[0])
        for step in range(STEPS):
            token = torch.tensor([[9 + step], [30 + step], [70 + step]])
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            places = places[:, -1:] + 1
            call = {"attention_mask": mask, "position_ids": places, CACHE: cache}
            logits = model(input_ids=token, **call).logits
            for number in range(3):
                single = model(input_ids=token[number : number + 1], **{CACHE: own[number]})
                near(logits[number], single.logits[0])


@kinds
@ways
@pytest.mark.parametrize("window", [7, 44])
def test_cached_equals_uncached(window: int, attention: str, positions: str, kind: str) -> None:
    model, inputs = mistral(attention, window), batch(*RAGGED)
    with lk.attach(model, configured(positions, guidance="none")):
        cached = greedy(model, inputs, STEPS, cache_implementation=kind, **NO_PLACEHOLDER)
        assert torch.equal(cached, greedy(model, inputs, STEPS, use_cache=False, **NO_PLACEHOLDER))


@pytest.mark.parametrize("window", [9, 28])
@ways
def test_prompt_lookup_equals_greedy(attention: str, positions: str, window: int) -> None:
    """Candidates that were wrong are dropped, within the window and past it."""
    model = mistral(attention, window)
    inputs = batch(prompt("image", 6))
    with lk.attach(model, configured(positions)):
        expected = greedy(model, inputs, 20)
        assert torch.equal(greedy(model, inputs, 20, prompt_lookup_num_tokens=4), expected)


@torch.no_grad()
def test_what_is_forgotten_cannot_come_back() -> None:
    model = mistral("sdpa", 14)
    with lk.attach(model, configured("preserve")):
        cache = model(**batch(prompt(*PROMPT)))[CACHE]
        lengths = cache_lengths(cache)
        for each in (cache, cache.layers[-1]):
            with pytest.raises(RuntimeError, match="activate_past_recording"):
                each.crop(-2)
        assert cache_lengths(cache) == lengths


@kinds
@ways
@pytest.mark.parametrize("window", [9, 60])
@torch.no_grad()
def test_samples_are_picked_and_copied(
    window: int, attention: str, positions: str, kind: str
) -> None:
    model, inputs = mistral(attention, window), batch(*RAGGED)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.int64)], 1)
    token, rows = torch.tensor([[8], [9], [10]]), torch.tensor([2, 0, 1])

    def step(cache: Any, rows: torch.Tensor) -> torch.Tensor:
        call = {"input_ids": token[rows], "attention_mask": mask[rows]}
        return model(**call, **{CACHE: cache}).logits

    with lk.attach(model, configured(positions)):
        cache = cache_for(kind, model)
        model(**inputs, **{CACHE: cache})
        copied, loaded = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
        picked, repeated = copy.deepcopy(cache), copy.deepcopy(cache)
        expected = step(cache, torch.arange(3))
        assert torch.equal(step(loaded, torch.arange(3)), expected)
        copied.reorder_cache(rows)
        near(step(copied, rows), expected[rows])
        if kind == "dynamic":
            picked.batch_select_indices(rows[:2])
            near(step(picked, rows[:2]), expected[rows[:2]])
            repeated.batch_repeat_interleave(2)
            twice = torch.arange(3).repeat_interleave(2)
            near(step(repeated, twice), expected[twice])


@pytest.mark.skipif(not RESETS, reason="reset writes zeros")
@kinds
@torch.no_grad()
def test_a_reset_cache_is_like_new(kind: str) -> None:
    model, inputs = mistral("sdpa", 14), batch(*RAGGED)
    text = batch(prompt(18), prompt(5, seed=1), prompt(17, seed=2))
    cache = cache_for(kind, model)
    with lk.attach(model, configured("reindex")):
        expected = model(**inputs, **{CACHE: cache}).logits
        with pytest.raises(RuntimeError, match="outside the context"):
            cache.layers[0].update(torch.zeros(3, 2, 1, 16), torch.zeros(3, 2, 1, 16))
        cache.reset()
        assert torch.equal(model(**inputs, **{CACHE: cache}).logits, expected)
    cache.reset()
    plain = model(**text, **{CACHE: cache_for(kind, model)}).logits
    assert torch.equal(model(**text, **{CACHE: cache}).logits, plain)
