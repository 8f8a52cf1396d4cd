"""The ways to generate: all see the same compressed prefill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from marks import attentions, policies, ways
from models import CACHE, IMAGE_TOKEN, RESETS, batch, check_ledger, greedy, near, prompt, tiny_llava

import lightkv_gnn as lk

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]


# A sampled placeholder would be taken for one more image token where pictures are passed again.
NO_PLACEHOLDER: dict[str, Any] = {"suppress_tokens": [IMAGE_TOKEN]}

# Older transformers hand copies of a sample the wrong pictures where another sample has several.
ONE_EACH = [prompt(4, "image", 6), prompt(2, "image", 9, seed=1)]

METHODS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"do_sample": False, "num_beams": 3},
    "several beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 3},
}


def generate(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], method: str, **options: Any
) -> torch.Tensor:
    torch.manual_seed(7)
    options = {**METHODS[method], **NO_PLACEHOLDER, **options}
    return model.generate(**inputs, max_new_tokens=6, **options)


@pytest.mark.parametrize(
    ("method", "attention", "positions"),
    [
        (method, ("eager", "sdpa")[number % 2], ("reindex", "preserve")[number % 2])
        for number, method in enumerate(METHODS)
    ],
)
def test_cached_equals_uncached(method: str, attention: str, positions: str) -> None:
    """Only with ``guidance="none"``: otherwise each uncached step is a prefill of its own,
    guided by the answer so far."""
    copies = len({"num_beams", "num_return_sequences"} & set(METHODS[method])) > 0
    prompts = RAGGED if RESETS or not copies else ONE_EACH
    model, inputs = tiny_llava(attention=attention), batch(*prompts)
    config = lk.LightKVConfig(STAGES, guidance="none", positions=positions)
    with lk.attach(model, config) as handle:
        cached = generate(model, inputs, method)
        assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in handle.ledger.rows)
        assert torch.equal(cached, generate(model, inputs, method, use_cache=False))
        assert all(row.observed_kv_bytes is None for row in handle.ledger.rows)
    assert not torch.equal(cached, generate(model, inputs, method))


@pytest.mark.parametrize("method", METHODS)
def test_guided_generation_is_that_of_the_prompts_alone(method: str) -> None:
    """Copies of a sample, as made for beams and samples, are compressed like the sample."""
    model, inputs = tiny_llava(), batch(*RAGGED[:1])
    copies = METHODS[method].get("num_beams", METHODS[method].get("num_return_sequences", 1))
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        first = generate(model, inputs, method)
        tokens = [row.planned.tokens for row in handle.ledger.rows]
        model(**inputs)
        assert tokens == [copies * row.planned.tokens for row in handle.ledger.rows]
        assert torch.equal(first, generate(model, inputs, method))


@policies
@attentions
@torch.no_grad()
def test_prefill_without_a_cache(attention: str, positions: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)) as handle:
        cached = model(**inputs)
        check_ledger(handle.ledger, cached[CACHE])
        uncached = model(**inputs, use_cache=False)
        check_ledger(handle.ledger, None)
    assert uncached.get(CACHE) is None
    assert torch.equal(cached.logits, uncached.logits)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_tuples_instead_of_outputs(use_cache: bool) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        expected = model(**inputs, use_cache=use_cache)
        logits = model(**inputs, use_cache=use_cache, return_dict=False)[0]
        assert torch.equal(logits, expected.logits)
        out = model.model(**inputs, use_cache=use_cache, return_dict=False)
        check_ledger(handle.ledger, out[1] if use_cache else None)
    assert torch.equal(model.lm_head(out[0]), expected.logits)


@torch.no_grad()
def test_repeated_and_alternating_calls_are_independent() -> None:
    model = tiny_llava()
    prompts = [batch(made, seed=number) for number, made in enumerate(RAGGED)]
    config = lk.LightKVConfig(STAGES, positions="reindex")
    expected = []
    for inputs in prompts:
        with lk.attach(model, config):
            expected.append((greedy(model, inputs, 4), model(**inputs).logits))
    with lk.attach(model, config):
        for number in (0, 1, 1, 2, 0, 2, 1, 0):
            tokens, logits = expected[number]
            assert torch.equal(greedy(model, prompts[number], 4), tokens)
            assert torch.equal(model(**prompts[number]).logits, logits)


def calls_of(model: torch.nn.Module, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    out = run()
    hook.remove()
    return out, len(calls)


# The image comes first: transformers itself fails on a candidate that copies placeholders.
@ways
def test_prompt_lookup_equals_greedy(attention: str, positions: str) -> None:
    model, fewer = tiny_llava(attention=attention), 0
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)):
        for seed in range(4):
            inputs = batch(prompt("image", 6, seed=seed), seed=seed)
            expected, steps = calls_of(model, lambda: greedy(model, inputs, 24))  # noqa: B023
            found, lookups = calls_of(
                model,
                lambda: greedy(model, inputs, 24, prompt_lookup_num_tokens=4),  # noqa: B023
            )
            assert torch.equal(found, expected)
            fewer += steps - lookups
    assert fewer > 0  # some candidates were right, the rest was dropped from the cache


@attentions
def test_candidates_in_the_first_call(attention: str) -> None:
    """The first call holds the prompt and candidates, which are dropped from the cache again.

    Candidates are text of that call, so guided weights would see them: not equal with guidance.
    """
    model = tiny_llava(attention=attention)
    ids, _ = prompt("image", 6)
    inputs = batch((ids + ids[-6:-3], 1))
    with lk.attach(model, lk.LightKVConfig(STAGES, guidance="none", positions="reindex")):
        expected = greedy(model, inputs, 12)
        assert torch.equal(greedy(model, inputs, 12, prompt_lookup_num_tokens=4), expected)


@attentions
def test_assisted_decoding_equals_greedy(attention: str) -> None:
    """An assistant of another size, itself attached."""
    model = tiny_llava(attention=attention)
    assistant = tiny_llava(attention=attention, layers=3)
    assistant.generation_config.num_assistant_tokens = 3
    inputs = batch(prompt(4, "image", 6))
    config = lk.LightKVConfig([lk.Stage(1, 2, 0.5)], guidance="none")
    with lk.attach(model, config), lk.attach(assistant, config):
        expected = greedy(model, inputs, 10)
        found = greedy(model, inputs, 10, assistant_model=assistant, **NO_PLACEHOLDER)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("keep", [0, 1, 3, 12, torch.tensor([2, 6, 11])], ids=str)
@torch.no_grad()
def test_logits_to_keep_counts_in_the_prompts_tokens(keep: int | torch.Tensor) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        logits = model(**inputs).logits
        assert logits.shape[:2] == inputs["input_ids"].shape
        found = model(**inputs, logits_to_keep=keep).logits
    expected = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
    near(found, expected, 1e-6)


@torch.no_grad()
def test_a_merged_token_answers_with_its_survivors_row() -> None:
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        image = model(**inputs).logits[0, 4:20]
    owner = handle.trace.survivor_of()
    for survivor in range(4):
        members = handle.trace.members(survivor)
        assert torch.equal(members, (owner == survivor).nonzero()[:, 0])
        assert len(image[members].unique(dim=0)) == 1
    assert len(image.unique(dim=0)) == 4


@pytest.mark.parametrize("kind", ["forward", "generate"])
@torch.no_grad()
def test_embeddings_with_pictures_are_compressed(kind: str) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    embeds = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    del embeds["input_ids"]
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        if kind == "forward":
            assert torch.equal(model(**embeds).logits, model(**inputs).logits)
        else:
            out = model.generate(**embeds, max_new_tokens=6, do_sample=False)
            assert torch.equal(out[:, -6:], greedy(model, inputs, 6))
        assert len(handle.trace) == 2


@torch.no_grad()
def test_embeddings_without_pictures_warn_and_are_not_compressed() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    call = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    expected = model(**call).logits
    warns = pytest.warns(UserWarning, match="not compressed; pass input_ids")
    with lk.attach(model, lk.LightKVConfig(STAGES)), warns:
        found = model(**call).logits
    assert torch.equal(found, expected)


@attentions
@torch.no_grad()
def test_positions_from_the_user(attention: str) -> None:
    """Left-padded positions as ``generate`` makes them, and ones with a gap."""
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    real = inputs["attention_mask"].bool()
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for policy in ("preserve", "reindex"):
        with lk.attach(model, lk.LightKVConfig(STAGES, positions=policy)):
            expected = model(**inputs).logits[real]
            near(model(**inputs, position_ids=positions).logits[real], expected)
            near(model(**inputs, position_ids=positions + 5).logits[real], expected)
            gap = positions + 7 * (positions > 8)
            moved = model(**inputs, position_ids=gap).logits[real]
            assert float((moved - expected).abs().max()) > 1e-2
