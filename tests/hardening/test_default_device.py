"""Sizes stay on the host whatever torch's default device is, which users set for whole programs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import batch, prompt, tiny_llava

import lightkv_gnn as lk

INPUTS = batch(prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1))
STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
CONFIGS: list[dict[str, Any]] = [
    {"matcher": "coverage", "attention": "mass"},
    {"guidance": "last_token", "positions": "reindex"},
    {"matcher": "random", "message": lk.mean},
]


@pytest.mark.parametrize("options", CONFIGS)
def test_the_default_device_does_not_matter(options):
    """On "meta" nothing has numbers: what is made there by mistake cannot go unseen."""
    model = tiny_llava()
    config = lk.LightKVConfig(STAGES, **options)

    def asked() -> tuple[torch.Tensor, Any]:
        torch.manual_seed(0)
        with lk.attach(model, config) as handle:
            said = model.generate(**INPUTS, max_new_tokens=3, do_sample=False)
        trace = handle.trace
        return said, (trace.survivor_of(), trace.share(), handle.ledger.totals()["kv_bytes"])

    said, (survivors, shares, size) = asked()
    with torch.device("meta"):
        again, (others, weights, other_size) = asked()
    assert torch.equal(said, again)
    assert torch.equal(survivors, others)
    assert torch.equal(shares, weights)
    assert size == other_size
