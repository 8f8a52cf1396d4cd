"""The loop itself: without stages it is the stock model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import CACHE
from torch import Tensor

from families import loop_families
from families.inputs import PICTURES, Picture, Prompt
from families.loop import FamilyLoop
from families.loop_stock import (
    continued,
    error,
    inputs_of,
    lengths_of,
    model_of,
    stock_steps,
)
from families.models import DECODERS, FAMILIES, tiny

STEPS = 4

SINGLE = [(family, (4, picture, 6)) for family in FAMILIES for picture in PICTURES[family]]


def several(family: str) -> Prompt:
    """All pictures of a family, two of them next to each other."""
    first, *others = PICTURES[family]
    if family.startswith("llava"):  # these take videos of one length only
        others = [p for p in others if p.kind == "image" or p.size == others[-1].size]
    apart: list[int | Picture] = [2]
    for picture in others:
        apart += [picture, 3]
    return (*apart, first, first, 7)


def name_of(case: object) -> str | None:
    return " ".join(map(str, case)) if isinstance(case, tuple) else None


@torch.no_grad()
def check(family: str, model: Any, prompt: Prompt, **more: Tensor) -> FamilyLoop:
    """Asserts that prefill and decoding without stages are the model's; returns the loop."""
    inputs, tiles = inputs_of(family, prompt)
    inputs |= more
    loop = FamilyLoop(model, family)
    out, logits = model(**inputs), loop.run(inputs, tiles)
    assert error(logits, out.logits[0]) <= 1e-5
    assert loop.lengths == lengths_of(out[CACHE])
    tokens, steps = loop.greedy(logits[-1], STEPS)
    stock = stock_steps(model, out, tokens)
    assert error(steps, stock) <= 1e-5
    assert tokens == stock.argmax(1).tolist()
    assert loop.lengths == lengths_of(out[CACHE])
    return loop


