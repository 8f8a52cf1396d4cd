"""MiniCPM-V: a picture and its slices, each in its own shape, packed patch by patch into a row."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_graphs import Grid, Tile


@register_adapter("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
class PackedAdapter(Adapter):
    """Grids from ``target_sizes``, merged in the tower, unless it is told not to, and after it.

    How a picture's slices lie beside each other is text.
    """

    text_models: ClassVar[tuple[str, ...]] = ("qwen3", "qwen3_vl_text", "qwen3_5_text")

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The picture, and the slices that the processor cuts."""
        sizes = [(int(rows), int(cols)) for rows, cols in process()["target_sizes"]]
        encoded = Encoded("image", {"target_sizes": sizes}, ())
        counts = tuple(tile.tokens for (tile,) in self.tiles(encoded))
        return Encoded("image", encoded.arguments, counts)

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile each."""
        config = self.model.config
        mode = encoded.arguments.get("downsample_mode") or config.downsample_mode
        down, across = (side**config.merger_times for side in config.merge_kernel_size)
        if mode != "4x":
            window = config.vision_config.window_kernel_size
            down, across = down * window[0], across * window[1]
        return [[Tile(rows // down, cols // across)] for rows, cols in self._sizes(encoded)]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture and slices, or frames."""
        patch = self.model.config.vision_config.patch_size
        sizes = self._sizes(encoded)
        patches = pixels[0].unflatten(2, (-1, patch)).permute(2, 0, 1, 3)
        seen = []
        for own, grid in zip(patches.split([prod(size) for size in sizes]), sizes, strict=True):
            # row and column of a patch, then channel, row and column in it
            picture = own.unflatten(0, grid).permute(2, 0, 3, 1, 4)
            seen.append([picture.flatten(3).flatten(1, 2)])
        return seen

    @staticmethod
    def _sizes(encoded: Encoded) -> list[tuple[int, ...]]:
        return encoded.sizes("target_sizes" if encoded.kind == "image" else "target_sizes_videos")
