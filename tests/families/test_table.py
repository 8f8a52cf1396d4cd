"""Every family, attached: equal to its explicit layer loop, its plan kept, itself afterwards."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from models import CACHE, check_ledger, left_untouched, near
from torch import Tensor

import lightkv_gnn as lk
from families.geometry import tiles_of
from families.inputs import PICTURES, Prompt, alone, batch
from families.loop import FamilyLoop
from families.models import DECODERS, FAMILIES, tiny

STEPS = 4
CLOSE_CALL = 1e-6
"""A matching decided by less than this may fall out differently by rounding alone."""


def prompts_of(family: str, size: str) -> list[Prompt]:
    """One prompt, or several of unequal length: two pictures apart, one, none."""
    first, *others = PICTURES[family]
    pictures = [p for p in others if p.kind == "image"] or [first]
    single: Prompt = (4, pictures[0], 6)
    if size == "one":
        return [single]
    return [(2, first, 3, pictures[-1], 5), single, (9,)]


def films_of(family: str) -> list[Prompt]:
    """Two prompts about videos, one with an image too.

    The text after a video passes its last frame: otherwise transformers' ``generate`` and
    ``forward`` give Qwen2.5-VL different positions for what follows.
    """
    films = [p for p in PICTURES[family] if p.kind == "video"]
    second = films[-1] if not family.startswith("llava") else films[0]
    return [(3, films[0], 4, PICTURES[family][0], 5), (6, second, 12)]


@cache
def model_of(family: str, attention: str, decoder: str | None = None) -> Any:
    return tiny(family, attention, decoder=decoder)


def stages_of(model: Any) -> list[tuple[int, int, float]]:
    legal = lk.adapter_for(model).legal_layers
    return [(legal[0], 2, 0.5), (legal[-1], 1, 0.25)]


def generate(model: Any, inputs: dict[str, Tensor]) -> Any:
    options = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    return model.generate(**inputs, max_new_tokens=STEPS, **options)


def check(
    family: str,
    attention: str,
    prompts: list[Prompt],
    *,
    padding: str = "left",
    decoder: str | None = None,
) -> None:
    model = model_of(family, attention, decoder)
    inputs = batch(family, model, *prompts, padding=padding)
    stages = stages_of(model)
    config = lk.LightKVConfig([lk.Stage(*stage) for stage in stages])
    with left_untouched(model, inputs), lk.attach(model, config) as handle:
        prefill = model(**inputs)
        check_ledger(handle.ledger, prefill[CACHE])
        out = generate(model, inputs) if padding == "left" else None
    longest = [0] * len(model.get_decoder().layers)
    for sample, (real, single) in enumerate(alone(family, model, *prompts)):
        loop = FamilyLoop(model, family, stages)
        logits = loop.run(single, tiles_of(family, model, prompts[sample]))
        longest = [max(pair) for pair in zip(longest, loop.lengths, strict=True)]
        assert loop.margin > CLOSE_CALL
        real = inputs["attention_mask"][sample].bool()
        near(prefill.logits[sample, real], logits)
        if out is not None:
            tokens, steps = loop.greedy(logits[-1], STEPS)
            near(torch.stack(out.logits)[:, sample], steps)
            assert out.sequences[sample, -STEPS:].tolist() == tokens
    held = [layer.keys.shape[2] for layer in prefill[CACHE].layers]
    assert held == longest


@pytest.mark.parametrize("size", ["one", "ragged"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_equals_the_layer_loop(family: str, attention: str, size: str) -> None:
    check(family, attention, prompts_of(family, size))


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.full)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_survivors_that_count_equal_the_layer_loop(family: str, attention: str, mass: None) -> None:
    check(family, attention, prompts_of(family, "ragged"))


OTHERS = [
    pytest.param(family, decoder, attention, marks=[pytest.mark.full] * (attention == "sdpa"))
    for family, decoders in DECODERS.items()
    for decoder in decoders
    for attention in ("eager", "sdpa")
    if (decoder, attention) != ("gemma2", "sdpa")  # which transformers refuses
]


@pytest.mark.parametrize(("family", "decoder", "attention"), OTHERS)
@torch.no_grad()
def test_other_text_models(family: str, decoder: str, attention: str) -> None:
    check(family, attention, prompts_of(family, "ragged"), decoder=decoder)


def test_all_text_models_have_been_tested() -> None:
    """Those that an adapter accepts."""
    tested: dict[type[lk.Adapter], set[str]] = {}
    for family in FAMILIES:
        model = model_of(family, "eager")
        usual = model.config.get_text_config().model_type
        own = tested.setdefault(type(lk.adapter_for(model)), set())
        own.update([usual, *DECODERS.get(family, ())])
    assert tested == {adapter: set(adapter.text_models) for adapter in tested}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "paligemma"])
@torch.no_grad()
def test_right_padding(family: str, attention: str) -> None:
    check(family, attention, prompts_of(family, "ragged"), padding="right")


FILMED = [family for family in FAMILIES if any(p.kind == "video" for p in PICTURES[family])]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FILMED)
@torch.no_grad()
def test_videos(family: str, attention: str) -> None:
    check(family, attention, films_of(family))


@pytest.mark.each
@pytest.mark.parametrize("size", ["one", "ragged"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_ratio_of_zero_changes_no_bit(family: str, attention: str, size: str) -> None:
    model = model_of(family, attention)
    inputs = batch(family, model, *prompts_of(family, size))
    expected, plain = model(**inputs).logits, generate(model, inputs)
    nothing = [lk.Stage(layer, windows, 0) for layer, windows, _ in stages_of(model)]
    with lk.attach(model, lk.LightKVConfig(nothing)):
        assert torch.equal(model(**inputs).logits, expected)
        out = generate(model, inputs)
    assert torch.equal(out.sequences, plain.sequences)
    assert torch.equal(torch.stack(out.logits), torch.stack(plain.logits))
