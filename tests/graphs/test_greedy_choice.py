"""The greedy choice is the same by NumPy, which runs on the host, and by torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lightkv_graphs import greedy, greedy_ranks
from lightkv_graphs.greedy import Objective, gains

WINDOWS = (23, 40, 1, 0)
"""Tokens of each."""

Known = tuple[Tensor, Tensor, Tensor, Tensor]


def known_of(sizes: tuple[int, ...]) -> Known:
    """Distances, what tokens count, guidance and urgency; one of the first window is urgent.

    Distances are multiples of an eighth and weights whole: their sums are exact in any order.
    """
    generator = torch.Generator().manual_seed(0)
    slots = max(sizes)
    x = torch.randn(len(sizes), slots, 6, generator=generator)
    x[:, 1::3] = x[:, :1]  # many alike
    x = torch.nn.functional.normalize(x, dim=2)
    padding = torch.arange(slots) >= torch.tensor(sizes)[:, None]
    distance = (8 - 8 * x @ x.mT).round().div(8).masked_fill(padding[:, None, :], math.inf)
    distance.diagonal(dim1=1, dim2=2).fill_(0)
    values = torch.randint(5, (2, len(sizes), slots), generator=generator).float()
    weight, heard = values.masked_fill(padding, 0)
    urgent = torch.zeros_like(weight).masked_fill(padding, -math.inf)
    urgent[0, 7] = math.inf
    return distance, weight, heard, urgent


@pytest.mark.parametrize("objective", ["sum", "max"])
@pytest.mark.parametrize("anchors", [None, 0.3])
@pytest.mark.parametrize("steps", [1, 12, 39])
@pytest.mark.parametrize("few", [0, greedy.FEW_DISTANCES])
def test_numpy_chooses_what_torch_does(
    few: int,
    steps: int,
    anchors: float | None,
    objective: Objective,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it looks at all distances again, and where it changes what it knew."""
    monkeypatch.setattr(greedy, "FEW_DISTANCES", few)
    known = known_of(WINDOWS)
    before = [part.clone() for part in known]
    anchored = None if anchors is None else (torch.tensor(WINDOWS) * anchors).floor()[:, None]
    found, expected = (
        choose(*known, steps, anchored, objective)
        for choose in (greedy._with_numpy, greedy._with_torch)
    )
    assert torch.equal(found, expected)
    assert all(torch.equal(part, same) for part, same in zip(known, before, strict=True))
    real = known[-1] > -math.inf
    rank = greedy_ranks(*known, steps, anchored, objective)
    assert (rank[0] < steps).sum() == min(steps, WINDOWS[0])
    assert rank[0, 7] == 0
    assert bool((rank[0, ~real[0]] == steps).all())


def test_gains_that_shrink_are_those_of_all_distances() -> None:
    """Less and less is uncovered: of much at once, of little, of nothing, and of all."""
    generator = torch.Generator().manual_seed(1)
    distance = torch.rand(3, 200, 200, generator=generator)
    weight = torch.rand(3, 200, generator=generator)
    known = greedy._Gains(distance, weight)
    uncovered = torch.ones(3, 200)
    for share in (0.0, 0.8, 0.3, 0.05, 0.0, 0.02, 1.0):
        fewer = torch.rand(3, 200, generator=generator) < share
        fewer[1] &= share > 0.5  # of one window nothing
        uncovered = torch.where(fewer, 0.7 * uncovered, uncovered)
        expected = gains(distance, weight, uncovered)
        found = torch.from_numpy(known.now(uncovered.numpy()))
        torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-6)


def test_what_is_no_plain_tensor_of_the_host_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors without memory here, and graphs."""

    def refuse(*args: object) -> Tensor:
        raise AssertionError("it is read")

    monkeypatch.setattr(greedy, "_with_numpy", refuse)
    known = known_of(WINDOWS)
    with pytest.raises(AssertionError):
        greedy_ranks(*known, 5, None, "sum")
    meta = [part.to("meta") for part in known]
    assert greedy_ranks(*meta, 5, None, "sum").is_meta
    with FakeTensorMode() as mode:
        greedy_ranks(*map(mode.from_tensor, known), 5, None, "sum")
    batched = [part[None].expand(2, *part.shape) for part in known]
    torch.vmap(lambda *parts: greedy_ranks(*parts, 5, None, "sum"))(*batched)
    make_fx(lambda *parts: greedy_ranks(*parts, 5, None, "sum"))(*known)
    compiled = torch.compile(greedy_ranks, fullgraph=True, backend="eager")
    rank = compiled(*known, 5, None, "sum")
    monkeypatch.undo()
    assert torch.equal(rank, greedy_ranks(*known, 5, None, "sum"))


def test_weights_may_want_gradients_and_be_of_few_bits() -> None:
    """Of a matcher of one's own, in training."""
    distance, weight, heard, urgent = known_of(WINDOWS)
    expected = greedy_ranks(distance, weight.bfloat16().float(), heard, urgent, 9, None, "sum")
    wanting = weight.bfloat16().requires_grad_()
    assert torch.equal(greedy_ranks(distance, wanting, heard, urgent, 9, None, "sum"), expected)
