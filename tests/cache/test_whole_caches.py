"""What a cache is asked for layer by layer: all of its layers do it, or none has changed."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cache_acts import ACTS, Packed
from marks import ways
from models import CACHE, batch, near, prompt, tiny_llava
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

import lightkv_gnn as lk
from lightkv_gnn.cache.layerwise import LayerwiseMixin

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
FIRST, SECOND = batch(prompt(4, "image", 6)), batch(prompt(3, "image", 4, seed=1), seed=1)
TOKEN = torch.tensor([[7]])


def dynamic(model: Any) -> Cache:
    return DynamicCache()


def static(model: Any) -> Cache:
    return StaticCache(config=model.config.text_config, max_cache_len=80)


CROPS = hasattr(StaticLayer, "crop")
"""Not those of transformers 5.17."""

made = pytest.mark.parametrize("make", [dynamic, static] if CROPS else [dynamic])


def answers(model: Any, cache: Any, **inputs: Any) -> torch.Tensor:
    """Logits of a turn; a mask of all tokens so far is what transformers makes out of none."""
    inputs.pop("attention_mask", None)
    logits: torch.Tensor = model(**inputs, **{CACHE: cache}).logits
    return logits


def held(cache: Any) -> list[Any]:
    """Everything that the layers hold: contents, lengths and bookkeeping."""
    names = ("keys", "values", "logical", "merged", "log_mass")
    found: list[Any] = []
    for layer in cache.layers:
        tensors = (getattr(layer, name, None) for name in names)
        found.append([None if x is None else x.tolist() for x in tensors])
        found.append([int(layer.get_seq_length()), layer.shift, layer.tail, len(layer.turns)])
    return found


def refused(model: Any, cache: Any, act: Callable[[Any], Any], error: type, words: str) -> None:
    """Asserts that nothing changes, as the cache tells and as the next answer does."""
    expected, before = answers(model, copy.deepcopy(cache), input_ids=TOKEN), held(cache)
    for one in (cache, copy.deepcopy(cache)):  # copies of layers know each other too
        with pytest.raises(error, match=words):
            act(one)
        assert held(one) == before
        assert torch.equal(answers(model, one, input_ids=TOKEN), expected)


@made
@ways
@torch.no_grad()
def test_a_refused_crop_changes_nothing(attention: str, positions: str, make: Any) -> None:
    model = tiny_llava(attention=attention)
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)):
        cache = make(model)
        answers(model, cache, **FIRST)
        for drop in (7, 12, 26, 40):
            some = copy.deepcopy(cache)
            words = f"the last {drop} tokens from the cache: only the last 6"
            refused(model, some, lambda each, drop=drop: each.crop(-drop), ValueError, words)


@made
@ways
@torch.no_grad()
def test_a_later_turn_is_taken_back_as_a_whole(attention: str, positions: str, make: Any) -> None:
    """With its picture and the text around it, and can be given again; a part of it cannot."""
    model = tiny_llava(attention=attention)
    config = lk.LightKVConfig(STAGES, positions=positions, attention="mass")
    text = {"input_ids": torch.tensor([[11, 12]])}
    for opening in (FIRST, text):  # compressed already, and not yet
        with lk.attach(model, config):
            cache = make(model)
            answers(model, cache, **opening)
            before, seen = copy.deepcopy(cache), int(cache.get_seq_length())
            steps = [answers(model, cache, **turn) for turn in (text, SECOND)]
            refused(model, copy.deepcopy(cache), lambda each: each.crop(-9), ValueError, "whole")
            for dropped, again in ((23, (SECOND,)), (25, (text, SECOND))):
                cache.crop(-dropped)
                back = copy.deepcopy(cache)
                if dropped == 25:
                    assert int(cache.get_seq_length()) == seen
                    expected = answers(model, before, input_ids=TOKEN)
                    near(answers(model, copy.deepcopy(cache), input_ids=TOKEN), expected)
                for turn, logits in zip(again, steps[-len(again) :], strict=True):
                    near(answers(model, cache, **turn), logits)
                assert [int(layer.get_seq_length()) for layer in back.layers] == [
                    seen + 25 - dropped
                ] * 6


@pytest.mark.parametrize("what", ACTS)
@torch.no_grad()
def test_what_a_later_layer_cannot_do_no_layer_does(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("transformers.cache_utils.BaseQuantizedLayer", raising=False)
    model = tiny_llava()
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        cache = DynamicCache()
        answers(model, cache, **FIRST)
        last = Packed.of(cache.layers[-1])
        cache.layers[-1] = last
        last.siblings.join(last)
        refused(
            model, cache, ACTS[what], lk.UnsupportedInputError, f"quantized cache cannot {what}"
        )


@torch.no_grad()
def test_a_window_between_the_first_layer_and_a_stage_is_asked() -> None:
    model = tiny_llava()
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        cache = DynamicCache()
        cache.layers = [
            DynamicLayer(),
            DynamicSlidingWindowLayer(26),
            *(DynamicLayer() for _ in range(4)),
        ]
        answers(model, cache, **FIRST)
        words = "activate_past_recording"
        refused(model, cache, lambda each: each.crop(-2), RuntimeError, words)


@torch.no_grad()
def test_layers_that_know_each_other_are_freed_with_their_cache() -> None:
    """At once: a cycle would hold their memory until the garbage collector runs."""
    model = tiny_llava()
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        cache = DynamicCache()
        answers(model, cache, **FIRST)
    assert all(isinstance(layer, LayerwiseMixin) for layer in cache.layers)
    last = weakref.ref(cache.layers[-1])
    gc.disable()
    try:
        del cache
        assert last() is None
    finally:
        gc.enable()


@torch.no_grad()
def test_transformers_that_crops_no_cache_of_fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    if CROPS:
        monkeypatch.delattr(StaticLayer, "crop")
    model = tiny_llava()
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        cache = static(model)
        answers(model, cache, **FIRST)
        refused(model, cache, lambda each: each.crop(-1), lk.UnsupportedInputError, "a newer one")
