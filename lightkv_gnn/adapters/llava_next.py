"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: the whole picture, then its tiles as one grid.

Tiles of high resolution are put together, stripped of what was padded, and end every row with a
newline token, which has no place in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from lightkv_gnn.adapters.base import Adapter, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_graphs import Grid, Tile


@register_adapter("llava_next")
class LlavaNextAdapter(Adapter):
    """LLaVA-NeXT (1.6)."""

    text_models = ("llama", "mistral", "qwen2")

    @property
    def side(self) -> int:
        """Patches per side of a tile."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def grid(self) -> Grid:
        """(rows, columns) of the whole picture scaled to one tile."""
        return self.side, self.side

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """The scaled picture, and its tiles put together, if it was cut into any."""
        whole = Tile(self.side, self.side)
        tiles = []
        for size, length in zip(encoded.sizes("image_sizes"), encoded.lengths, strict=True):
            if length == whole.tokens + 1:
                tiles.append([whole._replace(after=1)])
            else:
                tiles.append([whole, Tile(*self.shrunk(self.unpadded(size)), row_end=1)])
        return tiles

    def unpadded(self, size: Sequence[int]) -> Grid:
        """Rows and columns of the put-together tiles that show a picture of (height, width)."""
        config = self.model.config
        edge = config.vision_config.image_size
        high, wide = get_anyres_image_grid_shape(tuple(size), config.image_grid_pinpoints, edge)
        patches = torch.empty(1, high * self.side, wide * self.side, device="meta")
        _, rows, cols = unpad_image(patches, tuple(size)).shape
        return rows, cols

    def shrunk(self, grid: Grid) -> Grid:
        """The grid after the model's own reduction of large ones; none here."""
        return grid


@register_adapter("llava_next_video")
class LlavaNextVideoAdapter(LlavaNextAdapter):
    """LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, frames pooled, each a tile of its own."""

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """Tiles of pictures, or frames."""
        if encoded.kind == "image":
            return super().tiles(encoded)
        side = self.side // self.model.config.spatial_pool_stride
        return [[Tile(side, side)] * (length // side**2) for length in encoded.lengths]


@register_adapter("llava_onevision")
class LlavaOnevisionAdapter(LlavaNextAdapter):
    """LLaVA-OneVision: large grids shrunk; pictures among several, and frames, are one tile."""

    text_models = ("qwen2",)

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """Tiles of pictures, or frames with one newline at the very end."""
        if encoded.kind == "image":
            return super().tiles(encoded)
        side = math.ceil(self.side / 2)
        frame = Tile(side, side)
        counts = [(length - 1) // frame.tokens for length in encoded.lengths]
        return [[frame] * (count - 1) + [frame._replace(after=1)] for count in counts]

    def shrunk(self, grid: Grid) -> Grid:
        """Scaled down to about as many tiles as ``vision_aspect_ratio`` allows."""
        rows, cols = grid
        most = int(self.model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (most * self.side**2))
        return grid if ratio <= 1.1 else (int(rows // ratio), int(cols // ratio))
