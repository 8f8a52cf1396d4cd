"""After the context, by whatever way it was left, the model is as it was before."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from marks import attentions
from models import CACHE, LAYERS, batch, footprint, greedy, left_untouched, prompt, tiny_llava
from torch import nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention

import lightkv_gnn as lk

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
CONFIG = lk.LightKVConfig(STAGES)
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]


class BoomError(Exception):
    """Ours, so that nothing else passes for it."""


def boom(*args: Any, **kwargs: Any) -> Any:
    raise BoomError


@contextmanager
def broken(module: nn.Module, error: type[BaseException] = BoomError) -> Iterator[None]:
    """A module that fails when it is called."""

    def fail(*args: Any) -> None:
        raise error

    hook = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(("guidance", "attention"), [("none", "sdpa"), ("vision_to_text", "eager")])
def test_after_the_context(guidance: str, text: str, attention: str) -> None:
    model, inputs = tiny_llava(text, attention), batch(*RAGGED)
    with left_untouched(model, inputs):
        before = footprint(model)
        with lk.attach(model, lk.LightKVConfig(STAGES, guidance=guidance)):
            model(**inputs)
            greedy(model, inputs, 4)
            assert footprint(model) != before


def test_attaching_without_a_context() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    with left_untouched(model, inputs):
        handle = lk.attach(model, CONFIG)
        greedy(model, inputs, 2)
        handle.remove()
        handle.remove()
        assert len(handle.trace) == 2
        assert len(handle.ledger.rows) == LAYERS
        with pytest.raises(RuntimeError, match="was removed"), handle:
            pass


def test_removing_twice_does_not_remove_a_later_handle() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    first = lk.attach(model, CONFIG)
    first.remove()
    with lk.attach(model, CONFIG) as second:
        expected = model(**inputs).logits
        first.remove()
        assert torch.equal(model(**inputs).logits, expected)
        assert len(second.trace) == 2


@pytest.mark.parametrize(
    ("layer", "error"), [*((n, BoomError) for n in range(LAYERS)), (3, KeyboardInterrupt)]
)
def test_after_an_exception_inside_a_layer(layer: int, error: type[BaseException]) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    fragile = model.model.language_model.layers[layer].mlp

    def run() -> None:
        with lk.attach(model, CONFIG), broken(fragile, error):
            model(**inputs)

    with left_untouched(model, inputs), pytest.raises(error):
        run()


@pytest.mark.parametrize("where", ["tower", "embedding", "norm", "head"])
def test_after_an_exception_outside_the_layers(where: str) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    fragile = {
        "tower": model.model.vision_tower,
        "embedding": model.get_input_embeddings(),
        "norm": model.model.language_model.norm,
        "head": model.lm_head,
    }[where]

    def run() -> None:
        with lk.attach(model, CONFIG), broken(fragile):
            model(**inputs)

    with left_untouched(model, inputs), pytest.raises(BoomError):
        run()


@pytest.mark.parametrize("part", ["matcher", "message", "guidance"])
def test_after_an_exception_inside_a_callable_of_the_users(part: str) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    config = lk.LightKVConfig(STAGES, **{part: boom})

    def run() -> None:
        with lk.attach(model, config):
            model(**inputs)

    with left_untouched(model, inputs), pytest.raises(BoomError):
        run()


@pytest.mark.parametrize("step", [0, 1, 3])
def test_after_an_exception_inside_generate(step: int) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)

    def run() -> None:
        calls = []

        def interrupt(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            calls.append(ids)
            if len(calls) > step:
                raise BoomError
            return scores

        with lk.attach(model, CONFIG):
            greedy(model, inputs, logits_processor=[interrupt])

    with left_untouched(model, inputs), pytest.raises(BoomError):
        run()


@attentions
@pytest.mark.parametrize("layer", [0, 2, 5])
def test_the_same_context_goes_on_after_an_exception(layer: int, attention: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    text = batch(prompt(7, seed=4), prompt(5, seed=5))
    plain, decoder = model(**text).logits, model.model.language_model
    with lk.attach(model, CONFIG) as handle:
        expected = model(**inputs).logits
        ledger = handle.ledger.to_dict()["rows"]
        with broken(decoder.layers[layer].mlp), pytest.raises(BoomError):
            model(**batch(*RAGGED[:1]))
        assert torch.equal(model.lm_head(decoder(**text).last_hidden_state), plain)
        assert handle.ledger.to_dict()["rows"] == ledger
        assert torch.equal(model(**text).logits, plain)
        assert torch.equal(model(**inputs).logits, expected)


def test_attaching_twice_is_refused_and_harmless() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    with left_untouched(model, inputs), lk.attach(model, CONFIG):
        expected, during = model(**inputs).logits, footprint(model)
        for again in (CONFIG, lk.LightKVConfig([])):
            with pytest.raises(RuntimeError, match="attached already"):
                lk.attach(model, again)
        assert footprint(model) == during
        assert torch.equal(model(**inputs).logits, expected)


def test_copies_of_a_model() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    model(**inputs)
    clean = footprint(copy.deepcopy(model))
    with lk.attach(model, CONFIG):
        expected = model(**inputs).logits
    copied = copy.deepcopy(model)
    assert footprint(copied) == clean
    with lk.attach(copied, CONFIG), lk.attach(model, CONFIG):
        assert torch.equal(copied(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)


def test_models_and_handles_can_be_freed() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    with lk.attach(model, CONFIG) as handle:
        model(**inputs)
    gone = weakref.ref(handle), weakref.ref(model)
    del handle
    gc.collect()
    assert gone[0]() is None
    registry = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    handle = lk.attach(model, CONFIG)  # never removed
    del handle, model
    gc.collect()
    assert gone[1]() is None
    assert registry == ALL_ATTENTION_FUNCTIONS._local_mapping


def test_a_model_whose_handle_was_dropped_is_detached() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    with left_untouched(model, inputs):
        lk.attach(model, CONFIG)
        gc.collect()
        with pytest.raises(RuntimeError, match=r"attached already: .*detach\(model\)"):
            lk.attach(model, CONFIG)
        lk.detach(model)
        lk.detach(model)  # nothing to do
    handle = lk.attach(model, CONFIG)
    lk.detach(model)
    handle.remove()
    with pytest.raises(TypeError, match="model is a str: expected what attach"):
        lk.detach("my-model/")  # type: ignore[arg-type]


def test_a_handle_says_what_it_is() -> None:
    model = tiny_llava()
    with lk.attach(model, CONFIG) as handle:
        assert repr(handle) == (
            "Handle(LlavaForConditionalGeneration, attached; nothing to tell yet)"
        )
        model(**batch(*RAGGED))
        assert repr(handle.trace) in repr(handle)
    assert "removed" in repr(handle)


# --- several models -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backends", "first_out"),
    [(("sdpa", "sdpa"), 0), (("sdpa", "sdpa"), 1), (("eager", "eager"), 0), (("eager", "sdpa"), 1)],
)
def test_several_models_at_once(backends: tuple[str, str], first_out: int) -> None:
    inputs = batch(*RAGGED)
    models = [tiny_llava("llama", backends[0]), tiny_llava("qwen2", backends[1], seed=1)]
    other = lk.LightKVConfig([lk.Stage(2, 2, 0.5)], guidance="last_token", positions="reindex")
    configs, expected = [CONFIG, other], []
    for model, config in zip(models, configs, strict=True):
        with lk.attach(model, config):
            expected.append(model(**inputs).logits)
    with left_untouched(models[0], inputs), left_untouched(models[1], inputs):
        handles = [lk.attach(m, c) for m, c in zip(models, configs, strict=True)]
        for model, logits in zip(models, expected, strict=True):
            assert torch.equal(model(**inputs).logits, logits)
        handles[first_out].remove()
        left = 1 - first_out
        assert torch.equal(models[left](**inputs).logits, expected[left])
        plain = models[first_out](**inputs).logits
        handles[left].remove()
        assert torch.equal(models[first_out](**inputs).logits, plain)
        assert torch.equal(models[left](**inputs).logits, models[left](**inputs).logits)


@attentions
def test_other_models_are_not_compressed(attention: str) -> None:
    inputs = batch(*RAGGED)
    model, other = tiny_llava("llama", attention), tiny_llava("llama", attention, seed=1)
    with left_untouched(other, inputs):
        expected = other(**inputs)
        with lk.attach(model, CONFIG):
            found = other(**inputs)
            assert torch.equal(found.logits, expected.logits)
            assert [type(x) for x in found[CACHE].layers] == [
                type(x) for x in expected[CACHE].layers
            ]


# --- the attention registry -----------------------------------------------------------------------


@contextmanager
def registered(name: str, function: Callable[..., Any]) -> Iterator[None]:
    ALL_ATTENTION_FUNCTIONS[name] = function
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS._local_mapping.pop(name, None)


def test_a_function_of_the_users_own_is_used_and_put_back() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    original, calls = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    with registered("sdpa", own):
        with left_untouched(model, inputs), lk.attach(model, CONFIG):
            calls.clear()
            model(**inputs)
            assert len(calls) == LAYERS + 2
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


def test_a_function_registered_meanwhile_stays() -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    expected, handle = model(**inputs).logits, lk.attach(model, CONFIG)
    wrapped, compressed = ALL_ATTENTION_FUNCTIONS["sdpa"], model(**inputs).logits

    def own(*args: Any, **kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    with registered("sdpa", own):
        assert torch.equal(model(**inputs).logits, compressed)
        handle.remove()
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
        assert torch.equal(model(**inputs).logits, expected)
    with left_untouched(model, inputs), lk.attach(model, CONFIG):
        assert torch.equal(model(**inputs).logits, compressed)


def test_eager_attention_of_a_subclass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its eager function is in its parent's file."""
    elsewhere = types.ModuleType("elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)
    own = type("OwnAttention", (LlamaAttention,), {"__module__": "elsewhere"})
    model, inputs = tiny_llava(attention="eager"), batch(*RAGGED)
    plain = model(**inputs).logits
    with lk.attach(model, CONFIG):
        expected = model(**inputs).logits
    for layer in model.model.language_model.layers:
        layer.self_attn.__class__ = own
    assert torch.equal(model(**inputs).logits, plain)
    with lk.attach(model, CONFIG):
        assert torch.equal(model(**inputs).logits, expected)


# --- threads --------------------------------------------------------------------------------------


def test_threads_on_one_attached_model() -> None:
    model = tiny_llava(attention="eager")
    jobs = [batch(*RAGGED), batch(*RAGGED[:1], seed=3), batch(prompt(8, seed=6))]
    with lk.attach(model, CONFIG):
        expected = [greedy(model, inputs, 4) for inputs in jobs]
        found: list[list[torch.Tensor]] = [[] for _ in jobs]
        errors: list[BaseException] = []
        start = threading.Barrier(len(jobs))

        def work(number: int) -> None:
            try:
                start.wait()
                for _ in range(3):
                    found[number].append(greedy(model, jobs[number], 4))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        for tokens, own in zip(expected, found, strict=True):
            assert len(own) == 3
            assert all(torch.equal(tokens, other) for other in own)


def test_one_thread_stops_inside_a_prefill_of_another() -> None:
    """The state of a prefill is its thread's own: here two of them overlap for certain."""
    model, first, second = tiny_llava(), batch(*RAGGED), batch(*RAGGED[:1], seed=3)
    layer = model.model.language_model.layers[3]
    with lk.attach(model, CONFIG):
        expected = [model(**first).logits, model(**second).logits]
        found = {}
        inside = threading.local()

        def interrupt(*args: Any) -> None:
            if getattr(inside, "outer", False):
                inside.outer = False
                thread = threading.Thread(target=run, args=(1, second))
                thread.start()
                thread.join()

        def run(number: int, inputs: dict[str, torch.Tensor]) -> None:
            found[number] = model(**inputs).logits

        hook = layer.register_forward_pre_hook(interrupt)
        inside.outer = True
        run(0, first)
        hook.remove()
    assert [torch.equal(found[n], expected[n]) for n in (0, 1)] == [True, True]


@torch.no_grad()
def test_a_failed_prefill_announces_nothing() -> None:
    """The cache's layers wait for no entries, and let nothing through, after an exception."""
    model, inputs, cache = tiny_llava(), batch(prompt(4, "image", 6)), DynamicCache()
    attention = model.model.language_model.layers[3].self_attn
    hook = attention.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(OSError("no")))
    with lk.attach(model, lk.LightKVConfig([lk.Stage(1, 2, 0.5)])):
        with pytest.raises(OSError, match="no"):
            model(**inputs, **{CACHE: cache})
        hook.remove()
        compressed = [layer for layer in cache.layers if hasattr(layer, "cancel")]
        assert len(compressed) >= 2
        assert not any(layer.open or layer._pending for layer in compressed)
