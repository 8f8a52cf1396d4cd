"""A compressor and matchers of one's own: used, asked for what they want, and checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import CACHE, batch, check_ledger, greedy, near, prompt, tiny_llava
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.stage.compressor import MATCHERS, TokenCompressor
from lightkv_graphs import (
    Matcher,
    Matching,
    PromptMatching,
    TokenLayout,
    WindowPartition,
    cosine_matching,
    coverage_matching,
    drop_lowest,
)

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
PROMPTS = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1)]


class Watching(TokenCompressor):
    """Notes what it is called with."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> Any:
        self.calls.append(args)
        return super().__call__(*args)


@torch.no_grad()
def test_the_compressor_that_is_passed_does_the_work() -> None:
    model, inputs = tiny_llava(), batch(*PROMPTS)
    config = lk.LightKVConfig(STAGES)
    mine = Watching(lk.mean)
    with lk.attach(model, config, compressor=mine):
        found = model(**inputs).logits
    assert [len(x) for x, *_ in mine.calls] == [48, 24]
    assert all(guidance is not None for *_, guidance in mine.calls)
    with lk.attach(model, config):
        assert not torch.equal(model(**inputs).logits, found)
    with lk.attach(model, lk.LightKVConfig(STAGES, message=lk.mean)):
        assert torch.equal(model(**inputs).logits, found)


@torch.no_grad()
def test_the_ledger_tells_how_messages_were_passed() -> None:
    model, inputs = tiny_llava(), batch(*PROMPTS)

    def pulled(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        return weight[:, None] * x_j

    for stages, message, fused, words in (
        (STAGES, lk.guided_mean, True, "messages fused, attention plain"),
        (STAGES, pulled, False, "messages one by one, attention plain"),
        ((), lk.guided_mean, None, " ms"),
    ):
        with lk.attach(model, lk.LightKVConfig(stages, message=message)) as handle:
            model(**inputs)
        assert handle.ledger.fused is fused
        assert handle.ledger.totals()["fused"] is fused
        assert str(handle.ledger).endswith(words)


@pytest.mark.parametrize("wrong", ["mean", lk.mean, TokenCompressor])
def test_something_else_is_refused(wrong: Any) -> None:
    model = tiny_llava()
    with pytest.raises(TypeError, match=r"compressor is .*: expected a TokenCompressor"):
        lk.attach(model, lk.LightKVConfig(STAGES), compressor=wrong)
    assert not model.model._forward_pre_hooks


def blind(x: Tensor, partition: WindowPartition) -> Matching:
    return cosine_matching(x, partition)


@torch.no_grad()
@pytest.mark.parametrize("guidance", ["vision_to_text", "none"])
def test_matchers_are_given_what_they_ask_for(guidance: Any) -> None:
    model, inputs = tiny_llava(), batch(*PROMPTS)
    given: list[tuple[Tensor, Tensor, TokenLayout]] = []

    def hearing(x: Tensor, partition: WindowPartition, guidance: Tensor) -> Matching:
        given.append((x, guidance, None))
        return cosine_matching(x, partition)

    def seeing(x: Tensor, partition: WindowPartition, layout: TokenLayout) -> Matching:
        given.append((x, None, layout))
        return cosine_matching(x, partition)

    def both(
        x: Tensor, partition: WindowPartition, layout: TokenLayout, guidance: Tensor
    ) -> Matching:
        given.append((x, guidance, layout))
        return cosine_matching(x, partition)

    found = []
    for matcher in (cosine_matching, blind, hearing, seeing, both):
        mine = Watching(lk.guided_mean, matcher)
        config = lk.LightKVConfig(STAGES, guidance=guidance, matcher=matcher)
        with lk.attach(model, config, compressor=mine):
            found.append(model(**inputs).logits)
        heard = [call[3] for call in mine.calls]
    assert all(torch.equal(logits, found[0]) for logits in found)
    assert len(given) == 6
    for number, (x, weight, layout) in enumerate(given):
        assert (weight is None) == (number in (2, 3))
        assert (layout is None) == (number in (0, 1))
        assert layout is None or len(layout) == len(x)
        if weight is not None and guidance == "none":
            assert not weight.any()
        elif weight is not None:
            near(weight, heard[number % 2])


def keeps_the_longest(x: Tensor, partition: WindowPartition) -> Matching:
    return drop_lowest(x.norm(dim=1), x, partition)


@torch.no_grad()
@pytest.mark.parametrize("matcher", [keeps_the_longest, coverage_matching], ids=["own", "coverage"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "stages", [[(1, 1, 0.9)], [(0, 2, 0.75), (3, 1, 0.6)], [(1, 3, 0.8)]], ids=str
)
def test_more_than_half_may_leave_where_nothing_alternates(
    attention: str, stages: list[tuple[int, int, float]], matcher: Matcher
) -> None:
    model = tiny_llava(attention=attention, side=6)
    prompts = [prompt(4, "image", 6, side=6), prompt(2, "image", 3, "image", 4, side=6, seed=1)]
    inputs = batch(*prompts, side=6)
    config = lk.LightKVConfig([lk.Stage(*stage) for stage in stages], matcher=matcher)
    with lk.attach(model, config) as handle:
        cache = model(**inputs)[CACHE]
        check_ledger(handle.ledger, cache)
        assert handle.ledger.rows[-1].planned.vision_tokens <= 0.3 * 3 * 36
        assert greedy(model, inputs, 4).shape == (2, 4)


ALTERNATE = {name: one for name, one in MATCHERS.items() if name != "coverage_matching"}


@pytest.mark.parametrize(
    "matcher", [*ALTERNATE.values(), PromptMatching(protect=0.3)], ids=[*ALTERNATE, "own"]
)
def test_matchers_that_alternate_take_half_at_most(matcher: Any) -> None:
    with pytest.raises(ValueError, match=r"ratio is 0.6, but .* every other token away at most"):
        lk.LightKVConfig([lk.Stage(1, 1, 0.6)], matcher=matcher)
    mine = TokenCompressor(matcher=matcher)
    config = lk.LightKVConfig([lk.Stage(1, 1, 0.6)], matcher=keeps_the_longest)
    model, inputs = tiny_llava(), batch(*PROMPTS)
    with (
        lk.attach(model, config, compressor=mine),
        pytest.raises(ValueError, match=r"ratio is 0.6, but"),
    ):
        model(**inputs)
