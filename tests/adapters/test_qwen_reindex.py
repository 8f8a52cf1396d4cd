"""Positions that count a layer's entries, where Qwen's three coordinates are given up."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families.geometry import QWEN, tiles_of
from families.inputs import PICTURES, Picture, Prompt, alone, batch
from families.loop import FamilyLoop
from families.models import tiny
from models import CACHE, cache_lengths, left_untouched, near
from test_qwen import SCHEDULE, model_of
from torch import Tensor
from transformers import DynamicCache

import lightkv_gnn as lk

STAGES = [lk.Stage(*stage) for stage in SCHEDULE]
CONFIG = lk.LightKVConfig(STAGES, positions="reindex")
WIDE, ODD, HIGH, *_ = PICTURES["qwen2_vl"]
DOT = Picture((1, 2, 2))
"""One token: there is nothing to merge."""

PROMPTS: list[Prompt] = [(2, WIDE, 3, HIGH, 5), (4, ODD, 6), (9,), (3, DOT, 4)]
STEPS = 5

families = pytest.mark.parametrize("family", QWEN)


def loop_of(family: str) -> FamilyLoop:
    return FamilyLoop(model_of(family), family, SCHEDULE, positions="reindex")


@pytest.mark.parametrize("padding", ["left", "right"])
@families
@torch.no_grad()
def test_a_ragged_batch(family: str, padding: str) -> None:
    model = model_of(family)
    inputs = batch(family, model, *PROMPTS, padding=padding)
    options = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    with left_untouched(model, inputs), lk.attach(model, CONFIG):
        logits = model(**inputs).logits
        if padding == "left":
            out = model.generate(**inputs, max_new_tokens=STEPS, **options)
    for number, (real, single) in enumerate(alone(family, model, *PROMPTS, padding=padding)):
        loop = loop_of(family)
        expected = loop.run(single, tiles_of(family, model, PROMPTS[number]))
        near(logits[number, real], expected)
        if padding == "left":
            tokens, steps = loop.greedy(expected[-1], STEPS)
            assert out.sequences[number, -STEPS:].tolist() == tokens
            near(torch.stack(out.logits)[:, number], steps)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@families
@torch.no_grad()
def test_beams_are_those_of_each_sample(family: str, kind: str) -> None:
    model, prompts = model_of(family), PROMPTS[:2]
    options = {"max_new_tokens": STEPS, "num_beams": 2, "num_return_sequences": 2}
    if kind == "static":
        options = {"max_new_tokens": STEPS, "cache_implementation": "static"}
        options["disable_compile"] = True
    inputs = batch(family, model, *prompts)
    with lk.attach(model, CONFIG):
        together = model.generate(**inputs, **options)[:, -STEPS:]
        apart = [
            model.generate(**single, **options)[:, -STEPS:]
            for _, single in alone(family, model, *prompts)
        ]
    assert torch.equal(together, torch.cat(apart))


TURNS: dict[str, list[Prompt]] = {
    "text": [(4, WIDE, 6), (5,), (1,)],
    "text first": [(5,), (4, WIDE, 6), (3,)],
    "two pictures": [(4, WIDE, 6), (2, HIGH, 5), (3,)],
}


@pytest.mark.parametrize("turns", TURNS)
@families
@torch.no_grad()
def test_later_turns(family: str, turns: str) -> None:
    model, loop, cache = model_of(family), loop_of(family), DynamicCache()
    with lk.attach(model, CONFIG):
        for number, prompt in enumerate(TURNS[turns]):
            [(_, inputs)] = alone(family, model, prompt, seed=number)
            inputs.pop("attention_mask")
            places = places_of(model, inputs, loop.next)
            expected = loop.run(inputs, tiles_of(family, model, prompt))
            logits = model(**inputs, position_ids=places, **{CACHE: cache}).logits[0]
            near(logits, expected)
    assert cache_lengths(cache) == loop.lengths


def places_of(model: Any, inputs: dict[str, Tensor], start: int) -> Tensor:
    """Positions from ``start`` on, `[3, batch, token]`: transformers wants them of later turns."""
    if "pixel_values" not in inputs:
        return start + torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
    places: Tensor = model.model.get_rope_index(*(inputs[name] for name in names))[0]
    return places + start


def places_of_all(model: Any, alike: list[tuple[Tensor, dict[str, Tensor], int]]) -> Tensor:
    """Positions of a batch, from where each sample's tokens are, its inputs and its start."""
    places = torch.zeros(3, len(alike), len(alike[0][0]), dtype=torch.int64)
    for number, (own, single, start) in enumerate(alike):
        places[:, number, own] = places_of(model, single, start)[:, 0]
    return places


