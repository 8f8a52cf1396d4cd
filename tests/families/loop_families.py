"""What sets the decoders of the families apart, and the picture features of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from typing import Any

import torch
from torch import Tensor, nn

from families.loop_rotary import Tile


@dataclass(frozen=True)
class Traits:
    """A family's decoder, where it differs from LLaVA's.

    Attributes:
        rope: How positions turn channels, as in :func:`families.loop_rotary.axes_of`.
        first: Position of the first token.
        sight: What tokens see besides the past: "images" see all of themselves, "prefix" is a
            prompt that sees all of itself.
        images: Names of the inputs that ``get_image_features`` takes.
        videos: Names of the inputs that ``get_video_features`` takes.
    """

    rope: str = "plain"
    first: int = 0
    sight: str = "causal"
    images: tuple[str, ...] = ("pixel_values",)
    videos: tuple[str, ...] = ()


QWEN = {
    "images": ("pixel_values", "image_grid_thw"),
    "videos": ("pixel_values_videos", "video_grid_thw"),
}
IDEFICS = ("pixel_values", "pixel_attention_mask")
SIZED, VIDEO = ("pixel_values", "image_sizes"), ("pixel_values_videos",)

TRAITS = {
    "llava": Traits(),
    "llava_pixtral": Traits(images=SIZED),
    "llava_next": Traits(images=SIZED),
    "llava_next_video": Traits(images=SIZED, videos=VIDEO),
    "llava_onevision": Traits(images=(*SIZED, "batch_num_images"), videos=VIDEO),
    "internvl": Traits(),
    "idefics3": Traits(images=IDEFICS),
    "smolvlm": Traits(images=IDEFICS),
    "qwen2_vl": Traits(rope="sections", **QWEN),
    "qwen2_5_vl": Traits(rope="sections", **QWEN),
    "qwen3_vl": Traits(rope="interleaved", **QWEN),
    "gemma3": Traits(sight="images"),
    "paligemma": Traits(first=1, sight="prefix"),
}

Inputs = Mapping[str, Any]
Place = tuple[int, int, int]


def decoder_of(model: nn.Module) -> nn.Module:
    if not hasattr(model, "model"):  # a text model with a head is inside
        return model.language_model.model
    base = model.model
    return base.text_model if hasattr(base, "text_model") else base.language_model


def kinds_of(config: Any, inputs: Inputs) -> list[str]:
    """What each token is: "text", "image" or "video"; a placeholder without pictures is text."""
    named: dict[int, str] = {}
    if inputs.get("pixel_values") is not None:
        named[config.image_token_id] = "image"
    if inputs.get("pixel_values_videos") is not None:
        named[config.video_token_id] = "video"
    return [named.get(token, "text") for token in inputs["input_ids"][0].tolist()]


def places_of(tiles: Sequence[Tile]) -> list[Place | None]:
    """Tile, row and column of each vision token; None for those beside the grids."""
    places: list[Place | None] = []
    for number, tile in enumerate(tiles):
        places += [None] * tile.before
        for row in range(tile.rows):
            places += [(number, row, col) for col in range(tile.cols)]
            places += [None] * tile.row_end
        places += [None] * tile.after
    return places


def window_of(config: Any, layer: int) -> int | None:
    """How many tokens, itself included, a token of a layer sees back; None for all of them."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def groups_of(sight: str, kinds: Sequence[str], inputs: Inputs) -> list[int]:
    """Tokens of one group see each other, whichever comes first; -1 is no group.

    A group ends with its call at the latest: what is already cached asks no more.
    """
    types = inputs.get("token_type_ids")
    if sight == "causal" or types is None:
        return [-1] * len(kinds)
    if sight == "prefix":
        return [0 if kind == 0 else -1 for kind in types[0].tolist()]
    groups: list[int] = []
    for number, (kind, run) in enumerate(groupby(kinds)):
        groups += [number if kind == "image" else -1 for _ in run]
    return groups


def paces_of(config: Any, inputs: Inputs) -> Iterator[float]:
    """Time between two frames of each video, in units of position."""
    unit = getattr(config.vision_config, "tokens_per_second", None)
    seconds = inputs.get("second_per_grid_ts")
    if unit is None or seconds is None:
        return repeat(unit or 1)
    return iter([unit * pace for pace in torch.as_tensor(seconds).tolist()])


def features_of(
    model: nn.Module, traits: Traits, inputs: Inputs, kinds: Sequence[str]
) -> tuple[Tensor, list[Tensor]]:
    """Features `[vision token, channel]`, and those that join after each of the first layers."""
    found: dict[str, Tensor] = {}
    deep: dict[str, list[Tensor]] = {}
    base = model.model
    order = [kind for kind in kinds if kind != "text"]
    if inputs.get("pixel_values") is not None:
        out = base.get_image_features(**chosen(inputs, traits.images))
        found["image"], deep["image"] = flat(out.pooler_output), deepstack_of(out)
    if inputs.get("pixel_values_videos") is not None:
        given = chosen(inputs, traits.videos)
        pixels = given.pop("pixel_values_videos")  # not every transformers calls them so
        out = base.get_video_features(pixels, **given)
        videos = list(out.pooler_output)
        if order.count("video") == sum(map(len, videos)) + len(videos):  # in transformers 5.17
            videos = [torch.cat([video, base.image_newline[None]]) for video in videos]
        found["video"], deep["video"] = flat(videos), deepstack_of(out)
    assert all(len(found[kind]) == order.count(kind) for kind in found)
    levels = zip(*deep.values(), strict=True)
    together = [in_order(order, dict(zip(deep, level, strict=True))) for level in levels]
    return in_order(order, found), together


def chosen(inputs: Inputs, names: Sequence[str]) -> dict[str, Any]:
    return {name: inputs[name] for name in names if inputs.get(name) is not None}


def flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Features of all pictures in a row, `[token, channel]`."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in features])


def deepstack_of(out: Any) -> list[Tensor]:
    return [flat(level) for level in getattr(out, "deepstack_features", None) or []]


def in_order(order: Sequence[str], features: Mapping[str, Tensor]) -> Tensor:
    """Images' and videos' features, as their tokens follow each other in the prompt."""
    rows = {kind: iter(states) for kind, states in features.items()}
    return torch.stack([next(rows[kind]) for kind in order])
