"""Messages, convolutions and matchers of one's own."""

from __future__ import annotations

import pytest
import torch
from reference import GRIDS, RATIOS, features, make_layout, pass_messages, run_stage, tokens_of
from stages import assert_same, batch, compress
from torch import Tensor, nn
from torch_geometric.nn import GraphConv, MessagePassing, SimpleConv

from lightkv_gnn.stage.compressor import MATCHERS, Compressed, TokenCompressor
from lightkv_gnn.stage.messages import MESSAGES, guided_mean
from lightkv_graphs import Matching, WindowPartition, message_edges, plan_stage
from lightkv_graphs.greedy import Greedy
from lightkv_graphs.matching import Nearest


class Gate(nn.Module):
    """A message with parameters that looks at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 6, dtype=torch.float64)

    def forward(self, x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        return weight[:, None] * (x_j + self.gate(torch.cat([x_i, x_j], dim=1)).tanh())


def toward(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
    return weight[:, None] * (0.25 * x_i + 0.75 * x_j)


@pytest.mark.parametrize("make", [lambda: toward, Gate], ids=["function", "module"])
def test_a_message_of_ones_own(make: object, scatter: str) -> None:
    torch.manual_seed(0)
    message = make()  # type: ignore[operator]
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x, layout, guidance, ratio=0.3, message=message, scatter=scatter)
    standard = run_stage(tokens_of(x, layout), layout.grids, 2, RATIOS["3/10"], guidance.tolist())
    weight = torch.tensor(standard.share, dtype=torch.float64)  # guidance weighs its messages too
    for row, kept in enumerate(standard.kept):
        group = [n for n, survivor in enumerate(standard.survivor) if survivor == row]
        expected = x[kept]
        if len(group) > 1:
            sender = x[group]
            expected = message(x[kept].expand_as(sender), sender, weight[group]).sum(0)
        torch.testing.assert_close(found.hidden_states[row], expected)
    assert found.kept.tolist() == standard.kept


def test_a_module_gets_gradients(scatter: str) -> None:
    message = Gate()
    x, layout, guidance = batch(GRIDS["square"])
    compress(x, layout, guidance, message=message, scatter=scatter).hidden_states.sum().backward()
    assert bool(message.gate.weight.grad.abs().sum() > 0)


class Slow(MessagePassing):
    """A convolution of one's own, with another aggregation than a sum."""

    def __init__(self) -> None:
        super().__init__(aggr="max")

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x, size=(len(x[0]), len(x[1])))

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


def loop(x: Tensor, found: Compressed, combine: object) -> Tensor:
    """What a survivor with several tokens should be; the others as they were."""
    edge_index, weight = message_edges(found.graph)
    rows = []
    for row, kept in enumerate(found.kept.tolist()):
        here = edge_index[1] == row
        if int(here.sum()) == 1:
            rows.append(x[kept])
        else:
            rows.append(combine(x[kept], x[edge_index[0][here]], weight[here]))  # type: ignore[operator]
    return torch.stack(rows)


def test_simple_conv_is_the_guided_mean(scatter: str) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    ours, theirs = (
        compress(x, layout, guidance, message=message, scatter=scatter)
        for message in (guided_mean, SimpleConv(aggr="sum"))
    )
    torch.testing.assert_close(theirs.hidden_states, ours.hidden_states)
    assert torch.equal(theirs.kept, ours.kept)


def test_graph_conv_is_called_with_both_ends() -> None:
    torch.manual_seed(0)
    conv = GraphConv(6, 6).double()
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x, layout, guidance, ratio=0.3, message=conv)
    expected = loop(
        x, found, lambda own, sent, w: conv.lin_rel((w[:, None] * sent).sum(0)) + conv.lin_root(own)
    )
    torch.testing.assert_close(found.hidden_states, expected)
    found.hidden_states.sum().backward()
    assert conv.lin_root.weight.grad is not None


def test_a_convolution_aggregates_as_it_likes() -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x, layout, guidance, message=Slow())
    expected = loop(x, found, lambda own, sent, weight: sent.max(0).values)
    torch.testing.assert_close(found.hidden_states, expected)


def test_a_convolution_gets_float32_for_half_precision() -> None:
    x, layout, guidance = batch(GRIDS["square"])
    found = compress(x.bfloat16(), layout, guidance.float(), message=GraphConv(6, 6))
    assert found.hidden_states.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        (lambda x_i, x_j, weight: weight[:, None], r"\[8, 1\]"),
        (lambda x_i, x_j, weight: weight, r"\[8\]"),
        (lambda x_i, x_j, weight: torch.cat([x_i, weight[:, None] * x_j], 1), r"\[8, 12\]"),
        (GraphConv(6, 1).double(), r"\[8, 1\]"),
    ],
    ids=["one channel", "no channels", "more channels", "convolution"],
)
def test_messages_of_the_wrong_shape(message: object, shape: str) -> None:
    layout = make_layout([[(4, 4)]])
    x, guidance = features(layout)
    with pytest.raises(ValueError, match=rf"summed to shape {shape}: expected .* = \[8, 6\]"):
        compress(x, layout, guidance, message=message)


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        (lambda x_i, x_j, weight: weight.sum(), r"\[\]"),
        (lambda x_i, x_j, weight: (weight[:, None] * x_j)[:-1], r"\[15, 6\]"),
        (lambda x_i, x_j, weight: x_j.mean(0) * weight.mean(), r"\[6\]"),
        (lambda x_i, x_j, weight: (weight[:, None] * x_j)[None], r"\[1, 16, 6\]"),
    ],
    ids=["scalar", "too few rows", "one for all", "a row for all"],
)
def test_messages_without_a_row_per_edge(message: object, shape: str) -> None:
    layout = make_layout([[(4, 4)]])
    x, guidance = features(layout)
    expected = rf"message returned shape {shape}: expected one row per edge, .* = \[16, 6\]"
    with pytest.raises(ValueError, match=expected):
        compress(x, layout, guidance, message=message)


