"""The geometry that the helpers tell is the one that the models' own code makes.

With attention taken out of its vision tower, a token depends on nothing but the pixels that it
shows: where its gradient is not zero is its place, whatever the model did to pack its tokens.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from families.geometry import ANYRES, IDEFICS, PICTURES, QWEN, Picture, TileTruth, canvases, truths
from families.inputs import IMAGE, VIDEO, batch
from families.models import FAMILIES, tiny

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
# Tokens between which features were interpolated.
BLURRED = {
    ("llava_onevision", Picture((70, 105))),
    ("llava_onevision", Picture((2,), "video")),
    ("llava_onevision", Picture((3,), "video")),
}


def features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the decoder of a model reads in place of the placeholders of one sample, in order."""
    seen = []

    def keep(_: Any, __: Any, options: dict[str, Any]) -> None:
        seen.append(options["inputs_embeds"])

    handle = model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    model(**inputs)
    handle.remove()
    ids = inputs["input_ids"]
    return seen[0][(ids == IMAGE) | (ids == VIDEO)]


def without_vision_attention(model: Any) -> Any:
    outputs = re.compile(r"(vision|visual).*(out_proj|o_proj|attn\.proj|projection_layer)\.weight$")
    weights = [weight for name, weight in model.named_parameters() if outputs.search(name)]
    assert len(weights) == 2
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
    return model


@cache
def blind(family: str) -> Any:
    return without_vision_attention(tiny(family))


def footprints(model: Any, inputs: dict[str, Tensor], kind: str) -> Tensor:
    """Of each vision token, how much it depends on each pixel."""
    pixels = inputs[PIXELS[kind]].requires_grad_()
    sums = features(model, inputs) @ torch.randn(model.config.get_text_config().hidden_size)
    (grads,) = torch.autograd.grad(sums, pixels, torch.eye(len(sums)), is_grads_batched=True)
    return grads.abs()


def of_pictures(family: str, pictures: list[Picture], weights: Tensor) -> list[Tensor]:
    """The pixels of each picture of a sample."""
    areas = [math.prod(picture.size) for picture in pictures]
    if family in QWEN:
        return list(weights.split(areas, dim=1))
    if family in IDEFICS:
        return list(weights[:, 0].split([area + 1 for area in areas], dim=1))
    if family in ANYRES or family == "llava_pixtral":
        return list(weights.unbind(1))
    counts = [picture.size[0] if picture.size else 1 for picture in pictures]
    return list(weights.split(counts, dim=1))


def check_tile(truth: TileTruth, canvas: Tensor, pitch: float | None) -> None:
    """Asserts that the tokens of a tile, and no others, are where the truth says.

    Without a ``pitch``, in pixels, they need only be in the right order: tokens that features
    were interpolated for have blurred places.
    """
    seen = canvas > 1e-6 * canvas.max()
    assert not seen[: truth.before].any()
    assert not seen[len(seen) - truth.after :].any()
    body = seen[truth.before : len(seen) - truth.after]
    body = body.unflatten(0, (truth.rows, truth.cols + truth.row_end))
    assert not body[:, truth.cols :].any()
    places = body[:, : truth.cols]
    assert places.flatten(2).any(-1).all()
    for axis, count in enumerate((truth.rows, truth.cols)):
        size = canvas.shape[1 + axis]
        shadow = places.any(3 - axis).double()  # [row, col, pixel along the axis]
        centre = (shadow * torch.arange(size)).sum(-1) / shadow.sum(-1)
        centre = centre.movedim(axis, 0)
        assert bool((centre - centre[:, :1]).abs().max() < 1e-9)
        middle, number = (size - 1) / 2, torch.arange(count) - (count - 1) / 2
        if pitch is None:
            assert bool((centre[:, 0].diff() > 0).all())
            assert bool(centre[0, 0] + centre[-1, 0] == pytest.approx(2 * middle, abs=2))
        else:
            assert centre[:, 0].tolist() == pytest.approx((middle + pitch * number).tolist())


def pitch_of(family: str, model: Any, picture: Picture, truth: TileTruth, canvas: Tensor) -> Any:
    if (family, picture) in BLURRED and (truth.row_end or picture.kind == "video"):
        return None
    if truth.row_end:
        return model.config.vision_config.patch_size
    return canvas.shape[1] / truth.rows


