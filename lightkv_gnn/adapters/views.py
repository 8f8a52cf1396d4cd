"""Families that show a picture as a whole and in crops, which the model is told of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, Process, SharedPlaceholder, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_gnn.adapters.patches import PatchesAdapter
from lightkv_gnn.errors import ImageTokensError
from lightkv_graphs import Grid, Tile


@register_adapter("molmo2")
class Molmo2Adapter(SharedPlaceholder):
    """Molmo 2: the whole, then its overlapping crops as one grid; or frames.

    Tokens are pooled from patches that an index names.
    """

    text_models = ("molmo2_text",)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The two grids that the processor makes of the picture."""
        grids = [tuple(map(int, process()["image_grids"][0]))]
        tokens = grids[0][0] * grids[0][1] + grids[0][2] * grids[0][3]
        return Encoded("image", {"image_grids": grids}, (tokens,))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """Two tiles a picture, or one a frame."""
        sizes = encoded.sizes(f"{encoded.kind}_grids")
        if encoded.kind == "video":
            return [[Tile(rows, cols)] * frames for frames, rows, cols in sizes]
        return [[Tile(*grid) for grid in (both[:2], both[2:]) if prod(grid)] for both in sizes]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The patches that each tile's tokens were pooled from; blank where there are none."""
        pooling = encoded.arguments[f"{encoded.kind}_token_pooling"]
        patch = self.model.config.vision_config.patch_size
        patches = pixels.flatten(0, -2).unflatten(-1, (patch, patch, -1)).permute(0, 3, 1, 2)
        blank = patches.new_zeros(1, *patches.shape[1:])
        patches = torch.cat([patches, blank])  # -1 is the last
        tiles = self.tiles(encoded)
        parts = iter(pooling.split([tile.tokens for own in tiles for tile in own]))
        return [[_laid_out(patches[next(parts)], tile) for tile in own] for own in tiles]


def _laid_out(patches: Tensor, tile: Tile) -> Tensor:
    """`[token, patch, channel, row, column]` as one picture, `[channel, height, width]`."""
    side = math.isqrt(patches.shape[1])
    grid = patches.unflatten(1, (side, -1)).unflatten(0, (tile.rows, tile.cols))
    return grid.permute(4, 0, 2, 5, 1, 3, 6).flatten(4).flatten(1, 3)


@register_adapter("step3p7")
class Step3Adapter(PatchesAdapter):
    """Step 3.7: crops, then the whole; both are squares, of which the configuration tells one."""

    text_models = ("step3p5",)

    @property
    def side(self) -> int:
        """Of the whole, halved twice by convolutions."""
        return _halved_twice(super().side)

    def lengths(self, kind: str, output: Any) -> tuple[int, ...]:
        """Vision tokens of each picture, with its crops."""
        return Adapter.lengths(self, kind, output)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """As many crops as the processor cuts, and the whole."""
        output = process()
        crops = int(output["num_local_patches"][0])
        patch = self.model.config.vision_config.patch_size
        tokens = self.side**2
        if crops:
            patches = output["pixel_values_local"].shape[-1] // patch
            tokens += crops * _halved_twice(patches) ** 2
        return Encoded("image", {"num_local_patches": [crops]}, (tokens,))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """The crops, and the whole.

        Raises:
            ImageTokensError: The tokens of a picture's crops are no squares.
        """
        return [
            [*[self._crop(length - self.side**2, count)] * count, Tile(self.side, self.side)]
            for count, length in zip(encoded.crops(), encoded.lengths, strict=True)
        ]

    def _crop(self, tokens: int, crops: int) -> Tile:
        side = math.isqrt(tokens // max(crops, 1))
        if crops * side**2 != tokens:
            raise ImageTokensError(
                f"the model encoded {crops} crops to {tokens} tokens, which are no squares beside "
                f"the whole picture's {self.side}x{self.side}"
            )
        return Tile(side, side)

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled crops, and the whole."""
        local = encoded.arguments.get("pixel_values_local")
        counts = [len(tiles) - 1 for tiles in self.tiles(encoded)]
        crops = [pixels[:0]] * len(counts) if local is None else local.split(counts)
        return [[*own, whole] for own, whole in zip(crops, pixels, strict=True)]


def _halved_twice(patches: int) -> int:
    """A side after two convolutions that each halve it, rounded up."""
    return math.ceil(math.ceil(patches / 2) / 2)
