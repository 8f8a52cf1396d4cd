"""A stage equals the reference, obeys its laws, and takes messages and matchers of one's own."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from reference import (
    GRIDS,
    RATIOS,
    Stage,
    Token,
    features,
    make_layout,
    pass_messages,
    run_stage,
    tokens_of,
)
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch_geometric.nn import GraphConv, MessagePassing, SAGEConv, SimpleConv

from lightkv_gnn.compressor import MATCHERS, Compressed, TokenCompressor
from lightkv_gnn.messages import MESSAGES, WeightedMean, guided_mean
from lightkv_gnn.scatter import TorchBackend, backend
from lightkv_gnn.tensor_stage import Edges
from lightkv_graphs import (
    Grid,
    Matching,
    TokenLayout,
    WindowPartition,
    message_edges,
    plan_stage,
)

PER_TOKEN = ("sample", "image", "row", "col", "mass", "protected")
HALF = Fraction(1, 2)
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


# --- agreement with the reference -------------------------------------------------------------


@every_grid
@pytest.mark.parametrize("windows", [1, 2, 3, 4])
def test_every_message_and_ratio_equals_the_reference(
    grids: list[list[Grid]], windows: int, scatter: str
) -> None:
    x, layout, guidance = batch(grids, seed=windows)
    tokens = tokens_of(x, layout)
    for ratio in RATIOS.values():
        edges = run_stage(tokens, layout.grids, windows, ratio).edges
        for name, message in MESSAGES.items():
            if message is not guided_mean and ratio != HALF:
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


NESTED = [(4, 2, 1), (3, 3, 1), (2, 2)]


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


def check_lineage(tokens: list[Token], original: TokenLayout, layout: TokenLayout) -> None:
    """Every original token is in exactly one survivor, which has its sample and image."""
    assert sorted(m for token in tokens for m in token.members) == list(range(len(original)))
    for row, token in enumerate(tokens):
        assert {original.image[m].item() for m in token.members} == {layout.image[row].item()}
        assert {original.sample[m].item() for m in token.members} == {layout.sample[row].item()}
        assert original.mass[token.members].sum() == layout.mass[row]


# --- laws -------------------------------------------------------------------------------------

UNKNOWN = [(3, 2), (4, 3, 2), (2, 3, 1), (1, 2)]


@pytest.mark.parametrize("schedule", [*NESTED, *UNKNOWN], ids=str)
@pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS.keys())
def test_laws_of_chained_stages(schedule: tuple[int, ...], matcher: object) -> None:
    """Also where windows do not nest, and their sizes depend on the data."""
    x, layout, guidance = batch([[(7, 9), (5, 5)], [(1, 12)], [(6, 4)]])
    original = layout
    tokens = tokens_of(x, layout)
    for windows in schedule:
        plan = plan_stage(layout.occupancy, windows, 0.5)
        found = TokenCompressor(matcher=matcher)(x, layout, plan, guidance)
        before, after = layout, found.layout
        # what was planned is what came out
        images = range(len(before.counts))
        expected = [before.counts[i] - plan.merges[i] for i in images]
        assert list(after.counts) == expected
        assert torch.bincount(after.image, minlength=len(images)).tolist() == expected
        assert len(after) == len(found.hidden_states) == len(before) - plan.total
        free = torch.bincount(after.image[~after.protected], minlength=len(images))
        assert [occupancy.tokens for occupancy in after.occupancy] == free.tolist()
        # merges stay in their window, take at most half of it, and leave protected tokens alone
        edges = found.graph["vision", "merges_into", "vision"].edge_index
        place = [window_of(before, token, windows) for token in range(len(before))]
        for source, destination in edges.t().tolist():
            assert place[source] == place[destination] is not None
        for window in set(place) - {None}:
            size = place.count(window)
            assert sum(place[s] == window for s in edges[0].tolist()) <= size // 2
        assert int(after.protected.sum()) == int(before.protected.sum())
        # the survivors partition the tokens, and keep raster order
        assert torch.equal(found.survivor[found.kept], torch.arange(len(after)))
        assert bool((found.kept.diff() > 0).all())
        tokens = pass_messages(
            tokens, list(map(tuple, edges.t().tolist())), guidance.tolist(), "guided_mean"
        ).tokens
        assert [token.mass for token in tokens] == after.mass.tolist()
        x, layout, guidance = found.hidden_states, after, guidance[found.kept]
    check_lineage(tokens, original, layout)
    assert int(layout.mass.sum()) == int(original.mass.sum())
    rows = torch.tensor([token.x for token in tokens], dtype=torch.float64)
    torch.testing.assert_close(x, rows, rtol=1e-9, atol=1e-11)


def window_of(layout: TokenLayout, token: int, windows: int) -> tuple[int, ...] | None:
    if layout.protected[token]:
        return None
    image, row, col = (int(getattr(layout, name)[token]) for name in ("image", "row", "col"))
    rows, cols = layout.grids[image]
    return image, row * windows // rows, col * windows // cols


@every_message
def test_weights_into_a_survivor_sum_to_one(message: WeightedMean, scatter: str) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x, layout, 30 * guidance, message=message, scatter=scatter)
    edge_index, weight = message_edges(found.graph)
    total = torch.zeros(len(found.kept), dtype=torch.float64).index_add(0, edge_index[1], weight)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert bool((weight >= 0).all())


@every_message
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_constant_tokens_are_unchanged(
    message: WeightedMean, dtype: torch.dtype, scatter: str
) -> None:
    _, layout, guidance = batch(GRIDS["two images"])
    row = torch.tensor([3.0, -0.1, 1e-3, 250.0]).to(dtype)
    found = compress(
        row.expand(len(layout), 4), layout, guidance.float(), message=message, scatter=scatter
    )
    assert len(found.kept) < len(layout)
    torch.testing.assert_close(found.hidden_states, row.expand(len(found.kept), 4))


@every_message
@every_dtype
def test_tokens_that_receive_nothing_pass_unchanged(
    message: WeightedMean, dtype: torch.dtype, scatter: str
) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    x = x.to(dtype)
    x[layout.protected] *= 1000
    found = compress(x, layout, 100 * guidance.float(), ratio=0.3, message=message, scatter=scatter)
    alone = torch.bincount(found.survivor) == 1
    assert 0 < int(alone.sum()) < len(alone)
    assert torch.equal(found.hidden_states[alone], x[found.kept][alone])
    assert layout.protected.sum() == alone[found.layout.protected].sum()


@every_message
def test_means_lie_between_what_they_are_made_of(message: WeightedMean, scatter: str) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x, layout, guidance, message=message, scatter=scatter)
    for row, mixed in enumerate(found.hidden_states):
        parts = x[found.survivor == row]
        assert bool((mixed >= parts.min(0).values - 1e-12).all())
        assert bool((mixed <= parts.max(0).values + 1e-12).all())


@pytest.mark.parametrize("shift", [-1e4, -88.0, 1e4])
@pytest.mark.parametrize("vanishing", [False, True])
def test_shifting_all_guidance_changes_nothing(shift: float, vanishing: bool, scatter: str) -> None:
    """Exactly: the values are multiples of 1/64, so that float32 adds the shift unrounded."""
    x, layout, guidance = batch(GRIDS["ragged samples"])
    x, guidance = x.float(), (guidance * 64).round().float() / 64
    if vanishing:
        guidance[::3] = -torch.inf
    before, after = (compress(x, layout, g, scatter=scatter) for g in (guidance, guidance + shift))
    assert torch.equal(before.hidden_states, after.hidden_states)
    assert bool(before.hidden_states.isfinite().all())
    expected = run_stage(tokens_of(x.double(), layout), layout.grids, 2, HALF, guidance.tolist())
    assert_same(before, expected, rtol=1e-5, atol=1e-6)


def test_without_guidance_all_weigh_the_same(scatter: str) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    plain, equal, vanished = (
        compress(x, layout, g, scatter=scatter).hidden_states
        for g in (None, torch.full_like(guidance, 7.0), torch.full_like(guidance, -torch.inf))
    )
    torch.testing.assert_close(equal, plain)
    torch.testing.assert_close(vanished, plain)
    mean = compress(x, layout, guidance, message=MESSAGES["mean"], scatter=scatter).hidden_states
    torch.testing.assert_close(mean, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_message
def test_ratio_zero_is_the_identity(
    message: WeightedMean, dtype: torch.dtype, scatter: str
) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    x = x.to(dtype)
    found = compress(x, layout, guidance, ratio=0.0, message=message, scatter=scatter)
    assert torch.equal(found.hidden_states, x)
    assert torch.equal(found.kept, torch.arange(len(layout)))
    assert torch.equal(found.survivor, torch.arange(len(layout)))
    for name in PER_TOKEN:
        assert torch.equal(getattr(found.layout, name), getattr(layout, name))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0)], ids=str)
@pytest.mark.parametrize("windows", [1, 3])
def test_a_batch_is_its_samples_side_by_side(
    order: tuple[int, ...], windows: int, scatter: str
) -> None:
    """Compressing samples together, in any order, equals compressing each alone."""
    samples = GRIDS["ragged samples"]
    parts = [batch([samples[number]], seed=number) for number in order]
    together = batch([samples[number] for number in order])[1]
    together = replace(together, mass=torch.cat([layout.mass for _, layout, _ in parts]))
    found = compress(
        torch.cat([x for x, _, _ in parts]),
        together,
        torch.cat([guidance for *_, guidance in parts]),
        windows,
        scatter=scatter,
    )
    alone = [compress(*part, windows, scatter=scatter) for part in parts]
    torch.testing.assert_close(
        found.hidden_states, torch.cat([one.hidden_states for one in alone]), rtol=1e-12, atol=0
    )
    offset = row = 0
    for number, ((_, layout, _), one) in enumerate(zip(parts, alone, strict=True)):
        here = found.layout.sample == number
        assert torch.equal(found.kept[here], one.kept + offset)
        assert torch.equal(found.survivor[offset : offset + len(layout)], one.survivor + row)
        for name in ("row", "col", "mass", "protected"):
            assert torch.equal(getattr(found.layout, name)[here], getattr(one.layout, name))
        offset, row = offset + len(layout), row + len(one.kept)


@pytest.mark.parametrize("bad", [(0,), (1, 8, 15), (2, 3, 20, 40)], ids=str)
@pytest.mark.parametrize("ratio", ["1/4", "1/2"])
def test_nan_tokens_stay_in_their_own_cluster(
    bad: tuple[int, ...], ratio: str, scatter: str
) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    x[list(bad)] = torch.nan
    found = compress(x, layout, guidance, ratio=float(RATIOS[ratio]), scatter=scatter)
    expected = run_stage(tokens_of(x, layout), layout.grids, 2, RATIOS[ratio], guidance.tolist())
    assert_same(found, expected, rtol=1e-10, atol=1e-12)
    touched = torch.zeros(len(found.kept), dtype=torch.bool)
    touched[found.survivor[list(bad)]] = True
    assert torch.equal(found.hidden_states.isnan().any(1), touched)


def test_no_vision_tokens_at_all(scatter: str) -> None:
    found = compress(torch.zeros(0, 4), TokenLayout.from_grids([[], []]), scatter=scatter)
    assert found.hidden_states.shape == (0, 4)
    assert len(found.layout) == 0


def test_an_image_of_protected_tokens_alone(scatter: str) -> None:
    layout = make_layout([[(2, 3)], [(4, 4)]])
    layout = TokenLayout.from_tokens(
        **{name: getattr(layout, name) for name in ("sample", "image", "row", "col")},
        grids=layout.grids,
        protected=layout.image == 0,
    )
    x, guidance = features(layout)
    found = compress(x, layout, guidance, scatter=scatter)
    assert found.layout.counts == (6, 8)
    assert torch.equal(found.hidden_states[:6], x[:6])


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
    monkeypatch.setattr("lightkv_gnn.compressor.backend", chosen.__getitem__)
    compress(*batch(GRIDS["odd"]), scatter="torch_scatter")
    assert sorted(calls) == [("max", 1), ("sum", 1), ("weighted_sum", 2)]


# --- the graph --------------------------------------------------------------------------------


@every_message
def test_the_graph_alone_gives_the_result(message: WeightedMean, scatter: str) -> None:
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x, layout, guidance, message=message, scatter=scatter)
    graph = found.graph
    survivors = graph["vision", "keeps", "vision"].edge_index[0].tolist()
    rows = {survivor: torch.zeros(x.shape[1], dtype=torch.float64) for survivor in survivors}
    for kind in ("keeps", "merges_into"):
        edges = graph["vision", kind, "vision"]
        for (source, destination), weight in zip(
            edges.edge_index.t().tolist(), edges.weight, strict=True
        ):
            rows[destination] += weight * x[source]
    torch.testing.assert_close(torch.stack([rows[s] for s in survivors]), found.hidden_states)


def test_graph_weights_equal_the_reference(scatter: str) -> None:
    x, layout, guidance = batch(GRIDS["two images"])
    found = compress(x, layout, guidance, scatter=scatter)
    expected = run_stage(tokens_of(x, layout), layout.grids, 2, HALF, guidance.tolist())
    edge_index, weight = message_edges(found.graph)
    share = torch.tensor(expected.share, dtype=torch.float64)[edge_index[0]]
    torch.testing.assert_close(weight, share)


# --- no synchronisation, gradients ------------------------------------------------------------


def faked(mode: FakeTensorMode, layout: TokenLayout) -> TokenLayout:
    moved = {name: mode.from_tensor(getattr(layout, name)) for name in PER_TOKEN}
    return replace(layout, **moved)


@pytest.mark.parametrize("schedule", [(4, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_stage_depends_on_no_data_and_reads_none(
    schedule: tuple[int, ...], matcher: object, dtype: torch.dtype
) -> None:
    """Fake tensors have a shape and no values: a size that depends on data, or a read, raises.

    Sizes that the host knows are real tensors, kept from other calls.
    """
    x, layout, guidance = batch([[(5, 7), (3, 3)], [(4, 4)]])
    run = TokenCompressor(matcher=matcher)
    x, guidance = x.to(dtype), guidance.float()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_x, fake_layout, fake_guidance = (
            mode.from_tensor(x),
            faked(mode, layout),
            mode.from_tensor(guidance),
        )
    for windows in schedule:
        plan = plan_stage(layout.occupancy, windows, 0.5)
        real = run(x, layout, plan, guidance)
        with mode:
            fake = run(fake_x, fake_layout, plan, fake_guidance)
            fake_guidance = fake_guidance[fake.kept]
        assert fake.hidden_states.shape == real.hidden_states.shape
        assert fake.hidden_states.dtype == dtype
        assert fake.layout.counts == real.layout.counts
        for name in PER_TOKEN:
            assert getattr(fake.layout, name).shape == getattr(real.layout, name).shape
        fake_x, fake_layout = fake.hidden_states, fake.layout
        x, layout, guidance = real.hidden_states, real.layout, guidance[real.kept]


def test_the_tokens_may_lie_on_another_device_than_the_plan() -> None:
    """The host's tensors stay on the CPU, the tokens' never come back from the meta device."""
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x.to("meta"), layout.to("meta"), guidance.to("meta"))
    assert found.hidden_states.device.type == found.layout.mass.device.type == "meta"
    assert found.hidden_states.shape == compress(x, layout, guidance).hidden_states.shape


def test_the_two_tests_above_would_notice_a_read() -> None:
    x, layout, _ = batch(GRIDS["square"])
    plan = plan_stage(layout.occupancy, 2, 0.5)

    def own(x: Tensor, partition: WindowPartition) -> Matching:
        return MATCHERS["cosine_matching"](x, partition)  # not built in, so it is checked

    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        pytest.raises(DataDependentOutputException),
    ):
        TokenCompressor(matcher=own)(mode.from_tensor(x), faked(mode, layout), plan)
    with pytest.raises((RuntimeError, NotImplementedError)):
        TokenCompressor(matcher=own)(x.to("meta"), layout.to("meta"), plan)


@every_message
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5])
def test_gradients(message: WeightedMean, ratio: float, scatter: str) -> None:
    x, layout, guidance = batch([[(3, 4)], [(2, 3)]])
    x.requires_grad_()
    guidance.requires_grad_()

    def run(x: Tensor, guidance: Tensor) -> Tensor:
        return compress(
            x, layout, guidance, 1, ratio, message=message, scatter=scatter
        ).hidden_states

    assert torch.autograd.gradcheck(run, (x, guidance), fast_mode=True)


def test_gradients_through_two_stages(scatter: str) -> None:
    x, layout, guidance = batch([[(4, 4)]])
    x, guidance = x[:, :2].clone().requires_grad_(), guidance.requires_grad_()

    def run(x: Tensor, guidance: Tensor) -> Tensor:
        first = compress(x, layout, guidance, 2, scatter=scatter)
        return compress(
            first.hidden_states, first.layout, guidance[first.kept], 1, scatter=scatter
        ).hidden_states

    assert torch.autograd.gradcheck(run, (x, guidance))


# --- messages and matchers of one's own -------------------------------------------------------


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
        (lambda x_i, x_j, weight: torch.cat([x_i, x_j], 1), r"\[8, 12\]"),
        (GraphConv(6, 1).double(), r"\[8, 1\]"),
    ],
    ids=["one channel", "no channels", "more channels", "convolution"],
)
def test_messages_of_the_wrong_shape(message: object, shape: str) -> None:
    layout = make_layout([[(4, 4)]])
    x, guidance = features(layout)
    with pytest.raises(ValueError, match=rf"summed to shape {shape}: expected .* = \[8, 6\]"):
        compress(x, layout, guidance, message=message)


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


# --- errors -----------------------------------------------------------------------------------


def test_wrong_shapes_are_named() -> None:
    layout = make_layout([[(4, 4)]])
    x, guidance = features(layout)
    with pytest.raises(ValueError, match=r"x has shape \[15, 6\]: .* with 16 tokens"):
        compress(x[1:], layout)
    with pytest.raises(ValueError, match=r"x has shape \[1, 16, 6\]: expected \[token, channel\]"):
        compress(x[None], layout)
    with pytest.raises(ValueError, match=r"guidance has shape \[15\]: expected \[token\] = \[16\]"):
        compress(x, layout, guidance[1:])
    with pytest.raises(ValueError, match=r"guidance has shape \[16, 1\]"):
        compress(x, layout, guidance[:, None])


def test_the_plan_must_be_of_the_layout() -> None:
    layout, other = make_layout([[(4, 4)]]), make_layout([[(4, 4)], [(4, 4)]])
    plan = plan_stage(other.occupancy, 2, 0.5)
    with pytest.raises(ValueError, match="the plan was made from another layout"):
        TokenCompressor()(features(layout)[0], layout, plan)


def test_a_convolution_without_edge_weights_is_refused() -> None:
    with pytest.raises(TypeError, match=r"SAGEConv takes no edge_weight: .* such as SimpleConv"):
        TokenCompressor(SAGEConv(4, 4))
