"""Matching that listens to the prompt: relevant tokens resist being merged, or are protected."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from lightkv_graphs.matching import (
    Matching,
    bipartition,
    edge_cosine,
    padded,
    source_cosines,
    take_edges,
)
from lightkv_graphs.partition import WindowPartition

_LAST = 1e6


@dataclass(frozen=True)
class PromptMatching:
    """Cosine matching in which the prompt has a say.

    As :func:`lightkv_graphs.cosine_matching`, but what is least costly to lose leaves first: the
    cost of an edge is its feature divergence, and with ``resist`` that times the source's
    relevance, the prompt's guidance relative to the image's mean.

    Attributes:
        resist: Whether relevance makes an edge costly.
        protect: Fraction of each image's tokens, the most relevant ones, that leave or receive
            only where their window has no others left.
    """

    resist: bool = True
    protect: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.protect, Real):
            raise TypeError(f"protect is {self.protect!r}: expected a number")
        if not 0 <= self.protect <= 1:
            raise ValueError(f"protect is {self.protect}: expected a fraction from 0 to 1")

    def __call__(self, x: Tensor, partition: WindowPartition, guidance: Tensor) -> Matching:
        """Matches the tokens of every window.

        Args:
            x: Features, `[token, channel]`.
            partition: The windows, with the number of edges to take.
            guidance: Logarithm of the prompt's guidance, `[token]`.
        """
        sources, destinations = bipartition(partition.slots())
        safe = padded(top_of_images(guidance, partition, self.protect), False)
        cosine = source_cosines(x, sources, destinations)
        cosine = cosine - 4 * safe[destinations].to(cosine.dtype)[:, None, :]
        nearest = destinations.gather(1, cosine.argmax(dim=2))
        divergence = 1 - cosine.amax(dim=2) - 4 * safe[nearest].to(cosine.dtype)
        if self.resist:
            divergence = divergence * padded(relevance(guidance, partition), 1.0)[sources]
        # Scaled, not shifted alone: what is protected keeps its order in few digits.
        last = _LAST * (2 - 1 / (1 + divergence))
        divergence = torch.where(safe[sources], last, divergence)
        edge_index, _ = take_edges(partition, sources, nearest, divergence)
        return Matching(edge_index, edge_cosine(x, edge_index))


resisting_matching = PromptMatching()
"""A token that matters to the prompt is costly to merge away."""

protecting_matching = PromptMatching(resist=False, protect=0.1)
"""The tenth of each image that matters most to the prompt is not merged."""


def relevance(guidance: Tensor, partition: WindowPartition) -> Tensor:
    """Guidance relative to the mean of its image's mergeable tokens, `[token]`; 1 is average."""
    image = image_of(partition)
    images = partition.images + 1
    most = guidance.new_full((images,), -torch.inf)
    most = most.scatter_reduce(0, image, guidance, "amax")
    most = most.masked_fill(most.isinf(), 0)
    share = (guidance - most[image]).exp()
    total = share.new_zeros(images).index_add_(0, image, share)
    number = share.new_zeros(images).index_add_(0, image, torch.ones_like(share))
    return torch.where(total[image] > 0, share * number[image] / total[image], 1.0)


def top_of_images(guidance: Tensor, partition: WindowPartition, share: float) -> Tensor:
    """True for the ``share`` of each image's mergeable tokens with most guidance, `[token]`."""
    image = image_of(partition)
    images = partition.images
    number = image.new_zeros(images + 1).index_add_(0, image, torch.ones_like(image))
    chosen = (share * number).floor() * (torch.arange(images + 1, device=image.device) < images)
    order = guidance.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    first = (number.cumsum(0) - number)[image[order]]
    rank = torch.arange(image.shape[0], device=image.device) - first
    return torch.zeros_like(image, dtype=torch.bool).index_copy(
        0, order, rank < chosen[image[order]]
    )


def image_of(partition: WindowPartition) -> Tensor:
    """Image of each mergeable token, `[token]`; the number of images for the others."""
    return torch.div(partition.window, partition.per_image, rounding_mode="floor").clamp(
        max=partition.images
    )
