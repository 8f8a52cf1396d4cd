"""The greedy choice of coverage in a Triton kernel: token by token what plain torch chooses.

Distances are multiples of an eighth and weights whole numbers here, where not said otherwise: their
sums are exact in any order, and ties are ties.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from stages import batch, compress
from torch import Tensor

from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import (
    CoverageMatching,
    TokenLayout,
    coverage_matching,
    greedy_ranks,
    plan_stage,
    window_partition,
)
from lightkv_graphs.greedy import Objective

pytest.importorskip("triton", reason="Triton is not installed")

from lightkv_gnn.stage import kernels

HOW = {
    "default": coverage_matching,
    "blind": CoverageMatching(0),
    "steep": CoverageMatching(2.0, anchors=1 / 3),
    "anchored centre": CoverageMatching(0.5, 0.5, "max"),
}
objectives = pytest.mark.parametrize("objective", ["sum", "max"])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The interpreter warns of what a GPU does not."""
    with np.errstate(all="ignore"):
        yield


class Windows(NamedTuple):
    """What is known of tokens before any is chosen; see :func:`lightkv_graphs.greedy_ranks`."""

    distance: Tensor
    weight: Tensor
    heard: Tensor
    urgent: Tensor

    @property
    def real(self) -> Tensor:
        return self.urgent > -math.inf


def windows_of(sizes: tuple[int, ...], seed: int = 0) -> Windows:
    """Windows of these sizes, with two slots of padding at least.

    Distances are not symmetric, so that rows and columns are told apart.
    """
    generator = torch.Generator().manual_seed(seed)
    slots = max(sizes) + 2

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, (len(sizes), *shape), generator=generator).float()

    padding = torch.arange(slots) >= torch.tensor(sizes)[:, None]
    distance = whole(0, 16, slots, slots) / 8
    distance.diagonal(dim1=1, dim2=2).fill_(0)
    distance = distance.masked_fill(padding[:, None, :], math.inf)
    weight, heard = (whole(0, 4, slots).masked_fill(padding, 0) for _ in range(2))
    urgent = torch.zeros_like(weight).masked_fill(padding, -math.inf)
    return Windows(distance, weight, heard, urgent)


def assert_chosen_alike(
    windows: Windows, steps: int, anchored: Tensor | None, objective: Objective
) -> None:
    found = kernels.greedy_ranks(*windows, steps, anchored, objective)
    expected = greedy_ranks(*windows, steps, anchored, objective)
    assert torch.equal(found[windows.real], expected[windows.real])
    assert bool((found[~windows.real] == steps).all())  # padding is not chosen


@objectives
@pytest.mark.parametrize("sizes", [(7,), (5, 12, 0, 1, 12)], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 6, 12])
@pytest.mark.parametrize("anchors", [None, 0.0, 0.5])
@pytest.mark.parametrize("weights", ["equal", "different", "none"])
def test_it_chooses_what_torch_chooses(
    sizes: tuple[int, ...], steps: int, anchors: float | None, weights: str, objective: Objective
) -> None:
    """Of some windows more than they have."""
    windows = windows_of(sizes)
    equal = windows.real.float()
    weight = {"equal": equal, "different": windows.weight, "none": 0 * equal}[weights]
    anchored = None if anchors is None else (torch.tensor(sizes) * anchors).floor()[:, None]
    assert_chosen_alike(windows._replace(weight=weight), steps, anchored, objective)


def test_gains_are_summed_up_when_torch_does() -> None:
    """The more are chosen, the more rarely; over windows of several tiles of the kernel."""
    assert kernels.greedy.tile_of(128)["T"] < 70
    assert_chosen_alike(windows_of((70,)), 69, None, "sum")


@pytest.mark.full
@objectives
def test_windows_of_a_thousand_tokens(objective: Objective) -> None:
    assert_chosen_alike(windows_of((1022, 700)), 9, None, objective)


@objectives
def test_ties_go_to_the_lowest_index(objective: Objective) -> None:
    windows = windows_of((70,))
    alike = torch.zeros_like(windows.distance).maximum(-windows.urgent[:, None, :])
    windows = windows._replace(distance=alike, weight=windows.real.float())
    rank = kernels.greedy_ranks(*windows, 9, None, objective)
    assert rank[0, :9].tolist() == list(range(9))
    assert rank[0, 9:].eq(9).all()


