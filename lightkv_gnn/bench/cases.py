"""What a compression step is given: features, layout, queries and keys of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lightkv_gnn.stage.guidance import GuidanceBlock
from lightkv_graphs import Grid, StagePlan, TokenLayout, plan_stage

TEXT = 64
"""Text tokens behind the picture."""

RATIO = 0.5


@dataclass(frozen=True)
class StageCase:
    """Sizes of one compression step, and random inputs of them.

    Attributes:
        tokens: Vision tokens of the largest picture.
        channels: Of the hidden states.
        windows: Windows per side.
        batch: Samples of one picture each.
        ragged: Whether pictures have from a quarter of the rows to all of them.
        dtype: Of everything.
        device: Where.
    """

    tokens: int
    channels: int
    windows: int
    batch: int = 1
    ragged: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def heads(self) -> int:
        """Attention heads: of 64 channels in small models, of 128 in large ones."""
        return max(1, self.channels // (64 if self.channels < 2048 else 128))

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """(rows, columns) of each sample's picture."""
        rows, cols = grid_of(self.tokens)
        if not self.ragged:
            return ((rows, cols),) * self.batch
        return tuple((max(1, rows * (4 - n % 4) // 4), cols) for n in range(self.batch))

    @cached_property
    def layout(self) -> TokenLayout:
        """All pictures' tokens."""
        layout = TokenLayout.from_grids([[grid] for grid in self.grids])
        return layout.to(self.device)

    @cached_property
    def plan(self) -> StagePlan:
        """Half of the tokens leave."""
        return plan_stage(self.layout.occupancy, self.windows, RATIO)

    @cached_property
    def features(self) -> Tensor:
        """`[token, channel]`, sample by sample."""
        return self._random(1, len(self.layout), self.channels)

    @cached_property
    def block(self) -> GuidanceBlock:
        """Queries and keys: pictures first, padded at the left, then the text."""
        length = self.tokens + TEXT
        shape = self.batch, self.heads, length, self.channels // self.heads
        counts = torch.tensor(self.layout.counts, device=self.device)[:, None]
        place = torch.arange(self.tokens, device=self.device)
        mask = place < counts
        vision = torch.where(mask, place + self.tokens - counts, 0)
        text = torch.arange(self.tokens, length, device=self.device).expand(self.batch, -1)
        query, key = self._random(2, *shape), self._random(3, *shape)
        scaling = shape[3] ** -0.5
        whole = torch.ones_like(text, dtype=torch.bool)
        span = None if self.ragged else (0, self.tokens)
        return GuidanceBlock(query, key, vision, text, mask, whole, scaling, span=span)

    @cached_property
    def flat(self) -> Tensor:
        """Place of each token in `[batch, vision]`, `[token]`."""
        return self.block.vision_mask.reshape(-1).nonzero()[:, 0]

    def _random(self, seed: int, *shape: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        values = torch.randn(*shape, generator=generator, device=self.device)
        return values.to(self.dtype)


def grid_of(tokens: int) -> Grid:
    """(rows, columns) nearest to a square.

    Raises:
        ValueError: Not a positive number.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}: expected 1 or more")
    rows = next(n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0)
    return rows, tokens // rows
