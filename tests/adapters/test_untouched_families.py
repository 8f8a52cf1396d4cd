"""In every family: where there is nothing to merge, the plain model, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from families.inputs import PICTURES, Prompt, batch
from families.models import FAMILIES, tiny
from models import CACHE
from torch import Tensor

import lightkv_gnn as lk

IDLE = lk.LightKVConfig([lk.Stage(1, 2, 0.0), lk.Stage(3, 1, 0.0)])
BUSY = lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)])
TEXTS: list[Prompt] = [(9,), (5,)]
STEPS = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}

attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])


@cache
def model_of(family: str, attention: str, dtype: torch.dtype) -> Any:
    return tiny(family, attention).to(dtype)


def pictures(family: str) -> list[Prompt]:
    """A ragged batch with pictures of all kinds."""
    first, *others = PICTURES[family]
    return [(2, *others[-1:], 3), (1, first, first, 4), (6,)]


@torch.no_grad()
def answers(model: Any, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[type]]:
    """Logits, tokens, the caches' contents, and the classes of their layers."""
    out = model(**inputs)
    generated = model.generate(**inputs, **STEPS, return_dict_in_generate=True)
    layers = [*out[CACHE].layers, *generated[CACHE].layers]
    states = [state for layer in layers for state in (layer.keys, layer.values)]
    return [out.logits, generated.sequences, *generated.logits, *states], list(map(type, layers))


def assert_same_bits(
    family: str,
    config: lk.LightKVConfig,
    prompts: Sequence[Prompt],
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> None:
    model = model_of(family, attention, dtype)
    inputs = batch(family, model, *prompts)
    inputs = {k: x.to(dtype) if x.is_floating_point() else x for k, x in inputs.items()}
    expected, kinds = answers(model, inputs)
    with lk.attach(model, config):
        found, found_kinds = answers(model, inputs)
    assert found_kinds == kinds
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@attentions
@pytest.mark.parametrize("family", FAMILIES)
def test_text_only(family: str, attention: str) -> None:
    assert_same_bits(family, BUSY, TEXTS, attention)


@attentions
@pytest.mark.parametrize("family", FAMILIES)
def test_ratio_0(family: str, attention: str) -> None:
    assert_same_bits(family, IDLE, pictures(family), attention)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_bfloat16(family: str) -> None:
    assert_same_bits(family, BUSY, TEXTS, dtype=torch.bfloat16)
    assert_same_bits(family, IDLE, pictures(family), dtype=torch.bfloat16)


def test_what_must_show_shows() -> None:
    with pytest.raises(AssertionError):
        assert_same_bits("llava", BUSY, pictures("llava"))
