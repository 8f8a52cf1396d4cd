"""Models whose vision tokens carry their own places through every layer, to be read off there.

The features of a picture are overwritten by the places that its tokens have by the independent
geometry of :mod:`families.geometry`; the decoder's layers attend, but add nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from families.inputs import Picture, Prompt, truths
from families.models import LAYERS, tiny
from torch import Tensor

KINDS = ("image", "video")


class Place(NamedTuple):
    """Where a token lies; row and column are -1 for newlines and class tokens."""

    kind: int
    picture: int
    tile: int
    row: int
    col: int


CHANNELS = 1 + len(Place._fields)
"""A one, which shows by how much the model scaled the features, and the place."""


@cache
def still_model(family: str, **options: Any) -> Any:
    """A model whose layers change nothing, with a window that any prompt fits in."""
    window = {"sliding_window": 512} if family == "gemma3" else None
    model = tiny(family, text=window, **options)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.get_input_embeddings().weight[:, :CHANNELS] = 0
    return model


def places(family: str, model: Any, prompts: Sequence[Prompt]) -> list[list[Place]]:
    """Where the vision tokens of each sample lie, in order; pictures are counted by kind."""
    counts = dict.fromkeys(KINDS, 0)
    found = []
    for prompt in prompts:
        own: list[Place] = []
        pictures = [part for part in prompt if isinstance(part, Picture)]
        for picture, tiles in zip(pictures, truths(family, model, prompt), strict=True):
            kind, number = KINDS.index(picture.kind), counts[picture.kind]
            counts[picture.kind] += 1
            for index, tile in enumerate(tiles):
                none = Place(kind, number, index, -1, -1)
                own += [none] * tile.before
                for row in range(tile.rows):
                    own += [none._replace(row=row, col=col) for col in range(tile.cols)]
                    own += [none] * tile.row_end
                own += [none] * tile.after
        found.append(own)
    return found


@contextmanager
def carrying(model: Any, samples: Sequence[Sequence[Place]]) -> Iterator[None]:
    """Overwrites what the model's encoders return, in the order of the pictures."""
    base = model.base_model
    inside: list[int] = []  # Qwen3-VL's encoder of videos calls the one of images

    def overwritten(kind: int, encode: Any) -> Any:
        @functools.wraps(encode)
        def encoder(*args: Any, **kwargs: Any) -> Any:
            inside.append(kind)
            output = encode(*args, **kwargs)
            inside.pop()
            if inside:
                return output
            own = [place for sample in samples for place in sample if place.kind == kind]
            codes = iter(torch.tensor([[1, *place] for place in own], dtype=torch.float32))
            for picture in output.pooler_output:
                picture.zero_()
                for token in picture:
                    token[:CHANNELS] = next(codes)
            assert next(codes, None) is None
            for features in getattr(output, "deepstack_features", None) or []:
                for picture in features:
                    picture.zero_()
            return output

        return encoder

    names = {kind: f"get_{name}_features" for kind, name in enumerate(KINDS)}
    names = {kind: name for kind, name in names.items() if hasattr(base, name)}
    for kind, name in names.items():
        setattr(base, name, overwritten(kind, getattr(base, name)))
    try:
        yield
    finally:
        for name in names.values():
            delattr(base, name)


@contextmanager
def heard_layers(model: Any) -> Iterator[list[Tensor]]:
    """What the layers are given, `[batch, token, channel]`; entered after attaching."""
    heard: list[Tensor] = []

    def hear(module: Any, args: Any, kwargs: Any) -> None:
        heard.append(args[0] if args else kwargs["hidden_states"])

    layers = model.get_decoder().layers
    hooks = [layer.register_forward_pre_hook(hear, with_kwargs=True) for layer in layers]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
        assert len(heard) % LAYERS == 0


def carried(hidden_states: Tensor) -> list[Place]:
    """The places that the vision tokens of a sample carry, `[token, channel]`."""
    codes = hidden_states[hidden_states[:, 0] != 0]
    numbers = (codes[:, 1:CHANNELS] / codes[:, :1]).round().long()
    return [Place(*row) for row in numbers.tolist()]
