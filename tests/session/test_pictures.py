"""What is shown of a call's pictures lies where its tokens do, in every family.

The towers' attention is switched off, so that a token depends on the pixels it covers alone: which
tokens a pixel changes is then the model's own account of where they lie.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families.geometry import PICTURES, QWEN, Picture
from families.inputs import batch
from families.models import FAMILIES, IMAGE, VIDEO, tiny
from families.processors import image_processor
from PIL import Image, ImageDraw
from torch import Tensor

from lightkv_gnn import (
    Adapter,
    LightKVConfig,
    Stage,
    UnsupportedInputError,
    UnsupportedModelError,
    adapter_for,
    attach,
    seen_tiles,
)
from lightkv_gnn.adapters import base
from lightkv_gnn.session.pictures import vision_tokens
from lightkv_graphs import Tile, TokenLayout

KINDS = {"image": ("pixel_values", IMAGE), "video": ("pixel_values_videos", VIDEO)}
PLAIN = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.2] * 3, rescale_factor=1 / 255)
Cell = tuple[int, int, int]
"""Image, row and column."""


def patchwise(family: str) -> Any:
    """A model whose vision tower passes nothing from one patch to another."""
    model = tiny(family)
    outward = r"vis.*(out_proj|o_proj|attn\.proj|projection_layer)\.(weight|bias)$"
    weights = [weight for name, weight in model.named_parameters() if re.search(outward, name)]
    assert weights
    for weight in weights:
        weight.data.zero_()
    return model


def features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Vision tokens as they enter the decoder, in the order of the prompts, `[token, channel]`."""
    adapter = adapter_for(model)
    ids = inputs["input_ids"]
    rows = torch.zeros(*ids.shape, model.config.get_text_config().hidden_size)
    for kind, (name, placeholder) in KINDS.items():
        if name in inputs:
            known = ("image_sizes", "batch_num_images", "pixel_attention_mask", f"{kind}_grid_thw")
            arguments = {key: inputs[key] for key in (name, *known) if key in inputs}
            if kind == "video":
                arguments.pop("image_sizes", None)
                arguments.pop("batch_num_images", None)
            with torch.no_grad():
                output = getattr(adapter.base, adapter.encoders[kind])(**arguments).pooler_output
            rows[ids == placeholder] = torch.cat([picture.flatten(0, -2) for picture in output])
    return rows[(ids == IMAGE) | (ids == VIDEO)]


def cells_of_tokens(layout: TokenLayout, tokens: Tensor) -> set[Cell]:
    places = torch.stack([layout.image, layout.row, layout.col], 1)[tokens]
    return {tuple(place) for place in places.tolist() if place[1] >= 0}


