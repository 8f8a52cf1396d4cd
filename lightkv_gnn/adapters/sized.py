"""Families whose pictures keep their shape, which ``image_sizes`` tells: a Pixtral tower's.

Those that make pictures tokens of a codebook are told it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded, whole_patches
from lightkv_graphs import Grid, Tile


@register_adapter("lighton_ocr")
class SizedAdapter(Adapter):
    """Blocks of patches are merged to tokens; what ends a row is text."""

    text_models: ClassVar[tuple[str, ...]] = ("qwen3",)

    tile: ClassVar[Tile] = Tile(1, 1)
    """What every tile has beside its grid."""

    @property
    def cell(self) -> int:
        """Pixels per side of a token."""
        config = self.model.config
        return int(config.vision_config.patch_size * config.spatial_merge_size)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The grid of the picture as the processor scales it."""
        ((height, width),) = process()["image_sizes"]
        encoded = Encoded("image", {"image_sizes": [(int(height), int(width))]}, ())
        ((tile,),) = self.tiles(encoded)
        return replace(encoded, lengths=(tile.tokens,))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a picture."""
        sizes = encoded.sizes("image_sizes")
        return [
            [self.tile._replace(rows=height // self.cell, cols=width // self.cell)]
            for height, width in sizes
        ]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture without padding."""
        pairs = zip(pixels, encoded.sizes("image_sizes"), strict=True)
        return [
            [whole_patches(own[:, :height, :width], self.cell)] for own, (height, width) in pairs
        ]


@register_adapter("mistral3")
class Mistral3Adapter(SizedAdapter):
    """Mistral Small 3.1 and later, and Ministral 3."""

    text_models = ("mistral", "ministral3")

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The grid of the picture scaled to whole tokens; its image processor alone has patches."""
        return super().expected(size, images, partial(process, patch_size=self.cell))


@register_adapter("apertus1p5")
class CodedAdapter(SizedAdapter):
    """Apertus 1.5: a codebook's tokens, each of a square that convolutions have halved to it."""

    text_models = ("apertus1p5_text",)

    @property
    def cell(self) -> int:
        """Pixels per side of a token."""
        return int(2 ** (len(self.codebook.channel_multiplier) - 1))

    @property
    def codebook(self) -> Any:
        """The configuration of what makes pictures tokens."""
        return self.model.config.vision_config


@register_adapter("emu3")
class Emu3Adapter(CodedAdapter):
    """Emu3: the same, where the end of a row is encoded too, and is never merged."""

    text_models = ("emu3_text_model",)
    tile = Tile(1, 1, row_end=1)

    @property
    def codebook(self) -> Any:
        """The configuration of what makes pictures tokens."""
        return self.model.config.vq_config
