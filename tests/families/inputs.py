"""Model inputs of every family, built without a processor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from families.geometry import (
    ANYRES,
    IDEFICS,
    PICTURES,
    QWEN,
    Picture,
    Prompt,
    TileTruth,
    mosaic,
    tiles,
    truths,
)
from families.models import (
    BREAK,
    END,
    FAKE,
    GLOBAL,
    IMAGE,
    NEWLINE,
    START,
    TAGS,
    VIDEO,
    WORDS,
)

__all__ = ["PICTURES", "Picture", "Prompt", "TileTruth", "alone", "batch", "tiles", "truths"]


@dataclass(frozen=True)
class Sample:
    """Token ids of a prompt, and the pixels of each of its pictures."""

    ids: list[int]
    pictures: list[Picture]
    pixels: list[Tensor]


def batch(
    family: str, model: Any, *prompts: Prompt, padding: str = "left", seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of a padded batch, with random text and random pictures."""
    return _collate(family, _samples(family, model, prompts, seed), padding)


def alone(
    family: str, model: Any, *prompts: Prompt, padding: str = "left", seed: int = 0
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Of each sample of the batch: where its tokens are, and its inputs without the others."""
    samples = _samples(family, model, prompts, seed)
    masks = _collate(family, samples, padding)["attention_mask"].bool()
    for mask, sample in zip(masks, samples, strict=True):
        yield mask, _collate(family, [sample], padding)


def _samples(family: str, model: Any, prompts: tuple[Prompt, ...], seed: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for prompt in prompts:
        geometry = iter(truths(family, model, prompt))
        ids: list[int] = []
        pictures = [part for part in prompt if isinstance(part, Picture)]
        if family == "paligemma":  # its processor puts the pictures first
            prompt = [*pictures, *(part for part in prompt if not isinstance(part, Picture))]
        for part in prompt:
            if isinstance(part, Picture):
                ids += tokens(family, part, next(geometry))
            else:
                ids += torch.randint(WORDS[0], WORDS[-1], (part,), generator=generator).tolist()
        images = sum(picture.kind == "image" for picture in pictures)
        shapes = [pixel_shape(family, model, picture, images) for picture in pictures]
        pixels = [torch.randn(shape, generator=generator) for shape in shapes]
        samples.append(Sample(ids, pictures, pixels))
    return samples


def tokens(family: str, picture: Picture, geometry: list[TileTruth]) -> list[int]:
    """Ids of a picture: placeholders and the special tokens around and between them."""
    counts = [tile.tokens for tile in geometry]
    placeholder = VIDEO if picture.kind == "video" else IMAGE
    ids = [placeholder] * sum(counts)
    if family == "llava_pixtral":
        row = [*[IMAGE] * geometry[0].cols, BREAK]
        return [*(row * geometry[0].rows)[:-1], END]
    if family == "qwen3_vl" and picture.kind == "video":
        stamps = [[WORDS[frame], WORDS[-1 - frame]] for frame in range(len(counts))]
        return [id_ for stamp in stamps for id_ in (*stamp, START, *ids[: counts[0]], END)]
    if family in IDEFICS:
        return _sub_images(picture, counts[0])
    if family == "gemma3":
        return [NEWLINE, START, *ids, END, NEWLINE]
    return [START, *ids, END] if family in (*QWEN, "internvl") else ids


def _sub_images(picture: Picture, count: int) -> list[int]:
    rows, cols = picture.size
    ids: list[int] = []
    for row in range(rows):
        for col in range(cols):
            ids += [FAKE, TAGS[4 * row + col], *[IMAGE] * count]
        ids.append(NEWLINE)
    return [*ids, FAKE, GLOBAL, *[IMAGE] * count, FAKE]


def pixel_shape(family: str, model: Any, picture: Picture, images: int = 1) -> tuple[int, ...]:
    """Shape of the pixels of a picture, one of so many ``images`` of its sample."""
    vision, size = model.config.vision_config, picture.size
    if family in QWEN:
        channels = 3 * vision.temporal_patch_size * vision.patch_size**2
        return math.prod(size), channels
    if family == "llava_pixtral":
        return 3, *size
    side = vision.image_size[0] if family == "internvl" else vision.image_size
    if family in IDEFICS:
        count = math.prod(size) + 1
    elif family in ANYRES and picture.kind == "image":
        several = family == "llava_onevision" and images > 1
        count = 1 if several else math.prod(mosaic(model, size)) + 1
    else:
        count = size[0] if size else 1
    return count, 3, side, side


def _collate(family: str, samples: list[Sample], padding: str) -> dict[str, Tensor]:
    inputs = _text(family, samples, padding)
    for kind, name in {"image": "pixel_values", "video": "pixel_values_videos"}.items():
        chosen = [_of_kind(sample, kind) for sample in samples]
        pixels = [pixels for pairs in chosen for _, pixels in pairs]
        sizes = torch.tensor([picture.size for pairs in chosen for picture, _ in pairs])
        if not pixels:
            continue
        if family in QWEN:
            inputs |= {name: torch.cat(pixels), f"{kind}_grid_thw": sizes}
        elif family in IDEFICS:
            none = pixels[0][:0]
            parts = [torch.cat([none, *(pixels for _, pixels in pairs)]) for pairs in chosen]
            real = [torch.ones_like(part[:, 0], dtype=torch.long) for part in parts]
            inputs |= {name: _stack(parts), "pixel_attention_mask": _stack(real)}
        elif kind == "video":
            inputs[name] = torch.stack(pixels)
        elif family in (*ANYRES, "llava_pixtral"):
            inputs |= {name: _stack(pixels), "image_sizes": sizes}
        else:
            inputs[name] = torch.cat(pixels)
        if family == "llava_onevision" and kind == "image":
            inputs["batch_num_images"] = torch.tensor([len(pairs) for pairs in chosen])
    return inputs


def _of_kind(sample: Sample, kind: str) -> list[tuple[Picture, Tensor]]:
    pairs = zip(sample.pictures, sample.pixels, strict=True)
    return [(picture, pixels) for picture, pixels in pairs if picture.kind == kind]


def _stack(parts: list[Tensor]) -> Tensor:
    """Stacks tensors, with zeros up to the size of the largest in every dimension."""
    largest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    stacked = parts[0].new_zeros(len(parts), *largest)
    for row, part in zip(stacked, parts, strict=True):
        row[tuple(map(slice, part.shape))] = part
    return stacked


def _text(family: str, samples: list[Sample], padding: str) -> dict[str, Tensor]:
    longest = max(len(sample.ids) for sample in samples)

    def padded(values: list[int]) -> list[int]:
        blank = [0] * (longest - len(values))
        return blank + values if padding == "left" else values + blank

    ids = torch.tensor([padded(sample.ids) for sample in samples])
    mask = torch.tensor([padded([1] * len(sample.ids)) for sample in samples])
    inputs = {"input_ids": ids, "attention_mask": mask}
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if family in QWEN:
        inputs["mm_token_type_ids"] = kinds
    elif family == "gemma3":
        inputs["token_type_ids"] = kinds
    elif family == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs
