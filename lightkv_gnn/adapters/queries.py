"""Families whose vision tokens are queries: each has read the whole picture, and none has a place.

Their tile is one row.  Windows would mean nothing in it, so all of a tile is one window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_gnn.errors import UnsupportedModelError
from lightkv_graphs import Grid, Tile


class QueriesAdapter(Adapter):
    """Tiles of so many queries as the encoder returned, in one row."""

    placed = False

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a picture."""
        return [[Tile(1, length)] for length in encoded.lengths]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """Nothing.

        Raises:
            UnsupportedModelError: Always.
        """
        raise UnsupportedModelError(
            f"the vision tokens of {self.model.config.model_type!r} are queries, each of which has "
            "read the whole picture: they cover no pixels that could be shown"
        )


@register_adapter("idefics2")
class Idefics2Adapter(QueriesAdapter):
    """Idefics2: a perceiver makes the same number of latents of every picture, or sub-image."""

    text_models: ClassVar[tuple[str, ...]] = ("mistral",)

    @property
    def grid(self) -> Grid:
        """One row of latents."""
        return 1, int(self.model.config.perceiver_config.resampler_n_latents)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """As many pictures as the processor makes of it: five where it is split."""
        pictures = process()["pixel_values"].shape[1]
        return Encoded("image", {}, (pictures * self.grid[1],))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a picture; the encoder returns those of a sample together."""
        tile = Tile(*self.grid)
        return [[tile] * (length // tile.tokens) for length in encoded.lengths]


@register_adapter("aria")
class AriaAdapter(QueriesAdapter):
    """Aria: as many queries as the configuration has for the number of patches."""

    text_models = ("aria_text",)

    @property
    def queries(self) -> Mapping[int, int]:
        """Queries of a picture of so many patches."""
        queries: Mapping[int, int] = self.model.config.projector_patch_to_query_dict
        return queries

    @property
    def grid(self) -> Grid:
        """One row of queries, of the smallest pictures."""
        return 1, min(self.queries.values())

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The queries of each crop of the picture.

        Raises:
            UnsupportedModelError: The configuration has none for so many patches.
        """
        crops, _, height, width = process()["pixel_values"].shape
        patch = self.model.config.vision_config.patch_size
        patches = (height // patch) * (width // patch)
        if patches not in self.queries:
            raise UnsupportedModelError(
                f"Aria has queries for pictures of {sorted(self.queries)} patches, but the "
                f"processor makes one of {patches}"
            )
        return Encoded("image", {"num_crops": [crops]}, (crops * self.queries[patches],))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a crop, which the encoder returns one by one."""
        crops = encoded.arguments.get("num_crops") or [1] * len(encoded.lengths)
        return [
            [Tile(1, length // count)] * count
            for count, length in zip(crops, encoded.lengths, strict=True)
        ]


@register_adapter("deepseek_ocr2")
class DeepseekOcr2Adapter(QueriesAdapter):
    """DeepSeek-OCR 2: queries of each crop, then of the whole page, then a separator."""

    text_models = ("deepseek_ocr2_text",)
    of_crop = 144
    """Queries of a crop, as the model has them; those of the page are the rest."""

    @property
    def grid(self) -> Grid:
        """One row of queries, of a crop."""
        return 1, self.of_crop

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """As many crops as the processor cuts, and the page."""
        output = process()
        crops = int(output["num_local_patches"][0])
        page = 256 if output["pixel_values"].shape[-1] > 768 else self.of_crop
        tokens = crops * self.of_crop + page + 1
        return Encoded("image", {"num_local_patches": [crops]}, (tokens,))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """The crops, and the page with the separator after it."""
        return [
            [
                *[Tile(1, self.of_crop)] * count,
                Tile(1, length - count * self.of_crop - 1, after=1),
            ]
            for count, length in zip(encoded.crops(), encoded.lengths, strict=True)
        ]
