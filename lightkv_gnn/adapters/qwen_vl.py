"""Families that are told the picture's own grid, frame by frame: Qwen-VL and its like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from lightkv_gnn.adapters.base import Adapter, Process, SharedPlaceholder, register_adapter
from lightkv_gnn.adapters.encoded import Encoded, VisionTokens
from lightkv_gnn.errors import UnsupportedInputError, UnsupportedModelError
from lightkv_graphs import Grid, Tile, TokenLayout


class Patches(NamedTuple):
    """A picture in patches, of which ``merge`` x ``merge`` become a token."""

    frames: int
    rows: int
    cols: int
    merge: int

    @property
    def total(self) -> int:
        """Patches of all frames."""
        return self.frames * self.rows * self.cols


@register_adapter(
    *("qwen3_vl_moe", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "cosmos3_omni"),
    *("exaone4_5", "hyperclovax_vision_v2", "cohere_compass"),
    *("qwen3_5", "qwen3_5_moe", "lfm3_vl"),
)
class GridAdapter(Adapter):
    """Grids from ``image_grid_thw`` and ``video_grid_thw``, on any text model."""

    told: ClassVar[tuple[str, ...]] = ("image_grid_thw",)
    """What of an image processor's output tells the grid."""

    tile: ClassVar[Tile] = Tile(1, 1)
    """What every tile has beside its grid."""

    by_token: ClassVar[bool] = True
    """Whether the patches of a token follow each other in the pixels, or those of a row do."""

    @property
    def merge(self) -> int:
        """Patches per side of a token."""
        return int(self.model.config.vision_config.spatial_merge_size)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The grid that the processor scales the picture to."""
        output = process()
        arguments = {name: [_numbers(row) for row in output[name]] for name in self.told}
        encoded = Encoded("image", arguments, ())
        (tiles,) = self.tiles(encoded)
        return replace(encoded, lengths=(sum(tile.tokens for tile in tiles),))

    def patches(self, encoded: Encoded) -> list[Patches]:
        """The patches of each picture."""
        merge, grids = self.merge, encoded.sizes(f"{encoded.kind}_grid_thw")
        return [Patches(frames, rows, cols, merge) for frames, rows, cols in grids]

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile per frame, where a picture is one frame."""
        return [
            [self.tile._replace(rows=own.rows // own.merge, cols=own.cols // own.merge)]
            * own.frames
            for own in self.patches(encoded)
        ]

    def pictured(self, pixels: Tensor) -> Tensor:
        """Pixels of each patch, `[patch, channel, row, column]`, of its first frame."""
        vision = self.model.config.vision_config
        together, patch = getattr(vision, "temporal_patch_size", 1), vision.patch_size
        return pixels.unflatten(1, (-1, together, patch, patch))[:, :, 0]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled picture, or of every few frames that share their tokens the first."""
        patches = self.patches(encoded)
        seen = []
        for part, own in zip(pixels.split([own.total for own in patches]), patches, strict=True):
            block = own.merge if self.by_token else 1
            cells = (own.frames, own.rows // block, own.cols // block, block, block)
            # channel, then row, row in the cell and in the patch, then the same of the column
            pictures = self.pictured(part).unflatten(0, cells).permute(0, 5, 1, 3, 6, 2, 4, 7)
            seen.append(list(pictures.flatten(5).flatten(2, 4)))
        return seen


def _numbers(row: Tensor) -> tuple[int, ...]:
    return tuple(map(int, row.flatten()))


@register_adapter("qwen2_vl", "qwen2_5_vl")
class QwenVLAdapter(GridAdapter):
    """Qwen2-VL and Qwen2.5-VL: survivors keep their M-RoPE."""

    text_models: ClassVar[tuple[str, ...]] = ("qwen2_vl_text", "qwen2_5_vl_text")


@register_adapter("qwen3_vl")
class Qwen3VLAdapter(QwenVLAdapter):
    """Qwen3-VL: visual features are added after the first layers, at their original places."""

    text_models = ("qwen3_vl_text",)


@register_adapter("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga")
class GlmVAdapter(SharedPlaceholder, GridAdapter):
    """GLM-4.1V to GLM-4.6V and GLM-OCR."""


@register_adapter("paddleocr_vl")
class PaddleOcrAdapter(GridAdapter):
    """PaddleOCR-VL: patches come row by row, and not token by token."""

    by_token = False

    def pictured(self, pixels: Tensor) -> Tensor:
        """As they come."""
        return pixels


@register_adapter("hunyuan_vl")
class HunYuanAdapter(GridAdapter):
    """HunYuanVL: the encoder's own newlines end the rows, and its own marks stand around them."""

    tile = Tile(1, 1, before=1, row_end=1, after=1)
    by_token = False


@register_adapter("cosmos3_edge")
class Cosmos3EdgeAdapter(GridAdapter):
    """Cosmos 3 Edge: channels come last in a patch."""

    def pictured(self, pixels: Tensor) -> Tensor:
        """Of each patch, channels first."""
        patch = self.model.config.vision_config.patch_size
        return pixels.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2)


@register_adapter("minimax_m3_vl")
class MiniMaxAdapter(GridAdapter):
    """MiniMax-M3, where all layers attend to everything."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        if other := set(self.decoder.config.layer_types) - {"full_attention"}:
            raise UnsupportedModelError(
                f"MiniMax-M3 with layers of {other.pop()!r} is not supported: their indexer picks "
                "blocks of entries, which merging would shift; expected full attention alone"
            )


@register_adapter("video_llama_3")
class VideoLlama3Adapter(GridAdapter):
    """VideoLLaMA 3: each picture is told how many of its patches become a token."""

    told = ("image_grid_thw", "image_merge_sizes")

    def patches(self, encoded: Encoded) -> list[Patches]:
        """The patches of each picture, merged as the processor says."""
        grids = encoded.sizes(f"{encoded.kind}_grid_thw")
        merges = encoded.sizes(f"{encoded.kind}_merge_sizes")
        return [
            Patches(frames, rows, cols, merge)
            for (frames, rows, cols), (merge,) in zip(grids, merges, strict=True)
        ]

    def layout(self, tokens: VisionTokens) -> TokenLayout:
        """The layout of a call whose videos are whole.

        Raises:
            UnsupportedInputError: The processor left tokens of a video out.
        """
        video = tokens.encoded.get("video")
        if video is not None:
            placeholders, made = int(tokens.masks["video"].sum()), sum(video.lengths)
            if placeholders < made:
                raise UnsupportedInputError(
                    f"the prompts hold {placeholders} of the {made} tokens of their videos, and "
                    "which ones is not known here: have the processor leave none out, with "
                    "use_token_compression=False"
                )
        return super().layout(tokens)
