"""What the text attends to, from few rows, equals the softmax of the whole matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import batch, prompt, tiny_llava
from torch import Tensor

from lightkv_gnn.baselines.attention import (
    attention_to_vision,
    last_token_attention,
    text_attention,
)
from lightkv_gnn.baselines.elastic_cache import received
from lightkv_gnn.baselines.sparsevlm import rated
from lightkv_gnn.stage import guidance
from lightkv_gnn.stage.guidance import GuidanceBlock

TOKENS = 14
VISION = [[2, 3, 4, 5, 6], [7, 8, 9]]
TEXT = [[0, 1, 7, 8, 9, 10, 11, 12, 13], [4, 5, 6, 10, 11, 12, 13]]


def block_of(softcap: float | None = None, seed: int = 0) -> GuidanceBlock:
    """Two samples, the second one after four tokens of padding; two heads share each key."""
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(2, 4, TOKENS, 8, generator=generator)
    key = torch.randn(2, 2, TOKENS, 8, generator=generator)

    def listed(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        index = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return index, torch.arange(width) < torch.tensor([[len(row)] for row in rows])

    (vision, vision_mask), (text, text_mask) = listed(VISION), listed(TEXT)
    return GuidanceBlock(query, key, vision, text, vision_mask, text_mask, 8**-0.5, softcap)


def whole(block: GuidanceBlock) -> Tensor:
    """The causal attention of all tokens, `[batch, head, token, token]`, padding left out."""
    logits = block.query @ block.key.repeat_interleave(2, 1).transpose(2, 3) * block.scaling
    if block.softcap is not None:
        logits = block.softcap * (logits / block.softcap).tanh()
    seen = torch.ones(TOKENS, TOKENS).tril().bool().expand(2, 1, -1, -1).clone()
    seen[1, :, :, :4] = False
    return logits.masked_fill(~seen, -torch.inf).softmax(3)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_probabilities_are_those_of_the_whole_matrix(softcap: float | None) -> None:
    block = block_of(softcap)
    full, chosen = whole(block), torch.tensor([[0, 3, 8], [6, 0, 3]])
    found = attention_to_vision(block, chosen)
    for sample in range(2):
        for query, column in enumerate(chosen[sample].tolist()):
            expected = full[sample, :, TEXT[sample][column]][:, VISION[sample]]
            number = len(VISION[sample])
            torch.testing.assert_close(found[sample, :, query, :number], expected)
            assert not found[sample, :, query, number:].any()
    assert not found[0, :, 0].any()  # a token before the picture does not see it


def test_the_last_token_of_each_sample() -> None:
    block = block_of()
    full, found = whole(block).mean(1), last_token_attention(block)
    for sample, vision in enumerate(VISION):
        torch.testing.assert_close(found[sample, : len(vision)], full[sample, -1, vision])


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_sums_over_raters_in_pieces(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "CHUNK", chunk)
    block = block_of()
    raters = torch.rand(2, 9, generator=torch.Generator().manual_seed(1))
    full, found = whole(block).mean(1), text_attention(block, raters)
    for sample, vision in enumerate(VISION):
        rows = full[sample, TEXT[sample]][:, vision]
        expected = (raters[sample, : len(TEXT[sample]), None] * rows).sum(0)
        torch.testing.assert_close(found[sample, : len(vision)], expected)


def test_text_that_is_padding_rates_nothing() -> None:
    block = block_of()
    padding = replace(block, text=torch.zeros(2, 3, dtype=torch.int64), vision=block.vision * 0)
    padding = replace(padding, text_mask=torch.zeros(2, 3, dtype=torch.bool))
    assert not text_attention(padding, torch.ones(2, 3)).any()


@pytest.mark.parametrize("seed", range(10))
def test_raters_are_the_text_that_the_picture_looks_for(seed: int) -> None:
    block = block_of(seed=seed)
    full = whole(block).mean(1)
    found = rated(block)
    logits = block.query @ block.key.repeat_interleave(2, 1).transpose(2, 3) * block.scaling
    for sample, vision in enumerate(VISION):
        looks = logits[sample][:, vision][:, :, TEXT[sample]].softmax(2).mean(0).mean(0)
        raters = [t for t, look in zip(TEXT[sample], looks, strict=True) if look >= looks.mean()]
        assert 0 < len(raters) < len(TEXT[sample])
        torch.testing.assert_close(
            found[sample, : len(vision)], full[sample, raters][:, vision].sum(0)
        )


@pytest.mark.parametrize("chunk", [1, 300, 2**24])
def test_what_keys_receive(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "CHUNK", chunk)
    block = block_of()
    real = torch.ones(2, TOKENS, dtype=torch.bool)
    real[1, :4] = False
    found = received(block.query, block.key, real, block.scaling)
    full = whole(block).mean(1).nan_to_num(0)
    torch.testing.assert_close(found, full.sum(1))
    assert found.sum(1).tolist() == pytest.approx([14, 10], rel=1e-5)


@torch.no_grad()
def test_it_is_the_attention_that_the_model_computes() -> None:
    """A listener in eager attention beside what the model returns."""
    from lightkv_gnn.baselines import METHODS, Budget

    model = tiny_llava(attention="eager")
    inputs = batch(prompt(3, "image", 5), prompt(2, "image", 2, "image", 4, seed=1))
    attentions = model(**inputs, output_attentions=True).attentions
    method = METHODS["elastic_cache_like"]
    with method.applied(model, Budget.of(model, 0.5, 0)) as applied:
        sums = {}
        kept = applied.shrinker.importance
        applied.shrinker.importance = lambda n, real: sums.setdefault(n, kept(n, real))
        model(**inputs)
    real = inputs["attention_mask"].bool()
    for layer, attention in enumerate(attentions):
        expected = (attention.mean(1) * real[:, :, None]).sum(1)
        torch.testing.assert_close(sums[layer][real], expected[real], rtol=1e-4, atol=1e-5)
