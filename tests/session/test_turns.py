"""A compressed cache as an object: later turns, and everything caches can do."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families.loop import FamilyLoop
from marks import attentions, policies, ways
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
from transformers import DynamicCache, QuantizedCache, StaticCache, cache_utils

import lightkv_gnn as lk
from lightkv_gnn.cache.layers import CompressedLayer, CompressedSlidingLayer

SCHEDULE = ((1, 2, 0.5), (3, 1, 0.5))
STAGES = [lk.Stage(*stage) for stage in SCHEDULE]
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]


TURNS = {
    "text": [(5,)],
    "an image": [(3, "image", 4)],
    "text, image, text": [(2,), (1, "image", "image", 3), (4,)],
}


@policies
@attentions
@pytest.mark.parametrize("turns", TURNS)
@torch.no_grad()
def test_later_turns_equal_the_loop(turns: str, attention: str, positions: str) -> None:
    model = tiny_llava(attention=attention)
    loop, cache = FamilyLoop(model, "llava", SCHEDULE, positions=positions), DynamicCache()
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)) as handle:
        for number, parts in enumerate([(4, "image", 6), *TURNS[turns]]):
            inputs = batch(prompt(*parts, seed=number), seed=number)
            images = inputs.get("pixel_values")
            expected = loop_logits(loop, inputs)
            # transformers makes the mask of all tokens so far out of none.
            call = {"input_ids": inputs["input_ids"], "pixel_values": images}
            logits = model(**call, **{CACHE: cache}).logits[0]
            near(logits, expected)
            assert cache_lengths(cache) == loop.lengths
            assert cache.get_seq_length() == loop.seen
            assert {layer.get_seq_length() for layer in cache.layers} == {loop.seen}
            if images is not None:
                rows = handle.ledger.rows
                assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in rows)
        tokens, _ = loop.greedy(expected[-1], 8)
        for token in tokens:
            assert int(logits[-1].argmax()) == token
            logits = model(input_ids=torch.tensor([[token]]), **{CACHE: cache}).logits[0]
    assert loop.margin > 1e-4


@policies
@attentions
@torch.no_grad()
def test_turns_of_a_ragged_batch_equal_each_alone(attention: str, positions: str) -> None:
    """The second turn has pictures for some samples, and is padded itself."""
    model = tiny_llava(attention=attention)
    second = [prompt(3, seed=5), prompt(2, "image", 3, seed=6), prompt("image", 2, seed=7)]
    first_inputs, second_inputs = batch(*RAGGED), batch(*second, seed=9)
    both = torch.cat([first_inputs["attention_mask"], second_inputs["attention_mask"]], 1)
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)) as handle:
        places = (both.cumsum(1) - 1).clamp(min=0)
        seen = first_inputs["input_ids"].shape[1]
        cache = model(**first_inputs, position_ids=places[:, :seen])[CACHE]
        call = {**second_inputs, "attention_mask": both, "position_ids": places[:, seen:]}
        logits = model(**call, **{CACHE: cache}).logits
        rows = handle.ledger.rows
        assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in rows)
        token = logits[:, -1:].argmax(-1)
        mask = torch.cat([both, torch.ones_like(token)], 1)
        steps = {"attention_mask": mask, "position_ids": places[:, -1:] + 1}
        after = model(input_ids=token, **{CACHE: cache}, **steps).logits
        pairs = zip(alone(first_inputs, *RAGGED), alone(second_inputs, *second), strict=True)
        for number, ((_, one), (where, two)) in enumerate(pairs):
            own = model(**one)[CACHE]
            two.pop("attention_mask")
            own_logits = model(**two, **{CACHE: own}).logits[0]
            near(logits[number, where], own_logits)
            own_after = model(input_ids=token[number][None], **{CACHE: own}).logits
            near(after[number], own_after[0])


@ways
@torch.no_grad()
def test_generate_goes_on_from_a_cache(attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED[:2])
    question = torch.tensor([[7, 8, 9], [10, 11, 12]])
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)):
        out = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
        )
        ids = torch.cat([out.sequences, question], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 7, dtype=torch.int64)], 1)
        longer = {"input_ids": ids, "attention_mask": mask}
        cache, again = out[CACHE], copy.deepcopy(out[CACHE])
        found = greedy(model, longer, 5, **{CACHE: cache})
        # Step by step: the last token is not in the cache yet.
        tokens = []
        new = ids[:, again.get_seq_length() :]
        places = (mask.cumsum(1) - 1)[:, -new.shape[1] :]
        for _ in range(5):
            step = {"attention_mask": mask, "position_ids": places, CACHE: again}
            new = model(input_ids=new, **step).logits[:, -1:].argmax(-1)
            tokens.append(new)
            mask = torch.cat([mask, torch.ones_like(new)], 1)
            places = places[:, -1:] + 1
    assert torch.equal(found, torch.cat(tokens, 1))


class Session:
    """A prefilled ragged batch, and one more token for each sample."""

    def __init__(self, attention: str, positions: str) -> None:
        self.model = tiny_llava(attention=attention)
        self.inputs = batch(*RAGGED)
        self.config = lk.LightKVConfig(STAGES, positions=positions)
        self.mask = self.inputs["attention_mask"]
        self.inputs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)

    def prefill(self) -> Any:
        return self.model(**self.inputs)[CACHE]

    def step(
        self, cache: Any, rows: list[int] | None = None, token: int = 7, more: int = 1
    ) -> torch.Tensor:
        """Logits of ``more`` tokens after samples ``rows``, `[row, token, vocabulary]`."""
        rows = [0, 1, 2] if rows is None else rows
        ids = torch.tensor([[token + row + n for n in range(more)] for row in rows])
        past = cache.get_seq_length() - self.mask.shape[1]
        new = torch.ones(len(rows), past + more, dtype=torch.int64)
        mask = torch.cat([self.mask[rows], new], 1)
        places = (mask.cumsum(1) - 1)[:, -more:]
        call = {"attention_mask": mask, "position_ids": places, CACHE: cache}
        return self.model(input_ids=ids, **call).logits


@pytest.fixture(params=[("eager", "reindex"), ("sdpa", "preserve")], ids="-".join)
def session(request: pytest.FixtureRequest) -> Any:
    made = Session(*request.param)
    with torch.no_grad(), lk.attach(made.model, made.config):
        yield made


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2], [2, 0, 1], [1], [2, 2, 0]], ids=str)
def test_rows_of_a_cache_can_be_chosen(session: Session, rows: list[int]) -> None:
    expected = session.step(session.prefill())
    cache = session.prefill()
    if rows == [0, 0, 1, 1, 2, 2]:
        cache.batch_repeat_interleave(2)
    elif len(rows) == 3:
        cache.reorder_cache(torch.tensor(rows))
    else:
        cache.batch_select_indices(torch.tensor(rows))
    near(session.step(cache, rows), expected[rows])
    near(session.step(cache, rows, 30), session.step(_after_one(session), token=30)[rows])


def _after_one(session: Session) -> Any:
    cache = session.prefill()
    session.step(cache)
    return cache


def test_a_copied_cache_is_independent(session: Session) -> None:
    cache = session.prefill()
    copied = copy.deepcopy(cache)
    lengths = cache_lengths(cache)
    first = session.step(cache, more=3)
    assert cache_lengths(copied) == lengths
    assert torch.equal(session.step(copied, more=3), first)
    assert cache_lengths(copied) == cache_lengths(cache) == [n + 3 for n in lengths]


@pytest.mark.parametrize("drop", [1, 3, 5])
def test_dropped_tokens_leave_no_trace(session: Session, drop: int) -> None:
    expected = session.step(session.prefill(), token=40)
    cache = session.prefill()
    lengths = cache_lengths(cache)
    session.step(cache, more=drop)
    cache.crop(-drop)
    assert cache_lengths(cache) == lengths
    near(session.step(cache, token=40), expected)


def test_dropping_nothing_is_nothing(session: Session) -> None:
    cache = session.prefill()
    before, seen = cache_lengths(cache), cache.get_seq_length()
    cache.crop(0)
    assert cache_lengths(cache) == before
    assert cache.get_seq_length() == seen


@policies
@attentions
@torch.no_grad()
def test_the_end_of_the_prefill_can_be_dropped(attention: str, positions: str) -> None:
    """As far as every sample has text at its end; the tokens can be given again."""
    model, inputs = tiny_llava(attention=attention), batch(prompt(4, "image", 6))
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)):
        out = model(**inputs)
        cache = out[CACHE]
        cache.crop(-4)
        for part in (slice(-4, -3), slice(-3, None)):
            again = model(input_ids=inputs["input_ids"][:, part], **{CACHE: cache}).logits
            near(again, out.logits[:, part])
        assert cache_lengths(cache) == [26, 26, 18, 18, 14, 14]
        model(input_ids=torch.tensor([[5, 6]]), **{CACHE: cache})
        cache.crop(-7)  # both new tokens and five of the prefill's
        again = model(input_ids=inputs["input_ids"][:, -5:], **{CACHE: cache}).logits
        near(again, out.logits[:, -5:])


@pytest.mark.parametrize(
    ("prompts", "tail"),
    [
        ([prompt(4, "image", 6)], 6),
        ([prompt(4, "image", 6), prompt(2, "image", 3)], 3),
        ([prompt(3, "image")], 0),
    ],
)
@torch.no_grad()
def test_merged_tokens_cannot_be_dropped(prompts: list[tuple[list[int], int]], tail: int) -> None:
    model = tiny_llava()
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        cache = model(**batch(*prompts))[CACHE]
        model(input_ids=torch.full((len(prompts), 2), 9), **{CACHE: cache})
        layer = cache.layers[-1]
        with pytest.raises(ValueError, match=rf"only the last {tail + 2} were kept one by one"):
            layer.crop(-tail - 3)
        layer.crop(-tail - 2)


@pytest.mark.skipif(not RESETS, reason="reset writes zeros")
@torch.no_grad()
def test_a_reset_cache_is_like_new(session: Session) -> None:
    out = session.model(**session.inputs)
    cache = out[CACHE]
    session.step(cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    text = batch(prompt(8), prompt(5, seed=1), prompt(7, seed=2))
    plain = session.model(**text)
    reused = session.model(**text, **{CACHE: cache})
    assert torch.equal(reused.logits, plain.logits)
    cache.reset()
    again = session.model(**session.inputs, **{CACHE: cache})
    assert torch.equal(again.logits, out.logits)


@pytest.mark.skipif(not RESETS, reason="reset writes zeros")
@torch.no_grad()
def test_a_reset_cache_serves_outside_the_context() -> None:
    made = Session("sdpa", "reindex")
    with lk.attach(made.model, made.config):
        cache = made.prefill()
    expected = made.model(**made.inputs).logits
    cache.reset()
    assert torch.equal(made.model(**made.inputs, **{CACHE: cache}).logits, expected)


@attentions
@policies
@torch.no_grad()
def test_a_compressed_cache_is_refused_outside_the_context(attention: str, positions: str) -> None:
    """Its entries would be taken for other tokens, silently."""
    for prompts in (RAGGED, RAGGED[:1]):
        model, inputs = tiny_llava(attention=attention), batch(*prompts)
        config = lk.LightKVConfig(STAGES, positions=positions)
        with lk.attach(model, config):
            cache = model(**inputs)[CACHE]
            inside = copy.deepcopy(cache)
        lengths = cache_lengths(cache)
        new = torch.ones(len(prompts), 1, dtype=torch.int64)
        call = {"input_ids": 8 * new}
        call["attention_mask"] = torch.cat([inputs["attention_mask"], new], 1)
        with pytest.raises(RuntimeError, match="outside the context"):
            model(**call, **{CACHE: cache})
        assert cache_lengths(cache) == lengths
        with lk.attach(model, config):
            model(**call, **{CACHE: inside})


@pytest.mark.parametrize("text", ["llama", "mistral"])
@torch.no_grad()
def test_layers_change_their_class_and_the_first_answers_for_all(text: str) -> None:
    model = tiny_llava(text)
    kind = CompressedSlidingLayer if text == "mistral" else CompressedLayer
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        for cache in (None, DynamicCache(config=model.config.text_config)):
            layers = model(**batch(*RAGGED), **{CACHE: cache})[CACHE].layers
            compressed = [layer for layer in layers if "lightkv" in type(layer).__module__]
            assert compressed == list(layers)
            assert all(type(layer) is kind for layer in compressed)
            assert [layer.guard for layer in compressed] == [True] + [False] * 5
        lazy = DynamicCache()
        model(**batch(*RAGGED), **{CACHE: lazy})
        assert all(type(layer) is CompressedLayer for layer in lazy.layers)


FRESH = """
import sys
sys.path[:0] = {path!r}
import torch
cases, config = torch.load({file!r}, weights_only=False)
from models import CACHE, tiny_llava
import lightkv_gnn as lk
logits = []
with torch.no_grad():
    for text, options, cache, step in cases:
        model = tiny_llava(text, "eager", text_options=options)
        with lk.attach(model, lk.LightKVConfig.from_json(config)):
            logits.append(model(**step, **{{CACHE: cache}}).logits)
