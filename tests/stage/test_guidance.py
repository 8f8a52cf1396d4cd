"""Prompt guidance equals a loop over heads and tokens, whatever the padding and the chunking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import guidance_of
from torch import Tensor
from torch._subclasses import FakeTensorMode

import lightkv_gnn.stage.guidance
from lightkv_gnn.stage.guidance import (
    GUIDANCE,
    GuidanceBlock,
    attention_logits,
    prompt_guidance,
    share_of_text,
    text_logits,
    text_shares,
    total_share,
    unrotated,
)

SEQUENCE = 12
VISION = ((1, 2, 3, 4, 5), (0, 1, 7), (3, 4, 6, 8))
TEXT = ((0, 6, 7, 8), (2, 3, 4, 5, 6, 9), (0,))
SCALING = 0.7
FROM_TEXT = [kind for kind in GUIDANCE if kind != "none"]


def padded(positions: tuple[tuple[int, ...], ...], extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, positions)) + extra
    rows = [[*row, *[SEQUENCE - 1] * (width - len(row))] for row in positions]
    mask = [[number < len(row) for number in range(width)] for row in positions]
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool)


def block_of(
    heads: int = 4,
    shared: int = 2,
    dtype: torch.dtype = torch.float64,
    text: tuple[tuple[int, ...], ...] = TEXT,
    vision: tuple[tuple[int, ...], ...] = VISION,
    extra: int = 0,
) -> GuidanceBlock:
    """``heads`` query heads over ``shared`` key heads; padding points at the last position."""
    generator = torch.Generator().manual_seed(3)
    batch = len(vision)
    query = torch.randn(batch, heads, SEQUENCE, 6, dtype=torch.float64, generator=generator)
    key = torch.randn(batch, shared, SEQUENCE, 6, dtype=torch.float64, generator=generator)
    vision_index, vision_mask = padded(vision, extra)
    text_index, text_mask = padded(text, extra)
    return GuidanceBlock(
        query=query.to(dtype),
        key=key.to(dtype),
        vision=vision_index,
        text=text_index,
        vision_mask=vision_mask,
        text_mask=text_mask,
        scaling=SCALING,
    )


def expected(block: GuidanceBlock, kind: str) -> list[Tensor]:
    """Logarithms of the real tokens' weights, sample by sample, from the reference."""
    return [
        torch.tensor(
            guidance_of(
                kind,
                block.query[sample].double().tolist(),
                block.key[sample].double().tolist(),
                block.vision[sample][block.vision_mask[sample]].tolist(),
                block.text[sample][block.text_mask[sample]].tolist(),
                block.scaling,
            ),
            dtype=torch.float64,
        ).log()
        for sample in range(len(block.vision))
    ]


def real(weight: Tensor, block: GuidanceBlock) -> list[Tensor]:
    return [row[mask] for row, mask in zip(weight, block.vision_mask, strict=True)]