def cells_of_pixels(
    before: list[Any], after: list[Any], layout: TokenLayout, most: int
) -> set[Cell]:
    """Cells in which a pixel differs by more than ``most``."""
    found = set()
    for image, (old, new, (rows, cols)) in enumerate(zip(before, after, layout.grids, strict=True)):
        difference = np.abs(np.asarray(old).astype(int) - np.asarray(new)).max(-1)
        height, width = difference.shape
        for y, x in np.argwhere(difference > most).tolist():
            found.add((image, y * rows // height, x * cols // width))
    return found


def together(family: str) -> list[list[int | Picture]]:
    """Two samples of several pictures, images and videos."""
    pictures = [*PICTURES[family], *PICTURES[family]][: max(4, len(PICTURES[family]))]
    return [[3, *pictures[::2], 4], [2, *pictures[::-2], 1]]


def apart(family: str) -> list[list[int | Picture]]:
    """A sample for each image."""
    return [[2, picture] for picture in PICTURES[family] if picture.kind == "image"]


@pytest.mark.parametrize("prompts", [together, apart])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pixel_lies_where_the_token_lies_that_it_changes(family: str, prompts: Any) -> None:
    model = patchwise(family)
    inputs = batch(family, model, *prompts(family))
    adapter = adapter_for(model)
    layout = adapter.layout(vision_tokens(adapter, inputs))
    before, tokens = seen_tiles(model, PLAIN, inputs), features(model, inputs)
    generator = torch.Generator().manual_seed(0)
    checked = set()
    for name in {name for name, _ in KINDS.values()} & set(inputs):
        real = inputs[name].nonzero()  # the rest is padding
        for some in real.chunk(8):  # from the first picture to the last
            index = some[torch.randint(len(some), (), generator=generator)]
            changed = {**inputs, name: inputs[name].clone()}
            place = tuple(index.tolist())
            changed[name][place] = -3 * inputs[name][place].sign()
            rows = (features(model, changed) - tokens).abs().amax(1) > 1e-6
            own = cells_of_tokens(layout, rows)
            shown = cells_of_pixels(before, seen_tiles(model, PLAIN, changed), layout, 20)
            checked |= shown
            assert agree(own, shown, family, layout), (place, own, shown)
    assert len({image for image, _, _ in checked}) >= min(3, len(layout.grids))


def agree(own: set[Cell], shown: set[Cell], family: str, layout: TokenLayout) -> bool:
    """Whether the cells of the changed tokens are those of the changed pixels."""
    if family in QWEN and not shown:
        return len(own) == 1  # of frames that share their tokens, the first is shown
    if family == "llava_onevision" and own != shown:  # interpolated: neighbours mix
        cells = {layout.grids[image] for image, _, _ in own | shown}
        return bool(shown) and own <= near(shown) and not cells & {(5, 5), (5, 10), (10, 5)}
    return own == shown


@pytest.mark.parametrize("family", FAMILIES)
def test_a_painted_patch_is_where_the_tokens_change(family: str) -> None:
    """From a picture file on, through the family's own image processor."""
    model = patchwise(family)
    processor = image_processor(family, model)
    plain = Image.fromarray(np.full((60, 100, 3), 200, np.uint8))
    inputs = prepared(model, processor, plain)
    adapter = adapter_for(model)
    layout = adapter.layout(vision_tokens(adapter, inputs))
    before, tokens = seen_tiles(model, processor, inputs), features(model, inputs)
    for corner in ((24, 4), (56, 14), (30, 40)):
        painted = plain.copy()
        square = (*corner, *(side + 18 for side in corner))
        ImageDraw.Draw(painted).rectangle(square, fill=(255, 0, 0))
        changed = prepared(model, processor, painted)
        rows = (features(model, changed) - tokens).abs().amax(1)
        after = seen_tiles(model, processor, changed)
        own = cells_of_tokens(layout, rows > 1e-6)
        red = cells_of_pixels(before, after, layout, 150)
        assert red
        assert red <= own <= cells_of_pixels(before, after, layout, 0) | near(red)
        assert red_share(after[-1]) > 0.5 * 19 * 19 / 6000


def near(cells: set[Cell]) -> set[Cell]:
    """Cells and their neighbours."""
    around = (-1, 0, 1)
    return {(i, r + y, c + x) for i, r, c in cells for y in around for x in around}


def red_share(tile: Any) -> float:
    """Share of red pixels."""
    colours = np.asarray(tile).astype(int)
    return float(((colours[..., 0] > 150) & (colours[..., 1:].max(-1) < 100)).mean())


def prepared(model: Any, processor: Any, picture: Any) -> dict[str, Any]:
    """Inputs of a prompt that is the picture alone."""
    options = {"crop_to_patches": True} if model.config.model_type == "internvl" else {}
    inputs = dict(processor(picture, return_tensors="pt", **options))
    inputs["input_ids"] = torch.full((1, 2), IMAGE)
    lengths = vision_tokens(adapter_for(model), inputs).encoded["image"].lengths
    return {**inputs, "input_ids": torch.full((1, sum(lengths)), IMAGE)}


def test_the_normalisation_is_undone() -> None:
    model = tiny("llava")
    processor = image_processor("llava", model)
    square = Image.fromarray(np.random.default_rng(0).integers(256, size=(28, 28, 3), dtype="u1"))
    inputs = prepared(model, processor, square)
    (seen,) = seen_tiles(model, processor, inputs)
    assert np.array_equal(np.asarray(seen), np.asarray(square))
    whole = SimpleNamespace(image_processor=processor)
    assert seen_tiles(model, whole, inputs) == [seen]
    inputs = dict(processor(square, do_normalize=False, do_rescale=False, return_tensors="pt"))
    raw = SimpleNamespace(do_normalize=False, do_rescale=False)
    (seen,) = seen_tiles(model, raw, {**inputs, "input_ids": torch.full((1, 16), IMAGE)})
    assert np.array_equal(np.asarray(seen), np.asarray(square))


def test_a_video_is_undone_by_the_video_processor() -> None:
    model = tiny("llava_next_video")
    video = SimpleNamespace(image_mean=[0.2] * 3, image_std=[0.1] * 3, rescale_factor=1 / 255)
    processor = SimpleNamespace(image_processor=PLAIN, video_processor=video)
    inputs = batch("llava_next_video", model, [2, Picture((2,), "video"), Picture((42, 84))])
    inputs = {name: value * 0 if "pixel" in name else value for name, value in inputs.items()}
    tiles = seen_tiles(model, processor, inputs)
    assert [np.unique(np.asarray(tile)).tolist() for tile in tiles] == [[51], [51], [128], [128]]


@pytest.mark.parametrize(
    ("family", "size", "sizes"),
    [
        ("llava", (28, 28), [(28, 28)]),
        ("llava_pixtral", (64, 40), [(64, 40)]),
        ("llava_next", (56, 28), [(28, 28), (56, 28)]),
        ("llava_onevision", (70, 35), [(35, 35), (70, 35)]),
        ("qwen2_vl", (48, 32), [(48, 32)]),
        ("qwen3_vl", (16, 40), [(16, 40)]),
        ("gemma3", (32, 32), [(32, 32)]),
    ],
)
def test_a_picture_of_fitting_size_comes_back(
    family: str, size: tuple[int, int], sizes: list[tuple[int, int]]
) -> None:
    model = tiny(family)
    processor = image_processor(family, model)
    pixels = np.random.default_rng(0).integers(256, size=(*size[::-1], 3), dtype="u1")
    tiles = seen_tiles(model, processor, prepared(model, processor, Image.fromarray(pixels)))
    assert [tile.size for tile in tiles] == sizes
    assert np.abs(np.asarray(tiles[-1]).astype(int) - pixels).max() <= 1


def test_tiles_of_a_cut_picture_come_back() -> None:
    model = tiny("internvl")
    processor = image_processor("internvl", model)
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype="u1")
    *tiles, whole = seen_tiles(
        model, processor, prepared(model, processor, Image.fromarray(pixels))
    )
    rows = [np.hstack([np.asarray(tile) for tile in tiles[n : n + 2]]) for n in (0, 2)]
    assert np.array_equal(np.vstack(rows), pixels)
    assert whole.size == (32, 32)


@pytest.mark.parametrize("family", QWEN)
def test_of_frames_that_share_their_tokens_the_first_is_shown(family: str) -> None:
    model = tiny(family)
    inputs = batch(family, model, [1, Picture((2, 6, 8), "video"), 1])
    before = seen_tiles(model, PLAIN, inputs)
    assert len(before) == 2
    frames = inputs["pixel_values_videos"].view(96, 3, 2, 4, 4)  # both frames of every patch
    for frame, same in ((1, True), (0, False)):
        frames[:, :, frame] = -1
        assert (seen_tiles(model, PLAIN, inputs) == before) == same


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("llava", [(28, 28)]), ("llava_next", [(28, 28), (56, 28)]), ("paligemma", [(24, 24)])],
)
def test_patches_that_do_not_fill_the_picture_leave_a_rest_out(
    family: str, sizes: list[tuple[int, int]]
) -> None:
    pinpoints = {"image_grid_pinpoints": [[30, 60], [60, 30]]} if len(sizes) > 1 else {}
    model = tiny(family, vision={"image_size": 30}, **pinpoints)
    tokens = {"llava": 16, "llava_next": 16 + 4 * 9, "paligemma": 9}[family]
    inputs = {
        "input_ids": torch.full((1, tokens), IMAGE),
        "pixel_values": torch.zeros(1, 3, 30, 30),
    }
    if pinpoints:
        inputs["image_sizes"] = torch.tensor([[30, 60]])
        inputs["pixel_values"] = torch.zeros(1, 3, 3, 30, 30)
    assert [tile.size for tile in seen_tiles(model, PLAIN, inputs)] == sizes


