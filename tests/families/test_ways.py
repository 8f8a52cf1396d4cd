"""Every family, in the ways that batches and calls come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import CACHE, near
from torch import Tensor
from torch.nn.functional import cross_entropy

import lightkv_gnn as lk
from families.geometry import tiles_of
from families.inputs import PICTURES, Prompt, alone, batch
from families.loop import FamilyLoop
from families.models import FAMILIES, IMAGE, VIDEO
from families.test_table import model_of, prompts_of, stages_of

families = pytest.mark.parametrize("family", FAMILIES)
STEPS = 4

# A sampled placeholder would be taken for one more vision token where pictures are passed again.
ORDINARY: dict[str, Any] = {"max_new_tokens": STEPS, "suppress_tokens": [IMAGE, VIDEO]}


def config_of(model: Any, **options: Any) -> lk.LightKVConfig:
    return lk.LightKVConfig([lk.Stage(*stage) for stage in stages_of(model)], **options)


def generate(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    torch.manual_seed(3)
    out: Tensor = model.generate(**inputs, **{"do_sample": False, **ORDINARY, **options})
    return out[:, inputs["input_ids"].shape[1] :]


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.each
@pytest.mark.parametrize("way", WAYS)
@families
def test_cached_equals_uncached(family: str, way: str) -> None:
    """Without guidance: an uncached step is a prefill of its own, guided by the answer so far."""
    model = model_of(family, "sdpa")
    inputs = batch(family, model, *prompts_of(family, "ragged"))
    with lk.attach(model, config_of(model, guidance="none")) as handle:
        cached = generate(model, inputs, **WAYS[way])
        assert len(handle.trace) == 2
        assert torch.equal(cached, generate(model, inputs, use_cache=False, **WAYS[way]))


@families
def test_beams_of_a_batch_are_those_of_each_sample(family: str) -> None:
    model, prompts = model_of(family, "sdpa"), prompts_of(family, "ragged")
    inputs = batch(family, model, *prompts)
    with lk.attach(model, config_of(model)):
        together = generate(model, inputs, **WAYS["beams"]).unflatten(0, (len(prompts), 2))
        for found, (_, single) in zip(together, alone(family, model, *prompts), strict=True):
            assert torch.equal(found, generate(model, single, **WAYS["beams"]))


@families
def test_prompt_lookup_equals_greedy(family: str) -> None:
    model = model_of(family, "sdpa")
    inputs = batch(family, model, *prompts_of(family, "one"))
    with lk.attach(model, config_of(model, guidance="none")):
        expected = generate(model, inputs, max_new_tokens=16)
        found = generate(model, inputs, max_new_tokens=16, prompt_lookup_num_tokens=3)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("family", "attention"),
    [("llava_next", "eager"), ("qwen2_5_vl", "sdpa"), ("idefics3", "eager"), ("internvl", "sdpa")],
)
@torch.no_grad()
def test_eight_samples_equal_each_alone(family: str, attention: str) -> None:
    model, (first, *others) = model_of(family, attention), PICTURES[family]
    images = [first, *(p for p in others if p.kind == "image")]
    prompts: list[Prompt] = [(number, image, 9 - number) for number, image in enumerate(images)]
    prompts += [(3, images[0], images[-1], 4), (5,), (2, images[1], 1, images[0], 3)]
    prompts = (prompts + prompts)[:8]
    inputs = batch(family, model, *prompts)
    with lk.attach(model, config_of(model)):
        logits, tokens = model(**inputs).logits, generate(model, inputs)
        for number, (real, single) in enumerate(alone(family, model, *prompts)):
            near(logits[number, real], model(**single).logits[0])
            assert torch.equal(tokens[number], generate(model, single)[0])


@families
@torch.no_grad()
def test_a_second_turn_about_text(family: str) -> None:
    """Where a prompt's prefix sees itself both ways, only what comes after it is a later turn."""
    model, [prompt] = model_of(family, "eager"), prompts_of(family, "one")
    [(_, inputs)] = alone(family, model, prompt)
    question = torch.tensor([[7, 8, 9, 10]])
    loop = FamilyLoop(model, family, stages_of(model))
    loop.run(inputs, tiles_of(family, model, prompt))
    expected = torch.cat([loop.run_text([token]) for token in question[0].tolist()])
    with lk.attach(model, config_of(model)):
        cache = model(**inputs)[CACHE]
        out = model(input_ids=question, **{CACHE: cache})
    near(out.logits[0], expected)