@families
@torch.no_grad()
def test_padded_turns(family: str) -> None:
    """Padding has entries, which positions do not count: not in text, nor before a picture."""
    model, prompts = model_of(family), PROMPTS[:2]
    text = torch.tensor([[7, 8, 9], [0, 7, 9]])
    turns = [text, None, text.flip(0), text[:, :1] * 0 + 5]
    loops, cache = [loop_of(family) for _ in prompts], DynamicCache()
    mask = torch.zeros(2, 0, dtype=torch.int64)
    with lk.attach(model, CONFIG):
        for turn in turns:
            if turn is None:
                call = batch(family, model, *prompts)
                singles = list(alone(family, model, *prompts))
            else:
                call = {"input_ids": turn, "attention_mask": (turn > 0).long()}
                singles = [(row > 0, {"input_ids": row[row > 0][None]}) for row in turn]
            starts = [loop.next for loop in loops]
            alike = [(*single, start) for single, start in zip(singles, starts, strict=True)]
            mask = torch.cat([mask, call.pop("attention_mask")], 1)
            call["position_ids"] = places_of_all(model, alike)
            given = (mask, dense(mask, call["input_ids"].shape[1]))
            caches = (cache, copy.deepcopy(cache))
            for one, past in zip(given, caches, strict=True):
                logits = model(**call, attention_mask=one, **{CACHE: past}).logits
                if past is cache:
                    found = logits
                else:
                    near(
                        logits[mask[:, -logits.shape[1] :] > 0],
                        found[mask[:, -logits.shape[1] :] > 0],
                    )
            for number, (loop, (own, single)) in enumerate(zip(loops, singles, strict=True)):
                tiles = tiles_of(family, model, prompts[number]) if turn is None else ()
                near(found[number, own], loop.run(single, tiles))


def dense(mask: Tensor, queries: int) -> Tensor:
    """A padding mask written out, `[batch, 1, query, key]`; padding sees itself."""
    width = mask.shape[1]
    sees = torch.ones(width, width, dtype=torch.bool).tril() & mask.bool()[:, None]
    sees &= mask.bool()[:, :, None]
    blind = ~mask.bool()[:, :, None] & torch.eye(width, dtype=torch.bool)
    # Only what may see itself is no padding, so padding must see something else.
    first = torch.zeros(width, width, dtype=torch.bool)
    first[:, 0] = True
    return (sees | (blind.any(2, keepdim=True) & first))[:, None, -queries:]


@pytest.mark.parametrize("stages", [[lk.Stage(1, 2, 0.0)], [lk.Stage(1, 8, 0.5)]])
@families
@torch.no_grad()
def test_without_merges_nothing_changes(family: str, stages: list[lk.Stage]) -> None:
    model = tiny(family)
    inputs = batch(family, model, *PROMPTS)
    expected, tokens = model(**inputs).logits, model.generate(**inputs, max_new_tokens=STEPS)
    with lk.attach(model, lk.LightKVConfig(stages, positions="reindex")):
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS), tokens)


@families
@torch.no_grad()
def test_it_is_something_else_than_preserving(family: str) -> None:
    model = model_of(family)
    inputs = batch(family, model, PROMPTS[0])
    with lk.attach(model, CONFIG):
        numbered = model(**inputs).logits
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        assert float((model(**inputs).logits - numbered).abs().max()) > 1e-2
