"""LLaVA-1.5 and its like: a square of patches, or with a Pixtral tower the picture's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from torch import Tensor

from lightkv_gnn.adapters.base import Adapter, Process, register_adapter
from lightkv_gnn.adapters.encoded import Encoded, whole_patches
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

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """The square, with CLIP's class token where it is kept, or the scaled picture's grid."""
        config = self.model.config
        if self.grid is not None:
            whole = config.vision_feature_select_strategy == "full"
            class_token = whole and config.vision_config.model_type == "clip_vision_model"
            return Encoded("image", {}, (self.grid[0] * self.grid[1] + class_token,))
        ((height, width),) = process()["image_sizes"]
        patch = config.vision_config.patch_size
        tokens = (int(height) // patch) * (int(width) // patch)
        return Encoded("image", {"image_sizes": [(int(height), int(width))]}, (tokens,))

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """One tile a picture, after a class token where the strategy is "full" and there is one."""
        if self.grid is not None:
            return [[_square(n, Tile(*self.grid))] for n in encoded.lengths]
        patch = self.model.config.vision_config.patch_size
        sizes = encoded.sizes("image_sizes")
        return [[Tile(height // patch, width // patch)] for height, width in sizes]

    def seen(self, encoded: Encoded, pixels: Tensor) -> Sequence[Sequence[Tensor]]:
        """The scaled square, or with Pixtral the scaled picture without padding."""
        patch = self.model.config.vision_config.patch_size
        if self.grid is not None:
            return [[whole_patches(picture, patch)] for picture in pixels]
        pairs = zip(pixels, encoded.sizes("image_sizes"), strict=True)
        return [[whole_patches(own[:, :height, :width], patch)] for own, (height, width) in pairs]


def _square(tokens: int, full: Tile) -> Tile:
    """The tile of a picture, of another size where the tower's positions were interpolated."""
    side = isqrt(tokens)
    class_token = tokens - side**2
    if tokens - full.tokens in (0, 1) or class_token > 1:
        return full._replace(before=int(tokens > full.tokens))
    return Tile(side, side, before=class_token)