def test_inputs_of_another_precision_than_the_model() -> None:
    model = tiny("llava").bfloat16()
    inputs = batch("llava", model, [1, Picture()])
    assert len(seen_tiles(model, PLAIN, inputs)) == 1


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_prompt_without_pictures(family: str) -> None:
    with pytest.raises(
        UnsupportedInputError, match=r"no pictures in \['attention_mask', 'input_ids'"
    ):
        seen_tiles(tiny(family), PLAIN, batch(family, tiny(family), [5]))


def test_an_adapter_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Adapter):
        def tiles(self, encoded: Any) -> list[list[Tile]]:
            return [[Tile(4, 4)] for _ in encoded.lengths]

    monkeypatch.setitem(base._ADAPTERS, "llava", Mine)
    model = tiny("llava")
    inputs = batch("llava", model, [3, Picture(), 3])
    with attach(model, LightKVConfig([Stage(1, 2)])) as handle:
        model.generate(**inputs, max_new_tokens=2)
    assert len(handle.trace) == 1
    with pytest.raises(UnsupportedModelError, match=r"Mine .* give it a method seen"):
        seen_tiles(model, PLAIN, inputs)


def test_pictures_are_told_apart_inside_the_context_too() -> None:
    model = tiny("llava_next")
    inputs = batch("llava_next", model, [3, Picture((28, 56)), Picture((84, 28)), 3])
    outside = seen_tiles(model, PLAIN, inputs)
    with attach(model, LightKVConfig([Stage(1, 2)])) as handle:
        model.generate(**inputs, max_new_tokens=2)
        assert seen_tiles(model, PLAIN, inputs) == outside
    shapes = [(tile.height // 7, tile.width // 7) for tile in outside]
    assert shapes == list(handle.trace.layout.grids)
