"""Rotary embedding with three coordinates per token, and the coordinates of a prompt's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

Position = tuple[int, int, int]
"""Time, row and column; three times the same number wherever positions have one coordinate."""


class Tile(Protocol):
    """What is known of a tile: a grid of vision tokens, and those around it without a place."""

    rows: int
    cols: int
    before: int
    row_end: int
    after: int


def theta_of(config: Any, layer: int) -> float:
    """Base of a layer's rotary embedding."""
    parameters = config.rope_parameters
    if "rope_theta" not in parameters:  # one set of parameters for each type of layer
        parameters = parameters[config.layer_types[layer]]
    assert parameters.get("rope_type", "default") == "default", "not written out"
    return parameters["rope_theta"]


def axes_of(rope: str, pairs: int, sections: Sequence[int] = ()) -> list[int]:
    """Which coordinate turns each pair of channels.

    "plain" positions have one coordinate.  In "sections" the first ``sections[0]`` pairs follow
    time, the next ``sections[1]`` the row, and the last the column.  "interleaved" deals pairs out
    in turn (time, row, column, time, ...) for as long as a coordinate has pairs left; what is left
    over at the end follows time.
    """
    if rope == "plain":
        return [0] * pairs
    if rope == "sections":
        axes = [axis for axis, length in enumerate(sections) for _ in range(length)]
        assert len(axes) == pairs
        return axes
    return [pair % 3 if pair // 3 < sections[pair % 3] else 0 for pair in range(pairs)]


@dataclass(frozen=True)
class Rotary:
    """Turns pair ``p`` of channels by ``position[axes[p]] * theta ** (-p / pairs)``."""

    theta: float
    axes: list[int]

    def __call__(self, states: Tensor, positions: Sequence[Position]) -> Tensor:
        """Turns ``states`` `[head, token, channel]`."""
        half = len(self.axes)
        speed = torch.tensor([self.theta ** (-pair / half) for pair in range(half)])
        chosen = torch.tensor([[position[axis] for axis in self.axes] for position in positions])
        angle = chosen * speed
        cos, sin = angle.cos(), angle.sin()
        first, second = states[..., :half], states[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def plain_positions(length: int, start: int) -> tuple[list[Position], int]:
    """Positions of tokens in a row, and the position of what is decoded after them."""
    return [(n, n, n) for n in range(start, start + length)], start + length


def grid_positions(
    kinds: Sequence[str], tiles: Sequence[Tile], start: int, paces: Iterator[float]
) -> tuple[list[Position], int]:
    """Positions with three coordinates, and the position of what is decoded after them.

    Each run of vision tokens is an image, or the frames of a video, ``paces`` units of time apart.
    Text in the same call goes on after the rows and columns of the picture before it, however long
    a video lasted; what is decoded goes on after the largest coordinate of all.

    Args:
        kinds: "text", "image" or "video" for each token.
        tiles: Tiles of the pictures, in the order of their tokens.
        start: Position of the first token.
        paces: Time between two frames of each video.
    """
    found: list[Position] = []
    left = iter(tiles)
    for kind, run in groupby(kinds):
        length = len(list(run))
        if kind == "text":
            found += [(n, n, n) for n in range(start, start + length)]
            start += length
            continue
        pace = next(paces) if kind == "video" else 1
        end, frame = len(found) + length, 0
        while len(found) < end:
            tile = next(left)
            time = start + int(frame * pace)
            found += [
                (time, start + row, start + col)
                for row in range(tile.rows)
                for col in range(tile.cols)
            ]
            frame += 1
        assert len(found) == end, "tiles and placeholders disagree"
        start += max(tile.rows, tile.cols)
    return found, 1 + max(max(position) for position in found)
