"""The tiny models and their inputs: right sizes, weights that matter, batches that agree."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from families.inputs import PICTURES, Picture, Prompt, alone, batch, truths
from families.models import (
    BREAK,
    END,
    FAKE,
    FAMILIES,
    GLOBAL,
    IMAGE,
    LAYERS,
    NEWLINE,
    START,
    TAGS,
    VIDEO,
    WINDOW,
    tiny,
)

families = pytest.mark.parametrize("family", FAMILIES)
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def ragged(family: str) -> list[Prompt]:
    """Samples with one image, none, adjacent ones, and a video beside an image."""
    images = [picture for picture in PICTURES[family] if picture.kind == "image"]
    videos = [picture for picture in PICTURES[family] if picture.kind == "video"]
    prompts: list[Prompt] = [
        (3, images[0], 5),
        (7,),
        (2, images[-1], images[0], 1, images[len(images) // 2], 4),
    ]
    if videos:
        prompts.append((4, videos[0], 3, images[0], 2))
    if family in QWEN:
        prompts.append((videos[1], 2, videos[0], 6))
    return prompts


def near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


@torch.no_grad()
def logits_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_models(family: str, attention: str) -> None:
    model = tiny(family, attention)
    decoder = model.get_decoder()
    assert not model.training
    assert model.dtype == torch.float32
    assert len(decoder.layers) == LAYERS
    assert {layer.self_attn.config._attn_implementation for layer in decoder.layers} == {attention}
    assert model.generation_config.eos_token_id is None
    assert model.generation_config.pad_token_id == 0
    assert not any((weight == 0).all() for weight in model.parameters())
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


def test_every_other_layer_of_gemma_slides() -> None:
    layers = tiny("gemma3").get_decoder().layers
    windows = [layer.self_attn.sliding_window for layer in layers]
    assert windows == [WINDOW, None] * (LAYERS // 2)


def test_options() -> None:
    model = tiny("llava", text={"num_hidden_layers": 2}, vision={"image_size": 42})
    assert len(model.get_decoder().layers) == 2
    assert truths("llava", model, [Picture()])[0][0].tokens == 36
    model = tiny("llava_onevision", vision_aspect_ratio="anyres_max_9")
    rows = truths("llava_onevision", model, [Picture((70, 105))])[0][1].rows
    assert rows == 10  # nothing shrinks
    first, again, other = (tiny("llava", seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@families
def test_backends_agree(family: str) -> None:
    model = tiny(family)
    inputs = batch(family, model, *ragged(family))
    real = inputs["attention_mask"].bool()
    expected = logits_of(model, inputs)[real]
    model.set_attn_implementation("eager")
    near(logits_of(model, inputs)[real], expected)


@families
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_sample_of_a_batch_is_as_it_is_alone(family: str, padding: str) -> None:
    model, prompts = tiny(family), ragged(family)
    inputs = batch(family, model, *prompts, padding=padding)
    logits = logits_of(model, inputs)
    for number, (mask, single) in enumerate(alone(family, model, *prompts, padding=padding)):
        assert single["attention_mask"].all()
        assert torch.equal(single["input_ids"][0], inputs["input_ids"][number][mask])
        near(logits[number][mask], logits_of(model, single)[0])


@families
def test_generation(family: str) -> None:
    """Greedy tokens of a batch are those of each sample, and of whoever recomputes them."""
    model, prompts = tiny(family), ragged(family)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    inputs = batch(family, model, *prompts)
    length = inputs["input_ids"].shape[1]
    tokens = model.generate(**inputs, **options)[:, length:]
    assert tokens.unique().numel() > 4
    for row, (_, single) in zip(tokens, alone(family, model, *prompts), strict=True):
        found = model.generate(**single, **options, use_cache=False)
        assert torch.equal(found[0, single["input_ids"].shape[1] :], row)


@families
def test_pixels_and_order_matter(family: str) -> None:
    model = tiny(family)
    (_, inputs), *_ = alone(family, model, *ragged(family))
    before = logits_of(model, inputs)[0, -1]

    def change(**other: Tensor) -> float:
        difference = logits_of(model, {**inputs, **other})[0, -1] - before
        return float(difference.abs().max() / before.abs().max())

    assert change(pixel_values=inputs["pixel_values"].flip(-1)) > 0.02
    ids = inputs["input_ids"].clone()
    ids[0, -3:-1] = ids[0, -3:-1].flip(0)
    assert not torch.equal(ids, inputs["input_ids"])
    assert change(input_ids=ids) > 0.005


@families
def test_placeholders_are_as_many_as_tokens_in_the_tiles(family: str) -> None:
    model, prompts = tiny(family), ragged(family)
    for prompt, (_, single) in zip(prompts, alone(family, model, *prompts), strict=True):
        expected = sum(tile.tokens for tiles in truths(family, model, prompt) for tile in tiles)
        ids = single["input_ids"]
        assert int(((ids == IMAGE) | (ids == VIDEO)).sum()) == expected


def spelt(family: str, picture: Picture) -> list[tuple[int, int]]:
    """Ids of a picture as runs: each id, and how often it comes in a row."""
    ids = batch(family, tiny(family), [picture])["input_ids"][0].tolist()
    return [(id_, len(list(run))) for id_, run in groupby(ids)]


def test_special_tokens() -> None:
    assert spelt("llava", Picture()) == [(IMAGE, 16)]
    assert spelt("llava_pixtral", Picture((16, 24))) == [
        (IMAGE, 3),
        (BREAK, 1),
        (IMAGE, 3),
        (END, 1),
    ]
    assert spelt("qwen2_vl", Picture((2, 4, 8), "video")) == [(START, 1), (VIDEO, 16), (END, 1)]
    frame = [(START, 1), (VIDEO, 8), (END, 1)]
    stamped = spelt("qwen3_vl", Picture((2, 4, 8), "video"))
    assert stamped[2:5] == stamped[7:] == frame
    assert spelt("internvl", Picture((2,))) == [(START, 1), (IMAGE, 32), (END, 1)]
    around = [(NEWLINE, 1), (START, 1), (IMAGE, 16), (END, 1), (NEWLINE, 1)]
    assert spelt("gemma3", Picture()) == around
    whole = [(FAKE, 1), (GLOBAL, 1), (IMAGE, 16), (FAKE, 1)]
    assert spelt("idefics3", Picture((0, 0))) == whole
    pieces = [(token, 1) for place in (0, 4) for token in (FAKE, TAGS[place], IMAGE, NEWLINE)]
    pieces = [(token, 16 if token == IMAGE else 1) for token, _ in pieces]
    assert spelt("smolvlm", Picture((2, 1))) == pieces + whole


@pytest.mark.parametrize("family", QWEN)
def test_rotary_positions_agree_with_the_tiles(family: str) -> None:
    """Rows and columns that the model itself gives to its vision tokens."""
    model = tiny(family)
    prompt = (3, *PICTURES[family], 2)
    inputs = batch(family, model, prompt)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
    positions, _ = model.model.get_rope_index(**{name: inputs[name] for name in names})
    ids = inputs["input_ids"][0]
    places = positions[1:, 0, (ids == IMAGE) | (ids == VIDEO)].T
    for tiles in truths(family, model, prompt):
        for tile in tiles:
            here, places = places[: tile.tokens], places[tile.tokens :]
            rows, cols = torch.arange(tile.rows), torch.arange(tile.cols)
            assert torch.equal(here - here[0], torch.cartesian_prod(rows, cols))
    assert not len(places)


def test_paligemma_sees_its_pictures_first() -> None:
    ids = batch("paligemma", tiny("paligemma"), (5, Picture(), 2))["input_ids"][0]
    assert (ids == IMAGE).nonzero().flatten().tolist() == list(range(16))
