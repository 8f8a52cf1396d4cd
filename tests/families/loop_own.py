"""A compressed prefill by a model's own layers: each is called with the rows that are left.

What a layer is called with comes from the uncompressed model, without what belongs to rows that
went.  Stages are the slow reference, as in :mod:`families.loop`; whose layers are not written out
there is checked here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn

from families.loop_families import decoder_of, places_of
from families.loop_rotary import Tile
from families.loop_stage import Row, StageLoop

Heads = tuple[Tensor, Tensor, float]
"""Queries and keys, `[head, token, channel]`, and what scales their products."""

CACHES = ("cache", "past_key_values")

TOKENS_LAST = ("position_ids", "moe_mm_token_type_ids", "mm_token_type_ids")
TOKENS_FIRST = ("per_layer_input",)
"""What else has something for each token, `[..., token]` and `[sample, token, ...]`."""


@dataclass
class Seen:
    """What the layers of a call were given, by number."""

    hidden: dict[int, Tensor] = field(default_factory=dict)
    arguments: dict[int, dict[str, Any]] = field(default_factory=dict)
    heads: dict[int, Heads] = field(default_factory=dict)


@contextmanager
def watched(decoder: Any) -> Iterator[Seen]:
    """Records what a decoder's layers are given, in eager mode."""
    seen, layers = Seen(), decoder.layers
    attending = [getattr(layer, "self_attn", None) for layer in layers]  # others hold a state
    file = sys.modules[type(next(filter(None, attending))).__module__]
    attend = file.eager_attention_forward

    def enter(number: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(signature(layer.forward).parameters, args, strict=False)), **kwargs}
        seen.hidden[number] = given.pop("hidden_states")
        seen.arguments[number] = given

    def listen(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if module in attending:
            seen.heads[attending.index(module)] = query[0], key[0], kwargs["scaling"]
        return attend(module, query, key, *args, **kwargs)

    hooks = [
        layer.register_forward_pre_hook(partial(enter, number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    file.eager_attention_forward = listen
    try:
        yield seen
    finally:
        file.eager_attention_forward = attend
        for hook in hooks:
            hook.remove()


def own_layers(
    model: Any,
    inputs: dict[str, Tensor],
    vision: Sequence[bool],
    tiles: Sequence[Tile],
    stages: Sequence[tuple[int, int, float]],
) -> Tensor:
    """What the last layer of a compressed prefill returns, `[row, channel]`.

    Args:
        model: The model, in eager mode.
        inputs: Of one sample.
        vision: Which tokens are vision tokens.
        tiles: Of its pictures.
        stages: ``(layer, windows, ratio)`` of each stage, in order.
    """
    decoder = decoder_of(model)
    with watched(decoder) as seen:
        model(**inputs)
        plain, places = dict(seen.arguments), iter(places_of(tiles))
        rows = [
            Row([number], (number,) * 3, own, next(places) if own else None)
            for number, own in enumerate(vision)
        ]
        grids, first = [(tile.rows, tile.cols) for tile in tiles], stages[0][0]
        hidden = seen.hidden[first + 1][0]  # with what was added after the layer
        for number, layer in enumerate(decoder.layers):
            if number < first:
                continue
            if number > first:
                left = [row.members[0] for row in rows]
                output = layer(hidden[None], **without_others(plain[number], left))
                hidden = (output[0] if isinstance(output, tuple) else output)[0]
            for at, windows, ratio in stages:
                if at == number:
                    query, key, scaling = seen.heads[number]
                    stage = StageLoop("text_to_vision", "guided_mean", scaling)
                    hidden, rows = stage(windows, ratio, grids, hidden, rows, query, key)
    return hidden


def without_others(arguments: dict[str, Any], left: list[int]) -> dict[str, Any]:
    """The arguments of a layer for the rows that are left, without a cache."""
    changed: dict[str, Any] = {name: None for name in CACHES if name in arguments}
    if (mask := arguments["attention_mask"]) is not None:
        changed["attention_mask"] = mask[:, :, left][..., left]
    tables = arguments["position_embeddings"]
    if isinstance(tables, Tensor):  # of complex numbers
        changed["position_embeddings"] = tables[..., left, :]
    elif tables is not None:
        changed["position_embeddings"] = tuple(table[..., left, :] for table in tables)
    for name in (*TOKENS_LAST, *TOKENS_FIRST):
        if (given := arguments.get(name)) is not None:
            changed[name] = given[..., left] if name in TOKENS_LAST else given[:, left]
    return {**arguments, **changed}
