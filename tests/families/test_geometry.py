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

FEATURE_ARGUMENTS = {
    "image": (
        "pixel_values",
        "image_sizes",
        "batch_num_images",
        "image_grid_thw",
        "pixel_attention_mask",
    ),
    "video": ("pixel_values_videos", "video_grid_thw"),
}

# Tokens between which features were interpolated.
BLURRED = {
    ("llava_onevision", Picture((70, 105))),
    ("llava_onevision", Picture((2,), "video")),
    ("llava_onevision", Picture((3,), "video")),
}


def features(model: Any, inputs: dict[str, Tensor], kind: str = "image") -> Tensor:
    """What the model puts in place of the placeholders of a batch, in order."""
    chosen = {name: inputs[name] for name in FEATURE_ARGUMENTS[kind] if name in inputs}
    method = model.get_image_features if kind == "image" else model.get_video_features
    found = method(**chosen, return_dict=True).pooler_output
    return torch.cat([part.flatten(0, -2) for part in found])


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


def footprints(model: Any, inputs: dict[str, Tensor], kind: str) -> tuple[Tensor, Tensor]:
    """Of each token, which pixels it depends on; and the features themselves."""
    name = FEATURE_ARGUMENTS[kind][0]
    pixels = inputs[name].requires_grad_()
    found = features(model, inputs, kind)
    sums = found @ torch.randn(found.shape[-1])
    every = torch.eye(len(sums))
    (grads,) = torch.autograd.grad(sums, pixels, every, is_grads_batched=True)
    return grads.abs(), found.detach()


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
    kind = prompt[0].kind
    weights, found = footprints(model, inputs, kind)
    placeholder = VIDEO if kind == "video" else IMAGE
    assert len(found) == int((inputs["input_ids"] == placeholder).sum())
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
