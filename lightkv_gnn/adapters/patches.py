"""Families whose encoder returns one square at a time, of a side that the configuration tells."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_gnn.adapters.square import SquareAdapter, TiledAdapter
from lightkv_gnn.errors import ImageTokensError, UnsupportedModelError
from lightkv_graphs import Tile


@register_adapter("deepseek_vl", "deepseek_vl_hybrid", "janus", "vipllava")
class PatchesAdapter(SquareAdapter):
    """Patches of the picture, scaled or padded to a square; a class token is dropped."""

    text_models: ClassVar[tuple[str, ...]] = ("llama",)

    @property
    def shrink(self) -> int:
        """Patches per side of a token."""
        return 1

    @property
    def side(self) -> int:
        """Tokens."""
        vision = self.model.config.vision_config
        return side_of(vision.image_size) // side_of(vision.patch_size) // self.shrink

    def lengths(self, kind: str, output: Any) -> tuple[int, ...]:
        """Vision tokens of each square.

        Raises:
            ImageTokensError: They are not as many as the configuration tells.
        """
        lengths = super().lengths(kind, output)
        if other := set(lengths) - {self.side**2}:
            raise ImageTokensError(
                f"the model encoded a square to {other.pop()} tokens, but its configuration tells "
                f"{self.side}x{self.side}: pass pictures of the size that it is made for"
            )
        return lengths


def side_of(size: Any) -> int:
    """A number, or both of two that are the same."""
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise UnsupportedModelError(f"a vision tower of {tuple(size)} pixels has no square tiles")
    return int(size[0])


@register_adapter("got_ocr2", "pp_chart2table")
class GotOcrAdapter(PatchesAdapter, TiledAdapter):
    """GOT-OCR 2 and PP-Chart2Table: two convolutions halve the grid of each tile."""

    text_models = ("qwen2",)

    @property
    def shrink(self) -> int:
        """Twice two."""
        return 4


@register_adapter("qianfan_ocr")
class QianfanOcrAdapter(PatchesAdapter, TiledAdapter):
    """Qianfan-OCR: pixel-shuffled tiles without their class token, and a thumbnail."""

    text_models = ("qwen3",)
    asked = MappingProxyType({"crop_to_patches": True})

    @property
    def shrink(self) -> int:
        """What the pixel shuffle divides by."""
        return round(1 / self.model.config.downsample_ratio)


@register_adapter("ovis2")
class Ovis2Adapter(PatchesAdapter, TiledAdapter):
    """Ovis 2: tiles of a picture; indicators around them are text."""

    text_models = ("qwen2",)

    @property
    def shrink(self) -> int:
        """The stride of the tower."""
        return int(self.model.config.vision_config.hidden_stride)


@register_adapter("cohere2_vision")
class Cohere2VisionAdapter(PatchesAdapter, TiledAdapter):
    """Command A Vision: pixel-shuffled tiles, and a thumbnail if there are several."""

    text_models = ("cohere2",)

    @property
    def shrink(self) -> int:
        """The factor of the pixel shuffle."""
        return int(self.model.config.downsample_factor)


@register_adapter("aya_vision")
class AyaVisionAdapter(Cohere2VisionAdapter):
    """Aya Vision: the same, where the whole processor cuts and its image processor would not."""

    asked = MappingProxyType({"crop_to_patches": True})


@register_adapter("perception_lm")
class PerceptionAdapter(PatchesAdapter, TiledAdapter):
    """PerceptionLM: pooled tiles, after the picture as one tile; frames of a video are tiles."""

    @property
    def shrink(self) -> int:
        """Patches per side that are pooled to a token."""
        return int(self.model.config.projector_pooling_ratio)

    @property
    def side(self) -> int:
        """Of the pooled patches, whose shape the tower's arguments tell.

        Raises:
            UnsupportedModelError: They do not.
        """
        shape = (self.model.config.vision_config.model_args or {}).get("ref_feat_shape")
        if shape is None:
            raise UnsupportedModelError(
                "this PerceptionLM does not tell how many patches its tower makes: expected "
                "ref_feat_shape, as [rows, columns], in vision_config.model_args"
            )
        return side_of(shape) // self.shrink

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled tiles."""
        return [[tile] for tile in pixels.flatten(0, 1)]


@register_adapter("fast_vlm")
class FastVlmAdapter(SquareAdapter):
    """FastVLM: what convolutions leave of the picture, padded to a square."""

    text_models = ("qwen2",)

    @property
    def side(self) -> int:
        """Tokens."""
        return math.isqrt(self.model.config.image_seq_length)

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The padded squares."""
        return [[picture] for picture in pixels]


@register_adapter("video_llava")
class VideoLlavaAdapter(PatchesAdapter):
    """Video-LLaVA: patches of the picture; each frame of a video keeps its class token."""

    @property
    def pixels(self) -> Mapping[str, str]:
        """Images came under a name of their own before transformers 5.23."""
        names = super().pixels
        known = inspect.signature(self.base.forward).parameters
        return names if names["image"] in known else {**names, "image": "pixel_values_images"}

    def lengths(self, kind: str, output: Any) -> tuple[int, ...]:
        """Vision tokens of each picture, or of each frame."""
        if kind == "image":
            return super().lengths(kind, output)
        return Adapter.lengths(self, kind, output)

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """Squares, in a video after a class token."""
        if encoded.kind == "image":
            return super().tiles(encoded)
        return [[Tile(self.side, self.side, before=1)] for _ in encoded.lengths]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled pictures, or frames."""
        return super().seen(encoded, pixels if encoded.kind == "image" else pixels.flatten(0, 1))


@register_adapter("granite_docling")
class GraniteDoclingAdapter(TiledAdapter):
    """Granite Docling: tiles of a sample, all coarse, or all fine with four times the tokens."""

    text_models = ("granite_docling_text",)

    @property
    def side(self) -> int:
        """Of a coarse tile."""
        vision = self.model.config.vision_config
        return side_of(vision.image_size) // side_of(vision.patch_size) // int(vision.scale_factor)

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """As many as a sample has tokens for."""
        fine = encoded.arguments.get("tile_fine_mask") is not None
        tile = Tile(*(self.side * (1 + fine),) * 2)
        return [[tile] * (length // tile.tokens) for length in encoded.lengths]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled squares without those of zeros, which fill up a batch."""
        squares = pixels.flatten(0, 1)
        return super().seen(encoded, squares[(squares != 0).flatten(1).any(1)])


@register_adapter("llama4")
class Llama4Adapter(PatchesAdapter, TiledAdapter):
    """Llama 4: pixel-shuffled tiles, and a thumbnail if there are several; tags are text.

    Layers without rotary positions scale their queries by a token's place in the row.
    """

    text_models = ("llama4_text",)

    @cached_property
    def decoder(self) -> Any:
        """The text decoder inside the text model with a head."""
        language_model: Any = self.model.language_model
        return language_model.model

    @property
    def shrink(self) -> int:
        """What the pixel shuffle divides by."""
        return round(1 / self.model.config.vision_config.pixel_shuffle_ratio)

    def lengths(self, kind: str, output: Any) -> tuple[int, ...]:
        """Vision tokens of each tile."""
        return tuple(tile.shape[0] for tile in output.last_hidden_state)