@pytest.mark.parametrize(("family", "prompt"), SINGLE, ids=name_of)
def test_equals_the_model(family: str, prompt: Prompt) -> None:
    check(family, model_of(family), prompt)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_equals_the_model_with_several_pictures(family: str) -> None:
    model, (inputs, tiles) = model_of(family), inputs_of(family, several(family))
    loop = FamilyLoop(model, family)
    logits = loop.run(inputs, tiles)
    assert error(logits, model(**inputs).logits[0]) <= 1e-5
    tokens, steps = loop.greedy(logits[-1], STEPS)
    options = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    out = model.generate(**inputs, max_new_tokens=STEPS, **options)
    assert error(steps, torch.cat(out.logits)) <= 1e-5
    assert tokens == out.sequences[0, -STEPS:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_further_text_equals_the_model(family: str) -> None:
    model, (inputs, tiles) = model_of(family), inputs_of(family, (3, PICTURES[family][-1], 5))
    loop = FamilyLoop(model, family)
    loop.run(inputs, tiles)
    ids = [5, 17, 80, 3, 41, 9]
    past = model(**inputs)[CACHE]
    out = model(input_ids=torch.tensor([ids]), **{CACHE: past})
    assert error(loop.run_text(ids), out.logits[0]) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_without_pictures_equals_the_model(family: str) -> None:
    inputs, _ = inputs_of(family, (15,))
    model = model_of(family)
    assert error(FamilyLoop(model, family).run(inputs), model(**inputs).logits[0]) <= 1e-5


@pytest.mark.parametrize("seconds", [0.3, 1.3, 6.0])
def test_time_between_frames_equals_the_model(seconds: float) -> None:
    """Decoding goes on after the last frame where that is later than the end of the prompt."""
    model, film = model_of("qwen2_5_vl"), PICTURES["qwen2_5_vl"][-1]
    check("qwen2_5_vl", model, (4, film, 2), second_per_grid_ts=torch.tensor([seconds]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_second_picture_after_the_first_equals_the_model(family: str) -> None:
    model, picture = model_of(family), PICTURES[family][0]
    first, first_tiles = inputs_of(family, (3, picture, 5))
    then, tiles = inputs_of(family, (4, picture, 2), seed=1)
    loop = FamilyLoop(model, family)
    loop.run(first, first_tiles)
    past = model(**first)[CACHE]
    out = model(**continued(model, first, then), **{CACHE: past})
    assert error(loop.run(then, tiles), out.logits[0]) <= 1e-5
    assert loop.lengths == lengths_of(past)


@pytest.mark.parametrize(
    ("family", "decoder"), [(family, name) for family in DECODERS for name in DECODERS[family]]
)
def test_other_text_models_equal_the_model(family: str, decoder: str) -> None:
    check(family, tiny(family, "eager", decoder=decoder), (4, PICTURES[family][0], 6))


QWEN2_WINDOW = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 3}
WINDOWS = {"llava_next": {"sliding_window": 12}, "internvl": QWEN2_WINDOW, "qwen2_vl": QWEN2_WINDOW}


@pytest.mark.parametrize("family", WINDOWS)
def test_sliding_windows_equal_the_model(family: str) -> None:
    model = tiny(family, "eager", text=WINDOWS[family])
    assert min(check(family, model, (4, PICTURES[family][0], 6)).lengths) == 11


@torch.no_grad()
def test_sight_of_ones_own_equals_the_model() -> None:
    model, (inputs, tiles) = model_of("llava"), inputs_of("llava", (4, Picture(), 6))
    loop = FamilyLoop(model, "llava", sees=lambda i, j: i - 9 < j <= i + 3)
    mask = torch.ones(26, 26).tril(3).triu(-8).log().clamp(min=torch.finfo(torch.float32).min)
    out = model(**{**inputs, "attention_mask": mask[None, None]})
    assert error(loop.run(inputs, tiles), out.logits[0]) <= 1e-5


# --- what must show if it is wrong ------------------------------------------------------------

WRONG_TRAITS = {
    "plain rotary": ("qwen2_vl", {"rope": "plain"}),
    "interleaved rotary": ("qwen2_5_vl", {"rope": "interleaved"}),
    "sectioned rotary": ("qwen3_vl", {"rope": "sections"}),
    "causal images": ("gemma3", {"sight": "causal"}),
    "everything sees everything": ("gemma3", {"sight": "prefix"}),
    "causal prompt": ("paligemma", {"sight": "causal"}),
    "images only": ("paligemma", {"sight": "images"}),
}


def shows(family: str, picture: int) -> bool:
    inputs, tiles = inputs_of(family, (4, PICTURES[family][picture], 6))
    with torch.no_grad():
        stock = model_of(family)(**inputs).logits[0]
    return error(FamilyLoop(model_of(family), family).run(inputs, tiles), stock) > 1e-2


@pytest.mark.parametrize("case", WRONG_TRAITS)
def test_wrong_traits_show(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, wrong = WRONG_TRAITS[case]
    assert not shows(family, 0)
    traits = replace(loop_families.TRAITS[family], **wrong)
    monkeypatch.setitem(loop_families.TRAITS, family, traits)
    assert shows(family, 0)


WRONG_PIECES: dict[str, tuple[str, int, str, Callable[..., Any]]] = {
    "no window": ("gemma3", 0, "loop.window_of", lambda config, layer: None),
    "windows everywhere": ("gemma3", 0, "loop.window_of", lambda config, layer: 12),
    "one base of rotary": ("gemma3", 0, "loop.theta_of", lambda config, layer: 1e6),
    "no deepstack": ("qwen3_vl", 0, "loop_families.deepstack_of", lambda out: []),
    "too much deepstack": (
        "qwen3_vl",
        0,
        "loop_families.deepstack_of",
        lambda out: [loop_families.flat(out.deepstack_features[0])] * 3,
    ),
    "faster frames": ("qwen2_5_vl", -1, "loop.paces_of", lambda config, inputs: iter([9])),
    "attention's scale": ("llava", 0, "loop_layer.scaling_of", lambda config: 0.3),
}


@pytest.mark.parametrize("case", WRONG_PIECES)
def test_wrong_pieces_show(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, picture, name, wrong = WRONG_PIECES[case]
    assert not shows(family, picture)
    monkeypatch.setattr(f"families.{name}", wrong)
    assert shows(family, picture)
