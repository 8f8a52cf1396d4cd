"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the picture's own grid, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

from lightkv_gnn.adapters.base import Adapter, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_graphs import Tile


@register_adapter("qwen2_vl", "qwen2_5_vl")
class QwenVLAdapter(Adapter):
    """Grids from ``image_grid_thw`` and ``video_grid_thw``; survivors keep their M-RoPE."""

    text_models = ("qwen2_vl_text", "qwen2_5_vl_text")

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile per frame, where a picture is one frame."""
        merge = self.model.config.vision_config.spatial_merge_size
        grids = encoded.sizes(f"{encoded.kind}_grid_thw")
        return [[Tile(rows // merge, cols // merge)] * frames for frames, rows, cols in grids]


@register_adapter("qwen3_vl")
class Qwen3VLAdapter(QwenVLAdapter):
    """Qwen3-VL: visual features are added after the first layers, at their original places."""

    text_models = ("qwen3_vl_text",)

    @property
    def legal_layers(self) -> Sequence[int]:
        """Layers after which no more visual features are added to the vision tokens."""
        added = len(self.model.config.vision_config.deepstack_visual_indexes)
        return [layer for layer in super().legal_layers if layer >= added - 1]
