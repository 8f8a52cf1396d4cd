"""What is sent, with what weight, and that the convolution sums it."""

from __future__ import annotations

import math

import pytest
import torch
from reference import log_weight
from torch import Tensor, nn

from lightkv_gnn.stage.messages import (
    MESSAGES,
    MergeConv,
    WeightedMean,
    destination_only,
    guided_mean,
    mass_mean,
    mean,
)
from lightkv_gnn.stage.scatter import backend

# Six tokens into three survivors (tokens 0, 2 and 5), sorted by survivor.
EDGE_INDEX = torch.tensor([[0, 1, 4, 2, 5, 3], [0, 0, 0, 1, 2, 2]])
KEPT = [0, 2, 5]
WEIGHT = torch.tensor([0.5, 0.2, 0.3, 1.0, 0.9, 0.1], dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["guided_mean", "mean", "mass_mean", "destination_only"])
def test_weights_equal_the_reference(name: str) -> None:
    guidance = torch.tensor([0.5, -3.0, 100.0], dtype=torch.float64)
    mass, stays = torch.tensor([1, 4, 9]), torch.tensor([True, False, True])
    rows = zip(guidance.tolist(), mass.tolist(), stays.tolist(), strict=True)
    weigh = MESSAGES[name].weigh(guidance, mass, stays)
    expected = [log_weight(name, g, m, stays=s) for g, m, s in rows]
    torch.testing.assert_close(weigh.double(), torch.tensor(expected, dtype=torch.float64))


def test_messages_are_listed_by_name() -> None:
    assert [
        MESSAGES[name] for name in ("guided_mean", "mean", "mass_mean", "destination_only")
    ] == [
        guided_mean,
        mean,
        mass_mean,
        destination_only,
    ]
    assert [repr(message) for message in MESSAGES.values()] == list(MESSAGES)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_weighted_mean_sends_the_weighted_sender(name: str) -> None:
    x_i, x_j = tokens(), tokens().flip(0)
    message: WeightedMean = MESSAGES[name]
    assert torch.equal(message(x_i, x_j, WEIGHT), WEIGHT[:, None] * x_j)


def pull(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
    return x_i + weight[:, None] * (x_j - x_i).tanh()


def count(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
    return torch.ones_like(x_j)


@pytest.mark.parametrize("message", [guided_mean, pull, count], ids=["mean", "pull", "count"])
def test_convolution_equals_a_loop(scatter: str, message: WeightedMean) -> None:
    x = tokens()
    out = MergeConv(message, backend(scatter))((x, x[KEPT]), EDGE_INDEX, WEIGHT)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for (sender, row), weight in zip(EDGE_INDEX.t().tolist(), WEIGHT, strict=True):
        expected[row] += message(x[KEPT[row]][None], x[sender][None], weight[None])[0]
    torch.testing.assert_close(out, expected)


def test_convolution_defaults_to_the_guided_mean() -> None:
    x = tokens()
    out = MergeConv()((x, x[KEPT]), EDGE_INDEX, WEIGHT)
    torch.testing.assert_close(out[0], 0.5 * x[0] + 0.2 * x[1] + 0.3 * x[4])


def test_order_of_a_survivors_messages_does_not_matter(scatter: str) -> None:
    x, order = tokens(), torch.tensor([2, 0, 1, 3, 5, 4])
    conv = MergeConv(pull, backend(scatter))
    before = conv((x, x[KEPT]), EDGE_INDEX, WEIGHT)
    after = conv((x, x[KEPT]), EDGE_INDEX[:, order], WEIGHT[order])
    torch.testing.assert_close(after, before)


def test_convolutions_of_different_messages_do_not_mix() -> None:
    """torch-geometric caches generated code by class name."""
    x = tokens()
    summed, counted = (MergeConv(m)((x, x[KEPT]), EDGE_INDEX, WEIGHT) for m in (pull, count))
    assert counted[:, 0].tolist() == [3.0, 1.0, 2.0]
    assert not torch.equal(summed, counted)


def test_a_module_as_message_is_trained(scatter: str) -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
            return self.scale * weight[:, None] * x_j

    learned, x = Learned(), tokens()
    conv = MergeConv(learned, backend(scatter))
    out = conv((x, x[KEPT]), EDGE_INDEX, WEIGHT)
    torch.testing.assert_close(out, MergeConv()((x, x[KEPT]), EDGE_INDEX, WEIGHT))
    out.sum().backward()
    assert [id(p) for p in conv.parameters()] == [id(learned.scale)]
    assert math.isclose(learned.scale.grad.item(), out.sum().item())


@pytest.mark.parametrize("message", [guided_mean, pull], ids=["mean", "pull"])
def test_gradients(scatter: str, message: WeightedMean) -> None:
    conv = MergeConv(message, backend(scatter))
    x, weight = tokens().requires_grad_(), WEIGHT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, w: conv((a, a[KEPT]), EDGE_INDEX, w), (x, weight))


def test_pruned_tokens_take_their_nan_along() -> None:
    x = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]])
    weight = torch.tensor([1.0, 0.0])
    assert destination_only(x, x, weight).tolist() == [[1.0, 2.0], [0.0, 0.0]]
