"""Families whose every tile is the same square of tokens."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded, whole_patches
from lightkv_graphs import Grid, Tile


class SquareAdapter(Adapter):
    """Pictures are scaled, or cut into tiles that are scaled, to one square."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Rows and columns of a tile."""

    @property
    def grid(self) -> Grid:
        """(rows, columns) of every tile."""
        return self.side, self.side

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """As many tiles as a picture has tokens for."""
        tile = Tile(*self.grid)
        return [[tile] * (length // tile.tokens) for length in encoded.lengths]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled squares."""
        patch = self.model.config.vision_config.patch_size
        squares = whole_patches(pixels, patch if isinstance(patch, int) else patch[0])
        own = squares.split([len(tiles) for tiles in self.tiles(encoded)])
        return [list(tiles) for tiles in own]


class TiledAdapter(SquareAdapter):
    """Pictures are cut into tiles, into how many only the processor knows."""

    asked: ClassVar[Mapping[str, Any]] = {}
    """What the whole processor asks of its image processor, which alone would not do so."""

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """As many tiles as the processor cuts."""
        tiles = process(**self.asked)["pixel_values"].shape[:-3].numel()
        return Encoded("image", {}, (tiles * self.side**2,))


@register_adapter("internvl")
class InternVLAdapter(TiledAdapter):
    """InternVL: tiles of a picture, and a thumbnail if there are several.

    The model is not told how a picture's tiles lie beside each other.
    """

    text_models = ("llama", "qwen2", "qwen3")
    asked = MappingProxyType({"crop_to_patches": True})

    @property
    def side(self) -> int:
        """Of the pixel-shuffled patches."""
        return math.isqrt(self.model.config.image_seq_length)


@register_adapter("gemma3", "shieldgemma2")
class Gemma3Adapter(SquareAdapter):
    """Gemma 3, ShieldGemma 2: one square a picture; crops of pan and scan are pictures too."""

    text_models = ("gemma3_text",)

    @property
    def side(self) -> int:
        """Of the pooled patches."""
        return math.isqrt(self.model.config.mm_tokens_per_image)


@register_adapter("idefics3", "smolvlm")
class Idefics3Adapter(TiledAdapter):
    """Idefics3 and SmolVLM: tiles of a picture, then the whole; tags between them are text."""

    text_models = ("llama",)

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled squares without those of zeros, which fill up a batch."""
        squares = pixels.flatten(0, 1)
        return super().seen(encoded, squares[(squares != 0).flatten(1).any(1)])

    @property
    def side(self) -> int:
        """Of the pixel-shuffled patches."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size // self.model.config.scale_factor)


@register_adapter("paligemma")
class PaliGemmaAdapter(SquareAdapter):
    """PaliGemma: one square a picture, before the text."""

    text_models = ("gemma", "gemma2")

    @property
    def side(self) -> int:
        """Patches."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)
