"""Masks that are more than causal, read off at the survivors' rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families.loop import FamilyLoop
from marks import attentions, policies
from models import CACHE, batch, cache_lengths, loop_logits, near, prompt, tiny_llava

import lightkv_gnn as lk

SCHEDULE = ((0, 2, 0.25), (2, 2, 0.5), (4, 1, 0.5))
CONFIG = {
    positions: lk.LightKVConfig([lk.Stage(*stage) for stage in SCHEDULE], positions=positions)
    for positions in ("preserve", "reindex")
}


def matrix(sees: Callable[[int, int], bool], length: int, kind: str) -> torch.Tensor:
    """A 4-D mask, `[1, 1, query, key]`."""
    rows = torch.tensor([[sees(i, j) for j in range(length)] for i in range(length)])
    if kind == "bool":
        return rows[None, None]
    least = torch.finfo(torch.float32).min
    return torch.zeros(length, length).masked_fill(~rows, least)[None, None]


@policies
@pytest.mark.parametrize(
    ("attention", "kind"), [("sdpa", "bool"), ("sdpa", "additive"), ("eager", "additive")]
)
@pytest.mark.parametrize("shape", ["prefix", "band"])
@torch.no_grad()
def test_a_mask_of_the_users_own(shape: str, attention: str, kind: str, positions: str) -> None:
    def sees(i: int, j: int) -> bool:
        if shape == "prefix":
            return j <= i or (i < 20 and j < 20)
        return i - 9 < j <= i

    model, made = tiny_llava(attention=attention), prompt(4, "image", 6)
    inputs = batch(made)
    inputs["attention_mask"] = matrix(sees, len(made[0]), kind)
    loop = FamilyLoop(model, "llava", SCHEDULE, positions=positions, sees=sees)
    expected = loop_logits(loop, inputs)
    with lk.attach(model, CONFIG[positions]):
        out = model(**inputs)
    near(out.logits[0], expected)
    assert cache_lengths(out[CACHE]) == loop.lengths


@attentions
@torch.no_grad()
def test_padding_told_by_a_4d_mask(attention: str) -> None:
    """A token that may not see itself is padding."""
    prompts = [prompt(4, "image", 6), prompt(2, "image", 3, seed=1)]
    model, inputs = tiny_llava(attention=attention), batch(*prompts)
    real = inputs["attention_mask"].bool()
    length = real.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, :]
    wide = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with lk.attach(model, CONFIG["preserve"]):
        expected = model(**inputs)
        out = model(**{**inputs, "attention_mask": wide[:, None]})
    near(out.logits[real], expected.logits[real])
    assert cache_lengths(out[CACHE]) == cache_lengths(expected[CACHE])


@policies
@torch.no_grad()
def test_no_mask_stays_no_mask(positions: str) -> None:
    """Plain causal attention is what the quick kernels are for."""
    model, seen, ids = tiny_llava(), [], []
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (
                seen.append(kwargs["attention_mask"]) or ids.append(kwargs["position_ids"])
            ),
            with_kwargs=True,
        )
    equal = batch(prompt(4, "image", 6), prompt(2, "image", 8, seed=1))
    with lk.attach(model, CONFIG[positions]):
        cache = model(**equal)[CACHE]
        model(input_ids=torch.tensor([[5], [6]]), **{CACHE: cache})
        assert seen == [None] * 12
        assert all(isinstance(x, torch.Tensor) for x in ids)
        seen.clear()
        model(**batch(prompt(2, "image", "image", 6), prompt(40, seed=2)))
    assert [mask is None for mask in seen] == [True] + [False] * 5
    assert all(mask.dtype == torch.bool for mask in seen[1:])
    assert len({id(mask) for mask in seen}) == 4  # one for the layers between two stages


@attentions
@torch.no_grad()
def test_padding_of_survivors_is_never_seen(attention: str) -> None:
    """Rows that only fill up a ragged batch must not reach any real row."""
    model = tiny_llava(attention=attention)
    inputs = batch(prompt(2, "image", "image", 6), prompt(40, seed=2))
    layer = model.model.language_model.layers[3]

    def spoil(module: Any, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        assert output.shape[1] == 40  # the text sample's length; the other has 24 tokens left
        output = output.clone()
        output[0, :16] = 1e4
        return output

    with lk.attach(model, lk.LightKVConfig([lk.Stage(1, 2, 0.5)])):
        expected = model(**inputs).logits
        hook = layer.register_forward_hook(spoil)
        found = model(**inputs).logits
        hook.remove()
    near(found[0], expected[0])
    near(found[1], expected[1])