class Forgetful(nn.Module):
    """A module that does not look at the weight."""

    def forward(self, x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        return x_j


@pytest.mark.parametrize(
    "message",
    [lambda x_i, x_j, weight: x_j, Forgetful(), Forgetful().forward],
    ids=["function", "module", "method"],
)
def test_a_message_that_forgets_the_weight_gets_a_hint(message: object) -> None:
    with pytest.warns(UserWarning, match=r"does not look at its weight.*multiply by weight"):
        TokenCompressor(message)  # type: ignore[arg-type]


class Called:
    """Nothing is known of its code."""

    def __call__(self, *ends: Tensor) -> Tensor:
        return ends[1]


def test_messages_that_look_at_the_weight_get_none(recwarn: pytest.WarningsRecorder) -> None:
    def inside(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([x * w for x, w in zip(x_j, weight, strict=True)])

    def nested(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        def scaled() -> Tensor:
            return weight[:, None] * x_j

        return scaled()

    def on_purpose(x_i: Tensor, x_j: Tensor, _weight: Tensor) -> Tensor:
        return x_j

    for message in (
        on_purpose,
        toward,
        Gate(),
        Gate().forward,
        inside,
        nested,
        Called(),
        *MESSAGES.values(),
    ):
        TokenCompressor(message)
    assert not recwarn.list


def test_a_matcher_of_ones_own(scatter: str) -> None:
    """The last tokens of each window leave, into its first."""

    def last(x: Tensor, partition: WindowPartition) -> Matching:
        edges = []
        for row in partition.slots().tolist():
            window = [token for token in row if token < len(x)]
            leave = len(window) // 2
            edges += [(source, window[0]) for source in window[len(window) - leave :]]
        source, destination = torch.tensor(sorted(edges)).unbind(1)
        return Matching(torch.stack([source, destination]), torch.zeros(len(edges)))

    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x, layout, guidance, matcher=last, scatter=scatter)
    edges = found.graph["vision", "merges_into", "vision"].edge_index.t().tolist()
    expected = pass_messages(
        tokens_of(x, layout), [(s, d) for s, d in edges], guidance.tolist(), "guided_mean"
    )
    assert_same(found, expected, rtol=1e-10, atol=1e-12)
    again = compress(found.hidden_states, found.layout, guidance[found.kept], 1, scatter=scatter)
    assert len(again.layout) < len(found.layout)


def test_a_matcher_is_given_what_its_device_is_good_at(scatter: str) -> None:
    given: list[object] = []

    def own(x: Tensor, partition: WindowPartition, nearest: Nearest, greedy: Greedy) -> Matching:
        given.extend([nearest, greedy])
        return MATCHERS["cosine_matching"](x, partition, nearest)

    x, layout, _ = batch([[(3, 4)]])
    run = TokenCompressor(matcher=own, scatter=scatter)
    run(x, layout, plan_stage(layout.occupancy, 1, 0.5))
    assert given == [run.scatter.nearest, run.scatter.greedy]


def test_edges_may_come_in_any_order(scatter: str) -> None:
    """Sorted by source is what our matchers return; a stage does not rely on it."""
    x, layout, guidance = batch(GRIDS["ragged samples"])

    def backwards(x: Tensor, partition: WindowPartition) -> Matching:
        matching = MATCHERS["cosine_matching"](x, partition)
        return Matching(matching.edge_index.flip(1), matching.similarity.flip(0))

    ours, theirs = (
        compress(x, layout, guidance, matcher=matcher, scatter=scatter)
        for matcher in (MATCHERS["cosine_matching"], backwards)
    )
    assert torch.equal(ours.survivor, theirs.survivor)
    torch.testing.assert_close(ours.hidden_states, theirs.hidden_states)


def test_matchers_are_checked() -> None:
    x, layout, _ = batch(GRIDS["square"])
    none = Matching(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0))
    with pytest.raises(ValueError, match=r"returned edge_index \[2, 0\] .* one edge per token"):
        compress(x, layout, matcher=lambda x, partition: none)
    with pytest.raises(TypeError, match=r"matcher returned .*tuple.*: expected a Matching"):
        compress(x, layout, matcher=lambda x, partition: (none.edge_index, none.similarity))
