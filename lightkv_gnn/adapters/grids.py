"""Further families that are told the picture's own grid, and what is different with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_gnn.adapters.qwen_vl import GridAdapter, PaddleOcrAdapter
from lightkv_gnn.errors import UnsupportedInputError, UnsupportedModelError
from lightkv_graphs import Grid, Tile


@register_adapter("ernie4_5_vl_moe")
class ErnieAdapter(GridAdapter):
    """ERNIE 4.5 VL: experts of their own for vision tokens; two frames of a video share theirs."""

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile for a picture, or for every two frames."""
        together = self.model.config.vision_config.temporal_merge_size
        return [own[::together] for own in super().tiles(encoded)]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture, or the first of every two frames."""
        together = self.model.config.vision_config.temporal_merge_size
        return [own[::together] for own in super().seen(encoded, pixels)]


@register_adapter("muse_glimmer", "muse_spark")
class MuseAdapter(GridAdapter):
    """Muse Glimmer and Spark: patches come row by row, a patch's frames before its channels."""

    by_token = False

    @property
    def merge(self) -> int:
        """Patches per side of a token."""
        return int(self.model.config.vision_config.merge_size)

    def pictured(self, pixels: Tensor) -> Tensor:
        """Of each patch, of its first frame."""
        vision = self.model.config.vision_config
        patch = vision.patch_size
        return pixels.unflatten(1, (vision.patch_temporal, -1, patch, patch))[:, 0]


@register_adapter("kimi_k25")
class KimiAdapter(PaddleOcrAdapter):
    """Kimi K2.5: patches come row by row; the frames of a video are pooled into one."""

    @property
    def merge(self) -> int:
        """Patches per side of a token.

        Raises:
            UnsupportedModelError: Those of a token are no square.
        """
        rows, cols = self.model.config.vision_config.merge_kernel_size
        if rows != cols:
            raise UnsupportedModelError(f"patches are merged {rows}x{cols}: expected a square")
        return int(rows)

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a picture, or the few frames of a part of a video."""
        return [own[:1] for own in super().tiles(encoded)]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture, or of frames that are pooled the first."""
        return [own[:1] for own in super().seen(encoded, pixels)]


@register_adapter("lfm2_vl")
class ShapesAdapter(Adapter):
    """LFM2-VL: a tile, or the whole picture, in its own shape of patches.

    A picture's tiles are encoded one by one; how they lie beside each other is text.
    """

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The tiles that the processor cuts."""
        shapes = [(int(rows), int(cols)) for rows, cols in process()["spatial_shapes"]]
        counts = tuple(tile.tokens for (tile,) in self._tiles(shapes))
        return Encoded("image", {"spatial_shapes": shapes}, counts)

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile each."""
        return self._tiles(encoded.sizes("spatial_shapes"))

    def _tiles(self, shapes: Sequence[Sequence[int]]) -> Sequence[Sequence[Tile]]:
        factor = self.model.config.downsample_factor
        return [[Tile(rows // factor, cols // factor)] for rows, cols in shapes]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled tiles, put together from patches row by row, channels last."""
        patch = self.model.config.vision_config.patch_size
        seen = []
        for own, (rows, cols) in zip(pixels, encoded.sizes("spatial_shapes"), strict=True):
            seen.append([_put_together(own, rows, cols, patch)])
        return seen


def _put_together(patches: Tensor, rows: int, cols: int, side: int) -> Tensor:
    """A picture of patches `[patch, row * column * channel]` row by row, without what pads it."""
    cells = patches[: rows * cols].view(rows, cols, side, side, -1)
    return cells.permute(4, 0, 2, 1, 3).reshape(-1, rows * side, cols * side)


@register_adapter("gemma4")
class Gemma4Adapter(Adapter):
    """Gemma 4: the picture in its own shape, patches pooled; their places tell the grid.

    Raises:
        UnsupportedModelError: Layers share the keys and values of others.
    """

    text_models = ("gemma4_text",)

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        if shared := self.decoder.config.num_kv_shared_layers:
            raise UnsupportedModelError(
                f"the last {shared} layers of this {type(model).__name__} share the keys and "
                "values of earlier ones, and transformers computes them for the last tokens of a "
                "prompt alone: such models are not supported, only those with "
                "num_kv_shared_layers=0"
            )

    @property
    def pooled(self) -> int:
        """Patches per side of a token."""
        return int(self.model.config.vision_config.pooling_kernel_size)

    @property
    def patch(self) -> int:
        """Pixels per side of a patch."""
        return int(self.model.config.vision_config.patch_size)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The grid that the processor scales the picture to."""
        places = list(process()["image_position_ids"])
        counts = tuple(tile.tokens for tile in self._tiles(places))
        return Encoded("image", {"image_position_ids": places}, counts)

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a picture, or a frame."""
        places = encoded.arguments.get(f"{encoded.kind}_position_ids")
        if places is None:
            raise UnsupportedInputError(
                f"the {encoded.kind}s were encoded without {encoded.kind}_position_ids, so the "
                "shape of their token grids is unknown: pass everything that the processor returns"
            )
        if encoded.kind == "image":
            return [[tile] for tile in self._tiles(places)]
        counts = encoded.arguments.get("num_frames_per_video")
        if counts is None:  # before transformers 5.19, videos come one above another
            return [self._tiles(frames) for frames in places]
        frames = iter(self._tiles(places))
        return [list(islice(frames, int(count))) for count in counts]

    def _tiles(self, places: Sequence[Tensor]) -> list[Tile]:
        ends = [(torch.as_tensor(own, device="cpu").amax(0) + 1).tolist() for own in places]
        return [Tile(rows // self.pooled, cols // self.pooled) for cols, rows in ends]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture, or frame, put together from patches, channels last."""
        frames, pooled = iter(pixels.flatten(0, -3)), self.pooled
        return [
            [
                _put_together(next(frames), tile.rows * pooled, tile.cols * pooled, self.patch)
                for tile in tiles
            ]
            for tiles in self.tiles(encoded)
        ]


@register_adapter("gemma4_unified")
class Gemma4UnifiedAdapter(Gemma4Adapter):
    """Gemma 4 without a tower: patches are pooled before the model sees them."""

    text_models = ("gemma4_unified_text",)

    @property
    def pooled(self) -> int:
        """Patches per side of a token, of those that the model sees."""
        return 1

    @property
    def patch(self) -> int:
        """Pixels per side of a patch, pooled."""
        return int(self.model.config.vision_config.model_patch_size)
