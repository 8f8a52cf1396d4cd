"""Further families with caches and positions of another kind than the usual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from marks import full
from models import near
from torch import Tensor

import lightkv_gnn as lk
from families.more import MORE
from families.more_inputs import together
from families.test_more_families import LIKE_OTHERS, LOOSE, config_of, given

QUICK = ("kimi_k25", "gemma4")
MASKED_OTHERWISE = "gemma4_unified"
"""With a static cache, transformers' generate masks its pictures otherwise, uncompressed too."""

NUMBERED = "hunyuan_vl"
"""It numbers the pictures of all samples of a batch, uncompressed too."""

every = pytest.mark.parametrize(
    "family",
    [name for name in MORE if name in QUICK]
    + full(*(name for name in MORE if name not in (*QUICK, *LIKE_OTHERS))),
)


def steps(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """Logits of two steps, `[step, sample, word]`."""
    usual = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    return torch.stack(model.generate(**inputs, max_new_tokens=2, **usual, **options).logits)


@every
@torch.no_grad()
def test_a_static_cache_answers_like_a_dynamic_one(family: str) -> None:
    model, singles = given(family)
    both = together(singles)
    with lk.attach(model, config_of(model, 0.5, 0.25)):
        expected = steps(model, both)
        near(steps(model, both, cache_implementation="static"), expected)


@pytest.mark.full
@pytest.mark.skipif(MASKED_OTHERWISE not in MORE, reason="is too old for it")
@torch.no_grad()
def test_a_static_cache_masks_pictures_otherwise_as_the_page_says() -> None:
    model, (single, _) = given(MASKED_OTHERWISE)
    static = steps(model, single, cache_implementation="static")
    assert not torch.allclose(static, steps(model, single), atol=1e-2)


@every
@torch.no_grad()
def test_closed_up_positions_of_a_batch_are_those_of_each_sample(family: str) -> None:
    if family == NUMBERED:
        pytest.skip("not even uncompressed")
    model, singles = given(family)
    with lk.attach(model, config_of(model, 0.5, 0.25, positions="reindex")):
        expected = steps(model, together(singles))
        for number, single in enumerate(singles):
            close = 2e-5 * LOOSE.get(family, 1)
            near(steps(model, single)[:, 0], expected[:, number], close)
