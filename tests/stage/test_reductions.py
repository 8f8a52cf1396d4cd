"""Sums taken as messages are read equal those passed one by one, by the chosen backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import GRIDS
from stages import batch, compress
from torch import Tensor

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_gnn.stage.merges import Edges
from lightkv_gnn.stage.messages import guided_mean
from lightkv_gnn.stage.scatter import TorchBackend, backend


@pytest.mark.parametrize("name", list(GRIDS))
def test_fused_messages_are_those_passed_one_by_one(name: str, scatter: str) -> None:
    x, layout, guidance = batch(GRIDS[name])
    fused = compress(x, layout, guidance, scatter=scatter)

    def written(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        return guided_mean(x_i, x_j, weight)

    passed = compress(x, layout, guidance, message=written, scatter=scatter)
    assert torch.equal(fused.kept, passed.kept)
    torch.testing.assert_close(fused.hidden_states, passed.hidden_states, rtol=1e-12, atol=1e-12)
    assert TokenCompressor().fused
    assert not TokenCompressor(written).fused


@pytest.mark.parametrize("silent", [(1,), (0, 4), (0, 1, 3)], ids=str)
def test_tokens_of_no_weight_are_not_heard(silent: tuple[int, ...], scatter: str) -> None:
    """Not even where they are NaN, be they survivors or not."""
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source, target = torch.tensor([0, 1, 4, 2, 3]), torch.tensor([0, 0, 0, 1, 1])
    weight = torch.tensor([0.0 if n in silent else 1.0 + n for n in source.tolist()]).double()
    expected = torch.stack(
        [sum(weight[n] * x[source[n]] for n in own) for own in ([0, 1, 2], [3, 4])]
    )
    x[list(silent)] = torch.nan
    found = Edges(source, target, weight).means(x, 2, backend(scatter))
    torch.testing.assert_close(found, expected)


def test_the_chosen_backend_does_every_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Recorded(TorchBackend):
        def sum(self, src: Tensor, index: Tensor, size: int) -> Tensor:
            calls.append(("sum", src.ndim))
            return super().sum(src, index, size)

        def max(self, src: Tensor, index: Tensor, size: int) -> Tensor:
            calls.append(("max", src.ndim))
            return super().max(src, index, size)

        def weighted_sum(self, x: Tensor, *edges: Any) -> Tensor:
            calls.append(("weighted_sum", x.ndim))
            return super().weighted_sum(x, *edges)

    chosen = {"torch_scatter": Recorded()}
    monkeypatch.setattr("lightkv_gnn.stage.compressor.backend", chosen.__getitem__)
    compress(*batch(GRIDS["odd"]), scatter="torch_scatter")
    assert sorted(calls) == [("max", 1), ("sum", 1), ("weighted_sum", 2)]
