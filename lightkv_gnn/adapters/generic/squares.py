"""Squares of tokens, where the configuration tells their side and the count agrees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import isqrt, prod
from typing import Any

from lightkv_gnn.adapters.encoded import Encoded
from lightkv_gnn.adapters.generic.told import Reading, products
from lightkv_graphs import Tile

FACTORS = (
    *("spatial_merge_size", "merge_size", "merge_kernel_size", "adapter_merge_size"),
    *("downsample_factor", "downsample_ratio", "pixel_shuffle_ratio", "scale_factor"),
    *("hidden_stride", "projector_pooling_ratio", "pooling_kernel_size"),
)
"""Fields that tell by how much a side shrinks between patches and tokens, or its inverse."""

COUNTS = (
    *("image_seq_length", "mm_tokens_per_image", "num_image_tokens"),
    "vision_soft_tokens_per_image",
)
"""Fields that tell how many tokens a square has."""

QUERIES = re.compile(
    r".*(perceiver|resampler|q_?former|num_latents).*|(.*_)?quer(y|ies)(_(?!key|pre).*)?"
)
"""Fields of models whose vision tokens are queries, or latents, without a place."""

CUTS = ("image_grid_pinpoints",)
"""Fields of models that put the tiles of a picture together again, with newlines between rows."""


def fields(config: Any) -> dict[str, Any]:
    """Of the model and of its vision tower, where that has not the same."""
    vision = getattr(config, "vision_config", None)
    return {**(vars(vision) if vision is not None else {}), **vars(config)}


def merges_in(config: Any) -> list[int]:
    """How many patches make a side of a token, factor by factor; empty if not told."""
    known = fields(config)
    return [factor for name in FACTORS if (factor := _factor(known.get(name))) is not None]


def number_in(config: Any, name: str) -> int | None:
    """A field that is a number, or twice the same number."""
    value = fields(config).get(name)
    if isinstance(value, (list, tuple)) and value and len(set(value)) == 1:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def sides(config: Any) -> dict[int, str]:
    """Tokens a side of a square, with what tells so."""
    size, patch = number_in(config, "image_size"), number_in(config, "patch_size")
    patches = None if size is None or patch is None else size // patch
    found = {}
    for name in COUNTS:
        count = number_in(config, name)
        side = 0 if count is None else isqrt(count)
        if count and side**2 == count and (patches is None or not patches % side):
            found[side] = name
    if patches:
        for merge in products(merges_in(config)) or {1}:
            words = "image_size / patch_size" + (f" / {merge}" if merge > 1 else "")
            found.setdefault(patches // merge, words)
    found.pop(0, None)
    return found


def square_readings(encoded: Encoded, config: Any) -> list[Reading]:
    """The pictures as squares of each side that makes up all that was encoded of all pixels.

    Args:
        encoded: The pictures.
        config: Of the model.
    """
    return [
        Reading(f"squares of {side}x{side} tokens, from {words}", tiles)
        for side, words in sides(config).items()
        if (tiles := _squares(encoded, side)) is not None
    ]


def counts(shape: Sequence[int], config: Any) -> set[int]:
    """Tokens that pixels of a shape may become, where every square has as many as told."""
    return {prod(shape[:-3]) * side**2 for side in sides(config)}


def _squares(encoded: Encoded, side: int) -> list[list[Tile]] | None:
    """As many squares as there are pixels for; None where the counts do not fit each other."""
    tile, shape, lengths = Tile(side, side), encoded.shape, encoded.lengths
    if len(shape) < 4 or shape[-1] != shape[-2]:
        return None
    squares, rest = divmod(sum(lengths), tile.tokens)
    if squares != prod(shape[:-3]) and not (len(shape) == 5 and _padded(squares, lengths, shape)):
        return None
    if rest or any(length % tile.tokens for length in lengths):
        return None
    return [[tile] * (length // tile.tokens) for length in lengths]


def _padded(squares: int, lengths: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a batch of `[sample, square, ...]` was filled up with squares that are not encoded.

    One sample at least has all of its squares.  Tokens must not be shared out evenly over all that
    are there, as squares of another side.
    """
    samples, most = shape[:2]
    of_each, rest = divmod(sum(lengths), samples * most)
    return most <= squares < samples * most and (rest > 0 or isqrt(of_each) ** 2 != of_each)


def unplaced(config: Any) -> str | None:
    """The field that says that vision tokens are queries, or None."""
    return next(_matching(config, QUERIES), None)


def _matching(config: Any, pattern: re.Pattern[str]) -> Iterator[str]:
    yield from (name for name, value in fields(config).items() if value and pattern.match(name))


def _factor(value: Any) -> int | None:
    if isinstance(value, (list, tuple)):
        value = value[0] if len(set(value)) == 1 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        return None
    factor = value if value >= 1 else 1 / value
    return round(factor) if abs(factor - round(factor)) < 1e-6 else None


def seen_in(config: Any) -> Sequence[str]:
    """What a configuration tells of grids, for errors."""
    known = fields(config)
    names = ("image_size", "patch_size", *FACTORS, *COUNTS)
    return [f"{name} {known[name]}" for name in names if known.get(name) is not None]
