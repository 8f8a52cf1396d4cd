"""The same seed, the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import batch, prompt, tiny_llava
from reference import require_torch_scatter

import lightkv_gnn as lk
from lightkv_gnn.stage.compressor import MATCHERS

INPUTS = batch(prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1))
STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """PyTorch refuses what gives other bits at times."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def logits(model: Any, **options: Any) -> torch.Tensor:
    """Of every step of an attached ``generate``."""
    with lk.attach(model, lk.LightKVConfig(STAGES, **options)):
        asked = {"max_new_tokens": 4, "do_sample": False}
        out = model.generate(**INPUTS, **asked, return_dict_in_generate=True, output_logits=True)
    return torch.stack(out.logits)


@pytest.mark.parametrize("scatter", ["torch", "torch_scatter"])
@pytest.mark.parametrize("positions", ["preserve", "reindex"])
@pytest.mark.parametrize("matcher", [name for name in MATCHERS if name != "random_matching"])
@pytest.mark.usefixtures("deterministic")
def test_generating_in_deterministic_mode(matcher: str, positions: str, scatter: str) -> None:
    if scatter == "torch_scatter":
        require_torch_scatter()
    model = tiny_llava()
    options = {"matcher": MATCHERS[matcher], "positions": positions, "scatter": scatter}
    first, again = logits(model, **options), logits(tiny_llava(), **options)
    assert torch.equal(first, again)
    torch.use_deterministic_algorithms(False)
    assert torch.equal(logits(model, **options), first)


@pytest.mark.usefixtures("deterministic")
def test_training_in_deterministic_mode() -> None:
    found = []
    labels = INPUTS["input_ids"].clone()
    labels[:, :-2] = -100
    for _ in range(2):
        model = tiny_llava()
        with lk.attach(model, lk.LightKVConfig(STAGES)):
            model(**INPUTS, labels=labels).loss.backward()
        found.append([weight.grad for weight in model.model.language_model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert any(bool(grad.any()) for grad in found[0])


def test_random_matching_follows_the_seed() -> None:
    model, found = tiny_llava(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(logits(model, matcher=lk.graphs.random_matching))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("matcher", MATCHERS)
def test_only_random_matching_draws_numbers(matcher: str) -> None:
    """Sampling goes on as without compression."""
    model = tiny_llava()
    torch.manual_seed(0)
    logits(model, matcher=MATCHERS[matcher])
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state) == (matcher != "random_matching")
