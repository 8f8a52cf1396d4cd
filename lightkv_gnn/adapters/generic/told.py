"""Grids from what an encoder was called with: rows and columns of each picture, and the count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightkv_gnn.adapters.encoded import Encoded
from lightkv_graphs import Tile

TELLING = re.compile(r".*(grid_t?hws?|spatial_shapes|_sizes|_position_ids)(_videos)?")
"""Names of arguments that tell how large each picture is, or where each of its patches lies."""

IMAGES = 4
"""Dimensions of pixels that are pictures; those of patches have fewer."""

MERGES = re.compile(r".*merge_sizes")
"""Names of arguments that tell for each picture how many patches are a side of a token."""

HARMLESS = re.compile(
    r".*mask.*|.*pixel_values.*|num_frames.*|(output|return|vision_feature)_.*|use_cache"
)
"""Names of arguments that do not move a token: frames of each video are seen from their counts."""


class Size(NamedTuple):
    """Of one picture: frames, then rows and columns in patches or in pixels."""

    frames: int
    rows: int
    cols: int


class Reading(NamedTuple):
    """Arguments as they may be read.

    Attributes:
        how: In words.
        tiles: Of each entry of ``lengths``.
    """

    how: str
    tiles: list[list[Tile]]


def arguments_in(encoded: Encoded) -> tuple[dict[str, Any], list[str]]:
    """Those that tell sizes, and the names of others that may."""
    telling, others = {}, []
    for name, value in encoded.arguments.items():
        if value is None or isinstance(value, (bool, str)) or HARMLESS.fullmatch(name):
            continue
        if TELLING.fullmatch(name) or MERGES.fullmatch(name):
            telling[name] = value
        elif isinstance(value, (Tensor, Sequence)):
            others.append(name)
    return telling, others


def readings(
    encoded: Encoded, telling: Mapping[str, Any], merges: Sequence[int], patch: int | None
) -> list[Reading]:
    """Every way to read the arguments that gives just as many tokens as were encoded.

    Args:
        encoded: The pictures.
        telling: What tells their sizes.
        merges: By how many patches a side of a token the configuration says that they are merged,
            one after the other; empty if it does not say.
        patch: Pixels a side of a patch, if the configuration says.
    """
    given = dict(telling)
    by_picture = next((given.pop(name) for name in list(given) if MERGES.fullmatch(name)), None)
    if len(given) != 1:
        return []
    ((name, value),) = given.items()
    sizes = sizes_in(value)
    if not sizes:
        return []
    if by_picture is not None:
        own = [int(one) for one in torch.as_tensor(by_picture, device="cpu").flatten().tolist()]
        tiles = _merged(sizes, own, encoded.lengths) if len(own) == len(sizes) else None
        return [] if tiles is None else [Reading(f"{name} over its merge sizes", tiles)]
    units, sides = "patches", set(_merges(sizes, encoded.lengths, merges))
    if are_pixels(name, sizes, encoded.shape):
        units, sides = "pixels", {(patch or 1) * merge for merge in products(merges) or {1}}
    elif name.endswith("_sizes") and len(encoded.shape) >= IMAGES:
        return []  # of pictures as they were before they were scaled
    return [
        Reading(f"{name} over {side}x{side} {units} a token", tiles)
        for side in sorted(sides)
        if (tiles := _merged(sizes, [side] * len(sizes), encoded.lengths)) is not None
    ]


def sizes_in(value: Any) -> list[Size]:
    """Sizes of pictures, a row for each; or found from positions of patches, `[patch, 2]` each."""
    rows = [torch.as_tensor(row, device="cpu") for row in value]
    if all(row.ndim == 2 and row.shape[-1] == 2 for row in rows):
        return _from_positions([row[(row >= 0).all(-1)] for row in rows])
    if not all(row.ndim == 1 and len(row) in (2, 3) for row in rows):
        return []
    return [Size(*((1,) * (3 - len(row))), *map(int, row.tolist())) for row in rows]


def _from_positions(pictures: Sequence[Tensor]) -> list[Size]:
    """Grids whose patches come row by row, with either coordinate first; none if both could be."""
    found = []
    for first in (0, 1):
        sizes = []
        for places in pictures:
            ordered = places if first == 0 else places.flip(-1)
            rows, cols = (ordered.amax(0) + 1).tolist() if len(ordered) else (0, 0)
            grid = torch.cartesian_prod(
                torch.arange(rows, device="cpu"), torch.arange(cols, device="cpu")
            ).view(-1, 2)
            if not torch.equal(grid.to(ordered), ordered):
                break
            sizes.append(Size(1, rows, cols))
        else:
            found.append(sizes)
    return found[0] if len(found) == 1 or (found and found[0] == found[1]) else []


def counts(
    telling: Mapping[str, Any], merges: Sequence[int], patch: int | None, shape: Sequence[int]
) -> set[int]:
    """Tokens that pictures may have, merged by all factors that a configuration tells."""
    found = set()
    for name, value in telling.items():
        sizes = sizes_in(value)
        if not sizes:
            continue
        cell = max(products(merges), default=1)
        cell *= (patch or 1) if are_pixels(name, sizes, shape) else 1
        found.add(sum(one.frames * (one.rows // cell) * (one.cols // cell) for one in sizes))
    return found - {0}


def products(merges: Sequence[int]) -> set[int]:
    """Of each choice of at least one of several factors."""
    found = set()
    for chosen in product((False, True), repeat=len(merges)):
        if any(chosen):
            whole = 1
            for factor, used in zip(merges, chosen, strict=True):
                whole *= factor if used else 1
            found.add(whole)
    return found


def _merges(sizes: Sequence[Size], lengths: Sequence[int], merges: Sequence[int]) -> Iterator[int]:
    """Patches a side of a token, from the count, where the configuration does not contradict."""
    patches, tokens = sum(one.frames * one.rows * one.cols for one in sizes), sum(lengths)
    if not tokens or patches % tokens or isqrt(patches // tokens) ** 2 != patches // tokens:
        return
    merge, possible = isqrt(patches // tokens), products(merges)
    filmed = any(one.frames > 1 for one in sizes)  # and frames might be merged too
    if (possible == {merge}) if filmed else (not possible or merge in possible):
        yield merge


def _merged(
    sizes: Sequence[Size], sides: Sequence[int], lengths: Sequence[int]
) -> list[list[Tile]] | None:
    """Tiles where so much of each picture is a side of a token; None where that does not fit."""
    cells = [
        one._replace(rows=one.rows // side, cols=one.cols // side)
        for one, side in zip(sizes, sides, strict=True)
    ]
    if any(min(cell) < 1 for cell in cells):  # whose entry would be nobody's
        return None
    return _grouped(cells, lengths)


def _grouped(cells: Sequence[Size], lengths: Sequence[int]) -> list[list[Tile]] | None:
    """The tiles of each entry, which take pictures one after the other; None if they do not fit."""
    waiting = iter(cells)
    entries: list[list[Tile]] = []
    for length in lengths:
        own: list[Tile] = []
        while sum(tile.tokens for tile in own) < length:
            cell = next(waiting, None)
            if cell is None:
                return None
            own += [Tile(cell.rows, cell.cols)] * cell.frames
        if sum(tile.tokens for tile in own) != length:
            return None
        entries.append(own)
    return entries if next(waiting, None) is None else None


def are_pixels(name: str, sizes: Sequence[Size], shape: Sequence[int]) -> bool:
    """Whether sizes are in pixels: the largest of them is that of the pixels."""
    largest = max(one.rows for one in sizes), max(one.cols for one in sizes)
    return name.endswith("_sizes") and tuple(shape[-2:]) == largest
