"""Inputs of further families: two samples of one and two pictures, or a film."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from families.models import BREAK, IMAGE, WORDS
from families.more import FILMED, RECIPES, SIZED, THW, Size


def samples(family: str, model: Any, seed: int = 0) -> list[dict[str, Tensor]]:
    """Inputs of two prompts, one with a picture and one with two, of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    return [
        _sample(family, model, pictures, words, generator)
        for pictures, words in (((0,), (3, 5)), ((1, 2), (2, 1, 4)))
    ]


def together(singles: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several samples as one batch, padded on the left."""
    longest = max(single["input_ids"].shape[1] for single in singles)
    both: dict[str, Tensor] = {}
    for name in singles[0]:
        parts = [single[name] for single in singles]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            parts = [pad(x, (longest - x.shape[1], 0)) for x in parts]
        elif name == "pixel_values" and "image_sizes" in singles[0]:
            parts = _to_one_size(parts)
        both[name] = torch.cat(parts)
    return both


def _sample(
    family: str, model: Any, pictures: Sequence[int], words: Sequence[int], generator: Any
) -> dict[str, Tensor]:
    kind = RECIPES[family][1]
    text = [torch.randint(WORDS[0], WORDS[-1], (n,), generator=generator).tolist() for n in words]
    ids = text[0]
    for picture, after in zip(pictures, text[1:], strict=True):
        for rows, cols in kind.grids[picture]:
            ends = [BREAK] if kind is SIZED else []
            ids = ids + [*[IMAGE] * cols, *ends] * rows
        ids = ids + after
    found = {"input_ids": torch.tensor([ids])}
    found["attention_mask"] = torch.ones_like(found["input_ids"])
    sizes = [kind.sizes[picture] for picture in pictures]
    shapes = [shape_of(model, size) for size in sizes]
    pixels = [torch.randn(shape, generator=generator) for shape in shapes]
    found["pixel_values"] = torch.cat(_to_one_size(pixels) if kind is SIZED else pixels)
    if kind.argument:
        found[kind.argument] = torch.tensor(sizes)
    if kind is THW and family != "exaone4_5":
        found["mm_token_type_ids"] = (found["input_ids"] == IMAGE).int()
    if family == "deepseek_vl_hybrid":
        found["high_res_pixel_values"] = torch.randn(len(sizes), 3, 64, 64, generator=generator)
    return found


def film(family: str, model: Any) -> dict[str, Tensor]:
    """Inputs of a prompt about a video of 3 frames of 2 x 3 tokens."""
    between = [] if family == "exaone4_5" else [BREAK]  # a time stamp
    frames = [*between, *[FILMED[family]] * 6] * 3
    ids = torch.tensor([[5, 6, *frames, 7, 8, 9]])
    generator = torch.Generator().manual_seed(0)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found["pixel_values_videos"] = torch.randn(shape_of(model, (3, 4, 6)), generator=generator)
    found["video_grid_thw"] = torch.tensor([[3, 4, 6]])
    if family != "exaone4_5":
        found["mm_token_type_ids"] = 2 * (ids == FILMED[family]).int()
    return found


def shape_of(model: Any, size: Size) -> Size:
    """Shape of the pixels of a picture."""
    vision = model.config.vision_config
    if len(size) == 3:
        frames = getattr(vision, "temporal_patch_size", None)
        side = vision.patch_size
        patch = (3, side, side) if frames is None else (3 * frames * side**2,)
        return math.prod(size), *patch
    if len(size) == 2:
        return 1, 3, *size
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    return *size, 3, side, side


def _to_one_size(pixels: Sequence[Tensor]) -> list[Tensor]:
    height, width = (max(x.shape[axis] for x in pixels) for axis in (-2, -1))
    return [pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in pixels]
