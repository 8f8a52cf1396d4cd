"""LLaVA-1.5: every image is a square of patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from lightkv_gnn.adapters.base import Adapter, register_adapter
from lightkv_gnn.errors import ImageTokensError, UnsupportedModelError
from lightkv_graphs import Grid, TokenLayout

TEXT_MODELS = ("llama", "mistral", "qwen2")
"""Text models whose rotary positions and attention are known to be as the session takes them."""


@register_adapter("llava")
class LlavaAdapter(Adapter):
    """``LlavaForConditionalGeneration`` with a CLIP-like tower.

    Raises:
        UnsupportedModelError: The text model is none of :data:`TEXT_MODELS`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        text = model.config.text_config.model_type
        if text not in TEXT_MODELS:
            raise UnsupportedModelError(
                f"LLaVA on a {text!r} text model is not supported: expected one of {TEXT_MODELS}"
            )

    @property
    def grid(self) -> Grid:
        """Patches of the square that every image is scaled to.

        Raises:
            UnsupportedModelError: The tower's grid follows the image instead (Pixtral).
        """
        vision = self.model.config.vision_config
        size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if (
            vision.model_type == "pixtral"
            or not isinstance(size, int)
            or not isinstance(patch, int)
        ):
            raise UnsupportedModelError(
                f"LLaVA with a {vision.model_type!r} vision tower has no fixed square grid: "
                "supported are towers with an image_size and a patch_size, like CLIP and SigLIP"
            )
        return size // patch, size // patch

    @property
    def class_tokens(self) -> int:
        """Tokens without a place in the grid before each image's patches (0 or 1)."""
        full = self.model.config.vision_feature_select_strategy == "full"
        return int(full and self.model.config.vision_config.model_type.startswith("clip"))

    def layout(self, counts: Sequence[int]) -> TokenLayout:
        """Whole images one after the other; see :meth:`Adapter.layout`."""
        rows, cols = self.grid
        extra = self.class_tokens
        per_image = rows * cols + extra
        for sample, count in enumerate(counts):
            if count % per_image:
                raise ImageTokensError(
                    f"sample {sample} holds {count} image placeholders, but an image has "
                    f"{per_image} ({rows}x{cols} patches"
                    f"{' and a class token' if extra else ''}): an image was cut off, as by "
                    "truncation; pass the whole prompt, with a longer max_length"
                )
        images = [count // per_image for count in counts]
        if not extra:
            return TokenLayout.from_grids([[(rows, cols)] * number for number in images])
        total = sum(images)
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
        place = torch.cat([torch.full((extra, 2), -1), cells]).repeat(total, 1)
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(images))
        return TokenLayout.from_tokens(
            sample=owner.repeat_interleave(per_image),
            image=torch.arange(total).repeat_interleave(per_image),
            row=place[:, 0],
            col=place[:, 1],
            grids=[(rows, cols)] * total,
            protected=place[:, 0] < 0,
        )