def check(family: str, model: Any, prompt: list[Picture]) -> None:
    inputs = batch(family, model, prompt)
    weights = footprints(model, inputs, prompt[0].kind)
    geometry = truths(family, model, prompt)
    parts = weights.split([sum(tile.tokens for tile in tiles) for tiles in geometry])
    for number, (picture, tiles, part) in enumerate(zip(prompt, geometry, parts, strict=True)):
        pixels = of_pictures(family, prompt, part)
        assert not any(other.any() for other in pixels[:number] + pixels[number + 1 :])
        shown = canvases(family, model, picture, pixels[number])
        assert len(shown) == len(tiles)
        for index, tile in enumerate(tiles):
            start = sum(tile.tokens for tile in tiles[:index])
            rows = slice(start, start + tile.tokens)
            for other, canvas in enumerate(shown):
                assert other == index or not canvas[rows].any()
            pitch = pitch_of(family, model, picture, tile, shown[index])
            check_tile(tile, shown[index][rows], pitch)


SINGLE = [(family, picture) for family in FAMILIES for picture in PICTURES[family]]


@pytest.mark.parametrize(("family", "picture"), SINGLE, ids=str)
def test_a_token_is_where_the_truth_says(family: str, picture: Picture) -> None:
    check(family, blind(family), [picture])


KINDS = sorted({(family, picture.kind) for family, picture in SINGLE})


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_tokens_of_several_pictures_are_in_order(family: str, kind: str) -> None:
    pictures = [picture for picture in PICTURES[family] if picture.kind == kind]
    model = blind(family)
    stacked = kind == "video" and family in ANYRES  # all of them have as many frames
    check(family, model, [pictures[-1], pictures[-1 if stacked else 0]])


def test_cls_comes_first_where_it_is_kept() -> None:
    model = without_vision_attention(tiny("llava", vision_feature_select_strategy="full"))
    assert truths("llava", model, [Picture()]) == [[TileTruth(4, 4, before=1)]]
    check("llava", model, [Picture(), Picture()])


@pytest.mark.parametrize(
    ("family", "size", "rows", "cols"),
    [
        ("llava_next", (28, 56), 4, 8),  # fills its tiles
        ("llava_next", (84, 28), 12, 4),
        ("llava_next", (45, 56), 6, 8),  # rows are cut off
        ("llava_next", (56, 45), 8, 6),  # columns are
        ("llava_next", (13, 90), 2, 12),
        ("llava_onevision", (30, 70), 5, 10),  # half a row would be
        ("llava_onevision", (70, 105), 8, 12),  # 10 x 15 are too many
    ],
)
def test_known_by_hand(family: str, size: tuple[int, int], rows: int, cols: int) -> None:
    _, grid = truths(family, tiny(family), [Picture(size)])[0]
    assert Picture(size) in PICTURES[family]
    assert grid == TileTruth(rows, cols, row_end=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_as_many_as_the_tokens_of_a_picture(family: str) -> None:
    """The model's own account of its pictures, though not every family keeps them apart."""
    model = tiny(family)
    images = [picture for picture in PICTURES[family] if picture.kind == "image"]
    inputs = batch(family, model, images, images[:1])
    names = ("image_sizes", "batch_num_images", "image_grid_thw", "pixel_attention_mask")
    chosen = {name: inputs[name] for name in names if name in inputs}
    with torch.no_grad():
        found = model.get_image_features(inputs["pixel_values"], **chosen, return_dict=True)
    pictures = [tiles for prompt in (images, images[:1]) for tiles in truths(family, model, prompt)]
    lengths = [len(part) for part in found.pooler_output]
    of_tiles = [tile.tokens for tiles in pictures for tile in tiles]
    expected = [sum(tile.tokens for tile in tiles) for tiles in pictures]
    if family == "internvl":
        assert lengths == of_tiles
    elif family in IDEFICS:  # of each sample, in older versions of each tile
        assert lengths in ([sum(expected[:-1]), expected[-1]], of_tiles)
    else:
        assert lengths == expected
