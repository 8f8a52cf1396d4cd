"""Caches of fixed size: compressed layers have fewer slots, and see none that is not written."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from families.loop import FamilyLoop
from marks import NO_PLACEHOLDER, attentions, policies, ways
from models import CACHE, alone, batch, cache_lengths, greedy, loop_logits, near, prompt, tiny_llava
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig, DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer

import lightkv_gnn as lk
from lightkv_gnn.cache.layers import CompressedStaticLayer

SCHEDULE = ((1, 2, 0.5), (3, 1, 0.5))
STAGES = [lk.Stage(*stage) for stage in SCHEDULE]
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]
PROMPT = (4, "image", 6)
REMOVED = [0, 0, 8, 8, 12, 12]  # of PROMPT, in each layer
SLOTS = 64


def configured(positions: str = "preserve", **options: Any) -> lk.LightKVConfig:
    return lk.LightKVConfig(STAGES, positions=positions, **options)


def static(model: torch.nn.Module, slots: int = SLOTS, *, allocated: int = 0) -> StaticCache:
    """A cache; with ``allocated`` it has its memory already, for that many samples."""
    cache = StaticCache(config=model.config.text_config, max_cache_len=slots)
    if allocated:
        cache.early_initialization(allocated, 2, 16, torch.float32, torch.device("cpu"))
    return cache


def seen(cache: Any) -> list[int]:
    return [int(layer.get_seq_length()) for layer in cache.layers]


@pytest.mark.parametrize("allocated", [0, 1], ids=["lazy", "allocated"])
@policies
@attentions
@torch.no_grad()
def test_prefill_and_decoding_equal_the_loop(
    attention: str, positions: str, allocated: int
) -> None:
    model, inputs = tiny_llava(attention=attention), batch(prompt(*PROMPT))
    loop = FamilyLoop(model, "llava", SCHEDULE, positions=positions)
    cache = static(model, allocated=allocated)
    with lk.attach(model, configured(positions)) as handle:
        expected = loop_logits(loop, inputs)
        near(model(**inputs, **{CACHE: cache}).logits[0], expected)
        rows = handle.ledger.rows
        assert [row.observed_kv_bytes for row in rows] == [256 * n for n in loop.lengths]
        assert [row.planned.kv_bytes for row in rows] == [256 * n for n in loop.lengths]
        assert cache_lengths(cache) == [SLOTS - removed for removed in REMOVED]
        assert cache.get_max_length() == SLOTS
        for _ in range(SLOTS - 26):  # to the last slot
            assert seen(cache) == [loop.seen] * 6
            token = int(expected[-1].argmax())
            expected = loop.run_text([token])
            logits = model(input_ids=torch.tensor([[token]]), **{CACHE: cache}).logits[0]
            near(logits, expected)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
    assert loop.margin > 1e-4


TURNS = {
    "text": [(5,)],
    "an image": [(3, "image", 4)],
    "text, image, text": [(2,), (1, "image", "image", 3), (4,)],
}


@pytest.mark.parametrize("before", [(), (3,)], ids=["image first", "text first"])
@policies
@attentions
@pytest.mark.parametrize("turns", TURNS)
@torch.no_grad()
def test_later_turns_equal_the_loop(
    turns: str, attention: str, positions: str, before: tuple[int, ...]
) -> None:
    """A layer that held tokens before keeps its slots: some stand for tokens past the end."""
    model = tiny_llava(attention=attention)
    parts = [*([before] if before else []), PROMPT, *TURNS[turns]]
    total = sum(16 if part == "image" else int(part) for turn in parts for part in turn)
    loop = FamilyLoop(model, "llava", SCHEDULE, positions=positions)
    cache = static(model, total + 4)
    with lk.attach(model, configured(positions)) as handle:
        for number, turn in enumerate(parts):
            inputs = batch(prompt(*turn, seed=number), seed=number)
            ids, images = inputs["input_ids"], inputs.get("pixel_values")
            expected = loop_logits(loop, inputs)
            logits = model(input_ids=ids, pixel_values=images, **{CACHE: cache}).logits[0]
            near(logits, expected)
            assert seen(cache) == [loop.seen] * 6
            if images is not None:
                rows = handle.ledger.rows
                assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in rows)
        tokens, _ = loop.greedy(expected[-1], 5)
        for token in tokens:
            assert int(logits[-1].argmax()) == token
            if seen(cache)[0] < total + 4:
                logits = model(input_ids=torch.tensor([[token]]), **{CACHE: cache}).logits[0]
    assert loop.margin > 1e-4
    lengths = cache_lengths(cache)
    if before:
        assert lengths == [total + 4] * 6
    else:
        assert lengths == [total + 4 - removed for removed in REMOVED]


@policies
@attentions
@torch.no_grad()
def test_a_ragged_batch_equals_each_alone(attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    mask = inputs["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with lk.attach(model, configured(positions)):
        cache = static(model)
        logits = model(**inputs, position_ids=places, **{CACHE: cache}).logits
        own = []
        for number, (where, single) in enumerate(alone(inputs, *RAGGED)):
            own.append(DynamicCache())
            near(logits[number, where], model(**single, **{CACHE: own[-1]}).logits[0])
        for step in range(6):
            token = torch.tensor([[9 + step], [30 + step], [70 + step]])
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            places = places[:, -1:] + 1
            call = {"attention_mask": mask, "position_ids": places, CACHE: cache}
            logits = model(input_ids=token, **call).logits
            for number in range(3):
                single = model(input_ids=token[number : number + 1], **{CACHE: own[number]})
                near(logits[number], single.logits[0])


@torch.no_grad()
def test_equal_lengths_but_unequal_merges() -> None:
    """No mask comes from transformers, yet one is needed."""
    model, prompts = tiny_llava(), [prompt(2, "image", "image", 6), prompt(40, seed=2)]
    inputs, step = batch(*prompts), torch.tensor([[7], [8]])
    with lk.attach(model, configured()):
        cache = static(model)
        logits = model(**inputs, **{CACHE: cache}).logits
        after = model(input_ids=step, **{CACHE: cache}).logits
        for number, (_, single) in enumerate(alone(inputs, *prompts)):
            own = model(**single)
            near(logits[number], own.logits[0])
            last = model(input_ids=step[number : number + 1], **{CACHE: own[CACHE]})
            near(after[number], last.logits[0])


@pytest.mark.parametrize("text", ["llama", "qwen2"])  # one mask, and one for each kind of layer
@policies
@attentions
def test_generate(attention: str, positions: str, text: str) -> None:
    model, inputs = tiny_llava(text, attention), batch(*RAGGED)
    with lk.attach(model, configured(positions)) as handle:
        expected = greedy(model, inputs, 8)
        rows = handle.ledger.to_dict()["rows"]
        assert torch.equal(greedy(model, inputs, 8, cache_implementation="static"), expected)
        assert handle.ledger.to_dict()["rows"] == rows
        beams = greedy(model, inputs, 8, num_beams=3)
        found = greedy(model, inputs, 8, num_beams=3, cache_implementation="static")
        assert torch.equal(found, beams)
        assert torch.equal(greedy(model, inputs, 8, **{CACHE: static(model)}), expected)
    with lk.attach(model, configured(positions, guidance="none")):
        cached = greedy(model, inputs, 8, cache_implementation="static", **NO_PLACEHOLDER)
        assert torch.equal(cached, greedy(model, inputs, 8, use_cache=False, **NO_PLACEHOLDER))


@ways
@torch.no_grad()
def test_generate_goes_on_from_a_cache(attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED[:2])
    question = torch.tensor([[7, 8, 9], [10, 11, 12]])
    longer = []
    with lk.attach(model, configured(positions)):
        for cache in (DynamicCache(), static(model)):
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, **{CACHE: cache})
            mask = torch.ones(2, 7, dtype=torch.int64)
            more = {
                "input_ids": torch.cat([ids, question], 1),
                "attention_mask": torch.cat([inputs["attention_mask"], mask], 1),
            }
            longer.append(greedy(model, more, 6, **{CACHE: cache}))
    assert torch.equal(*longer)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_reset_cache_is_like_new(attention: str) -> None:
    """All its slots are there again, in and out of the context."""
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    text = batch(*(prompt(SLOTS - 1, seed=seed) for seed in range(3)))
    step = {"input_ids": torch.tensor([[5], [6], [7]])}
    cache, plain = static(model), static(model)
    expected = [model(**each, **{CACHE: plain}).logits for each in (text, step)]
    with lk.attach(model, configured("reindex")):
        first = model(**inputs, **{CACHE: cache}).logits
        for _ in range(2):
            cache.reset()
            assert seen(cache) == [0] * 6
            assert torch.equal(model(**inputs, **{CACHE: cache}).logits, first)
        cache.reset()
        for each, logits in zip((text, step), expected, strict=True):
            assert torch.equal(model(**each, **{CACHE: cache}).logits, logits)
        cache.reset()
        model(**inputs, **{CACHE: cache})
    cache.reset()
    for each, logits in zip((text, step), expected, strict=True):
        assert torch.equal(model(**each, **{CACHE: cache}).logits, logits)
    assert cache_lengths(cache) == [SLOTS] * 6


@attentions
@torch.no_grad()
def test_a_compressed_cache_is_refused_outside_the_context(attention: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(prompt(*PROMPT))
    with lk.attach(model, configured()):
        cache = static(model)
        model(**inputs, **{CACHE: cache})
    before = [layer.keys.clone() for layer in cache.layers]
    with pytest.raises(RuntimeError, match="outside the context"):
        model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
    assert seen(cache) == [26] * 6
    assert all(torch.equal(x.keys, old) for x, old in zip(cache.layers, before, strict=True))


@torch.no_grad()
def test_text_alone_leaves_the_cache_as_it_was() -> None:
    model, text = tiny_llava(), batch(prompt(9), prompt(5, seed=1))
    cache, plain = static(model), static(model)
    expected = model(**text, **{CACHE: plain}).logits
    with lk.attach(model, configured()):
        assert torch.equal(model(**text, **{CACHE: cache}).logits, expected)
    assert all(type(layer) is StaticLayer for layer in cache.layers)
    assert cache_lengths(cache) == [SLOTS] * 6


@ways
@torch.no_grad()
def test_copies_and_reordered_samples(attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.int64)], 1)
    token, rows = torch.tensor([[8], [9], [10]]), torch.tensor([2, 0, 1])
    with lk.attach(model, configured(positions)):
        cache = static(model)
        model(**inputs, **{CACHE: cache})
        copied, loaded = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
        call = {"input_ids": token, "attention_mask": mask}
        expected = model(**call, **{CACHE: cache}).logits
        assert seen(copied) == [41] * 6
        assert torch.equal(model(**call, **{CACHE: loaded}).logits, expected)
        copied.reorder_cache(rows)
        call = {"input_ids": token[rows], "attention_mask": mask[rows]}
        near(model(**call, **{CACHE: copied}).logits, expected[rows])
    kinds = [type(layer) for layer in copied.layers]
    assert kinds == [CompressedStaticLayer] * 6


class NothingReadBack(TorchDispatchMode):
    """Fails where the host would wait for a number from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        assert "nonzero" not in str(func)
        return func(*args, **(kwargs or {}))


