"""Both backends reduce like a loop, and weights per target are shares."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from reference import require_torch_scatter, shares

from lightkv_gnn.stage.scatter import ScatterSum, TorchBackend, backend, softmax_per_target

INDEX = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
SIZE = 4
NEGATIVE_INFINITY = -math.inf


def groups() -> list[list[int]]:
    return [(target == INDEX).nonzero()[:, 0].tolist() for target in range(SIZE)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (5,)])
def test_sum_equals_a_loop(scatter: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    src = torch.randn(len(INDEX), *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    out = backend(scatter).sum(src, INDEX, SIZE)
    expected = torch.stack([src[group].double().sum(0) for group in groups()])
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))


def test_max_equals_a_loop(scatter: str) -> None:
    src = torch.tensor([3.0, -1, 2, -7, NEGATIVE_INFINITY, -5, 0, -1, 1e30, 4])
    out = backend(scatter).max(src, INDEX, SIZE)
    assert out.tolist() == [max(src[group].tolist()) for group in groups()]


def test_max_of_nothing_but_minus_infinity(scatter: str) -> None:
    src = torch.full((len(INDEX),), NEGATIVE_INFINITY)
    assert backend(scatter).max(src, INDEX, SIZE).tolist() == [NEGATIVE_INFINITY] * SIZE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_sum_equals_a_loop(scatter: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, dtype=dtype, generator=generator)
    weight = torch.rand(len(INDEX), dtype=dtype, generator=generator)
    source = torch.tensor([5, 0, 0, 3, 1, 2, 4, 5, 1, 0])
    out = backend(scatter).weighted_sum(x, source, weight, INDEX, SIZE)
    rows = [sum(float(weight[n]) * x[source[n]].double() for n in group) for group in groups()]
    assert out.dtype == dtype
    torch.testing.assert_close(out, torch.stack(rows).to(dtype))


def test_weighted_sum_has_its_gradient(scatter: str) -> None:
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(len(INDEX), dtype=torch.float64, requires_grad=True)
    source = torch.tensor([5, 0, 0, 3, 1, 2, 4, 5, 1, 0])

    def out(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return backend(scatter).weighted_sum(x, source, weight, INDEX, SIZE)

    assert torch.autograd.gradcheck(out, (x, weight))


def test_no_edges(scatter: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert backend(scatter).sum(torch.zeros(0, 3), none, 0).shape == (0, 3)
    assert backend(scatter).max(torch.zeros(0), none, 0).shape == (0,)
    nothing = backend(scatter).weighted_sum(torch.zeros(0, 3), none, torch.zeros(0), none, 0)
    assert nothing.shape == (0, 3)
    assert softmax_per_target(torch.zeros(0), none, 0, backend(scatter)).shape == (0,)


def test_sum_has_the_gradient_of_a_sum(scatter: str) -> None:
    src = torch.randn(len(INDEX), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: backend(scatter).sum(x, INDEX, SIZE), src)


@pytest.mark.parametrize(
    "logs",
    [
        [0.0] * 10,
        [3.0, -1, 2, -7, 0, -5, 0, -1, 1, 4],
        [1e4, 1e4 + 1, 1e4 - 1, -1e4, -1e4, -1e4 + 2, 1e4, -1e4, 0, 0],
        [NEGATIVE_INFINITY, 0, 1, NEGATIVE_INFINITY, *[NEGATIVE_INFINITY] * 2, 5, 6, 7, 8],
    ],
    ids=["equal", "ordinary", "far", "some vanish"],
)
def test_softmax_per_target(scatter: str, logs: list[float]) -> None:
    out = softmax_per_target(torch.tensor(logs), INDEX, SIZE, backend(scatter))
    expected = [share for group in groups() for share in shares([logs[n] for n in group])]
    torch.testing.assert_close(out, torch.tensor(expected))
    total = torch.zeros(SIZE).index_add(0, INDEX, out)
    torch.testing.assert_close(total, torch.ones(SIZE))


@pytest.mark.parametrize("shift", [-1e4, -3.0, 1e4])
def test_softmax_per_target_ignores_a_shift_of_each_target(scatter: str, shift: float) -> None:
    logs = torch.randn(len(INDEX), dtype=torch.float64)
    per_target = shift * torch.arange(1, SIZE + 1, dtype=torch.float64)[INDEX]
    before = softmax_per_target(logs, INDEX, SIZE, backend(scatter))
    after = softmax_per_target(logs + per_target, INDEX, SIZE, backend(scatter))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


def test_softmax_per_target_has_its_gradient(scatter: str) -> None:
    logs = torch.randn(len(INDEX), dtype=torch.float64, requires_grad=True)

    def share(x: torch.Tensor) -> torch.Tensor:
        return softmax_per_target(x, INDEX, SIZE, backend(scatter))

    assert torch.autograd.gradcheck(share, logs)


def test_gradient_is_finite_where_weights_vanish(scatter: str) -> None:
    logs = torch.tensor([NEGATIVE_INFINITY, 0, 1, *[NEGATIVE_INFINITY] * 3, 0, 0, 0, 0.0])
    logs.requires_grad_()
    (softmax_per_target(logs, INDEX, SIZE, backend(scatter)) * torch.arange(10.0)).sum().backward()
    assert bool(logs.grad.isfinite().all())


def test_backends_agree() -> None:
    require_torch_scatter()
    src = torch.randn(len(INDEX), 7)
    ours, theirs = backend("torch"), backend("torch_scatter")
    torch.testing.assert_close(ours.sum(src, INDEX, SIZE), theirs.sum(src, INDEX, SIZE))
    edges = (torch.randperm(len(INDEX)), torch.rand(len(INDEX)), INDEX, SIZE)
    torch.testing.assert_close(ours.weighted_sum(src, *edges), theirs.weighted_sum(src, *edges))
    assert torch.equal(ours.max(src[:, 0], INDEX, SIZE), theirs.max(src[:, 0], INDEX, SIZE))


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"'numpy': expected one of .*'triton'"):
        backend("numpy")  # type: ignore[arg-type]


def test_missing_torch_scatter_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    with pytest.raises(ImportError, match="pip install --no-build-isolation torch-scatter"):
        backend("torch_scatter")


def test_helper_skips_or_fails_without_torch_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    monkeypatch.delenv("LIGHTKV_REQUIRE_SCATTER", raising=False)
    with pytest.raises(pytest.skip.Exception):
        require_torch_scatter()
    monkeypatch.setenv("LIGHTKV_REQUIRE_SCATTER", "1")
    with pytest.raises(pytest.fail.Exception):
        require_torch_scatter()


def test_scatter_sum_is_a_pyg_aggregation() -> None:
    src = torch.randn(len(INDEX), 3)
    out = ScatterSum(TorchBackend())(src, INDEX, dim_size=SIZE)
    torch.testing.assert_close(out, TorchBackend().sum(src, INDEX, SIZE))
