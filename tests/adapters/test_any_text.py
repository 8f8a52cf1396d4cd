"""Text models beside those of a family, with ``adapter="auto"``: right, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.inputs import PICTURES, batch
from families.loop_stock import hidden_from_layers, stock_steps
from families.models import IMAGE, LAYERS, WINDOW, tiny
from marks import full
from models import CACHE, check_ledger, left_untouched, near
from transformers import CONFIG_MAPPING

import lightkv_gnn as lk

STEPS = 3
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
HEAD = {"head_dim": 16}

LET_IN: dict[str, dict[str, Any]] = {
    "gpt_oss": {**EXPERTS, **SLIDING, **HEAD},  # with sinks
    "phi": {},  # attention beside the feed-forward layer; half of the channels turn
    "gemma": HEAD,
    "gemma3_text": {**SLIDING, **HEAD, "query_pre_attn_scalar": 16},
    "phi3": {},
    "olmo2": {},
    "granite": {},
    "mixtral": EXPERTS,
    "qwen3_moe": {**EXPERTS, **HEAD, "num_experts": 4, "moe_intermediate_size": 32},
    "cohere2": SLIDING,
    "stablelm": {},
    "starcoder2": {},
    "glm4": HEAD,
    "smollm3": {},
    "nemotron": {},
    "seed_oss": HEAD,
    "ernie4_5": HEAD,
    "diffllama": {},
    "bitnet": {},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
}
"""Text models by type, and options of theirs."""

FEW = ("gpt_oss", "phi", "gemma")
OTHERS = [name for name in LET_IN if name not in FEW and name in CONFIG_MAPPING]

REFUSED = {
    "opt": "has no rotary_emb",
    "jetmoe": "has no self_attn",
    "gpt_neox": "GPTNeoXLayer.forward.* does not take ",
}
"""Those whose decoder is of another kind, and what is said."""


@pytest.mark.filterwarnings("ignore:lightkv_gnn.* is not among those that were tested")
@pytest.mark.parametrize("text", [*FEW, *full(*OTHERS)])
@torch.no_grad()
def test_pruned_equals_masked_and_unmerged_equals_plain(text: str) -> None:
    """In a prefill and steps after it, against an uncompressed model with what went hidden."""
    model = tiny("llava", "eager", decoder=text, text=LET_IN[text])
    inputs = batch("llava", model, (3, PICTURES["llava"][0], 5))
    adapter = lk.adapter_for(model, "auto")
    first, last = adapter.legal_layers[0], adapter.legal_layers[-1]
    nothing = lk.LightKVConfig([lk.Stage(first, 2, 0)])
    config = lk.LightKVConfig(
        [lk.Stage(first, 2, 0.5), lk.Stage(last, 1, 0.25)], message="destination_only"
    )
    plain = model(**inputs).logits
    with left_untouched(model, inputs):
        with lk.attach(model, nothing, adapter="auto"):
            assert torch.equal(model(**inputs).logits, plain)
        with lk.attach(model, config, adapter="auto") as handle:
            prefill = model(**inputs)
            check_ledger(handle.ledger, prefill[CACHE])
            trace = handle.trace
            options = {"return_dict_in_generate": True, "output_logits": True}
            steps = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, **options)
    places = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    gone: list[set[int]] = [set() for _ in range(LAYERS)]
    for number, stage in enumerate(trace):
        for token in set(range(len(places))) - set(trace.kept(number).tolist()):
            for layer in range(stage.layer + 1, LAYERS):
                gone[layer].add(places[token])
    assert gone[-1]
    with hidden_from_layers(model, gone):
        out = model(**inputs)
        later = stock_steps(model, out, steps.sequences[0, -STEPS:].tolist())
    kept = [place for place in range(plain.shape[1]) if place not in gone[-1]]
    near(prefill.logits[0, kept], out.logits[0, kept], 1e-5)
    near(torch.cat(steps.logits), later, 1e-5)


@pytest.mark.parametrize("text", REFUSED)
def test_decoders_of_other_kinds_are_refused(text: str) -> None:
    model = tiny("llava", "eager", decoder=text, text={})
    with pytest.raises(lk.UnsupportedModelError, match=REFUSED[text]):
        lk.adapter_for(model, "auto")