@objectives
@pytest.mark.parametrize("bad", [1.0, math.inf, math.nan])
def test_all_are_chosen_once_and_the_urgent_first(objective: Objective, bad: float) -> None:
    """Whatever they count; padding never."""
    windows = windows_of((9, 12))
    windows.urgent[:, [2, 5]] = math.inf
    windows.weight[:, [0, 4]] = bad
    rank = kernels.greedy_ranks(*windows, 14, None, objective)
    for own, real in zip(rank, windows.real, strict=True):
        assert own[[2, 5]].tolist() == [0, 1]
        assert sorted(own[real].tolist()) == list(range(int(real.sum())))
        assert own[~real].eq(14).all()


@objectives
def test_a_window_is_chosen_from_alone(objective: Objective) -> None:
    windows, anchored = windows_of((8, 12, 4)), torch.tensor([[2.0], [0.0], [1.0]])
    together = kernels.greedy_ranks(*windows, 6, anchored, objective)
    for n in range(3):
        own = (part[n : n + 1] for part in windows)
        alone = kernels.greedy_ranks(*own, 6, anchored[n : n + 1], objective)
        assert torch.equal(alone, together[n : n + 1])


def test_tensors_in_any_order_of_memory() -> None:
    windows, anchored = windows_of((8, 12)), torch.tensor([[2.0], [0.0]])
    expected = kernels.greedy_ranks(*windows, 4, anchored, "sum")
    for n, part in enumerate(windows):
        turned = list(windows)
        turned[n] = part.transpose(0, 1).contiguous().transpose(0, 1)
        assert torch.equal(kernels.greedy_ranks(*turned, 4, anchored, "sum"), expected)


def test_no_windows() -> None:
    none = (part[:0] for part in windows_of((4,)))
    assert kernels.greedy_ranks(*none, 2, None, "sum").shape == (0, 6)


# --- in a matcher, on features whose distances are rounded ----------------------------------------


def broken(x: Tensor) -> Tensor:
    """Two tokens that cannot be told, one without a direction, and copies of one."""
    x = x.clone()
    x[[2, 20], 1] = torch.tensor([math.nan, math.inf], dtype=x.dtype)
    x[5] = 0
    x[10:14] = x[10]
    return x


def assert_matched_alike(
    how: CoverageMatching,
    x: Tensor,
    layout: TokenLayout,
    guidance: Tensor,
    windows: int,
    ratio: float,
) -> None:
    plan = plan_stage(layout.occupancy, windows, ratio)
    partition = window_partition(layout, plan)
    expected = how(x, partition, guidance, layout)
    found = how(x, partition, guidance, layout, greedy=kernels.greedy_ranks)
    assert torch.equal(found.edge_index, expected.edge_index)
    assert torch.equal(found.similarity, expected.similarity)
    assert found.edge_index.shape[1] == plan.total > 0


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("ratio", [0.3, 0.8])
@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "broken"])
def test_a_matcher_joins_the_same_tokens(
    how: CoverageMatching, ratio: float, windows: int, whole: bool
) -> None:
    """Ragged pictures of a batch, protected tokens, masses, and what the prompt does not hear."""
    x, layout, guidance = batch([[(4, 5), (3, 3)], [(6, 2)]])
    guidance[::6] = -math.inf
    assert_matched_alike(how, x if whole else broken(x), layout, guidance, windows, ratio)


@pytest.mark.parametrize("how", [HOW["default"], HOW["anchored centre"]])
def test_windows_of_sizes_that_the_host_does_not_know(how: CoverageMatching) -> None:
    x, layout, guidance = batch([[(7, 5)], [(5, 4)]])
    first = compress(x, layout, guidance, 3, matcher=how)
    assert plan_stage(first.layout.occupancy, 2, 0.5).leaving is None
    heard = guidance[first.kept]
    assert_matched_alike(how, first.hidden_states, first.layout, heard, 2, 0.5)


def test_stages_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the kernel made the choices."""
    x, layout, guidance = batch([[(5, 7)], [(3, 3), (4, 4)]])
    x = x.float()
    found, expected = (
        TokenCompressor(matcher="coverage_matching", scatter=scatter)
        for scatter in ("triton", "torch")
    )
    chosen: list[int] = []

    def counted(*arguments: object) -> Tensor:
        chosen.append(1)
        return kernels.greedy_ranks(*arguments)

    monkeypatch.setattr(found.scatter, "_greedy", counted)
    for windows, ratio in ((2, 0.4), (1, 0.8)):
        plan = plan_stage(layout.occupancy, windows, ratio)
        one, other = (run(x, layout, plan, guidance) for run in (found, expected))
        assert torch.equal(one.kept, other.kept)
        assert torch.equal(one.survivor, other.survivor)
        assert torch.equal(one.layout.mass, other.layout.mass)
        torch.testing.assert_close(one.hidden_states, other.hidden_states)
        x, layout, guidance = other.hidden_states, other.layout, guidance[other.kept]
    assert len(chosen) == 2
