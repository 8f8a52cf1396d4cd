"""Families whose pictures keep their shape, which ``image_sizes`` tells: a Pixtral tower's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded, whole_patches
from lightkv_graphs import Grid, Tile


@register_adapter("lighton_ocr")
class SizedAdapter(Adapter):
    """Blocks of patches are merged to tokens; what ends a row is text."""

    text_models: ClassVar[tuple[str, ...]] = ("qwen3",)

    @property
    def cell(self) -> int:
        """Pixels per side of a token."""
        config = self.model.config
        return int(config.vision_config.patch_size * config.spatial_merge_size)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The grid of the picture as the processor scales it."""
        ((height, width),) = process()["image_sizes"]
        scaled = int(height), int(width)
        tokens = (scaled[0] // self.cell) * (scaled[1] // self.cell)
        return Encoded("image", {"image_sizes": [scaled]}, (tokens,))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a picture."""
        sizes = encoded.sizes("image_sizes")
        return [[Tile(height // self.cell, width // self.cell)] for height, width in sizes]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture without padding."""
        pairs = zip(pixels, encoded.sizes("image_sizes"), strict=True)
        return [
            [whole_patches(own[:, :height, :width], self.cell)] for own, (height, width) in pairs
        ]


@register_adapter("mistral3")
class Mistral3Adapter(SizedAdapter):
    """Mistral Small 3.1 and later, on a Mistral text model."""

    text_models = ("mistral",)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The grid of the picture scaled to whole tokens; its image processor alone has patches."""
        return super().expected(size, images, partial(process, patch_size=self.cell))
