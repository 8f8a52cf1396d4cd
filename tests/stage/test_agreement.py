"""A stage equals the reference: every message, ratio, grid and dtype, alone and in a chain."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from reference import GRIDS, RATIOS, pass_messages, run_stage, tokens_of
from stages import (
    HALF,
    NESTED,
    assert_same,
    batch,
    check_lineage,
    compress,
    every_dtype,
    every_grid,
    every_message,
)

from lightkv_gnn.stage.messages import MESSAGES, WeightedMean, guided_mean
from lightkv_graphs import Grid


@every_grid
@pytest.mark.parametrize("windows", [1, 2, 3, 4])
def test_every_message_and_ratio_equals_the_reference(
    grids: list[list[Grid]], windows: int, scatter: str
) -> None:
    x, layout, guidance = batch(grids, seed=windows)
    tokens = tokens_of(x, layout)
    slow = scatter == "triton"  # in its interpreter; what messages and ratios change is not there
    for ratio in [HALF] if slow else RATIOS.values():
        edges = run_stage(tokens, layout.grids, windows, ratio).edges
        for name, message in MESSAGES.items():
            if message is not guided_mean and (slow or ratio != HALF):
                continue
            found = compress(
                x, layout, guidance, windows, float(ratio), message=message, scatter=scatter
            )
            expected = pass_messages(tokens, edges, guidance.tolist(), name)
            assert_same(found, expected, rtol=1e-10, atol=1e-12)
            assert found.hidden_states.dtype == torch.float64


@every_dtype
@pytest.mark.parametrize("grids", ["odd", "ragged samples"])
def test_every_dtype_equals_the_reference(dtype: torch.dtype, grids: str, scatter: str) -> None:
    x, layout, guidance = batch(GRIDS[grids])
    x = x.to(dtype)
    found = compress(x, layout, guidance.float(), scatter=scatter)
    expected = run_stage(
        tokens_of(x.double(), layout), layout.grids, 2, HALF, guidance.float().tolist()
    )
    eps = max(torch.finfo(dtype).eps, 1e-6)
    assert_same(found, expected, rtol=eps, atol=eps)
    assert found.hidden_states.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_message
def test_half_precision_is_summed_in_float32_and_rounded_once(
    dtype: torch.dtype, message: WeightedMean, scatter: str
) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    x, guidance = x.to(dtype), guidance.float()
    half, single = (
        compress(v, layout, guidance, message=message, scatter=scatter).hidden_states
        for v in (x, x.float())
    )
    assert half.dtype == dtype
    assert torch.equal(half, single.to(dtype))


@pytest.mark.parametrize("schedule", NESTED, ids=str)
@pytest.mark.parametrize("message", ["guided_mean", "mass_mean"])
@every_grid
def test_chained_stages_equal_the_reference(
    grids: list[list[Grid]], message: str, schedule: tuple[int, ...]
) -> None:
    x, layout, guidance = batch(grids, seed=1)
    tokens, original = tokens_of(x, layout), layout
    for windows, ratio in zip(schedule, (HALF, Fraction(3, 10), HALF), strict=False):
        found = compress(x, layout, guidance, windows, float(ratio), message=MESSAGES[message])
        expected = run_stage(tokens, layout.grids, windows, ratio, guidance.tolist(), message)
        assert_same(found, expected, rtol=1e-9, atol=1e-11)
        x, layout, tokens = found.hidden_states, found.layout, expected.tokens
        guidance = guidance[found.kept].flip(0)
    check_lineage(tokens, original, layout)
