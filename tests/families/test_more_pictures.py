"""Further families: what is shown of their pictures, and what is refused."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from marks import full
from torch import Tensor

import lightkv_gnn as lk
from families.more import FILMED, MORE, model_of
from families.more_inputs import film, samples, together
from families.test_more_families import LIKE_OTHERS
from lightkv_gnn.session.encoders import record_of
from lightkv_gnn.session.request import vision_tokens

SMEARS = dict.fromkeys(("got_ocr2", "pp_chart2table", "fast_vlm", "step3p7", "granite4_vision"), 1)
"""Cells that a convolution, or a Q-Former's window, reaches beyond a picture's own."""


WITHOUT_PLACES = ("idefics2", "aria", "deepseek_ocr2")
CODED = ("emu3", "apertus1p5")
"""Their encoders spread a pixel all over the picture, and may well find the same codes."""


PLACED = [name for name in MORE if name not in (*WITHOUT_PLACES, *CODED)]


@pytest.mark.parametrize(
    "family",
    [name for name in PLACED if name not in LIKE_OTHERS]
    + full(*(name for name in PLACED if name in LIKE_OTHERS)),
)
@torch.no_grad()
def test_a_pixel_is_shown_where_the_token_lies_that_it_changes(family: str) -> None:
    model = unmixed(family)
    check_pixels(family, model, together(samples(family, model)), "image")


FRAMED = ("ernie4_5_vl_moe", "kimi_k25", "gemma4")


@pytest.mark.parametrize(
    "family",
    [name for name in FRAMED if name in MORE]
    + full(*(name for name in FILMED if name in MORE and name not in (*FRAMED, "molmo2"))),
)
@torch.no_grad()
def test_a_pixel_of_a_frame_is_shown_where_the_token_lies_that_it_changes(family: str) -> None:
    model = unmixed(family)
    check_pixels(family, model, film(family, model), "video")


def unmixed(family: str) -> Any:
    """A model whose patches do not attend to each other: each token is of its own pixels."""
    model = model_of(family)
    for name, weight in model.named_parameters():
        if re.search(
            r"(vis|(image|video)_tower).*"
            r"(out_proj|o_proj|attn\.proj|projection_layer)(\.linear)?\.(weight|bias)$",
            name,
        ):
            weight.zero_()
    return model


def check_pixels(family: str, model: Any, inputs: dict[str, Tensor], kind: str) -> None:
    adapter = lk.adapter_for(model)
    tokens, name = vision_tokens(adapter, inputs), adapter.pixels[kind]
    encoded, pixels = tokens.encoded[kind], inputs[name]
    layout = adapter.layout(tokens)
    before, seen = features(model, inputs, kind), adapter.seen(encoded, pixels)
    tiles = [tile for picture in seen for tile in picture]
    for tile, (rows, cols) in zip(tiles, layout.grids, strict=True):
        assert tile.shape[-2] * cols == tile.shape[-1] * rows  # cells are squares
    generator = torch.Generator().manual_seed(0)
    found = set()
    for real in pixels.nonzero().chunk(8):  # from the first picture to the last
        place = tuple(real[torch.randint(len(real), (), generator=generator)].tolist())
        changed = pixels.clone()
        changed[place] += 3
        rows = features(model, {**inputs, name: changed}, kind) - before
        own = {
            (image, row, col)
            for image, row, col, moved in zip(
                layout.image.tolist(),
                layout.row.tolist(),
                layout.col.tolist(),
                (rows.abs().amax(1) > 1e-6).tolist(),
                strict=True,
            )
            if moved
        }
        again = [tile for picture in adapter.seen(encoded, changed) for tile in picture]
        shown = cells(tiles, again, list(layout.grids))
        reach = SMEARS.get(family, 0)
        if not shown:  # the second frame, which is not drawn, or a rest at the border
            assert len(own) <= (1 + reach) ** 2
            continue
        assert shown <= own <= {near_by for cell in shown for near_by in around(cell, reach)}
        found |= shown
    assert len({image for image, _, _ in found}) >= 2


def features(model: Any, inputs: dict[str, Tensor], kind: str) -> Tensor:
    """Of each vision token, in the order of the prompts, `[token, channel]`."""
    encode = getattr(model.base_model, f"get_{kind}_features")
    known = {*inspect.signature(encode).parameters, "image_sizes"}
    arguments = {name: value for name, value in inputs.items() if name in known}
    output = encode(**arguments)
    pictures = output.last_hidden_state if output.pooler_output is None else output.pooler_output
    if model.config.model_type == "granite4_vision":  # of the first layer that they are added to
        _, pictures = output.deepstack_features[0]
    return torch.cat([picture.flatten(0, -2) for picture in pictures])


Cell = tuple[int, int, int]
"""Image, row and column."""


def cells(before: list[Tensor], after: list[Tensor], grids: list[tuple[int, int]]) -> set[Cell]:
    """Cells in which a pixel differs."""
    found = set()
    for image, (old, new, (rows, cols)) in enumerate(zip(before, after, grids, strict=True)):
        _, height, width = old.shape
        for y, x in (old != new).any(0).nonzero().tolist():
            found.add((image, y * rows // height, x * cols // width))
    return found


def around(cell: Cell, reach: int) -> set[Cell]:
    image, row, col = cell
    steps = range(-reach, reach + 1)
    return {(image, row + down, col + right) for down in steps for right in steps}


def test_patches_that_come_row_by_row_make_the_picture() -> None:
    picture = torch.randn(3, 16, 24)
    patches = picture.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(0, 1)
    encoded = lk.Encoded("image", {"image_grid_thw": [(1, 4, 6)] * 2}, (6, 6))
    adapter = lk.adapter_for(model_of("paddleocr_vl"))
    first, second = adapter.seen(encoded, torch.cat([patches, 2 * patches]))
    assert torch.equal(first[0], picture)
    assert torch.equal(second[0], 2 * picture)


@torch.no_grad()
def test_a_square_of_another_size_than_the_configuration_tells_is_refused() -> None:
    model = model_of("got_ocr2", vision={"image_size": 56})  # halved to 7 and 4, not to 3
    inputs = {
        "input_ids": torch.tensor([[3, *[120] * 16, 4, 5]]),
        "pixel_values": torch.randn(1, 3, 56, 56),
    }
    model(**inputs)
    config = lk.LightKVConfig([lk.Stage(1, 1)])
    refused = pytest.raises(lk.ImageTokensError, match=r"to 16 tokens, .* tells 3x3")
    with lk.attach(model, config), refused:
        model(**inputs)


def test_an_oblong_tower_is_refused() -> None:
    model = model_of("deepseek_vl")
    model.config.vision_config.image_size = [16, 32]
    with pytest.raises(lk.UnsupportedModelError, match=r"\(16, 32\) pixels has no square tiles"):
        lk.attach(model, lk.LightKVConfig([lk.Stage(1, 1)]))


@pytest.mark.parametrize("family", ["gemma4", *full("gemma4_unified")])
def test_layers_that_share_the_entries_of_others_are_refused(family: str) -> None:
    model = model_of(family, text={"num_kv_shared_layers": 2})
    with pytest.raises(lk.UnsupportedModelError, match=r"the last 2 layers .* share the keys"):
        lk.attach(model, lk.LightKVConfig([lk.Stage(1, 1)]))


@torch.no_grad()
def test_no_pixels_are_kept_alive() -> None:
    model = model_of("deepseek_vl_hybrid")
    inputs, _ = samples("deepseek_vl_hybrid", model)
    pixels = {name: value for name, value in inputs.items() if "pixel" in name}
    with lk.attach(model, lk.LightKVConfig([lk.Stage(1, 1)])):
        record = record_of(model.model.get_image_features(**pixels))
    assert record is not None
    assert not record.arguments
