"""LLaVA-1.5 and its like: a square of patches, or with a Pixtral tower the picture's own grid."""

from __future__ import annotations

from collections.abc import Sequence

from lightkv_gnn.adapters.base import Adapter, register_adapter
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_gnn.errors import UnsupportedModelError
from lightkv_graphs import Grid, Tile


@register_adapter("llava")
class LlavaAdapter(Adapter):
    """``LlavaForConditionalGeneration``, with a tower like CLIP's or Pixtral's."""

    text_models = ("llama", "mistral", "qwen2", "qwen3")

    @property
    def grid(self) -> Grid | None:
        """Patches of the square that every picture is scaled to; None with Pixtral.

        Raises:
            UnsupportedModelError: The tower does not tell its grid.
        """
        vision = self.model.config.vision_config
        if vision.model_type == "pixtral":
            return None
        size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if not isinstance(size, int) or not isinstance(patch, int):
            raise UnsupportedModelError(
                f"LLaVA with a {vision.model_type!r} vision tower is not supported: expected one "
                "with a square image_size and a patch_size, like CLIP and SigLIP, or Pixtral"
            )
        return size // patch, size // patch

    @property
    def class_tokens(self) -> int:
        """Tokens without a place in the grid before each picture's patches (0 or 1)."""
        full = self.model.config.vision_feature_select_strategy == "full"
        return int(full and self.model.config.vision_config.model_type.startswith("clip"))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a picture."""
        if self.grid is not None:
            return [[Tile(*self.grid, before=self.class_tokens)] for _ in encoded.lengths]
        vision = self.model.config.vision_config
        cell = vision.patch_size * getattr(self.model.config, "spatial_merge_size", 1)
        sizes = encoded.sizes("image_sizes")
        return [[Tile(height // cell, width // cell)] for height, width in sizes]
