"""Pictures of every family, and the geometry that their tokens must have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ANYRES = ("llava_next", "llava_next_video", "llava_onevision")
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IDEFICS = ("idefics3", "smolvlm")


@dataclass(frozen=True)
class Picture:
    """An image or a video.

    Its ``size`` is `(height, width)` in pixels for the families that take pictures of any size,
    `(frames,)` for a video of LLaVA, `(t, h, w)` in patches for Qwen, `(tiles,)` for InternVL,
    `(rows, cols)` of sub-images, or `(0, 0)`, for Idefics, and nothing where all are alike.
    """

    size: tuple[int, ...] = ()
    kind: str = "image"

    def __str__(self) -> str:
        return "-".join([self.kind, "x".join(map(str, self.size))])


@dataclass(frozen=True)
class TileTruth:
    """Tokens of a tile in order: those before it, its rows, those that end each row, and after."""

    rows: int
    cols: int
    before: int = 0
    row_end: int = 0
    after: int = 0

    @property
    def tokens(self) -> int:
        return self.before + self.rows * (self.cols + self.row_end) + self.after


Prompt = Sequence[int | Picture]
"""A number is that many tokens of text."""

SIZES = ((28, 56), (84, 28), (45, 56), (56, 45), (30, 31), (13, 90))
PICTURES: dict[str, tuple[Picture, ...]] = {
    "llava": (Picture(),),
    "llava_pixtral": tuple(Picture(size) for size in ((32, 48), (64, 8), (24, 40), (8, 8))),
    "llava_next": tuple(Picture(size) for size in SIZES),
    "llava_next_video": (
        *(Picture(size) for size in ((42, 84), (60, 84), (84, 50))),
        *(Picture((frames,), "video") for frames in (2, 3)),
    ),
    # The last but one shrinks; the first has a single tile besides the whole.
    "llava_onevision": (
        *(Picture(size) for size in ((35, 35), (30, 70), (70, 41), (70, 105), (105, 62))),
        *(Picture((frames,), "video") for frames in (2, 3)),
    ),
    **dict.fromkeys(
        QWEN,
        (
            *(Picture(size) for size in ((1, 8, 12), (1, 10, 6), (1, 4, 4), (1, 2, 14))),
            *(Picture(size, "video") for size in ((2, 6, 8), (3, 4, 6))),
        ),
    ),
    "internvl": tuple(Picture((tiles,)) for tiles in (1, 3, 7)),
    "gemma3": (Picture(),),
    **dict.fromkeys(
        IDEFICS, tuple(Picture(size) for size in ((0, 0), (1, 2), (2, 2), (3, 2), (1, 4)))
    ),
    "paligemma": (Picture(),),
}


def tiles(family: str, model: Any, picture: Picture, images: int = 1) -> list[TileTruth]:
    """Geometry of a picture; ``images`` is how many images its sample has."""
    vision = model.config.vision_config
    if family in QWEN:
        frames, height, width = picture.size
        merge = vision.spatial_merge_size
        return [TileTruth(height // merge, width // merge)] * frames
    if family == "llava_pixtral":
        height, width = picture.size
        return [TileTruth(height // vision.patch_size, width // vision.patch_size)]
    if family in ANYRES:
        return _anyres_tiles(family, model, picture, images)
    if family == "gemma3":
        side = math.isqrt(model.config.mm_tokens_per_image)
    elif family == "internvl":
        side = int(vision.image_size[0] // vision.patch_size[0] * model.config.downsample_ratio)
        return [TileTruth(side, side)] * picture.size[0]
    elif family in IDEFICS:
        side = vision.image_size // vision.patch_size // model.config.scale_factor
        return [TileTruth(side, side)] * (math.prod(picture.size) + 1)
    else:
        side = vision.image_size // vision.patch_size
    strategy = getattr(model.config, "vision_feature_select_strategy", None)
    return [TileTruth(side, side, before=int(strategy == "full"))]


def _anyres_tiles(family: str, model: Any, picture: Picture, images: int) -> list[TileTruth]:
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    if picture.kind == "video" and family == "llava_onevision":
        half = -(-side // 2)
        frames = [TileTruth(half, half)] * (picture.size[0] - 1)
        return [*frames, TileTruth(half, half, after=1)]
    if picture.kind == "video":
        return [TileTruth(side // 2, side // 2)] * picture.size[0]
    if family == "llava_onevision" and images > 1:
        return [TileTruth(side, side, after=1)]
    rows, cols = _unpadded(model, picture.size, side)
    if family == "llava_onevision":
        most = int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        excess = math.sqrt(rows * cols / (most * side**2))
        if excess > 1.1:
            rows, cols = int(rows // excess), int(cols // excess)
    return [TileTruth(side, side), TileTruth(rows, cols, row_end=1)]


def _unpadded(model: Any, size: Sequence[int], side: int) -> tuple[int, int]:
    """Rows and columns of features that remain of the tiles when their borders are cut off."""
    rows, cols = (number * side for number in mosaic(model, size))
    height, width = size
    if width / height > cols / rows:
        rows -= (rows - int(round(height * cols / width, 7))) // 2 * 2
    else:
        cols -= (cols - int(round(width * rows / height, 7))) // 2 * 2
    return rows, cols


def mosaic(model: Any, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of tiles of the resolution that suits an anyres picture best."""
    height, width = size

    def fitness(resolution: Sequence[int]) -> tuple[int, int]:
        scale = min(resolution[0] / height, resolution[1] / width)
        covered = min(int(height * scale) * int(width * scale), height * width)
        return covered, covered - math.prod(resolution)

    best = max(model.config.image_grid_pinpoints, key=fitness)
    side = model.config.vision_config.image_size
    return best[0] // side, best[1] // side


def truths(family: str, model: Any, prompt: Prompt) -> list[list[TileTruth]]:
    """Geometry of each picture of a prompt."""
    pictures = [part for part in prompt if isinstance(part, Picture)]
    images = sum(picture.kind == "image" for picture in pictures)
    return [tiles(family, model, picture, images) for picture in pictures]


def tiles_of(family: str, model: Any, prompt: Prompt) -> list[TileTruth]:
    """Geometry of all pictures of a prompt in a row."""
    return [tile for picture in truths(family, model, prompt) for tile in picture]


def canvases(family: str, model: Any, picture: Picture, weights: Tensor) -> list[Tensor]:
    """Pixels of a picture as `[any, height, width]` for each tile, without channels."""
    if family in QWEN:  # patches come in blocks of 2 x 2
        frames, height, width = picture.size
        blocks = weights.sum(-1).unflatten(1, (frames, height // 2, width // 2, 2, 2))
        return list(blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3).unbind(1))
    if family == "llava_pixtral":
        height, width = picture.size
        return [weights.sum(-3)[:, :height, :width]]
    weights = weights.sum(-3)
    if family in ANYRES and picture.kind == "image" and weights.shape[1] > 1:
        rows, cols = mosaic(model, picture.size)
        grid = weights[:, 1 : 1 + rows * cols].unflatten(1, (rows, cols))
        return [weights[:, 0], grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)]
    return list(weights.unbind(1))