@ways
@torch.no_grad()
def test_decoding_reads_nothing_back(attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    real = inputs["attention_mask"].bool()
    with lk.attach(model, configured(positions)):
        cache, expected = static(model), model(**inputs)[CACHE]
        model(**inputs, **{CACHE: cache})
        wide = torch.nn.functional.pad(real, (0, SLOTS - real.shape[1]))
        wide[:, real.shape[1]] = True
        call = {"input_ids": torch.tensor([[5], [6], [7]])}
        call["position_ids"] = torch.full((3, 1), real.shape[1])
        mask = wide[:, None, None, :]
        if attention == "eager":
            least = torch.finfo(torch.float32).min
            mask = torch.zeros(mask.shape).masked_fill(~mask, least)
        with NothingReadBack():
            assert isinstance(cache.get_seq_length(), torch.Tensor)
            assert isinstance(cache.layers[2].get_seq_length(), torch.Tensor)
            found = model(**call, attention_mask=mask, **{CACHE: cache}).logits
        call["attention_mask"] = torch.cat([real, torch.ones(3, 1, dtype=torch.bool)], 1)
        near(found, model(**call, **{CACHE: expected}).logits)


@pytest.mark.slow
@ways
def test_compiled_decoding(attention: str, positions: str) -> None:
    """Compiled once, for all steps."""
    model, inputs = tiny_llava(attention=attention, layers=2), batch(*RAGGED)
    config = lk.LightKVConfig([lk.Stage(0, 2, 0.5)], positions=positions)
    how = CompileConfig(backend="eager", mode=None, fullgraph=False)
    how._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": how}
    with lk.attach(model, config):
        expected = greedy(model, inputs, 8)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        assert torch.equal(greedy(model, inputs, 3, **options), expected[:, :3])
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert compiled > 0
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(greedy(model, inputs, 3, **options), expected[:, :3])
