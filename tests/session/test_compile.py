"""Compiled models, whole or in parts: compressed like others, and plain again afterwards.

Compiled by Dynamo alone: what decides whether hooks run is there, not in a code generator.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from marks import full
from models import CACHE, batch, cache_lengths, greedy, near, prompt, tiny_llava
from torch._dynamo.utils import counters

import lightkv_gnn as lk

pytestmark = pytest.mark.full  # .ci/run runs them

CONFIG = lk.LightKVConfig([lk.Stage(0, 2, 0.5)])
PLAIN, SHORT = [26, 26], [26, 18]
COMPILE: dict[str, Any] = {"backend": "eager"}

SAYS = pytest.warns(
    UserWarning, match="the model is compiled; a prefill with pictures runs in pieces"
)


def model_of() -> Any:
    return tiny_llava(layers=2)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before; nothing said about recompiling."""
    torch._dynamo.reset()
    counters.clear()
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch._dynamo.reset()


def whole(model: Any) -> Any:
    return torch.compile(model, **COMPILE)


def in_place(model: Any) -> Any:
    model.compile(**COMPILE)
    return model


def forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, **COMPILE)
    return model


def decoder(model: Any) -> Any:
    model.model.language_model.compile(**COMPILE)
    return model


def layers(model: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.compile(**COMPILE)
    return model


def layer_forwards(model: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.forward = torch.compile(layer.forward, **COMPILE)
    return model


@pytest.mark.parametrize(
    "compiled",
    [
        layers,
        # More of them take more than a minute: .ci/run has them too.
        *full(layer_forwards, whole, in_place, forward, decoder),
    ],
)
@torch.no_grad()
def test_compiled_before_attaching(compiled: Callable[[Any], Any]) -> None:
    """Graphs made without hooks must not be run instead of the hooks, nor the other way."""
    plain, inputs = model_of(), batch(prompt(4, "image", 6))
    logits, tokens = plain(**inputs).logits, greedy(plain, inputs, 4)
    with lk.attach(plain, CONFIG):
        short_logits, short_tokens = plain(**inputs).logits, greedy(plain, inputs, 4)
    inner = model_of()
    model = compiled(inner)
    before = model(**inputs)
    near(before.logits, logits)
    assert cache_lengths(before[CACHE]) == PLAIN
    with warnings.catch_warnings(record=True) as said, lk.attach(model, CONFIG) as handle:
        warnings.simplefilter("always")
        for _ in range(2):
            out = model(**inputs)
            near(out.logits, short_logits)
            assert cache_lengths(out[CACHE]) == SHORT
        assert torch.equal(greedy(model, inputs, 4), short_tokens)
        assert [row.planned.tokens for row in handle.ledger.rows] == SHORT
    told = [str(each.message) for each in said if "lightkv" in str(each.message)]
    assert len(told) == 1
    after = model(**inputs)
    near(after.logits, logits)
    assert cache_lengths(after[CACHE]) == PLAIN
    assert torch.equal(greedy(model, inputs, 4), tokens)


@torch.no_grad()
def test_compiled_while_attached() -> None:
    plain, inputs, model = model_of(), batch(prompt(4, "image", 6)), model_of()
    expected = plain(**inputs).logits
    with lk.attach(plain, CONFIG):
        short = plain(**inputs).logits
    with lk.attach(model, CONFIG):
        layers(model)
        with SAYS:
            out = model(**inputs)
        near(out.logits, short)
        assert cache_lengths(out[CACHE]) == SHORT
    near(model(**inputs).logits, expected)


@torch.no_grad()
def test_a_text_prompt_before_one_with_a_picture() -> None:
    """Of the same length: a graph of the one must not be run for the other."""
    model, text, inputs = layers(model_of()), batch(prompt(26, seed=4)), prompt(4, "image", 6)
    with lk.attach(model, CONFIG):
        for _ in range(2):
            assert cache_lengths(model(**text)[CACHE]) == PLAIN
        with SAYS:
            assert cache_lengths(model(**batch(inputs))[CACHE]) == SHORT
        assert cache_lengths(model(**text)[CACHE]) == PLAIN
        assert cache_lengths(model(**batch(inputs))[CACHE]) == SHORT


@pytest.mark.parametrize("positions", ["preserve", *full("reindex")])
@torch.no_grad()
def test_steps_are_one_graph(positions: str) -> None:
    plain, model, inputs = model_of(), model_of(), batch(prompt(4, "image", 6))
    config, step = (
        lk.LightKVConfig(CONFIG.stages, positions=positions),
        torch.compile(model, **COMPILE),
    )
    with lk.attach(plain, config), lk.attach(step, config):
        caches = [each(**inputs)[CACHE] for each in (plain, model)]
        for token in (5, 6, 7):
            ids = torch.tensor([[token]])
            expected = plain(input_ids=ids, **{CACHE: caches[0]}).logits
            near(step(input_ids=ids, **{CACHE: caches[1]}).logits, expected)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    assert cache_lengths(caches[1]) == [length + 3 for length in SHORT]


def test_the_wrapper_and_the_model_are_one() -> None:
    model = model_of()
    refused = pytest.raises(RuntimeError, match="attached already")
    with lk.attach(torch.compile(model, **COMPILE), CONFIG), refused:
        lk.attach(model, CONFIG)
    with lk.attach(model, CONFIG):
        pass
