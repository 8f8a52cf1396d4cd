"""Kinds of further families: how they get their pictures, and recipes of each kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from families.geometry import TileTruth
from families.models import (
    BREAK,
    IMAGE,
    LAYERS,
    MROPE,
    QWEN,
    QWEN_TOWER,
    SIGLIP,
    TOWER,
    WINDOW,
    Recipe,
)

Size = tuple[int, ...]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """How a family gets its pictures.

    Attributes:
        sizes: Of three pictures: patches `(time, height, width)`, pixels `(height, width)`, or the
            number of squares.
        grids: The tiles that each of them has.
        argument: What tells the model their sizes; empty for squares.
        edges: Vision tokens beside the grid: before it, at the end of each row, and after it.
        text: Ids of text beside the tokens of a picture, in the same places.
        typed: The argument that tells the model which tokens are vision tokens, if any.
        pixels: The argument of the pixels.
        cut: Whether into how many tiles a picture is cut, only the processor knows.
        stamped: Whether text stands between the frames of a film.
        last: As ``edges``, of a picture's last tile, where others come before it.
    """

    sizes: tuple[Size, ...]
    grids: tuple[tuple[Grid, ...], ...]
    argument: str = ""
    edges: tuple[int, int, int] = (0, 0, 0)
    text: tuple[list[int], list[int], list[int]] = ([], [], [])
    typed: str = ""
    pixels: str = "pixel_values"
    cut: bool = False

    def tiles(self, picture: int) -> list[TileTruth]:
        """The tiles of a picture, with the vision tokens beside their grids."""
        *others, last = self.laid_out(picture)
        return [*others, replace(last, after=last.after + self.text[2].count(IMAGE))]

    def laid_out(self, picture: int) -> list[TileTruth]:
        """The same without those of a separator."""
        *others, last = self.grids[picture]
        edges = self.edges if self.last is None else self.last
        return [*(TileTruth(*grid, *self.edges) for grid in others), TileTruth(*last, *edges)]

    @property
    def told(self) -> bool:
        """Whether the processor tells what a picture's tokens will be."""
        return self.cut or (bool(self.argument) and self.last is None)

    stamped: bool = False
    last: tuple[int, int, int] | None = None


APART = (((4, 6),), ((2, 3),), ((5, 2),))
UNTYPED = Kind(((1, 8, 12), (1, 4, 6), (1, 10, 4)), APART, "image_grid_thw")
THW = replace(UNTYPED, typed="mm_token_type_ids", stamped=True)
SIZED = Kind(  # a row of patches is left over
    ((32, 48), (16, 24), (44, 16)), APART, "image_sizes", text=([], [BREAK], [])
)
SQUARE = Kind(((1,),) * 3, (((4, 4),),) * 3)
TILED = Kind(((3,), (1,), (2,)), (((4, 4),) * 3, ((4, 4),), ((4, 4),) * 2), cut=True)

ANYRES = Kind(
    ((32, 64), (20, 64), (64, 20)),  # by whole tokens, less is cut off than by patches
    (((4, 4), (4, 8)), ((4, 4), (2, 8)), ((4, 4), (8, 2))),
    "image_sizes",
    last=(0, 1, 0),
)
QUERIES = Kind(((1,),) * 3, (((1, 8),),) * 3, cut=True)

MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}
UNTIED = {"tie_word_embeddings": False}
SAM = {
    **TOWER,
    "image_size": 64,
    "patch_size": 4,
    "output_channels": 8,
    "mlp_dim": 48,
    "global_attn_indexes": [1],
    "window_size": 4,
}
SMALL = {**SIGLIP, "image_size": 16}
QUANTISER = {"base_channels": 32, "channel_multiplier": [1], "num_patches": 4, "projection_dim": 64}


def grid_thw(name: str, text: dict[str, Any], other: str = "", **vision: Any) -> Recipe:
    """Told grids of patches of 4 x 4 pixels, 2 x 2 to a token; ``other`` lends its parts."""
    part = other or name
    text = {"rope_parameters": MROPE, **text}
    return Recipe(name, f"{part}Text", f"{part}Vision", text, {**QWEN_TOWER, **vision}, QWEN)


def sized(name: str, text: str, **options: Any) -> Recipe:
    """A Pixtral tower with patches of 4 x 4 pixels, 2 x 2 to a token."""
    tower = {**TOWER, "image_size": 64, "patch_size": 4}
    return Recipe(name, text, "PixtralVision", {"head_dim": 16, **options}, tower, UNTIED)


def squares(name: str, text: str, tower: dict[str, Any], vision: str, **options: Any) -> Recipe:
    """Squares of 4 x 4 tokens."""
    more = SLIDING if text == "Cohere2" else {}
    return Recipe(name, text, vision, more, tower, {**UNTIED, **options})
