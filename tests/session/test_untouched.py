"""Where there is nothing to merge, an attached model is the plain model, to the bit."""

from __future__ import annotations

import pytest
import torch
from models import CACHE, IMAGE_TOKEN, batch, prompt, tiny_llava

import lightkv_gnn as lk

IDLE = {
    "no stages": lk.LightKVConfig([]),
    "ratio 0": lk.LightKVConfig([lk.Stage(0, 2, 0.0), lk.Stage(2, 1, 0.0)], positions="reindex"),
    "windows too small": lk.LightKVConfig([lk.Stage(1, 2, 0.2)]),
    "one token per window": lk.LightKVConfig([lk.Stage(1, 4, 0.5)]),
}

BUSY = lk.LightKVConfig([lk.Stage(0, 2, 0.5), lk.Stage(2, 1, 0.5)])

PICTURES = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]
TEXTS = [prompt(12, seed=3), prompt(7, seed=4)]


def answers(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[list, list]:
    """Everything that the model tells, and the classes of its cache's layers."""
    out = model(**inputs)
    generated = model.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    caches = (out[CACHE], generated[CACHE])
    states = [part for cache in caches for layer in cache.layers for part in layer.__dict__.items()]
    tensors = [value for _, value in states if isinstance(value, torch.Tensor)]
    kinds = [type(layer) for cache in caches for layer in cache.layers]
    return [out.logits, generated.sequences, *generated.logits, *tensors], kinds


def assert_same_bits(
    model: torch.nn.Module, config: lk.LightKVConfig, inputs: dict[str, torch.Tensor]
) -> None:
    expected, kinds = answers(model, inputs)
    with lk.attach(model, config):
        found, found_kinds = answers(model, inputs)
    assert found_kinds == kinds
    assert len(found) == len(expected) > len(kinds)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("idle", IDLE)
@pytest.mark.parametrize(
    ("text", "attention"), [("llama", "eager"), ("mistral", "sdpa"), ("qwen2", "eager")]
)
def test_nothing_to_merge(text: str, attention: str, idle: str) -> None:
    assert_same_bits(tiny_llava(text, attention), IDLE[idle], batch(*PICTURES))


@pytest.mark.parametrize("prompts", [TEXTS[:1], TEXTS], ids=["one", "ragged"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_text_only(attention: str, prompts: list[tuple[list[int], int]]) -> None:
    assert_same_bits(tiny_llava(attention=attention), BUSY, batch(*prompts))


@pytest.mark.parametrize("encoded", [{}, {"mm_encoder_outputs": {"image": None}}], ids=str)
@pytest.mark.parametrize("count", [3, 16], ids=["part of an image", "an image's worth"])
def test_placeholders_without_pictures_are_text(count: int, encoded: dict) -> None:
    inputs = {**batch(prompt(20)), **encoded}
    inputs["input_ids"][0, 2 : 2 + count] = IMAGE_TOKEN
    assert_same_bits(tiny_llava(), BUSY, inputs)


def test_text_only_leaves_nothing_to_tell() -> None:
    model = tiny_llava()
    with lk.attach(model, BUSY) as handle:
        model(**batch(*TEXTS))
        for tell in (lambda: handle.ledger, lambda: handle.trace, lambda: handle.graph(0)):
            with pytest.raises(RuntimeError, match="the last prefill had no pictures"):
                tell()


def test_ratio_0_still_has_a_ledger_and_a_trace() -> None:
    model = tiny_llava()
    with lk.attach(model, IDLE["ratio 0"]) as handle:
        model(**batch(*PICTURES))
        assert handle.ledger.retention == 1.0
        assert handle.ledger.totals()["kv_ratio"] == 1.0
        assert len(handle.trace) == 0
        with pytest.raises(IndexError, match="had 0 stages"):
            handle.graph(0)
