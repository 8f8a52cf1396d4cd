"""Every family with flash attention, by its calling conventions, answers as with sdpa.

But for PaliGemma, to which transformers' flash attention gives other answers than its sdpa.
"""

from __future__ import annotations

import pytest
import torch
from flash_stand_in import flash_on_cpu
from models import near
from torch import Tensor

import lightkv_gnn as lk
from families.inputs import batch
from families.models import FAMILIES, tiny
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
