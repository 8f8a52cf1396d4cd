"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: the whole picture, then its tiles as one grid.

Tiles of high resolution are put together, stripped of what was padded, and end every row with a
newline token, which has no place in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded, whole_patches
from lightkv_graphs import Grid, Tile


@register_adapter("llava_next")
class LlavaNextAdapter(Adapter):
    """LLaVA-NeXT (1.6)."""

    text_models: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2")

    @property
    def side(self) -> int:
        """Patches per side of a tile."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def cell(self) -> int:
        """Pixels per side of a token."""
        return int(self.model.config.vision_config.patch_size)

    @property
    def grid(self) -> Grid:
        """(rows, columns) of the whole picture scaled to one tile."""
        return self.side, self.side

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The scaled picture, and its tiles with a newline for each row."""
        rows, cols = self.shrunk(self.unpadded(size))
        return Encoded("image", {"image_sizes": [size]}, (self.side**2 + rows * (cols + 1),))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """The scaled picture, and its tiles put together, if it was cut into any."""
        whole = Tile(self.side, self.side)
        tiles = []
        for size, length in zip(encoded.sizes("image_sizes"), encoded.lengths, strict=True):
            if length == whole.tokens + 1:
                tiles.append([whole._replace(after=1)])
                continue
            rows, cols = self.shrunk(self.unpadded(size))
            if rows * cols > 0:
                tiles.append([whole, Tile(rows, cols, row_end=1)])
            else:  # of a picture that is but a line, only newlines may be left
                tiles.append([whole._replace(after=rows)])
        return tiles

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture, and its tiles beside each other without what was padded."""
        pixels = whole_patches(pixels, self.cell)
        every = zip(pixels, self.tiles(encoded), encoded.sizes("image_sizes"), strict=True)
        return [
            [own[0]] if len(tiles) == 1 else [own[0], self._put_together(own[1:], size)]
            for own, tiles, size in every
        ]

    def _put_together(self, tiles: Tensor, size: Sequence[int]) -> Tensor:
        """What tiles `[tile, channel, height, width]` show of a picture of (height, width)."""
        config = self.model.config
        edge, cell = config.vision_config.image_size, self.cell
        high, wide = get_anyres_image_grid_shape(tuple(size), config.image_grid_pinpoints, edge)
        grid = tiles[: high * wide].unflatten(0, (high, wide)).permute(2, 0, 3, 1, 4)
        cells = pixel_unshuffle(grid.flatten(3).flatten(1, 2), cell)
        return pixel_shuffle(unpad_image(cells, tuple(size)), cell)

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


@register_adapter("granite4_vision")
class Granite4VisionAdapter(LlavaNextAdapter):
    """Granite 4 Vision: a window of patches becomes a smaller one of tokens, each in its place.

    They are added up over the first layers, from several layers of the tower.
    """

    text_models = ("granite4_vision_text",)

    @property
    def side(self) -> int:
        """Tokens per side of a tile."""
        return int(super().side * Fraction(self.model.config.downsample_rate))

    @property
    def cell(self) -> int:
        """Pixels per side of a token."""
        return int(self.model.config.vision_config.image_size) // self.side

    def lengths(self, kind: str, output: Any) -> tuple[int, ...]:
        """Vision tokens of each picture, which every layer's features are as many as."""
        _, pictures = output.deepstack_features[0]
        return tuple(len(picture) for picture in pictures)


@register_adapter("llava_next_video")
class LlavaNextVideoAdapter(LlavaNextAdapter):
    """LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, frames pooled, each a tile of its own."""

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """Tiles of pictures, or frames."""
        if encoded.kind == "image":
            return super().tiles(encoded)
        side = self.side // self.model.config.spatial_pool_stride
        return [[Tile(side, side)] * (length // side**2) for length in encoded.lengths]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """Tiles of pictures, or frames."""
        if encoded.kind == "image":
            return super().seen(encoded, pixels)
        pooled = self.model.config.vision_config.patch_size * self.model.config.spatial_pool_stride
        return [list(whole_patches(frames, pooled)) for frames in pixels]


@register_adapter("llava_onevision")
class LlavaOnevisionAdapter(LlavaNextAdapter):
    """LLaVA-OneVision: large grids shrunk; pictures among several, and frames, are one tile."""

    text_models = ("qwen2",)

    @property
    def frame(self) -> Tile:
        """Of a video, pooled."""
        side = math.ceil(self.side / 2)
        return Tile(side, side)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The scaled picture alone, and a newline, where there are several."""
        if images == 1:
            return super().expected(size, images, process)
        return Encoded("image", {"image_sizes": [size]}, (self.side**2 + 1,))

    def lengths(self, kind: str, output: Any) -> tuple[int, ...]:
        """With a video's newline, which older transformers add after encoding it."""
        lengths, frame = super().lengths(kind, output), self.frame.tokens
        return lengths if kind == "image" else tuple(n // frame * frame + 1 for n in lengths)

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """Tiles of pictures, or frames with one newline at the very end."""
        if encoded.kind == "image":
            return super().tiles(encoded)
        frame = self.frame
        counts = [length // frame.tokens for length in encoded.lengths]
        return [[frame] * (count - 1) + [frame._replace(after=1)] for count in counts]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """Tiles of pictures, or frames."""
        if encoded.kind == "image":
            return super().seen(encoded, pixels)
        patch = self.model.config.vision_config.patch_size
        return [list(whole_patches(frames, patch)) for frames in pixels]

    def shrunk(self, grid: Grid) -> Grid:
        """Scaled down to about as many tiles as ``vision_aspect_ratio`` allows."""
        rows, cols = grid
        most = int(self.model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (most * self.side**2))
        return grid if ratio <= 1.1 else (int(rows // ratio), int(cols // ratio))
