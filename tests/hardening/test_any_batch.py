"""Whatever prompts make up a batch, and whatever a schedule: each sample is as it is alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import (
    CACHE,
    LAYERS,
    alone,
    batch,
    cache_lengths,
    check_ledger,
    near,
    prompt,
    tiny_llava,
)
from strategies import RATIOS, repeatable, seeds
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.choices import GUIDANCE

prompts = st.lists(
    st.lists(st.one_of(st.integers(1, 7), st.just("image")), min_size=1, max_size=4),
    min_size=1,
    max_size=3,
)
schedules = st.dictionaries(
    st.integers(0, LAYERS - 2),
    st.tuples(st.integers(1, 4), st.sampled_from(RATIOS)),
    max_size=3,
).map(lambda found: [lk.Stage(n, w, float(ratio)) for n, (w, ratio) in sorted(found.items())])


@cache
def model_of(attention: str) -> Any:
    """Shared: attaching leaves no traces."""
    return tiny_llava(attention=attention)


@pytest.mark.parametrize(("attention", "positions"), [("sdpa", "reindex"), ("eager", "preserve")])
@given(
    parts=prompts,
    stages=schedules,
    padding=st.sampled_from(["left", "right"]),
    guidance=st.sampled_from(GUIDANCE),
    seed=seeds,
)
@repeatable(30)
@torch.no_grad()
def test_a_batch_is_its_samples(
    parts: list[list[int | str]],
    stages: list[lk.Stage],
    padding: str,
    guidance: str,
    seed: int,
    attention: str,
    positions: str,
) -> None:
    """Matching looks at no features here, so that no rounding decides who merges."""
    model = model_of(attention)
    given = [prompt(*own, seed=seed + n) for n, own in enumerate(parts)]
    inputs = batch(*given, padding=padding, seed=seed)
    config = lk.LightKVConfig(
        stages,
        guidance=guidance,  # type: ignore[arg-type]
        matcher=lk.graphs.stride_matching,
        positions=positions,  # type: ignore[arg-type]
    )
    with lk.attach(model, config) as handle:
        out = model(**inputs)
        if "pixel_values" in inputs:
            check_ledger(handle.ledger, out[CACHE])
        longest, steps = [0] * LAYERS, []
        for number, (where, single) in enumerate(alone(inputs, *given)):
            own = model(**single)
            near(out.logits[number, where], own.logits[0])
            longest = [*map(max, longest, cache_lengths(own[CACHE]))]
            steps.append(step(model, own[CACHE], single["attention_mask"]))
        assert cache_lengths(out[CACHE]) == longest
        if padding == "left":
            near(step(model, out[CACHE], inputs["attention_mask"]), torch.cat(steps))


def step(model: Any, cache: Any, mask: Tensor) -> Tensor:
    """Logits after one more token of each sample."""
    ids = torch.full((len(mask), 1), 5)
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return model(input_ids=ids, attention_mask=mask, **{CACHE: cache}).logits
