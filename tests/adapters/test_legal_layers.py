"""After which layers a stage may run, and where sliding windows alternate with full attention."""

from __future__ import annotations

import pytest
import torch
from families.inputs import Picture, alone, batch, truths
from families.loop import FamilyLoop
from families.models import FAMILIES, LAYERS, tiny
from models import left_untouched, near

import lightkv_gnn as lk

LEGAL = {"gemma3": [1, 3], "qwen3_vl": [1, 2, 3, 4]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_others_are_refused(family: str) -> None:
    model, legal = tiny(family), LEGAL.get(family, list(range(LAYERS - 1)))
    assert list(lk.adapter_for(model).legal_layers) == legal
    for layer in range(LAYERS + 1):
        config = lk.LightKVConfig([lk.Stage(layer, 1)])
        if layer in legal:
            lk.attach(model, config).remove()
        else:
            with pytest.raises(lk.ScheduleError, match=f"after layer {layer}, .*may run after"):
                lk.attach(model, config)


@pytest.mark.parametrize("family", FAMILIES)
def test_found_schedules_are_legal(family: str) -> None:
    model = tiny(family)
    lk.attach(model, lk.LightKVConfig.for_model(model, 0.6)).remove()


def test_sliding_layers_are_named() -> None:
    model = tiny("gemma3")
    inputs = batch("gemma3", model, (4,))
    refused = pytest.raises(lk.ScheduleError, match=r"after layer 2, .*may run after layers 1, 3")
    with left_untouched(model, inputs), refused:
        lk.attach(model, lk.LightKVConfig([lk.Stage(2, 1)]))


@torch.no_grad()
def test_gemma_within_its_window() -> None:
    model = tiny("gemma3", text={"sliding_window": 96})
    prompts = [(3, Picture(), 2, Picture(), 5), (4, Picture(), 1)]
    stages = ((1, 2, 0.5), (3, 1, 0.5))
    config = lk.LightKVConfig([lk.Stage(*stage) for stage in stages])
    with lk.attach(model, config):
        logits = model(**batch("gemma3", model, *prompts)).logits
    singles = alone("gemma3", model, *prompts)
    for own, prompt, (where, single) in zip(logits, prompts, singles, strict=True):
        tiles = [tile for tiles in truths("gemma3", model, prompt) for tile in tiles]
        near(own[where], FamilyLoop(model, "gemma3", stages).run(single, tiles))
