"""Stages on batches with all peculiarities, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from reference import GRIDS, Stage, Token, features, make_layout
from torch import Tensor

from lightkv_gnn.stage.compressor import Compressed, TokenCompressor
from lightkv_gnn.stage.messages import MESSAGES
from lightkv_graphs import Grid, TokenLayout, plan_stage

PER_TOKEN = ("sample", "image", "row", "col", "mass", "protected")
HALF = Fraction(1, 2)
NESTED = [(4, 2, 1), (3, 3, 1), (2, 2)]
every_grid = pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
every_message = pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)


def batch(grids: list[list[Grid]], seed: int = 0) -> tuple[Tensor, TokenLayout, Tensor]:
    """Features, layout with all peculiarities, and guidance, in float64."""
    layout = make_layout(grids, newlines=True, protect=9, holes=7)
    mass = torch.randint(1, 9, (len(layout),), generator=torch.Generator().manual_seed(seed))
    x, guidance = features(layout, seed)
    return x, replace(layout, mass=mass), guidance


def compress(
    x: Tensor,
    layout: TokenLayout,
    guidance: Tensor | None = None,
    windows: int = 2,
    ratio: float = 0.5,
    **options: object,
) -> Compressed:
    plan = plan_stage(layout.occupancy, windows, ratio)
    return TokenCompressor(**options)(x, layout, plan, guidance)  # type: ignore[arg-type]


def assert_same(found: Compressed, expected: Stage, *, rtol: float, atol: float) -> None:
    assert found.kept.tolist() == expected.kept
    assert found.survivor.tolist() == expected.survivor
    edges = found.graph["vision", "merges_into", "vision"].edge_index
    assert edges.t().tolist() == [list(edge) for edge in expected.edges]
    for name in PER_TOKEN:
        assert getattr(found.layout, name).tolist() == [getattr(t, name) for t in expected.tokens]
    rows = torch.tensor([token.x for token in expected.tokens], dtype=torch.float64)
    torch.testing.assert_close(
        found.hidden_states.double(),
        rows.reshape(found.hidden_states.shape),
        rtol=rtol,
        atol=atol,
        equal_nan=True,
    )


def check_lineage(tokens: list[Token], original: TokenLayout, layout: TokenLayout) -> None:
    """Every original token is in exactly one survivor, which has its sample and image."""
    assert sorted(m for token in tokens for m in token.members) == list(range(len(original)))
    for row, token in enumerate(tokens):
        assert {original.image[m].item() for m in token.members} == {layout.image[row].item()}
        assert {original.sample[m].item() for m in token.members} == {layout.sample[row].item()}
        assert original.mass[token.members].sum() == layout.mass[row]
