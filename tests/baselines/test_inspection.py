"""What is measured of the tokens left is so, and measuring changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from models import IMAGE_TOKEN, batch, left_untouched, prompt, tiny_llava

from lightkv_gnn.baselines import METHODS, Budget
from lightkv_gnn.baselines.inspection import Inspection, effective_rank, entropy

PROMPTS = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1)]


def test_effective_rank_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 6, generator=generator)
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.eye(7)[:3].repeat(2, 1)) == pytest.approx(3)
    assert effective_rank(x[:1] * torch.arange(1.0, 5)[:, None]) == pytest.approx(1, abs=1e-4)
    assert 1 < effective_rank(x) < 6
    assert effective_rank(7 * x) == pytest.approx(effective_rank(x))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert effective_rank(x @ turn) == pytest.approx(effective_rank(x), rel=1e-5)
    assert effective_rank(torch.zeros(3, 4)) == 0
    values = torch.tensor([4.0, 2.0, 2.0])  # shares 1/2, 1/4, 1/4
    assert effective_rank(torch.diag(values)) == pytest.approx(2 ** (3 / 2))


def test_entropy_is_of_shares() -> None:
    assert entropy(torch.ones(8)) == pytest.approx(math.log(8))
    assert entropy(torch.tensor([0.0, 3.0])) == 0
    assert entropy(torch.zeros(4)) == 0


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["none", "fastv", "random_cache"])
def test_the_tokens_left_are_looked_at(padding: str, name: str) -> None:
    model = tiny_llava(attention="eager")
    inputs = batch(*PROMPTS, padding=padding)
    plain = model(**inputs, output_hidden_states=True, output_attentions=True)
    with METHODS[name].applied(model, Budget.of(model, 0.7, 2)) as applied:
        inspection = Inspection(model, applied.handle)
        with inspection.of_prefill() as seen:
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        kept = applied.handle.trace.kept()
        config = applied.handle.config
    layer = config.stages[-1].layer + 1 if config.stages else 1
    assert len(seen.ranks) == len(seen.entropies) == 2
    vision = inputs["input_ids"] == IMAGE_TOKEN
    flat = plain.hidden_states[layer][vision]
    begin = 0
    for sample, rank in enumerate(seen.ranks):
        count = int(vision[sample].sum())
        own = kept[(kept >= begin) & (kept < begin + count)] if config.stages else None
        rows = flat[begin : begin + count] if own is None else flat[own]
        assert rank == pytest.approx(effective_rank(rows), rel=1e-4)
        begin += count
        if own is None:  # nothing has left, so that attention is as it was
            last = inputs["attention_mask"][sample].nonzero()[-1, 0]
            share = plain.attentions[layer][sample, :, last].mean(0)[vision[sample]]
            assert seen.entropies[sample] == pytest.approx(entropy(share), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["coverage", "coverage_mass"])
def test_entropy_is_of_attention_without_what_mass_adds(name: str) -> None:
    model = tiny_llava(attention="eager")
    inputs = batch(prompt(4, "image", 6))
    with METHODS[name].applied(model, Budget.of(model, 0.6, 0)) as applied:
        with Inspection(model, applied.handle).of_prefill() as seen:
            attentions = model(**inputs, output_attentions=True).attentions
        trace, config = applied.handle.trace, applied.handle.config
    mass = trace.survivor_of().bincount()
    share = attentions[config.stages[-1].layer + 1][0, :, -1]
    mass = torch.cat([torch.ones(4), mass[mass > 0], torch.ones(6)])
    plain = share if config.attention == "plain" else share / mass
    plain = plain / plain.sum(1, keepdim=True)
    assert mass.max() > 1
    assert seen.entropies == [pytest.approx(entropy(plain.mean(0)[4:-6]), rel=1e-4)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["ours", "elastic_cache_like", "visionzip_like"])
def test_looking_changes_nothing(name: str) -> None:
    """Answers are the same to the bit, and the model is as it was."""
    model = tiny_llava()
    inputs = batch(*PROMPTS)
    with left_untouched(model, inputs):
        answers = []
        for watched in (False, True):
            with METHODS[name].applied(model, Budget.of(model, 0.6, 0)) as applied:
                inspection = Inspection(model, applied.handle)
                if not watched:
                    answers.append(model(**inputs).logits)
                    continue
                with inspection.of_prefill() as seen:
                    answers.append(model(**inputs).logits)
        assert torch.equal(*answers)
        assert seen.seconds is not None
        assert seen.seconds > applied.method_seconds() > 0
    assert len(seen.entropies) == (0 if name == "elastic_cache_like" else 2)


@torch.no_grad()
def test_only_the_first_questions_are_looked_at() -> None:
    model = tiny_llava()
    inputs = batch(*PROMPTS)
    with METHODS["fastv"].applied(model, Budget.of(model, 0.6, 0)) as applied:
        inspection = Inspection(model, applied.handle, most=3)
        numbers = []
        for _ in range(3):
            with inspection.of_prefill() as seen:
                model(**inputs)
            numbers.append(len(seen.ranks))
            assert seen.seconds is not None
    assert numbers == [2, 1, 0]


@torch.no_grad()
def test_a_prefill_that_fails_leaves_no_hooks() -> None:
    model = tiny_llava()
    inputs = batch(*PROMPTS)

    def fails() -> None:
        with (
            METHODS["fastv"].applied(model, Budget.of(model, 0.6, 0)) as applied,
            Inspection(model, applied.handle).of_prefill(),
        ):
            model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})

    with left_untouched(model, inputs), pytest.raises(ValueError, match="image"):
        fails()
