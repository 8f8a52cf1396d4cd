"""How much of a picture is said twice: how far each vision token is from the one most like it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_divergence", "patch_pixels", "shares_below"]


def nearest_divergence(x: Tensor) -> Tensor:
    """Feature divergence ``1 - cos`` of each token from the nearest other one of its picture.

    Args:
        x: Features, `[picture, token, channel]`, of two tokens or more.

    Returns:
        0 to 2, float32, `[picture, token]`; a token of zeros is 1 from all others.

    Raises:
        ValueError: No such features, or a single token, which has no other.
    """
    if x.ndim != 3 or x.shape[1] < 2:
        raise ValueError(
            f"features are {list(x.shape)}: expected [picture, token, channel] with "
            "2 tokens or more"
        )
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    cosine = unit @ unit.mT
    cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return (1 - cosine.amax(dim=2)).clamp(0, 2)


def patch_pixels(pixels: Tensor, patch: int) -> Tensor:
    """Pixels of each patch, as features that owe nothing to a model.

    Args:
        pixels: `[picture, channel, row, column]`, around 0.
        patch: Side of a patch in pixels, of which both sides of the pictures have whole ones.

    Returns:
        `[picture, token, channel * patch * patch]`, tokens in raster order.
    """
    return torch.nn.functional.unfold(pixels, patch, stride=patch).mT


def shares_below(divergence: Tensor, limits: tuple[float, ...]) -> list[float]:
    """Share of all tokens that have another one nearer than each limit."""
    return [float((divergence < limit).float().mean()) for limit in limits]