@pytest.mark.parametrize(("heads", "shared"), [(1, 1), (3, 3), (4, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("kind", GUIDANCE)
def test_equals_the_reference(kind: str, heads: int, shared: int) -> None:
    block = block_of(heads, shared)
    guidance = prompt_guidance(block, kind)
    assert guidance.weight.shape == block.vision.shape
    for weight, wanted in zip(real(guidance.weight, block), expected(block, kind), strict=True):
        torch.testing.assert_close(weight.double(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", GUIDANCE)
def test_half_precision_is_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    block = block_of(dtype=dtype)
    weight = prompt_guidance(block, kind).weight
    upcast = replace(block, query=block.query.float(), key=block.key.float())
    assert weight.dtype == torch.float32
    assert torch.equal(weight, prompt_guidance(upcast, kind).weight)
    for row, wanted in zip(real(weight, block), expected(block, kind), strict=True):
        torch.testing.assert_close(row.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FROM_TEXT)
def test_every_head_and_text_token_hands_out_one_unit(kind: str) -> None:
    block = block_of(heads=4)
    guidance = prompt_guidance(block, kind)
    last = torch.tensor([[True]] * 3)
    text_mask = last if kind == "last_token" else block.text_mask
    by_text = guidance.by_text.exp() * block.vision_mask[:, None, :]
    assert by_text.sum(2)[text_mask].tolist() == pytest.approx([4.0] * int(text_mask.sum()))
    total = (by_text * text_mask[:, :, None]).sum(1)
    torch.testing.assert_close(total, guidance.weight.exp() * block.vision_mask)


@pytest.mark.parametrize("kind", GUIDANCE)
@pytest.mark.parametrize("extra", [1, 9])
def test_padding_changes_nothing(kind: str, extra: int) -> None:
    narrow, wide = block_of(), block_of(extra=extra)
    wide.query[:, :, -1] = wide.key[:, :, -1] = torch.nan  # what padding points at
    before, after = (real(prompt_guidance(block, kind).weight, block) for block in (narrow, wide))
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", GUIDANCE)
def test_a_sample_alone_is_as_in_its_batch(kind: str) -> None:
    together = block_of()
    rows = real(prompt_guidance(together, kind).weight, together)
    for sample, row in enumerate(rows):
        names = ("query", "key", "vision", "text", "vision_mask", "text_mask")
        part = {name: getattr(together, name)[sample : sample + 1] for name in names}
        alone = replace(together, **part)
        torch.testing.assert_close(real(prompt_guidance(alone, kind).weight, alone)[0], row)


@pytest.mark.parametrize("kind", FROM_TEXT)
@pytest.mark.parametrize("chunk", [1, 50, 90, 130])
def test_chunks_change_nothing(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block = block_of()
    whole = prompt_guidance(block, kind)
    monkeypatch.setattr(lightkv_gnn.stage.guidance, "CHUNK", chunk)
    widths = []

    def watched(text: Tensor, *args: Any) -> Tensor:
        widths.append(text.shape[2])
        return text_logits(text, *args)

    monkeypatch.setattr(lightkv_gnn.stage.guidance, "text_logits", watched)
    parts = prompt_guidance(block, kind)
    columns = 1 if kind == "last_token" else 6
    assert sum(widths) == 3 * columns  # sample by sample
    assert max(widths) == min(columns, max(1, chunk // (4 * 5)))
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.by_text, whole.by_text, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", FROM_TEXT)
def test_a_sample_without_text_is_guided_equally(kind: str) -> None:
    block = block_of(text=(TEXT[0], (), TEXT[2]))
    rows = real(prompt_guidance(block, kind).weight, block)
    assert len(set(rows[1].tolist())) == 1
    for sample in (0, 2):
        torch.testing.assert_close(rows[sample].double(), expected(block, kind)[sample])


@pytest.mark.parametrize("kind", GUIDANCE)
def test_no_text_in_the_whole_batch(kind: str) -> None:
    guidance = prompt_guidance(block_of(text=((), (), ())), kind)
    assert guidance.by_text is None
    assert not guidance.weight.any()


@pytest.mark.parametrize("kind", GUIDANCE)
def test_a_sample_without_pictures_disturbs_no_other(kind: str) -> None:
    block = block_of(vision=(VISION[0], (), VISION[2]))
    rows = real(prompt_guidance(block, kind).weight, block)
    for sample in (0, 2):
        torch.testing.assert_close(rows[sample].double(), expected(block, kind)[sample])


@pytest.mark.parametrize("kind", GUIDANCE)
def test_no_pictures_in_the_whole_batch(kind: str) -> None:
    assert prompt_guidance(block_of(vision=((), (), ())), kind).weight.shape == (3, 0)


@pytest.mark.parametrize("kind", FROM_TEXT)
def test_weights_neither_vanish_nor_overflow(kind: str) -> None:
    """With one head and one text token, logarithms differ exactly as the logits do."""
    block = block_of(1, 1, text=((0,), (2,), (0,)))
    block = replace(block, scaling=500.0)
    query, key = block.vision_query, block.text_key
    if kind != "vision_to_text":
        query, key = block.vision_key, block.text_query
    logits = 500.0 * (query * key).sum(-1)[:, 0]
    assert (logits[0].max() - logits[0].min()).abs() > 745  # beyond exp() in float64
    for row, wanted in zip(
        real(prompt_guidance(block, kind).weight, block), real(logits, block), strict=True
    ):
        torch.testing.assert_close(row - row[0], wanted - wanted[0], rtol=1e-10, atol=1e-9)


def test_last_token_is_text_to_vision_of_the_last_text_token() -> None:
    last = tuple(row[-1:] for row in TEXT)
    one = prompt_guidance(block_of(text=last), "text_to_vision").weight
    torch.testing.assert_close(prompt_guidance(block_of(), "last_token").weight, one)


def test_a_callable_gives_weights_in_any_unit() -> None:
    block = block_of(dtype=torch.float32)
    weight = torch.arange(15.0).reshape(3, 5)
    guidance = prompt_guidance(block, lambda given: weight if given is block else None)
    assert guidance.by_text is None
    assert torch.equal(guidance.weight, weight.log())
    assert guidance.weight[0, 0] == -torch.inf


def test_a_callable_can_repeat_the_default() -> None:
    block = block_of()

    def repeat(given: GuidanceBlock) -> Tensor:
        logits = attention_logits(given.vision_query, given.text_key, given.scaling)
        by_text = share_of_text(logits.transpose(2, 3), given.vision_mask)
        return total_share(by_text, given.text_mask).exp()

    ours, theirs = (prompt_guidance(block, kind).weight for kind in ("vision_to_text", repeat))
    for first, second in zip(real(ours, block), real(theirs, block), strict=True):
        torch.testing.assert_close(first.float(), second.float())


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_shares_that_float32_cannot_hold_are_kept_apart(spread: float) -> None:
    logits = spread * torch.randn(2, 3, 4, 7)
    mask = torch.arange(7) < torch.tensor([[7], [5]])
    found = share_of_text(logits, mask)
    exact = logits.double().masked_fill(~mask[:, None, None], -torch.inf)
    exact = exact.log_softmax(3).logsumexp(1)
    real = mask[:, None].expand_as(found)
    torch.testing.assert_close(found[real].double(), exact[real], rtol=1e-5, atol=1e-5)
    assert found.isfinite().all()


def test_what_is_asked_is_not_written_to() -> None:
    block = block_of()
    query, key = block.query.clone(), block.key.clone()
    for kind in FROM_TEXT:
        by_text = prompt_guidance(block, kind).by_text
        assert by_text is not None
        before = by_text.clone()
        total_share(by_text, torch.ones_like(by_text[:, :, 0], dtype=torch.bool))
        total_share(by_text)
        assert torch.equal(by_text, before)
    assert torch.equal(block.query, query)
    assert torch.equal(block.key, key)
    logits, total = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 1)
    given = logits.clone(), total.clone()
    share_of_text(logits, torch.arange(5) < torch.tensor([[5], [2]]))
    share_of_text(logits, total=total)
    assert torch.equal(logits, given[0])
    assert torch.equal(total, given[1])


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (2, 3, 4, 0), (0, 3, 4, 5), (1, 3, 0, 0)], ids=str)
def test_shares_of_nothing(shape: tuple[int, ...]) -> None:
    batch, heads, texts, visions = shape
    by_text = share_of_text(torch.randn(shape))
    assert by_text.shape == (batch, texts, visions)
    given = share_of_text(torch.randn(shape), total=torch.randn(*shape[:3], 1))
    assert given.shape == by_text.shape
    text, vision = (torch.randn(batch, heads, size, 6) for size in (texts, visions))
    assert text_shares(text.half(), vision.half(), 1.0).shape == by_text.shape
    assert text_shares(text.half(), vision.half(), 1.0).dtype == torch.float32
    total = total_share(by_text, torch.ones(batch, texts, dtype=torch.bool))
    assert total.shape == (batch, visions)
    assert bool((total == -torch.inf).all()) or texts > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_place(bad: float) -> None:
    by_text = torch.randn(1, 3, 4).double()
    expected = by_text.logsumexp(1)
    by_text[0, 1, 2] = bad
    found = total_share(by_text)
    assert torch.equal(found.isnan(), torch.zeros_like(found, dtype=torch.bool))
    others = [0, 1, 3]
    torch.testing.assert_close(found[:, others], expected[:, others])
    rest = by_text[:, [0, 2], 2].logsumexp(1)
    if bad != torch.inf:
        torch.testing.assert_close(found[:, 2], rest)
    heard = torch.tensor([[True, False, True]])
    masked = total_share(by_text, heard)
    torch.testing.assert_close(masked, by_text[:, [0, 2]].logsumexp(1))
    by_text[:] = bad
    assert total_share(by_text).isfinite().all()


def test_a_callable_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\]: expected \[batch, vision\] = \[3, 5\]"):
        prompt_guidance(block_of(), lambda block: torch.ones(3))


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
def test_a_callable_of_impossible_weights(bad: float) -> None:
    weight = torch.ones(3, 5)
    weight[0, 0] = bad
    with pytest.raises(ValueError, match="negative or not finite"):
        prompt_guidance(block_of(), lambda block: weight)


def test_a_nan_among_the_queries_gets_no_share() -> None:
    block = block_of()
    expected = prompt_guidance(block, "vision_to_text").weight.exp()
    token = int(block.vision[0, 1])
    query = block.query.clone()
    query[0, :, token] = torch.nan
    found = prompt_guidance(replace(block, query=query), "vision_to_text").weight.exp()
    assert found[0, 1] == 0
    assert found[0, 0] > expected[0, 0]
    torch.testing.assert_close(found[1:], expected[1:])


def test_a_misspelled_kind() -> None:
    with pytest.raises(ValueError, match="guidance is 'text_to_vison': expected one of"):
        prompt_guidance(block_of(), "text_to_vison")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FROM_TEXT)
def test_gradients(kind: str) -> None:
    block = block_of(heads=2, shared=1)

    def weight(query: Tensor, key: Tensor) -> Tensor:
        out = prompt_guidance(replace(block, query=query, key=key), kind).weight
        return out[block.vision_mask]

    inputs = (block.query.clone().requires_grad_(), block.key.clone().requires_grad_())
    assert torch.autograd.gradcheck(weight, inputs, fast_mode=True)


@pytest.mark.parametrize("kind", GUIDANCE)
def test_nothing_is_read_back(kind: str) -> None:
    """Fake tensors have shapes and no values: reading one raises."""
    block = block_of(dtype=torch.float16)
    names = ("query", "key", "vision", "text", "vision_mask", "text_mask")
    with FakeTensorMode() as mode:
        fake = replace(block, **{name: mode.from_tensor(getattr(block, name)) for name in names})
        assert prompt_guidance(fake, kind).weight.shape == (3, 5)


@pytest.mark.parametrize(("rotary", "attention_scaling"), [(8, 1.0), (8, 1.3), (4, 1.0)])
def test_unrotated_undoes_the_rotary_embedding(rotary: int, attention_scaling: float) -> None:
    """Channels c and c + rotary / 2 are the two parts of a complex number that turns."""
    batch, heads, length, channels = 2, 3, 5, 8
    states = torch.randn(batch, heads, length, channels, dtype=torch.float64)
    angle = 9 * torch.rand(batch, length, rotary // 2, dtype=torch.float64)
    number = torch.complex(states[..., : rotary // 2], states[..., rotary // 2 : rotary])
    turned = attention_scaling * number * torch.polar(torch.ones_like(angle), angle)[:, None]
    rotated = torch.cat([turned.real, turned.imag, states[..., rotary:]], dim=-1)
    cos, sin = (
        attention_scaling * torch.cat([part, part], dim=-1) for part in (angle.cos(), angle.sin())
    )
    torch.testing.assert_close(unrotated(rotated, (cos, sin)), states)
    assert not torch.allclose(rotated, states)


@pytest.mark.parametrize("kind", ["vision_to_text", "text_to_vision"])
def test_capped_logits_are_capped_one_by_one(kind: str) -> None:
    """As Gemma 2 caps them; the block's own logits, capped by hand, give the same weights."""
    block = block_of()
    capped = prompt_guidance(replace(block, softcap=0.5), kind)
    query, key = block.vision_query, block.text_key
    if kind == "text_to_vision":
        query, key = block.text_query, block.vision_key
    logits = attention_logits(query, key, SCALING)
    by_hand = 0.5 * torch.tanh(logits / 0.5)
    if kind == "vision_to_text":
        by_hand = by_hand.transpose(2, 3)
    expected = total_share(share_of_text(by_hand, block.vision_mask), block.text_mask)
    torch.testing.assert_close(capped.weight, expected)
    plain = prompt_guidance(block, kind).weight
    assert not torch.allclose(capped.weight, plain)
