"""A sample of a batch is compressed as it would be alone."""

from __future__ import annotations

import pytest
import torch
from marks import attentions, ways
from models import CACHE, alone, batch, cache_lengths, check_ledger, near, prompt, tiny_llava

import lightkv_gnn as lk

BATCHES = {
    "unequal texts": [prompt(4, "image", 6), prompt(2, "image", 9, seed=1)],
    "0, 1 and 2 images": [
        prompt(3, "image", 4, "image", 5),
        prompt(9, seed=1),
        prompt(4, "image", 6, seed=2),
    ],
    # Without padding there is no mask, until the survivors are ragged.
    "equal lengths, unequal images": [
        prompt(2, "image", "image", 6),
        prompt(12, "image", 12, seed=1),
        prompt(40, seed=2),
    ],
    "no text, and an image last": [prompt("image"), prompt(5, "image", seed=1), prompt(3, seed=2)],
    "one image or two, then equal texts": [
        prompt(2, "image", "image", 6),
        prompt(3, "image", 6, seed=1),
    ],
    "all the same size": [prompt(4, "image", 6), prompt(4, "image", 6, seed=1)],
}

STAGES = [lk.Stage(0, 2, 0.25), lk.Stage(2, 2, 0.5), lk.Stage(4, 1, 0.5)]

cases = pytest.mark.parametrize("name", BATCHES)


@ways
@cases
@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_prefill_equals_each_alone(padding: str, name: str, attention: str, positions: str) -> None:
    prompts, model = BATCHES[name], tiny_llava(attention=attention)
    inputs = batch(*prompts, padding=padding)
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)) as handle:
        out = model(**inputs)
        check_ledger(handle.ledger, out[CACHE])
        tokens = [row.planned.tokens for row in handle.ledger.rows]
        single_tokens = torch.zeros(len(tokens), dtype=torch.int64)
        longest = torch.zeros(len(tokens), dtype=torch.int64)
        for number, (where, single) in enumerate(alone(inputs, *prompts)):
            own = model(**single)
            near(out.logits[number, where], own.logits[0])
            lengths = torch.tensor(cache_lengths(own[CACHE]))
            single_tokens += lengths
            longest = longest.maximum(lengths)
        assert tokens == single_tokens.tolist()
        assert cache_lengths(out[CACHE]) == longest.tolist()


@ways
@cases
@torch.no_grad()
def test_generate_equals_each_alone(name: str, attention: str, positions: str) -> None:
    prompts, model = BATCHES[name], tiny_llava(attention=attention)
    inputs = batch(*prompts)
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)) as handle:
        out = model.generate(**inputs, **options)
        assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in handle.ledger.rows)
        for number, (_, single) in enumerate(alone(inputs, *prompts)):
            own = model.generate(**single, **options)
            assert torch.equal(out.sequences[number, -6:], own.sequences[0, -6:])
            near(torch.stack(out.logits)[:, number], torch.cat(own.logits))


@attentions
@pytest.mark.parametrize("kind", ["text_to_vision", "last_token", "none"])
@torch.no_grad()
def test_every_guidance_is_a_samples_own(kind: str, attention: str) -> None:
    prompts, model = BATCHES["0, 1 and 2 images"], tiny_llava("qwen2", attention)
    inputs = batch(*prompts)
    with lk.attach(model, lk.LightKVConfig(STAGES, guidance=kind, rotary=kind != "last_token")):
        out = model(**inputs)
        for number, (where, single) in enumerate(alone(inputs, *prompts)):
            near(out.logits[number, where], model(**single).logits[0])


@attentions
@torch.no_grad()
def test_order_of_samples_does_not_matter(attention: str) -> None:
    prompts, model = BATCHES["0, 1 and 2 images"], tiny_llava(attention=attention)
    inputs = batch(*prompts)
    turned = {"input_ids": inputs["input_ids"].flip(0)}
    turned["attention_mask"] = inputs["attention_mask"].flip(0)
    turned["pixel_values"] = inputs["pixel_values"][[2, 0, 1]]
    real = inputs["attention_mask"].bool()
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        near(model(**turned).logits.flip(0)[real], model(**inputs).logits[real])
        assert torch.equal(
            model.generate(**turned, max_new_tokens=6, do_sample=False)[:, -6:].flip(0),
            model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, -6:],
        )
