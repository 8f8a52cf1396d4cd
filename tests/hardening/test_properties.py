"""The laws of a stage, on batches, schedules and numbers that nobody chose."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    guidance_of,
    pass_messages,
    piece,
    require_torch_scatter,
    run_stage,
    tokens_of,
)
from strategies import (
    DTYPES,
    RATIOS,
    Batch,
    batch,
    kinds,
    prompts,
    reordered,
    repeatable,
    samples,
    schedules,
    seeds,
)
from torch import Tensor

from lightkv_gnn.choices import GUIDANCE
from lightkv_gnn.stage.compressor import MATCHERS, Compressed, TokenCompressor
from lightkv_gnn.stage.guidance import GuidanceBlock, prompt_guidance
from lightkv_gnn.stage.messages import MESSAGES
from lightkv_graphs import StagePlan, TokenLayout, message_edges, plan_stage

Tiles = list[list[tuple[int, ...]]]
Schedule = list[tuple[int, Fraction]]

every_backend = pytest.mark.parametrize("scatter", ["torch", "torch_scatter"])
every_matcher = pytest.mark.parametrize("matcher", MATCHERS)


def made(scatter: str, message: str = "guided_mean", matcher: str = "cosine_matching"):
    if scatter == "torch_scatter":
        require_torch_scatter()
    return TokenCompressor(MESSAGES[message], MATCHERS[matcher], scatter)


def window_of(layout: TokenLayout, token: int, windows: int) -> tuple[int, int, int] | None:
    """Image and window of a token, or None if it may not merge."""
    if layout.protected[token]:
        return None
    image, row, col = (int(getattr(layout, name)[token]) for name in ("image", "row", "col"))
    rows, cols = layout.grids[image]
    return image, piece(row, rows, windows), piece(col, cols, windows)


def check_counts(before: TokenLayout, plan: StagePlan, done: Compressed) -> None:
    """As many tokens are left of every image as planned, and they stand for all tokens."""
    after, images = done.layout, len(before.counts)
    left = [count - gone for count, gone in zip(before.counts, plan.merges, strict=True)]
    assert list(after.counts) == left
    assert torch.bincount(after.image, minlength=images).tolist() == left
    assert len(done.hidden_states) == len(done.kept) == sum(left)
    mass = torch.zeros(2, images, dtype=torch.int64)
    mass[0].index_add_(0, before.image, before.mass)
    mass[1].index_add_(0, after.image, after.mass)
    assert torch.equal(mass[0], mass[1])
    assert torch.equal(done.survivor[done.kept], torch.arange(len(after)))


def check_windows(before: TokenLayout, windows: int, done: Compressed) -> None:
    """Merges stay in their window and leave protected tokens alone."""
    source, destination = done.graph["vision", "merges_into", "vision"].edge_index.tolist()
    assert len(set(source)) == len(source)
    assert not set(source) & set(destination)
    for one, other in zip(source, destination, strict=True):
        assert window_of(before, one, windows) == window_of(before, other, windows) is not None
    for name in ("sample", "image", "row", "col", "protected"):
        assert torch.equal(getattr(done.layout, name), getattr(before, name)[done.kept])
    assert done.layout.protected.sum() == before.protected.sum()


def check_weights(done: Compressed) -> None:
    """What a survivor hears of is shared out without a rest."""
    edge_index, weight = message_edges(done.graph)
    total = weight.new_zeros(len(done.kept)).index_add(0, edge_index[1], weight)
    assert bool((weight >= 0).all())
    torch.testing.assert_close(total, torch.ones_like(total))


def check_hull(x: Tensor, done: Compressed) -> None:
    """In each channel, a survivor lies between the least and the largest of its tokens."""
    accumulator = torch.promote_types(x.dtype, torch.float32)
    index = done.survivor[:, None].expand_as(x)
    empty = x.new_zeros(done.hidden_states.shape, dtype=torch.float64)
    low, high, size = (
        empty.scatter_reduce(0, index, values.double(), kind, include_self=False)
        for values, kind in ((x, "amin"), (x, "amax"), (x.abs(), "amax"))
    )
    slack = 8 * torch.finfo(accumulator).eps * size
    found = done.hidden_states.double()
    assert bool(found.isfinite().all())
    assert bool(((found >= low - slack) & (found <= high + slack)).all())


def run(compressor: TokenCompressor, one: Batch, schedule: Schedule, dtype: torch.dtype):
    """Every stage of a schedule: features and layout before it, plan, guidance, result."""
    x, layout, guidance = one.x.to(dtype), one.layout, one.guidance
    if dtype != torch.float64:
        guidance = guidance.float()
    for windows, ratio in schedule:
        plan = plan_stage(layout.occupancy, windows, float(ratio))
        done = compressor(x, layout, plan, guidance)
        yield x, layout, plan, guidance, done
        x, layout, guidance = done.hidden_states, done.layout, guidance[done.kept]


@every_matcher
@every_backend
@given(
    tiles=samples,
    schedule=schedules,
    seed=seeds,
    kind=kinds,
    prompt=prompts,
    message=st.sampled_from([*MESSAGES]),
    dtype=st.sampled_from(DTYPES),
)
@repeatable(40)
def test_laws_of_every_stage(
    tiles: Tiles,
    schedule: Schedule,
    seed: int,
    kind: str,
    prompt: str,
    message: str,
    dtype: torch.dtype,
    scatter: str,
    matcher: str,
) -> None:
    one = batch(tiles, seed, kind, prompt)
    torch.manual_seed(seed)
    compressor = made(scatter, message, matcher)
    for x, before, plan, _, done in run(compressor, one, schedule, dtype):
        assert done.hidden_states.dtype == dtype
        check_counts(before, plan, done)
        check_windows(before, plan.windows, done)
        check_weights(done)
        check_hull(x, done)
        if plan.ratio == 0:
            assert torch.equal(done.hidden_states, x)


@every_backend
@given(tiles=samples, schedule=schedules, seed=seeds, kind=kinds, prompt=prompts)
@repeatable(40)
def test_messages_equal_the_loop(
    tiles: Tiles, schedule: Schedule, seed: int, kind: str, prompt: str, scatter: str
) -> None:
    one = batch(tiles, seed, kind, prompt)
    for name in MESSAGES:
        stages = run(made(scatter, name), one, schedule, torch.float64)
        for x, before, _, guidance, done in stages:
            edges = done.graph["vision", "merges_into", "vision"].edge_index.t().tolist()
            tokens = tokens_of(x, before)
            expected = pass_messages(tokens, [(s, d) for s, d in edges], guidance.tolist(), name)
            assert done.kept.tolist() == expected.kept
            assert done.survivor.tolist() == expected.survivor
            assert done.layout.mass.tolist() == [token.mass for token in expected.tokens]
            rows = torch.tensor([token.x for token in expected.tokens], dtype=torch.float64)
            torch.testing.assert_close(
                done.hidden_states, rows.reshape(done.hidden_states.shape), rtol=1e-10, atol=1e-12
            )


@every_backend
@given(tiles=samples, windows=st.integers(1, 7), ratio=st.sampled_from(RATIOS), seed=seeds)
@repeatable(80)
def test_a_first_stage_equals_the_loop(
    tiles: Tiles, windows: int, ratio: Fraction, seed: int, scatter: str
) -> None:
    """Matching and all; features without ties, which few digits would break in another way."""
    one = batch(tiles, seed)
    ((x, layout, _, guidance, done),) = run(made(scatter), one, [(windows, ratio)], torch.float64)
    expected = run_stage(tokens_of(x, layout), layout.grids, windows, ratio, guidance.tolist())
    edges = done.graph["vision", "merges_into", "vision"].edge_index.t().tolist()
    assert edges == [list(edge) for edge in expected.edges]
    rows = torch.tensor([token.x for token in expected.tokens], dtype=torch.float64)
    torch.testing.assert_close(
        done.hidden_states, rows.reshape(done.hidden_states.shape), rtol=1e-10, atol=1e-12
    )


@every_matcher
@given(
    tiles=samples,
    schedule=schedules,
    seed=seeds,
    kind=kinds,
    dtype=st.sampled_from(DTYPES),
)
@repeatable(25)
def test_the_same_input_gives_the_same_bits(
    tiles: Tiles, schedule: Schedule, seed: int, kind: str, dtype: torch.dtype, matcher: str
) -> None:
    """Random matching too, where torch's generator is seeded."""
    one, found = batch(tiles, seed, kind), []
    for _ in range(2):
        torch.manual_seed(seed)
        stages = run(made("torch", matcher=matcher), one, schedule, dtype)
        found.append([(done.hidden_states, done.survivor) for *_, done in stages])
    for first, second in zip(*found, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("matcher", [name for name in MATCHERS if name != "random_matching"])
@given(
    tiles=samples,
    schedule=schedules,
    seed=seeds,
    order=st.permutations(range(3)),
)
@repeatable(40)
def test_the_order_of_samples_does_not_matter(
    tiles: Tiles, schedule: Schedule, seed: int, order: list[int], matcher: str
) -> None:
    one = batch(tiles, seed)
    other, before = reordered(one, [sample for sample in order if sample < len(tiles)])
    pairs = zip(
        run(made("torch", matcher=matcher), one, schedule, torch.float64),
        run(made("torch", matcher=matcher), other, schedule, torch.float64),
        strict=True,
    )
    for (*_, here), (*_, there) in pairs:
        moved = before[there.kept]  # rows of the first batch before the stage
        assert torch.equal(moved.sort().values, here.kept)
        before = here.survivor[moved]
        assert torch.equal(there.layout.mass, here.layout.mass[before])
        torch.testing.assert_close(
            there.hidden_states, here.hidden_states[before], rtol=1e-12, atol=1e-12
        )


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 3), st.integers(1, 6)),
    groups=st.integers(1, 2),
    seed=seeds,
    scale=st.sampled_from([0.0, 1.0, 1e3]),
    kind=st.sampled_from([kind for kind in GUIDANCE if kind != "none"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@repeatable(150)
def test_guidance_is_shared_out(
    sizes: tuple[int, ...], groups: int, seed: int, scale: float, kind: str, dtype: torch.dtype
) -> None:
    """Every text token and head has one unit, also where logits are a thousand; as in the loop."""
    samples, heads, text, vision = sizes
    generator = torch.Generator().manual_seed(seed)
    tokens = text + vision
    shape = samples, heads * groups, tokens, 2
    query = torch.randn(shape, generator=generator, dtype=dtype)
    key = torch.randn(samples, heads, *shape[2:], generator=generator, dtype=dtype)
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(samples)])
    real = torch.randint(1, vision + 1, (samples, 1), generator=generator)
    said = torch.randint(min(text, 1), text + 1, (samples, 1), generator=generator)
    block = GuidanceBlock(
        query,
        key,
        order[:, :vision].contiguous(),
        order[:, vision:].contiguous(),
        torch.arange(vision) < real,
        torch.arange(text) < said,
        scale,
    )
    found = prompt_guidance(block, kind).weight.exp()  # type: ignore[arg-type]
    assert bool(found.isfinite().all())
    for number, row in enumerate(found):
        seen, heard = int(real[number]), int(said[number])
        units = heads * groups * (min(heard, 1) if kind == "last_token" else heard)
        if text:
            assert float(row[:seen].sum()) == pytest.approx(units, rel=1e-4)
        expected = guidance_of(
            kind,
            query[number].tolist(),
            key[number].tolist(),
            block.vision[number, :seen].tolist(),
            block.text[number, :heard].tolist(),
            scale,
        )
        if scale < 1e3 or dtype == torch.float64:
            assert row[:seen].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
