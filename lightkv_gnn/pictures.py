"""Pictures as models see them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image


def seen_picture(processor: Any, picture: Image.Image) -> Image.Image:
    """The picture as the model sees it: resized and cropped, so that tokens lie where drawn.

    Args:
        processor: The model's processor.
        picture: The original.
    """
    processing = processor.image_processor
    pixels = torch.as_tensor(processing(picture, return_tensors="pt")["pixel_values"][0]).float()
    mean_std = (torch.tensor(processing.image_mean), torch.tensor(processing.image_std))
    middle, spread = (values.view(3, 1, 1) for values in mean_std)
    rgb = ((pixels * spread + middle).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(rgb.permute(1, 2, 0).numpy())
