"""Families whose encoder returns one square at a time, of a side that the configuration tells."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, ClassVar

from lightkv_gnn.adapters.base import register_adapter
from lightkv_gnn.adapters.square import SquareAdapter, TiledAdapter
from lightkv_gnn.errors import ImageTokensError, UnsupportedModelError


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
        return _side(vision.image_size) // _side(vision.patch_size) // self.shrink

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


def _side(size: Any) -> int:
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
