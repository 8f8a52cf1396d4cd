"""Inputs of further families: two samples of one and two pictures, or a film."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from families.decoders import SHAPED
from families.kinds import Kind, Size
from families.models import BREAK, IMAGE, WORDS
from families.more import FILMED, RECIPES


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
        if name == "attention_mask" or (name.endswith("_ids") and "image" not in name):
            parts = [pad(x, (longest - x.shape[1], 0)) for x in parts]
        elif name == "pixel_values" and "image_sizes" in singles[0]:
            parts = _to_one_size(parts)
        elif "pixel_attention_mask" in singles[0]:
            most = max(part.shape[1] for part in parts)
            parts = [_with_blanks(part, most) for part in parts]
        elif name == "pixel_values" and parts[0].ndim == 5:
            parts = [torch.cat(parts, 1)]
        elif name == "pixel_values" and "target_sizes" in singles[0]:
            parts = [torch.cat(parts, -1)]
        elif name == "image_token_pooling":  # it counts patches of the whole batch
            first = singles[0]["pixel_values"].shape[:-1].numel()
            parts = [part + first * number for number, part in enumerate(parts)]
        both[name] = torch.cat(parts)
    return both


def as_in_batch(
    family: str, model: Any, both: dict[str, Tensor], singles: Sequence[dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """The samples alone, at the positions that the model gives them in the batch."""
    for sample, single in enumerate(singles):
        if family == "hunyuan_vl":  # it numbers the pictures of all samples
            kinds, mask = both["mm_token_type_ids"], both["attention_mask"]
            positions, offsets = model.model.get_rope_index(
                both["input_ids"], kinds, both["image_grid_thw"], mask
            )
            own = positions[:, sample : sample + 1, mask[sample].bool()]
            model.model.rope_deltas = offsets[sample : sample + 1]
            yield {**single, "position_ids": own}
        else:
            yield single


def _sample(
    family: str, model: Any, pictures: Sequence[int], words: Sequence[int], generator: Any
) -> dict[str, Tensor]:
    kind = RECIPES[family][1]
    text = [torch.randint(WORDS[0], WORDS[-1], (n,), generator=generator).tolist() for n in words]
    ids = text[0]
    for picture, after in zip(pictures, text[1:], strict=True):
        start, end_of_row, end = kind.text
        ids = ids + start
        for tile in kind.laid_out(picture):
            row = [*[IMAGE] * (tile.cols + tile.row_end), *end_of_row]
            ids = [*ids, *[IMAGE] * tile.before, *row * tile.rows, *[IMAGE] * tile.after]
        ids = ids + end + after
    found = {"input_ids": torch.tensor([ids])}
    found["attention_mask"] = torch.ones_like(found["input_ids"])
    sizes = [kind.sizes[picture] for picture in pictures]
    shapes = [shape_of(model, size) for size in sizes]
    pixels = [torch.randn(shape, generator=generator) for shape in shapes]
    if family == "emu3":  # it encodes what pads a picture, too
        pixels = [pad(x, (0, 24 - x.shape[-1], 0, 20 - x.shape[-2])) for x in pixels]
    if kind.argument == "target_sizes":
        found[kind.pixels] = torch.cat(pixels, -1)
    else:
        found[kind.pixels] = torch.cat(_to_one_size(pixels) if pixels[0].ndim == 4 else pixels)
    if kind.argument == "image_position_ids":
        found[kind.argument] = torch.stack([places(*size, 100) for size in sizes])
    elif kind.argument:
        found[kind.argument] = torch.tensor(sizes)
    if kind.typed:
        found[kind.typed] = (found["input_ids"] == IMAGE).int()
    if family == "ernie4_5_vl_moe":
        found["moe_mm_token_type_ids"] = found[kind.typed]
    if family == "ministral3":  # whose queries grow with absolute positions
        found["position_ids"] = torch.arange(len(ids))[None]
    return found | _besides(family, kind, pictures, found[kind.pixels], generator)


def _besides(
    family: str, kind: Kind, pictures: Sequence[int], pixels: Tensor, generator: Any
) -> dict[str, Tensor]:
    """What only one family is given, pixels in another shape too."""
    count = len(pictures)
    if family == "video_llama_3":
        return {"image_merge_sizes": torch.full((count,), 2)}
    if family == "deepseek_vl_hybrid":
        return {"high_res_pixel_values": torch.randn(count, 3, 64, 64, generator=generator)}
    if family == "granite_docling":
        return {
            "pixel_values": pixels[None],
            "pixel_attention_mask": torch.ones(1, len(pixels)).bool(),
        }
    if kind.argument == "image_position_ids":
        return {"pixel_values": pixels.sigmoid()}
    if kind is SHAPED:
        counts = torch.tensor([math.prod(kind.sizes[picture]) for picture in pictures])
        real = torch.arange(pixels.shape[1]) < counts[:, None]
        return {"pixel_values": pixels * real[:, :, None], "pixel_attention_mask": real.int()}
    if family == "perception_lm":
        return {"pixel_values": pixels[None]}
    if family == "idefics2":
        real = torch.ones_like(pixels[None, :, 0], dtype=torch.long)
        return {"pixel_values": pixels[None], "pixel_attention_mask": real}
    if family == "aria":
        return {"pixel_mask": torch.ones_like(pixels[:, 0], dtype=torch.bool)}
    if family in ("step3p7", "deepseek_ocr2"):
        crops = [len(kind.grids[picture]) - 1 for picture in pictures]
        shape = (sum(crops), 3, *([32, 32] if family == "step3p7" else [64, 64]))
        local = torch.randn(shape, generator=generator)
        return {"pixel_values_local": local, "num_local_patches": torch.tensor(crops)}
    if family == "molmo2":
        grids = [[*low, *high] for low, high in (kind.grids[picture] for picture in pictures)]
        whole = torch.arange(64).view(4, 2, 4, 2).transpose(1, 2).reshape(16, 4)
        pooled = []
        for number, (_, _, rows, cols) in enumerate(grids):
            picked = torch.randperm(64, generator=generator)[: 4 * rows * cols].view(-1, 4)
            pooled += [whole + 128 * number, picked + 128 * number + 64]
        return {"image_token_pooling": torch.cat(pooled), "image_grids": torch.tensor(grids)}
    return {}


def places(rows: int, cols: int, width: int) -> Tensor:
    """Column and row of each patch, `[patch, 2]`; -1 for padding."""
    found = torch.full((width, 2), -1)
    patch = torch.arange(rows * cols)
    found[: rows * cols] = torch.stack([patch % cols, patch // cols], 1)
    return found


def film(family: str, model: Any) -> dict[str, Tensor]:
    """Inputs of a prompt about a video of 3 frames of 2 x 3 tokens, or of 4 x 4 and another."""
    kind = RECIPES[family][1]
    stamp = [BREAK] if kind.stamped and family not in UNSTAMPED else []
    tokens = 17 if family == "video_llava" else 6
    frames = [*stamp, *[FILMED[family]] * tokens] * 3
    ids = torch.tensor([[5, 6, *kind.text[0], *frames, *kind.text[2], 7, 8, 9]])
    generator = torch.Generator().manual_seed(0)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    grids = PATCHES.get(family, [(3, 4, 6)])
    total = (sum(grid[0] for grid in grids), *grids[0][1:])
    shape = FRAMES[family] if family in FRAMES else shape_of(model, total)
    found["pixel_values_videos"] = torch.randn(shape, generator=generator)
    if family not in FRAMES:
        found["video_grid_thw"] = torch.tensor(grids)
    if family.startswith("minicpm"):
        found["target_sizes_videos"] = torch.tensor([[8, 12]] * 3)
    if family in ("gemma4", "gemma4_unified"):
        rows, cols = (4, 6) if family == "gemma4" else (2, 3)
        found["pixel_values_videos"].sigmoid_()[:, rows * cols :] = 0
        found["video_position_ids"] = torch.stack([places(rows, cols, 100)] * 3)
        found["num_frames_per_video"] = torch.tensor([3])
    if family == "molmo2":
        found["video_grids"] = torch.tensor([[3, 2, 3]])
        found["video_token_pooling"] = torch.arange(192).view(-1, 4)[[*range(6), *range(20, 32)]]
    if family == "video_llama_3":
        found["video_merge_sizes"] = torch.tensor([2])
    if family.endswith("thinker"):
        found["video_second_per_grid"] = torch.tensor([0.5])
    if kind.typed:
        value = 1 if family == "molmo2" else 2
        found[kind.typed] = value * (ids == FILMED[family]).int()
    if family == "ernie4_5_vl_moe":
        found["moe_mm_token_type_ids"] = found[kind.typed]
    return found


UNSTAMPED = ("ernie4_5_vl_moe",)
"""Families that draw the time on their frames, and write nothing between them."""

PATCHES = {"ernie4_5_vl_moe": [(6, 4, 6)], "kimi_k25": [(2, 4, 6)] * 3}
"""Patches of films of more frames: two share their tokens, or are pooled, as a part of the film."""

FRAMES = {
    "video_llava": (1, 3, 3, 16, 16),
    "molmo2": (3, 64, 48),
    "gemma4": (3, 100, 48),
    "gemma4_unified": (3, 100, 192),
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"), (1, 3, 4, 3 * 96 * 4)),
}
"""Shapes of films that are no patches in a row."""


def _with_blanks(pictures: Tensor, most: int) -> Tensor:
    """Pictures `[1, picture, ...]` of one sample with blank ones up to so many."""
    if pictures.shape[1] == most:
        return pictures
    blanks = pictures.new_zeros(1, most - pictures.shape[1], *pictures.shape[2:])
    return torch.cat([pictures, blanks], 1)


def shape_of(model: Any, size: Size) -> Size:
    """Shape of the pixels of a picture."""
    if model.config.model_type == "granite4_vision":
        return 1, 3, 3, 32, 32
    if model.config.model_type.startswith("minicpm"):
        return 1, 3, 4, math.prod(size) * 4
    flat = model.config.model_type in ("lfm2_vl", "gemma4", "gemma4_unified")
    if len(size) == 2 and not flat:
        return 1, 3, *size
    vision = model.config.vision_config
    if flat:
        return 1, 100, 3 * getattr(vision, "model_patch_size", vision.patch_size) ** 2
    if len(size) == 3:
        side, frames = vision.patch_size, getattr(vision, "temporal_patch_size", 1)
        frames = getattr(vision, "patch_temporal", frames)
        whole = model.config.model_type in ("paddleocr_vl", "kimi_k25")
        return math.prod(size), *((3, side, side) if whole else (3 * frames * side**2,))
    if model.config.model_type == "molmo2":
        return *size, 64, 3 * vision.patch_size**2
    vision = getattr(vision, "sam_config", vision)
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    return *size, 3, side, side


def _to_one_size(pixels: Sequence[Tensor]) -> list[Tensor]:
    height, width = (max(x.shape[axis] for x in pixels) for axis in (-2, -1))
    return [pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in pixels]
