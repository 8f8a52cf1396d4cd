"""What a choice of those that stay loses, and how much less any other could have lost."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Certificate(NamedTuple):
    """What a stage lost of what the prompt asks about: of these hidden states, not of answers.

    A token j counts ``w_j``, as in :class:`lightkv_graphs.CoverageMatching`, and loses
    ``w_j * (1 - cover_j)``: nothing if it stays, or joins one of the same direction.

    Attributes:
        weight: What all tokens of each image count, `[image]`.
        lost: What they lose, `[image]`.
        least: What they would lose at least, whoever stayed, as many of each window, `[image]`.
    """

    weight: Tensor
    lost: Tensor
    least: Tensor

    def shares(self) -> tuple[float, float]:
        """``lost`` and ``least`` of all images, as fractions of ``weight``; reads the device."""
        weight, lost, least = torch.stack(self).double().sum(1).tolist()
        return (lost / weight, least / weight) if weight else (0.0, 0.0)

    def shares_of_images(self) -> list[tuple[float, float]]:
        """The same image by image."""
        return [
            Certificate(*(one[None] for one in image)).shares() for image in zip(*self, strict=True)
        ]

    def to(self, device: torch.device | str) -> Certificate:
        """The same on another device."""
        return Certificate(*(value.to(device) for value in self))


def certified(
    weight: Tensor,
    uncovered: Tensor,
    nearest: Tensor,
    gains: Tensor,
    stays: Tensor,
    real: Tensor,
    of_images: tuple[int, int],
) -> Certificate:
    """The certificate of a choice.

    Whoever stays instead, k of n: coverage is submodular, so it is at most what the choice covers
    and the k largest gains over it (Nemhauser, Wolsey and Fisher 1978); and each of the n - k that
    leave loses at least what it would if all others stayed.  The larger of the two bounds counts.

    Args:
        weight: What each token counts, 0 for padding, `[window, slot]`.
        uncovered: Its distance from the nearest that stays, 0 to 1, `[window, slot]`.
        nearest: Its distance from the nearest other token, `[window, slot]`.
        gains: What it would add to the coverage if it stayed too, `[window, slot]`.
        stays: Whether it does, False for padding, `[window, slot]`.
        real: Whether it is a token, `[window, slot]`.
        of_images: Images, and windows of each.
    """
    total = (weight * uncovered).sum(1)
    leaves = ~stays & real
    place = torch.arange(weight.shape[1], device=weight.device)
    best = gains.sort(dim=1, descending=True).values
    best = best * (place < stays.sum(1, keepdim=True))
    alone = weight * nearest.clamp(max=1)
    alone = alone.masked_fill(~real, torch.inf).sort(dim=1).values
    alone = alone.masked_fill(place >= leaves.sum(1, keepdim=True), 0.0)
    least = torch.minimum(torch.maximum(total - best.sum(1), alone.sum(1)), total)
    of_windows = torch.stack([weight.sum(1), total, least])
    return Certificate(*of_windows.unflatten(1, of_images).sum(2))
