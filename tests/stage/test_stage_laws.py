"""Laws of a stage: what is conserved, what changes nothing, and what stays apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import GRIDS, RATIOS, features, make_layout, pass_messages, run_stage, tokens_of
from stages import (
    HALF,
    NESTED,
    PER_TOKEN,
    assert_same,
    batch,
    check_lineage,
    compress,
    every_dtype,
    every_message,
)

from lightkv_gnn.stage.compressor import MATCHERS, TokenCompressor
from lightkv_gnn.stage.messages import MESSAGES, WeightedMean
from lightkv_graphs import TokenLayout, message_edges, plan_stage

pytestmark = pytest.mark.each  # every way to add up, not with every message, type and shift

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
