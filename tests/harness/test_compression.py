"""What is at work costs what its books say, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from models import batch, prompt, tiny_llava

import lightkv_gnn as lk
from lightkv_gnn.harness.arguments import BASELINES, Arguments
from lightkv_gnn.harness.compression import at_work

INPUTS = batch(prompt("image", 6), prompt(3, "image", 2, "image", 4))


def logits(model):
    with torch.no_grad():
        return model(**INPUTS, use_cache=True).logits


def test_lightkv_is_what_attach_is():
    arguments = Arguments.of({"pretrained": "x", "schedule": "0:2:0.5+2:1:0.25", "message": "mean"})
    model = tiny_llava()
    plain = logits(model)
    with at_work(model, arguments) as books:
        found, cost, measuring = logits(model), books.cost(), books.measuring()
    stages = [lk.Stage(0, 2, 0.5), lk.Stage(2, 1, 0.25)]
    config = lk.LightKVConfig.for_model(model, stages=stages, message=lk.mean)
    with lk.attach(model, config) as handle:
        assert torch.equal(found, logits(model))
    totals = handle.ledger.totals()
    assert not torch.equal(found, plain)
    assert torch.equal(logits(model), plain)
    assert (cost.kv_bytes, cost.kv_bytes_full) == (totals["kv_bytes"], totals["kv_bytes_full"])
    assert cost.vision == sum(row.planned.vision_tokens for row in handle.ledger.rows)
    assert cost.vision_full == 3 * 16 * 6
    assert measuring == 0


def test_an_adapter_is_chosen_by_name():
    model = tiny_llava()
    arguments = Arguments.of({"pretrained": "x", "adapter": "llava"})
    with at_work(model, arguments):
        expected = logits(model)
    model.config.model_type = "my_vlm"
    with at_work(model, arguments):
        assert torch.equal(logits(model), expected)
    refused = pytest.raises(lk.UnsupportedModelError, match="no adapter for")
    with refused, at_work(model, Arguments.of({"pretrained": "x"})):
        pass


def test_a_retention_finds_its_schedule():
    model = tiny_llava()
    with at_work(model, Arguments.of({"pretrained": "x", "retention": 0.7})) as books:
        assert books.handle.config == lk.LightKVConfig.for_model(model, 0.7)


def test_the_uncompressed_twin_changes_no_bit():
    model = tiny_llava()
    plain = logits(model)
    with at_work(model, Arguments.of({"pretrained": "x", "lightkv_baseline": "none"})) as books:
        assert torch.equal(logits(model), plain)
        cost = books.cost()
    assert cost.vision == cost.vision_full
    assert cost.kv_bytes == cost.kv_bytes_full


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "none"])
def test_every_baseline_keeps_to_its_budget(name):
    model = tiny_llava()
    plain = logits(model)
    given = {"pretrained": "x", "lightkv_baseline": name, "retention": 0.7}
    with at_work(model, Arguments.of(given)) as books:
        for _ in range(2):
            compressed = logits(model)
            cost = books.cost()
            assert books.measuring() >= 0
        assert books.measuring() == 0
        assert not books.applied.compressor.losses  # else they would pile up over a benchmark
    assert cost.vision / cost.vision_full == pytest.approx(0.7, abs=0.08)
    assert cost.kv_bytes < cost.kv_bytes_full
    assert torch.equal(logits(model), plain)
    assert compressed.shape == plain.shape


def test_depth_says_where_a_baseline_begins():
    model = tiny_llava()
    given = {"pretrained": "x", "lightkv_baseline": "fastv", "retention": 0.7}
    for depth, first in (({}, 0), ({"depth": 2}, 2)):
        with at_work(model, Arguments.of(given | depth)) as books:
            assert books.handle.config.stages[0].layer == first
