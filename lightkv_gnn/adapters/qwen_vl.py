"""Families that are told the picture's own grid, frame by frame: Qwen-VL and its like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import ClassVar

from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_graphs import Grid, Tile


@register_adapter("qwen3_vl_moe", "exaone4_5")
class GridAdapter(Adapter):
    """Grids from ``image_grid_thw`` and ``video_grid_thw``, on any text model."""

    @property
    def legal_layers(self) -> Sequence[int]:
        """Layers after which no more visual features are added to the vision tokens."""
        added = len(
            getattr(self.model.config.vision_config, "deepstack_visual_indexes", None) or ()
        )
        return [layer for layer in super().legal_layers if layer >= added - 1]

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The grid that the processor scales the picture to."""
        grids = [tuple(map(int, grid)) for grid in process()["image_grid_thw"]]
        merge = self.model.config.vision_config.spatial_merge_size
        return Encoded("image", {"image_grid_thw": grids}, (prod(grids[0]) // merge**2,))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile per frame, where a picture is one frame."""
        merge = self.model.config.vision_config.spatial_merge_size
        grids = encoded.sizes(f"{encoded.kind}_grid_thw")
        return [[Tile(rows // merge, cols // merge)] * frames for frames, rows, cols in grids]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture, or of every few frames that share their tokens the first."""
        vision = self.model.config.vision_config
        merge, patch, together = (
            vision.spatial_merge_size,
            vision.patch_size,
            vision.temporal_patch_size,
        )
        grids = encoded.sizes(f"{encoded.kind}_grid_thw")
        seen = []
        for own, (frames, rows, cols) in zip(
            pixels.split([prod(grid) for grid in grids]), grids, strict=True
        ):
            cells = (frames, rows // merge, cols // merge, merge, merge)
            patches = own.view(*cells, -1, together, patch, patch)[..., 0, :, :]
            # channel, then row, row in the cell and in the patch, then the same of the column
            pictures = patches.permute(0, 5, 1, 3, 6, 2, 4, 7)
            seen.append(list(pictures.reshape(frames, -1, rows * patch, cols * patch)))
        return seen


@register_adapter("qwen2_vl", "qwen2_5_vl")
class QwenVLAdapter(GridAdapter):
    """Qwen2-VL and Qwen2.5-VL: survivors keep their M-RoPE."""

    text_models: ClassVar[tuple[str, ...]] = ("qwen2_vl_text", "qwen2_5_vl_text")


@register_adapter("qwen3_vl")
class Qwen3VLAdapter(QwenVLAdapter):
    """Qwen3-VL: visual features are added after the first layers, at their original places."""

    text_models = ("qwen3_vl_text",)


@register_adapter("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga")
class GlmVAdapter(GridAdapter):
    """GLM-4.1V to GLM-4.6V and GLM-OCR: frames of a video have the placeholder of images."""

    @property
    def placeholders(self) -> Mapping[str, int]:
        """The same for both kinds; a call of both is refused by the model."""
        return dict.fromkeys(self.encoders, int(self.model.config.image_token_id))


@register_adapter("paddleocr_vl")
class PaddleOcrAdapter(GridAdapter):
    """PaddleOCR-VL: patches come row by row, and not token by token."""

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture."""
        grids = encoded.sizes("image_grid_thw")
        parts = pixels.split([prod(grid) for grid in grids])
        return [
            list(own.unflatten(0, grid).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3))
            for own, grid in zip(parts, grids, strict=True)
        ]
