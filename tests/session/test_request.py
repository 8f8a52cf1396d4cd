"""Which calls are prefills with pictures, which are refused, and which are left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from families.inputs import PICTURES, Picture, Prompt, alone, batch, truths
from families.models import IMAGE, VIDEO, tiny
from models import CACHE, left_untouched, near
from torch import Tensor
from transformers import DynamicCache

import lightkv_gnn as lk

CONFIG = lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)])


@cache
def model_of() -> Any:
    return tiny("llava")


def llava(*prompts: Prompt, **options: Any) -> dict[str, Tensor]:
    return batch("llava", model_of(), *prompts, **options)


def without(inputs: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name not in names}


# --- calls that are refused -----------------------------------------------------------------------


def passing_by(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Pictures encoded as if the model were not attached."""
    output = type(model.model).get_image_features(model.model, inputs["pixel_values"])
    return {**without(inputs, "pixel_values"), "mm_encoder_outputs": {"image": output}}


def half_masked(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = inputs["attention_mask"].clone()
    mask[0, :8] = 0
    return {**inputs, "attention_mask": mask}


def with_placeholder(inputs: dict[str, Tensor], place: int, token: int) -> dict[str, Tensor]:
    ids = inputs["input_ids"].clone()
    ids[0, place] = token
    return {**inputs, "input_ids": ids}


Call = Callable[[Any, dict[str, Tensor]], Any]
REFUSED: dict[str, tuple[Call, str]] = {
    "several prompts in a row": (
        lambda model, inputs: model(**inputs, cu_seq_lens_q=torch.tensor([0, 9, 44])),
        "cu_seq_lens_q.*padded batch",
    ),
    "positions that start anew": (
        lambda model, inputs: model(**inputs, position_ids=torch.arange(44)[None] % 22),
        "start anew.*padded batch",
    ),
    "small chunks": (
        lambda model, inputs: model.generate(**inputs, prefill_chunk_size=7, max_new_tokens=2),
        "prefill_chunk_size.*leave prefill_chunk_size out",
    ),
    "one chunk": (
        lambda model, inputs: model.generate(**inputs, prefill_chunk_size=99, max_new_tokens=2),
        "prefill_chunk_size.*leave prefill_chunk_size out",
    ),
    "encoded elsewhere": (
        lambda model, inputs: model(**passing_by(model, inputs)),
        "did not encode inside the context.*pass pixel_values",
    ),
    "generate from what was encoded elsewhere": (
        lambda model, inputs: model.generate(**passing_by(model, inputs), max_new_tokens=2),
        "did not encode inside the context.*pass pixel_values",
    ),
    "a picture cut in two by padding": (
        lambda model, inputs: model(**half_masked(inputs)),
        "truncation or padding",
    ),
    "one placeholder too many": (
        lambda model, inputs: model(**with_placeholder(inputs, 0, IMAGE)),
        "features and image tokens do not match",
    ),
    "one placeholder too few": (
        lambda model, inputs: model(**with_placeholder(inputs, 4, 7)),
        "features and image tokens do not match",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@torch.no_grad()
def test_refused_calls_change_nothing(case: str) -> None:
    model, inputs = model_of(), llava((4, Picture(), 6, Picture(), 2))
    run, message = REFUSED[case]
    with left_untouched(model, inputs), lk.attach(model, CONFIG) as handle:
        expected, cache = model(**inputs).logits, DynamicCache()
        last = handle.trace.layout
        with pytest.raises(ValueError, match=message):
            run(model, {**inputs, CACHE: cache})
        assert cache.get_seq_length() == 0
        assert not [x for x in cache.layers if "lightkv" in type(x).__module__]
        assert handle.trace.layout is last
        assert torch.equal(model(**inputs).logits, expected)


# --- calls that are not ---------------------------------------------------------------------------


@torch.no_grad()
def test_positions_of_padded_prompts() -> None:
    """As generate makes them: padding has positions too, and prompts start at 0."""
    model, prompts = model_of(), [(2, Picture(), 3), (1, Picture(), 6, Picture(), 2)]
    for padding in ("left", "right"):
        inputs = llava(*prompts, padding=padding)
        places = inputs["attention_mask"].cumsum(1) - 1
        inputs["position_ids"] = places.masked_fill(inputs["attention_mask"] == 0, 1)
        with lk.attach(model, CONFIG):
            logits = model(**inputs).logits
            singles = alone("llava", model, *prompts, padding=padding)
            for own, (where, single) in zip(logits, singles, strict=True):
                near(own[where], model(**single).logits[0])


@torch.no_grad()
def test_pictures_that_are_masked_out_are_left_out() -> None:
    model, inputs = model_of(), llava((3, Picture(), 2, Picture(), 4))
    mask = inputs["attention_mask"].clone()
    mask[0, : 3 + 16] = 0
    rest = {"input_ids": inputs["input_ids"][:, 19:], "pixel_values": inputs["pixel_values"][1:]}
    with lk.attach(model, CONFIG) as handle:
        expected = model(**rest).logits
        found = model(**{**inputs, "attention_mask": mask}).logits[:, 19:]
        assert handle.trace.layout.grids == ((4, 4),)
        near(found, expected)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "internvl", "idefics3"])
@torch.no_grad()
def test_masked_out_pictures_of_several_tiles(family: str) -> None:
    model, (first, second, *_) = tiny(family), PICTURES[family]
    prompts: list[Prompt] = [(3, second, first, 4), (2, first, 1)]
    inputs = batch(family, model, *prompts)
    gone, *left = (tiles for prompt in prompts for tiles in truths(family, model, prompt))
    number = (inputs["input_ids"][0] == IMAGE).cumsum(0)
    inputs["attention_mask"][0, number <= sum(tile.tokens for tile in gone)] = 0
    with lk.attach(model, CONFIG) as handle:
        model(**inputs)
        grids = [(tile.rows, tile.cols) for tiles in left for tile in tiles]
        assert list(handle.trace.layout.grids) == grids


@torch.no_grad()
def test_embeddings_with_pictures() -> None:
    model, inputs = model_of(), llava((3, Picture(), 2), (1, Picture(), Picture(), 4))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with lk.attach(model, CONFIG):
        expected = model(**inputs).logits
        call = {**without(inputs, "input_ids"), "inputs_embeds": embeds}
        assert torch.equal(model(**call).logits, expected)


@torch.no_grad()
def test_embeddings_without_pictures_are_left_alone_with_a_warning() -> None:
    model, inputs = model_of(), llava((13,), (9,))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    call = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    expected = model(**call)
    with lk.attach(model, CONFIG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = model(**call)
        model.generate(**call, max_new_tokens=3)
        model(inputs_embeds=embeds[:, -1:], **{CACHE: found[CACHE]})  # a step
    ours = [str(each.message) for each in caught if "lightkv_gnn" in str(each.message)]
    assert ["pass input_ids" in message for message in ours] == [True, True]
    assert torch.equal(found.logits, expected.logits)
    assert {type(x) for x in found[CACHE].layers} == {type(x) for x in expected[CACHE].layers}


@torch.no_grad()
def test_a_placeholder_of_a_kind_without_pictures_is_a_token_like_any_other() -> None:
    family, picture = "llava_next_video", PICTURES["llava_next_video"][0]
    model = tiny(family)
    inputs = batch(family, model, (4, picture, 6))
    inputs["input_ids"][0, 1] = VIDEO
    with lk.attach(model, CONFIG) as handle:
        model(**inputs)
        assert len(handle.trace.layout.grids) == len(truths(family, model, (picture,))[0])


@torch.no_grad()
def test_a_sampled_placeholder_is_a_token_like_any_other() -> None:
    model, inputs = tiny("llava"), llava((3, Picture(), 2))
    model.lm_head.bias = torch.nn.Parameter(torch.eye(128)[IMAGE] * 1e4)
    with lk.attach(model, CONFIG) as handle:
        for options in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
            found = model.generate(**inputs, **options, do_sample=False, max_new_tokens=4)
            assert found[0, -4:].tolist() == [IMAGE] * 4
            assert handle.trace.layout.counts == (16,) * options.get("num_beams", 1)
