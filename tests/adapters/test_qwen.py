"""Qwen's families: positions of three coordinates, features added after layers, later turns."""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from families.geometry import QWEN
from families.inputs import PICTURES, Picture, Prompt, TileTruth, batch, truths
from families.loop import FamilyLoop
from families.models import tiny
from models import CACHE, greedy, left_untouched, near
from torch import Tensor
from transformers import DynamicCache

import lightkv_gnn as lk

SCHEDULE = ((1, 2, 0.5), (3, 1, 0.5))
CONFIG = lk.LightKVConfig([lk.Stage(*stage) for stage in SCHEDULE])
WIDE, ODD, HIGH, _, VIDEO, _ = PICTURES["qwen2_vl"]

families = pytest.mark.parametrize("family", QWEN)


@cache
def model_of(family: str) -> Any:
    return tiny(family)


def inputs_of(
    family: str, prompt: Prompt, seed: int = 0
) -> tuple[dict[str, Tensor], list[TileTruth]]:
    model = model_of(family)
    tiles = chain.from_iterable(truths(family, model, prompt))
    return batch(family, model, prompt, seed=seed), list(tiles)


def positions_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """As the model makes them, `[3, 1, token]`."""
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
    positions, _ = model.model.get_rope_index(*(inputs.get(name) for name in names))
    return positions


@families
@torch.no_grad()
def test_positions_may_be_given(family: str) -> None:
    """Three coordinates, and with the text's own before them, as generate passes them."""
    model, (inputs, tiles) = model_of(family), inputs_of(family, (3, WIDE, 2, VIDEO, ODD, 4))
    loop = FamilyLoop(model, family, SCHEDULE)
    expected = loop.run(inputs, tiles)
    tokens, _ = loop.greedy(expected[-1], 5)
    places = positions_of(model, inputs)
    text = torch.arange(places.shape[-1])[None, None]
    with lk.attach(model, CONFIG) as handle:
        for given in ({}, {"position_ids": places}, {"position_ids": torch.cat([text, places])}):
            near(model(**inputs, **given).logits[0], expected)
            assert handle.trace.layout.grids == tuple((tile.rows, tile.cols) for tile in tiles)
        assert greedy(model, inputs, 5)[0].tolist() == tokens
    assert loop.margin > 1e-4


@families
@torch.no_grad()
def test_time_may_fall_after_a_long_video(family: str) -> None:
    """The text goes on from the frames' rows and columns, which are fewer than the frames."""
    model, film = model_of(family), Picture((8, 4, 4), "video")
    inputs, tiles = inputs_of(family, (3, film, 4))
    places = positions_of(model, inputs)
    assert family == "qwen3_vl" or bool((places[0].diff() < 0).any())
    expected = FamilyLoop(model, family, SCHEDULE).run(inputs, tiles)
    with lk.attach(model, CONFIG):
        near(model(**inputs, position_ids=places).logits[0], expected)


@families
@torch.no_grad()
def test_a_second_picture_after_the_first(family: str) -> None:
    """transformers wants the positions spelled out, from there on."""
    model, cache = model_of(family), DynamicCache()
    first, first_tiles = inputs_of(family, (3, WIDE, 5))
    then, tiles = inputs_of(family, (2, ODD, HIGH, 4), seed=1)
    loop = FamilyLoop(model, family, SCHEDULE)
    names = ("input_ids", "mm_token_type_ids")
    both = {name: torch.cat([first[name], then[name]], 1) for name in names}
    both["image_grid_thw"] = torch.cat([first["image_grid_thw"], then["image_grid_thw"]])
    then.pop("attention_mask")
    then["position_ids"] = positions_of(model, both)[:, :, first["input_ids"].shape[1] :]
    with lk.attach(model, CONFIG) as handle:
        near(model(**first, **{CACHE: cache}).logits[0], loop.run(first, first_tiles))
        expected = loop.run(then, tiles)
        logits = model(**then, **{CACHE: cache}).logits[0]
        near(logits, expected)
        assert handle.trace.layout.grids == tuple((tile.rows, tile.cols) for tile in tiles)
        assert [layer.keys.shape[-2] for layer in cache.layers] == loop.lengths
        place = then["position_ids"].max() + 1
        for step, token in enumerate(loop.greedy(expected[-1], 4)[0]):
            assert int(logits[-1].argmax()) == token
            call = {"input_ids": torch.tensor([[token]]), CACHE: cache}
            logits = model(**call, position_ids=(place + step).expand(3, 1, 1)).logits[0]
    assert loop.margin > 1e-4


@torch.no_grad()
def test_features_are_added_before_the_first_stage() -> None:
    """Qwen3-VL adds some after each of its first two layers here, to all vision tokens."""
    model, (inputs, tiles) = model_of("qwen3_vl"), inputs_of("qwen3_vl", (3, WIDE, VIDEO, 4))
    early = lk.LightKVConfig([lk.Stage(0, 1), lk.Stage(3, 1)])
    refused = pytest.raises(lk.ScheduleError, match=r"after layer 0.*may run after layers 1 to 4")
    with left_untouched(model, inputs), refused:
        lk.attach(model, early)
    loop = FamilyLoop(model, "qwen3_vl", ((1, 1, 0.5),))
    with lk.attach(model, lk.LightKVConfig([lk.Stage(1, 1)])):
        near(model(**inputs).logits[0], loop.run(inputs, tiles))
    more = tiny("qwen3_vl", vision={"depth": 4, "deepstack_visual_indexes": [0, 1, 3]})
    assert list(lk.adapter_for(more).legal_layers) == [2, 3, 4]
    none = tiny("qwen3_vl", vision={"deepstack_visual_indexes": []})
    assert list(lk.adapter_for(none).legal_layers) == [0, 1, 2, 3, 4]


@families
@torch.no_grad()
def test_sizes_must_be_told(family: str) -> None:
    model, (inputs, _) = model_of(family), inputs_of(family, (3, Picture((1, 4, 4)), 2))
    inputs.pop("image_grid_thw")
    with pytest.raises((AttributeError, TypeError, ValueError)) as plain:
        model(**inputs)
    with lk.attach(model, CONFIG), pytest.raises(plain.type):
        model(**inputs)


@families
@torch.no_grad()
def test_prompts_packed_into_a_row(family: str) -> None:
    model, (inputs, _) = model_of(family), inputs_of(family, (3, WIDE, 2, HIGH, 4))
    length = inputs["input_ids"].shape[1]
    for count in (3, 4):
        places = torch.arange(length).remainder(length // 2).expand(count, 1, -1)
        with (
            lk.attach(model, CONFIG),
            pytest.raises(lk.UnsupportedInputError, match="start anew within a row"),
        ):
            model(**inputs, position_ids=places)