@families
def test_loss_and_gradients(family: str) -> None:
    model, [prompt] = model_of(family, "eager"), prompts_of(family, "one")
    [(_, inputs)] = alone(family, model, prompt)
    labels = inputs["input_ids"]  # of merged tokens too, which get the rows they merged into
    loop = FamilyLoop(model, family, stages_of(model))
    logits = loop.run(inputs, tiles_of(family, model, prompt))
    expected = cross_entropy(logits[:-1], labels[0, 1:])
    everything = torch.ones_like(labels, dtype=torch.bool)  # guides in the loop
    with lk.attach(model, config_of(model)) as handle, handle.prompt(everything):
        loss = model(**inputs, labels=labels).loss
        # The other weight is before the first stage, and no guidance comes from it.
        first = model.get_decoder().layers[0].self_attn.o_proj.weight
        gradients = torch.autograd.grad(loss, [model.get_input_embeddings().weight, first])
    near(loss[None], expected[None])
    for gradient in gradients:
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) > 0


@families
@torch.no_grad()
def test_hidden_states_and_attentions_have_the_lengths_of_their_layers(family: str) -> None:
    model, prompts = model_of(family, "eager"), prompts_of(family, "ragged")
    inputs = batch(family, model, *prompts)
    with lk.attach(model, config_of(model)) as handle:
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
        seen = [row.observed_tokens // len(prompts) for row in handle.ledger.rows]
    assert [states.shape[1] for states in out.hidden_states] == [seen[0], *seen]
    assert [weights.shape[2] for weights in out.attentions] == seen
    assert seen[0] == inputs["input_ids"].shape[1] > seen[-1]


CONTINUED = [family for family in FAMILIES if "qwen" not in family]
"""Where positions count tokens; the others are told theirs in tests/adapters."""


@families
@torch.no_grad()
def test_positions_that_close_up(family: str) -> None:
    """Gemma 3 turns its layers by different rotary tables, and Qwen gives up its three axes."""
    model, [prompt] = model_of(family, "eager"), prompts_of(family, "one")
    [(_, inputs)] = alone(family, model, prompt)
    loop = FamilyLoop(model, family, stages_of(model), positions="reindex")
    expected = loop.run(inputs, tiles_of(family, model, prompt))
    with lk.attach(model, config_of(model, positions="reindex")):
        out = model(**inputs)
        near(out.logits[0], expected)
        for _ in range(STEPS):
            token = expected[-1:].argmax(-1, keepdim=True)
            expected = loop.run_text(token[0].tolist())
            step = model(input_ids=token, **{CACHE: out[CACHE]})
            near(step.logits[0], expected)


@pytest.mark.parametrize("family", CONTINUED)
@torch.no_grad()
def test_a_second_turn_about_a_new_picture(family: str) -> None:
    model, [prompt] = model_of(family, "eager"), prompts_of(family, "one")
    later: Prompt = (3, PICTURES[family][0], 4)
    loop, cache, types = FamilyLoop(model, family, stages_of(model)), None, []
    with lk.attach(model, config_of(model)) as handle:
        for number, turn in enumerate([prompt, later]):
            [(_, inputs)] = alone(family, model, turn, seed=number)
            inputs.pop("attention_mask")
            tiles = tiles_of(family, model, turn)
            expected = loop.run(inputs, tiles)
            if "token_type_ids" in inputs:  # wanted of the whole sequence
                types.append(inputs["token_type_ids"])
                inputs["token_type_ids"] = torch.cat(types, 1)
            out = model(**inputs, **{CACHE: cache})
            cache = out[CACHE]
            near(out.logits[0], expected)
            assert len(handle.trace.layout.grids) == len(tiles)
    assert [layer.keys.shape[2] for layer in cache.layers] == loop.lengths
