"""The loop itself: without stages it is the stock model, and its stages are what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from layer_loop import LayerLoop

from families import loop_families
from families.inputs import PICTURES, Picture, Prompt, TileTruth
from families.loop import FamilyLoop
from families.loop_stock import (
    continued,
    error,
    hidden_from_layers,
    inputs_of,
    lengths_of,
    model_of,
    stock_steps,
)
from families.models import FAMILIES, tiny

STEPS = 8
STAGES = ((1, 2, 0.5), (3, 1, 0.25), (4, 1, 0.5))

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


@pytest.mark.parametrize(("family", "prompt"), SINGLE, ids=name_of)
@torch.no_grad()
def test_equals_the_model(family: str, prompt: Prompt) -> None:
    model, (inputs, tiles) = model_of(family), inputs_of(family, prompt)
    loop = FamilyLoop(model, family)
    out, logits = model(**inputs), loop.run(inputs, tiles)
    assert error(logits, out.logits[0]) <= 1e-5
    assert loop.lengths == lengths_of(out.past_key_values)
    tokens, steps = loop.greedy(logits[-1], STEPS)
    stock = stock_steps(model, out, tokens)
    assert error(steps, stock) <= 1e-5
    assert tokens == stock.argmax(1).tolist()
    assert loop.lengths == lengths_of(out.past_key_values)


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
    past = model(**inputs).past_key_values
    out = model(input_ids=torch.tensor([ids]), past_key_values=past)
    assert error(loop.run_text(ids), out.logits[0]) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_without_pictures_equals_the_model(family: str) -> None:
    inputs, _ = inputs_of(family, (15,))
    model = model_of(family)
    assert error(FamilyLoop(model, family).run(inputs), model(**inputs).logits[0]) <= 1e-5


@pytest.mark.parametrize("seconds", [0.3, 1.3, 6.0])
@torch.no_grad()
def test_time_between_frames_equals_the_model(seconds: float) -> None:
    """Decoding goes on after the last frame where that is later than the end of the prompt."""
    model, family = model_of("qwen2_5_vl"), "qwen2_5_vl"
    inputs, tiles = inputs_of(family, (4, PICTURES[family][-1], 2))
    inputs = {**inputs, "second_per_grid_ts": torch.tensor([seconds])}
    loop = FamilyLoop(model, family)
    out, logits = model(**inputs), loop.run(inputs, tiles)
    assert error(logits, out.logits[0]) <= 1e-5
    tokens, steps = loop.greedy(logits[-1], STEPS)
    assert error(steps, stock_steps(model, out, tokens)) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_second_picture_after_the_first_equals_the_model(family: str) -> None:
    model, picture = model_of(family), PICTURES[family][0]
    first, first_tiles = inputs_of(family, (3, picture, 5))
    then, tiles = inputs_of(family, (4, picture, 2), seed=1)
    loop = FamilyLoop(model, family)
    loop.run(first, first_tiles)
    past = model(**first).past_key_values
    out = model(**continued(model, first, then), past_key_values=past)
    assert error(loop.run(then, tiles), out.logits[0]) <= 1e-5
    assert loop.lengths == lengths_of(past)


QWEN2_WINDOW = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 3}
WINDOWS = {"llava_next": {"sliding_window": 12}, "internvl": QWEN2_WINDOW, "qwen2_vl": QWEN2_WINDOW}


@pytest.mark.parametrize("family", WINDOWS)
@torch.no_grad()
def test_sliding_windows_equal_the_model(family: str) -> None:
    model = tiny(family, "eager", text=WINDOWS[family])
    inputs, tiles = inputs_of(family, (4, PICTURES[family][0], 6))
    loop = FamilyLoop(model, family)
    out, logits = model(**inputs), loop.run(inputs, tiles)
    assert error(logits, out.logits[0]) <= 1e-5
    assert min(loop.lengths) == 11
    assert loop.lengths == lengths_of(out.past_key_values)
    tokens, steps = loop.greedy(logits[-1], STEPS)
    assert error(steps, stock_steps(model, out, tokens)) <= 1e-5


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


# --- stages -----------------------------------------------------------------------------------


def test_places_follow_the_tokens() -> None:
    tiles = [TileTruth(1, 2, before=1), TileTruth(2, 1, row_end=1, after=2)]
    whole = [None, (0, 0, 0), (0, 0, 1)]
    cut = [(1, 0, 0), None, (1, 1, 0), None, None, None]
    assert loop_families.places_of(tiles) == whole + cut


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pruned_tokens_are_as_good_as_hidden(family: str) -> None:
    """Who is pruned is the loop's word; where, and what the others then see, is checked."""
    prompt = (4, PICTURES[family][0], 3, PICTURES[family][-1], 6)
    model, (inputs, tiles) = model_of(family), inputs_of(family, prompt)
    loop = FamilyLoop(model, family, STAGES, message="destination_only")
    logits = loop.run(inputs, tiles)
    entries = [layer.places[:] for layer in loop.layers]
    assert [len(places) for places in entries] == expected_entries(len(logits), tiles)
    tokens, steps = loop.greedy(logits[-1], STEPS)
    with hidden_from_layers(model, [set(range(len(logits))) - set(n) for n in entries]):
        out = model(**inputs)
        stock = stock_steps(model, out, tokens)
    assert error(logits[entries[-1]], out.logits[0][entries[-1]]) <= 1e-5
    assert error(steps, stock) <= 1e-5


def expected_entries(length: int, tiles: Sequence[TileTruth]) -> list[int]:
    """How many tokens each layer is given."""
    cells = sum(tile.rows * tile.cols for tile in tiles)
    left = [
        sum(
            rows * cols - rows * cols // 2
            for rows in halves(tile.rows)
            for cols in halves(tile.cols)
        )
        for tile in tiles
    ]
    entries = [length] * 2 + [length - cells + sum(left)] * 2
    for divisor in (4, 2):
        left = [number - number // divisor for number in left]
        entries.append(length - cells + sum(left))
    return entries


def halves(size: int) -> tuple[int, int]:
    return size - size // 2, size // 2


LLAVA_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "reindex": {"positions": "reindex"},
    "not rotated": {"rotary": False, "guidance": "text_to_vision"},
    "last_token, mass_mean": {"guidance": "last_token", "message": "mass_mean"},
    "own guidance": {"guidance": lambda query, key, vision, text: [1 + n % 3 for n in vision]},
    "own message": {"message": lambda x_i, x_j, weight: weight[:, None] * (x_j - x_i).tanh()},
    "own sight": {"sees": lambda i, j: j <= i + 3},
}


@pytest.mark.parametrize("case", LLAVA_CASES)
def test_stages_equal_the_loop_for_llava(case: str) -> None:
    model, options = model_of("llava"), LLAVA_CASES[case]
    inputs, tiles = inputs_of("llava", (4, Picture(), Picture(), 6))
    ours = FamilyLoop(model, "llava", STAGES, **options)
    other = LayerLoop(model, STAGES, **options)
    logits = ours.run(inputs, tiles)
    assert error(logits, other.run(inputs["input_ids"][0].tolist(), inputs["pixel_values"])) <= 1e-5
    assert ours.lengths == other.lengths
    assert ours.margin == pytest.approx(other.margin, abs=1e-6)
    tokens, steps = ours.greedy(logits[-1], STEPS)
    other_tokens, other_steps = other.greedy(logits[-1], STEPS)
    assert tokens == other_tokens
    assert error(steps, other_steps) <= 1e-5