torch.save(logits, {out!r})
"""


def caches() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every kind, with the text model that it serves and the model's options."""
    for text, options in (("llama", {}), ("mistral", {"sliding_window": 14})):
        config = tiny_llava(text, text_options=options).config.text_config
        yield text, options, DynamicCache(config=config)
        yield text, options, StaticCache(config=config, max_cache_len=64)
    if hasattr(cache_utils, "Fp8QuantizedLayer"):
        config = tiny_llava().config.text_config
        yield "llama", {}, QuantizedCache("fp8", config)


@pytest.mark.slow
@torch.no_grad()
def test_a_cache_goes_to_another_process(tmp_path: Path) -> None:
    inputs, config = batch(*RAGGED), lk.LightKVConfig(STAGES, positions="reindex")
    new = torch.ones(3, 2, dtype=torch.int64)
    step = {"input_ids": 8 * new, "attention_mask": torch.cat([inputs["attention_mask"], new], 1)}
    step["position_ids"] = (step["attention_mask"].cumsum(1) - 1)[:, -2:]
    cases, expected = [], []
    for text, options, cache in caches():
        model = tiny_llava(text, "eager", text_options=options)
        with lk.attach(model, config):
            model(**inputs, **{CACHE: cache})
            cases.append((text, options, copy.deepcopy(cache), step))
            expected.append(model(**step, **{CACHE: cache}).logits)
    file, out = tmp_path / "cache.pt", tmp_path / "logits.pt"
    torch.save((cases, config.to_json()), file)
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "graphs"), str(root / "tests")]
    code = FRESH.format(path=paths, file=str(file), out=str(out))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    for found, logits in zip(torch.load(out), expected, strict=True):
        near(found, logits, 1e-6)


@torch.no_grad()
def test_a_pickled_cache_goes_on() -> None:
    made = Session("eager", "reindex")
    with lk.attach(made.model, made.config) as handle:
        cache = made.prefill()
        check_ledger(handle.ledger, cache)
        loaded = pickle.loads(pickle.dumps(cache))
        assert torch.equal(made.step(loaded), made.step(cache))
