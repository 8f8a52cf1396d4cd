"""Flash and flex attention do what eager and sdpa are seen to do in the other files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import test_batches
import test_equivalence
import test_generation
import test_masks_in_use
import test_turns
import torch
from marks import policies
from models import CACHE, batch, left_untouched, near, prompt, tiny_llava
from own_attention import runnable
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import lightkv_gnn as lk
from lightkv_gnn.stage.guidance import GuidanceBlock, prompt_guidance

STAGES = [lk.Stage(0, 2, 0.25), lk.Stage(2, 2, 0.5), lk.Stage(4, 1, 0.5)]


@pytest.fixture(params=["flash_attention_2", "flex_attention"])  # the latter is slow on a CPU
def attention(request: pytest.FixtureRequest) -> Iterator[str]:
    with runnable(request.param):
        yield request.param


@pytest.mark.each
@policies
@pytest.mark.parametrize("parts", test_equivalence.PROMPTS)
def test_one_sample_equals_the_loop(parts: str, attention: str, positions: str) -> None:
    test_equivalence.test_equals_the_loop("llama", attention, positions, "[0, 2, 4]", parts)


def test_generate_equals_the_loop(attention: str) -> None:
    test_equivalence.test_generate_equals_the_loop("mistral", attention, "preserve")


@policies
def test_later_turns_equal_the_loop(attention: str, positions: str) -> None:
    test_turns.test_later_turns_equal_the_loop("text, image, text", attention, positions)


@policies
def test_later_turns_of_a_ragged_batch(attention: str, positions: str) -> None:
    test_turns.test_turns_of_a_ragged_batch_equal_each_alone(attention, positions)


def test_generate_goes_on_from_a_cache(attention: str) -> None:
    test_turns.test_generate_goes_on_from_a_cache(attention, "preserve")


@pytest.mark.each
@pytest.mark.parametrize(("padding", "positions"), [("left", "preserve"), ("right", "reindex")])
@pytest.mark.parametrize("name", test_batches.BATCHES)
def test_batches_equal_each_alone(name: str, padding: str, attention: str, positions: str) -> None:
    test_batches.test_prefill_equals_each_alone(padding, name, attention, positions)


def test_generate_of_a_batch_equals_each_alone(attention: str) -> None:
    test_batches.test_generate_equals_each_alone("0, 1 and 2 images", attention, "preserve")


def test_cached_equals_uncached(attention: str) -> None:
    test_generation.test_cached_equals_uncached("several beams", attention, "preserve")


def test_padding_of_survivors_is_never_seen(attention: str) -> None:
    test_masks_in_use.test_padding_of_survivors_is_never_seen(attention)


@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_the_answers_are_those_of_sdpa(padding: str, attention: str) -> None:
    inputs = batch(*test_turns.RAGGED, padding=padding)
    config, real = lk.LightKVConfig(STAGES), inputs["attention_mask"].bool()
    other, plain = tiny_llava(attention=attention), tiny_llava()
    with lk.attach(other, config), lk.attach(plain, config):
        near(other(**inputs).logits[real], plain(**inputs).logits[real])


@pytest.mark.each
@pytest.mark.parametrize("kind", ["vision_to_text", "text_to_vision", "last_token"])
@pytest.mark.parametrize("prompts", ["one", "ragged"])
@torch.no_grad()
def test_guidance_is_the_same(prompts: str, kind: str, attention: str) -> None:
    """At the first stage, and at later ones, whose layers saw fewer tokens."""
    made = test_turns.RAGGED if prompts == "ragged" else [prompt(4, "image", 6)]
    inputs, heard = batch(*made), {}
    for name in ("eager", "sdpa", attention):
        weights = heard[name] = []

        def listening(block: GuidanceBlock, weights: list[Tensor] = weights) -> Tensor:
            block = block.of_last_text() if kind == "last_token" else block
            weights.append(prompt_guidance(block, kind).weight.exp())
            return weights[-1]

        model = tiny_llava(attention=name)
        with lk.attach(model, lk.LightKVConfig(STAGES, guidance=listening)):
            model(**inputs)
    for expected, *others in zip(*heard.values(), strict=True):
        assert float(expected.std()) > 1e-3
        for own in others:
            near(own, expected)


@pytest.mark.parametrize("guidance", ["vision_to_text", "none"])
@torch.no_grad()
def test_a_switch_while_attached_is_refused(guidance: str) -> None:
    model, inputs = tiny_llava(), batch(*test_turns.RAGGED)
    config = lk.LightKVConfig(STAGES, guidance=guidance)
    refused = pytest.raises(RuntimeError, match=r"switched from 'sdpa' to 'eager'.*attach again")
    with left_untouched(model, inputs), lk.attach(model, config) as handle:
        expected = model(**inputs)
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.int64)], 1)
        step = {"input_ids": torch.tensor([[5]] * 3), "attention_mask": mask}
        model.set_attn_implementation("eager")
        with refused:
            model(**inputs)
        with refused:
            model(**step, **{CACHE: expected[CACHE]})
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(**inputs).logits, expected.logits)
        assert handle.ledger.rows


@pytest.fixture
def own() -> Iterator[str]:
    """An attention function of the user's; without a mask function, transformers makes none."""
    name = "own_attention"
    AttentionInterface.register(name, sdpa_attention_forward)
    yield name
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(name, None)


@torch.no_grad()
def test_attention_functions_of_ones_own(own: str) -> None:
    model, plain, inputs = tiny_llava(), tiny_llava(), batch(*test_turns.RAGGED)
    model.model.language_model.set_attn_implementation(own)
    config, real = lk.LightKVConfig(STAGES), inputs["attention_mask"].bool()
    with pytest.raises(lk.UnsupportedInputError, match=f"'{own}' is not supported.*masks"):
        lk.attach(model, config)
    AttentionMaskInterface.register(own, lambda *args, **kwargs: None)
    with pytest.raises(lk.UnsupportedInputError, match=f"'{own}' is not supported"):
        lk.attach(model, config)
    AttentionMaskInterface.register(own, sdpa_mask)
    with lk.attach(model, config), lk.attach(plain, config):
        assert torch.equal(model(**inputs).logits[real], plain(**inputs).logits[real])


def test_a_paged_function_with_a_mask_of_its_own(own: str) -> None:
    """As transformers registers it for attention kernels from the hub."""
    model = tiny_llava()
    model.model.language_model.config._attn_implementation = f"paged|{own}"
    AttentionMaskInterface.register(f"paged|{own}", sdpa_mask)
    try:
        with pytest.raises(lk.UnsupportedInputError, match=rf"'paged\|{own}' is not supported"):
            lk.attach(model, lk.LightKVConfig(STAGES))
    finally:
        del AttentionMaskInterface._global_mapping[f"paged|{own}"]
