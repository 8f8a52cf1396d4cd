"""Rand: any entry of the cache may go, of vision and of text."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkv_gnn.baselines.cache_method import CacheMethod, Shrinker


class RandomShrinker(Shrinker):
    """Keeps entries at random, others in each layer."""

    def importance(self, number: int, real: Tensor) -> Tensor:
        """Random numbers, `[batch, entry]`."""
        return torch.rand(real.shape, device=real.device)


RANDOM_CACHE = CacheMethod(
    "random_cache",
    "entries of vision and text dropped from each layer's cache at random after the prefill, but "
    "for the last tokens (Rand)",
    RandomShrinker,
)
