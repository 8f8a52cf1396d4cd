"""Every family with flash attention, by its calling conventions, answers as with sdpa.

But for PaliGemma, to which transformers' flash attention gives other answers than its sdpa.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flash_stand_in import flash_on_cpu
from marks import full
from models import near
from torch import Tensor

import lightkv_gnn as lk
from families.inputs import batch
from families.models import FAMILIES, tiny
from families.more import MORE, RECIPES, model_of
from families.more_inputs import samples, together
from families.test_more_families import config_of
from families.test_table import generate, prompts_of, stages_of

# Flash attention would count Gemma 3's windows in merged tokens: here they hold whole prompts.
ROOMY = {"gemma3": {"text": {"sliding_window": 256}}}


def answers(family: str, attention: str) -> tuple[Tensor, Tensor]:
    """Logits of a ragged batch where tokens are real, and those of eight steps."""
    model = tiny(family, attention, **ROOMY.get(family, {}))
    inputs = batch(family, model, *prompts_of(family, "ragged"))
    inputs.pop("token_type_ids", None)  # with them Gemma 3 sees both ways, but not with flash
    config = lk.LightKVConfig([lk.Stage(*stage) for stage in stages_of(model)])
    with lk.attach(model, config) as handle:
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
        out = generate(model, inputs)
        assert len(handle.trace) == 2
    return logits, torch.stack(out.logits)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "paligemma"])
@torch.no_grad()
def test_flash_answers_like_sdpa(family: str) -> None:
    if not tiny(family)._supports_flash_attn:  # Gemma 3 since transformers 5.24
        with flash_on_cpu(), pytest.raises(ValueError, match="does not support Flash Attention"):
            tiny(family, "flash_attention_2")
        return
    expected = answers(family, "sdpa")
    with flash_on_cpu():
        found = answers(family, "flash_attention_2")
    for one, other in zip(found, expected, strict=True):
        near(one, other)


QUICK = ("lfm3_vl",)
"""It has layers that hold a state."""

ELSEWHERE = (
    *("lfm2_vl", "deepseek_vl_hybrid", "fast_vlm", "granite4_vision", "got_ocr2"),
    "pp_chart2table",
)
"""Their text models have flash attention, and parts of their towers have not."""

ROUNDED = {"muse_spark": 8, "minicpmv4_6": 2}
"""Uncompressed, too, the backends differ by more."""


@pytest.mark.parametrize(
    "family",
    [name for name in MORE if name in QUICK] + full(*(name for name in MORE if name not in QUICK)),
)
@torch.no_grad()
def test_further_families_answer_with_flash_as_with_sdpa(family: str) -> None:
    recipe = RECIPES[family][0]
    if not model_of(family)._supports_flash_attn and family not in ELSEWHERE:
        refused = pytest.raises((ValueError, ImportError), match=r"Flash Attention|kernels")
        with flash_on_cpu(), refused:
            tiny(family, "flash_attention_2", recipe=replace(recipe, chooses=True))
        return
    recipe = replace(recipe, chooses=recipe.chooses and family not in ELSEWHERE)
    found = []
    for attention in ("sdpa", "flash_attention_2"):
        with flash_on_cpu():
            model = tiny(family, attention, recipe=recipe, text={"sliding_window": 256})
            both = together(samples(family, model))
            with lk.attach(model, config_of(model, 0.5, 0.25)) as handle:
                logits = model(**both).logits[both["attention_mask"].bool()]
                out = generate(model, both)
                assert len(handle.trace) == 2
        found.append((logits, torch.stack(out.logits)))
    for one, other in zip(*found, strict=True):
        near(one, other, 2e-5 * ROUNDED.get(family, 1))
