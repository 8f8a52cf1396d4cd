"""Stages of the loop are what they say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from models import CACHE
from torch import Tensor

from families.inputs import PICTURES, Picture, TileTruth
from families.loop import FamilyLoop
from families.loop_families import decoder_of, places_of
from families.loop_stage import Heads
from families.loop_stock import error, hidden_from_layers, inputs_of, model_of, stock_steps
from families.models import FAMILIES

STEPS = 4
STAGES = ((1, 2, 0.5), (3, 1, 0.25), (4, 1, 0.5))


def test_places_follow_the_tokens() -> None:
    tiles = [TileTruth(1, 2, before=1), TileTruth(2, 1, row_end=1, after=2)]
    whole = [None, (0, 0, 0), (0, 0, 1)]
    cut = [(1, 0, 0), None, (1, 1, 0), None, None, None]
    assert places_of(tiles) == whole + cut


POLICIES = [(family, "preserve") for family in FAMILIES]
POLICIES += [(family, "reindex") for family in ("llava", "llava_next", "paligemma")]


@pytest.mark.parametrize(("family", "positions"), POLICIES)
@torch.no_grad()
def test_pruned_tokens_are_as_good_as_hidden(family: str, positions: str) -> None:
    """Who is pruned is the loop's word; where, and what the others then see, is checked."""
    prompt = (4, PICTURES[family][0], 3, PICTURES[family][-1], 6)
    model, (inputs, tiles) = model_of(family), inputs_of(family, prompt)
    loop = FamilyLoop(model, family, STAGES, message="destination_only", positions=positions)
    logits = loop.run(inputs, tiles)
    entries = [layer.places[:] for layer in loop.layers]
    assert [len(places) for places in entries] == expected_entries(len(logits), tiles)
    tokens, steps = loop.greedy(logits[-1], STEPS)
    gone = [set(range(len(logits))) - set(n) for n in entries]
    with hidden_from_layers(model, gone, renumber=positions == "reindex"):
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


@pytest.mark.parametrize("rotary", [True, False])
@torch.no_grad()
def test_guidance_is_given_queries_and_keys_of_the_model(rotary: bool) -> None:
    model, (inputs, tiles) = model_of("llava"), inputs_of("llava", (4, Picture(), 6))
    given: list[Tensor] = []
    plain: list[Tensor] = []

    def guidance(query: Heads, key: Heads, vision: list[int], text: list[int]) -> list[float]:
        assert (vision, text) == ([*range(4, 20)], [*range(4), *range(20, 26)])
        given.extend([torch.tensor(query), torch.tensor(key)])
        return [1.0] * len(vision)

    FamilyLoop(model, "llava", STAGES[:1], guidance=guidance, rotary=rotary).run(inputs, tiles)
    own = decoder_of(model).layers[STAGES[0][0]].self_attn
    projections = (own.q_proj, own.k_proj)
    hooks = [p.register_forward_hook(lambda _, __, out: plain.append(out[0])) for p in projections]
    cache = model(**inputs)[CACHE]
    for hook in hooks:
        hook.remove()
    if rotary:
        assert error(given[1], cache.layers[STAGES[0][0]].keys[0]) <= 1e-5
    else:
        for ours, stock in zip(given, plain, strict=True):
            assert error(ours, stock.unflatten(1, (-1, 16)).transpose(0, 1)) <= 1e-5


@torch.no_grad()
def test_a_message_written_out_equals_its_name() -> None:
    model, (inputs, tiles) = model_of("llava"), inputs_of("llava", (4, Picture(), Picture(), 6))
    named = FamilyLoop(model, "llava", STAGES).run(inputs, tiles)
    own = FamilyLoop(model, "llava", STAGES, message=lambda x_i, x_j, weight: weight[:, None] * x_j)
    assert error(own.run(inputs, tiles), named) <= 1e-5
