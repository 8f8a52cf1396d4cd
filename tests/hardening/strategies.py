"""Batches, schedules and numbers that hypothesis draws, the same ones in every run."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from lightkv_graphs import Tile, TokenLayout

RATIOS = [Fraction(0), Fraction(1, 10), Fraction(1, 4), Fraction(1, 3), Fraction(1, 2)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LARGE = 1e4
"""Of features, in which float16 ends at 65504."""


def repeatable(examples: int) -> settings:
    """The same examples in every run, on a machine of any speed."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


class Batch(NamedTuple):
    """Features in float64, where they are, and logarithms of guidance."""

    x: Tensor
    layout: TokenLayout
    guidance: Tensor


def _tiles() -> st.SearchStrategy[Tile]:
    sides = st.integers(1, 6)
    around = st.integers(0, 2)
    return st.builds(Tile, sides, sides, around, st.integers(0, 1), around)


samples = st.lists(st.lists(_tiles(), max_size=2), min_size=1, max_size=3)
"""Tiles of each sample of a batch; some have none."""

schedules = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(RATIOS)), min_size=1, max_size=3)
"""Windows per side and ratio of each stage; windows need not nest."""

seeds = st.integers(0, 2**16)

kinds = st.sampled_from(["normal", "ties", "equal", "zero", "large", "scales"])
"""Of features."""

prompts = st.sampled_from(["normal", "equal", "extreme"])
"""Of guidance."""


def batch(
    tiles: Sequence[Sequence[Tile]], seed: int, kind: str = "normal", prompt: str = "normal"
) -> Batch:
    """A batch in which some cells are protected and tokens stand for several others already."""
    layout = TokenLayout.from_tiles(tiles)
    generator = torch.Generator().manual_seed(seed)
    protected = layout.protected | (torch.rand(len(layout), generator=generator) < 0.1)
    layout = TokenLayout.from_tokens(
        **{name: getattr(layout, name) for name in ("sample", "image", "row", "col")},
        grids=layout.grids,
        mass=torch.randint(1, 9, (len(layout),), generator=generator),
        protected=protected,
    )
    return Batch(
        _features(len(layout), kind, generator), layout, _logits(len(layout), prompt, generator)
    )


def reordered(one: Batch, order: Sequence[int]) -> tuple[Batch, Tensor]:
    """The batch with its samples in another order, and where its tokens were before."""
    layout = one.layout
    before = torch.cat(
        [torch.zeros(0, dtype=torch.int64), *((layout.sample == s).nonzero()[:, 0] for s in order)]
    )
    images = [image for s in order for image, own in enumerate(layout.samples) if own == s]
    place = torch.tensor([order.index(s) for s in range(len(order))])
    rank = torch.tensor(images, dtype=torch.int64).argsort()
    moved = TokenLayout.from_tokens(
        sample=place[layout.sample[before]],
        image=rank[layout.image[before]],
        row=layout.row[before],
        col=layout.col[before],
        mass=layout.mass[before],
        protected=layout.protected[before],
        grids=[layout.grids[number] for number in images],
    )
    return Batch(one.x[before], moved, one.guidance[before]), before


def _features(tokens: int, kind: str, generator: torch.Generator) -> Tensor:
    x = torch.randn(tokens, 4, generator=generator, dtype=torch.float64)
    if kind == "ties":
        return x.sign() * (x.abs() > 0.5)
    if kind == "equal":
        return x[:1].expand(tokens, 4).clone()
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "large":
        return LARGE * x / x.norm(dim=1, keepdim=True)
    if kind == "scales":
        return x * 10 ** (8 * torch.rand(tokens, 1, generator=generator, dtype=torch.float64) - 5)
    return x


def _logits(tokens: int, prompt: str, generator: torch.Generator) -> Tensor:
    guidance = torch.randn(tokens, generator=generator, dtype=torch.float64)
    if prompt == "equal":
        return torch.zeros_like(guidance)
    return 1e3 * guidance.sign() if prompt == "extreme" else 2 * guidance
