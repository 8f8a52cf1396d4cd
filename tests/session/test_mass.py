"""Attention that counts a survivor as often as the tokens it stands for.

That copies may be merged without a trace is a law of its own; everything else is what the other
files see, with mass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import test_backends
import test_batches
import test_equivalence
import test_generation
import test_turns
import torch
from families.loop import FamilyLoop
from marks import attentions, policies, ways
from models import CACHE, batch, left_untouched, near, prompt, tiny_llava
from own_attention import runnable
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask

import lightkv_gnn as lk
from lightkv_gnn import seams
from lightkv_gnn.attention.block_masks import mass_beside, with_mass

STAGES = [lk.Stage(0, 2, 0.25), lk.Stage(2, 2, 0.5), lk.Stage(4, 1, 0.5)]


def copies(model: torch.nn.Module) -> torch.nn.Module:
    """The model, to which all vision tokens of a picture look the same."""
    model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, output: output[:, :1].expand_as(output)
    )
    return model


def at_one_place(inputs: dict[str, Tensor], steps: int) -> tuple[Tensor, Tensor]:
    """Positions of a prompt that begins with a picture, and of the steps after it."""
    vision = inputs["input_ids"] == tiny_llava().config.image_token_id
    places = (~vision).long().cumsum(1)
    return places, places[:, -1:] + torch.arange(1, steps + 1)


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("matcher", [lk.graphs.cosine_matching, lk.graphs.coverage_matching])
@torch.no_grad()
def test_copies_may_be_merged(text: str, attention: str, matcher: Any) -> None:
    """In a prompt that begins with the picture, all of them stay copies through all layers."""
    model = copies(tiny_llava(text, attention))
    inputs = batch(prompt("image", 6), prompt("image", 6, seed=1))
    places, later = at_one_place(inputs, 3)
    answers = {}
    for kind in ("uncompressed", "mass", "plain"):
        stages = [] if kind == "uncompressed" else STAGES
        named = "plain" if kind == "uncompressed" else kind
        config = lk.LightKVConfig(stages, matcher=matcher, attention=named)
        with lk.attach(model, config):
            out = model(**inputs, position_ids=places)
            answers[kind] = [out.logits]
            mask = inputs["attention_mask"]
            for step in range(3):
                mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], 1)
                call = {"attention_mask": mask, "position_ids": later[:, step : step + 1]}
                token = torch.tensor([[9 + step], [30 + step]])
                out = model(input_ids=token, **call, **{CACHE: out[CACHE]})
                answers[kind].append(out.logits)
    for number, expected in enumerate(answers["uncompressed"]):
        near(answers["mass"][number], expected)
        assert float((answers["plain"][number] - expected).abs().max()) > 1e-3


@policies
@attentions
@pytest.mark.parametrize("parts", test_equivalence.PROMPTS)
@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
def test_equals_the_loop(text: str, parts: str, attention: str, positions: str, mass: None) -> None:
    schedule = test_equivalence.SCHEDULES["[0, 2, 4]"]
    model = test_equivalence.model_of(text, attention)
    inputs = test_equivalence.inputs_of(test_equivalence.PROMPTS[parts], seed=test_equivalence.SEED)
    loop = FamilyLoop(model, "llava", schedule, positions=positions)
    config = lk.LightKVConfig([lk.Stage(*stage) for stage in schedule], positions=positions)
    test_equivalence.compare(model, config, inputs, test_equivalence.written_out(loop, inputs))


@pytest.mark.parametrize("padding", ["left", "right"])
@ways
@pytest.mark.parametrize("name", test_batches.BATCHES)
def test_prefill_of_a_batch(
    name: str, attention: str, positions: str, padding: str, mass: None
) -> None:
    test_batches.test_prefill_equals_each_alone(padding, name, attention, positions)


@ways
@pytest.mark.parametrize("turns", test_turns.TURNS)
def test_later_turns(turns: str, attention: str, positions: str, mass: None) -> None:
    test_turns.test_later_turns_equal_the_loop(turns, attention, positions)


@ways
def test_turns_of_a_batch(attention: str, positions: str, mass: None) -> None:
    test_turns.test_turns_of_a_ragged_batch_equal_each_alone(attention, positions)
    test_turns.test_generate_goes_on_from_a_cache(attention, positions)


@ways
@pytest.mark.parametrize("method", ["several samples", "several beams"])
def test_cached_equals_uncached(method: str, attention: str, positions: str, mass: None) -> None:
    test_generation.test_cached_equals_uncached(method, attention, positions)


@ways
def test_without_a_cache(attention: str, positions: str, mass: None) -> None:
    test_generation.test_prefill_without_a_cache(attention, positions)


@ways
@torch.no_grad()
def test_a_cache_as_an_object(attention: str, positions: str, mass: None) -> None:
    session = test_turns.Session(attention, positions)
    with lk.attach(session.model, session.config):
        for rows in ([0, 0, 1, 1, 2, 2], [2, 0, 1], [1]):
            test_turns.test_rows_of_a_cache_can_be_chosen(session, rows)
        test_turns.test_a_copied_cache_is_independent(session)
        test_turns.test_dropped_tokens_leave_no_trace(session, 3)
    test_turns.test_the_end_of_the_prefill_can_be_dropped(attention, positions)


@torch.no_grad()
def test_masses_stay_beside_their_entries() -> None:
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6), prompt(2, "image", 8, seed=1))
    with lk.attach(model, lk.LightKVConfig(STAGES, attention="mass")):
        cache = model(**inputs)[CACHE]
        for change in (
            lambda: cache.crop(-3),
            lambda: cache.batch_repeat_interleave(2),
            lambda: cache.reorder_cache(torch.tensor([1, 0, 2])),
        ):
            change()
            for layer in cache.layers[1:]:
                assert layer.log_mass.shape == layer.logical.shape
        cache.reset()
    assert all(layer.log_mass is None for layer in cache.layers[1:])


@policies
def test_flex_attention(positions: str, mass: None) -> None:
    with runnable("flex_attention"):
        test_turns.test_later_turns_equal_the_loop("text, image, text", "flex_attention", positions)
        test_batches.test_prefill_equals_each_alone(
            "left", "0, 1 and 2 images", "flex_attention", positions
        )
        test_backends.test_the_answers_are_those_of_sdpa("right", "flex_attention")


@torch.no_grad()
def test_a_cache_goes_on_with_what_it_was_made_with() -> None:
    """Whether survivors count is the cache's own matter, not that of the next call."""
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    step, found = torch.tensor([[7]]), []
    for later in ("mass", "plain"):
        with lk.attach(model, lk.LightKVConfig(STAGES, attention="mass")):
            cache = model(**inputs)[CACHE]
        with lk.attach(model, lk.LightKVConfig(STAGES, attention=later)):
            found.append(model(input_ids=step, **{CACHE: cache}).logits)
    assert torch.equal(*found)


@torch.no_grad()
def test_layers_before_the_first_stage_pay_nothing() -> None:
    """They get the masks they would get anyway, and layers that share a mask share one."""
    model, inputs = tiny_llava(layers=6), batch(prompt(4, "image", 6))
    seen: list[Any] = []
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
    config = lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)], attention="mass")
    with lk.attach(model, config):
        model(**inputs)
    assert seen[0] is seen[1] is None
    assert seen[2] is seen[3] is not None
    assert seen[4] is seen[5] is not seen[3]


@torch.no_grad()
def test_the_ledger_tells_which_attention_ran_and_why() -> None:
    inputs, alone = batch(prompt(4, "image", 6)), "plain (the only one with flash attention)"
    for backend, asked, told in (
        ("sdpa", "mass", "mass"),
        ("sdpa", "plain", "plain"),
        ("flash_attention_2", "plain", alone),
    ):
        with runnable(backend):
            model = tiny_llava(attention=backend)
            with lk.attach(model, lk.LightKVConfig(STAGES, attention=asked)) as handle:
                model(**inputs)
        assert handle.ledger.totals()["attention"] == told
        assert str(handle.ledger).endswith(f", attention {told}")


@torch.no_grad()
def test_a_step_makes_one_mask_for_layers_of_the_same_masses() -> None:
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    seen: list[Any] = []
    with lk.attach(model, lk.LightKVConfig([lk.Stage(1, 2, 0.5)], attention="mass")):
        cache = model(**inputs)[CACHE]
        for layer in model.model.language_model.layers:
            layer.self_attn.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
            )
        for token in (7, 8):
            model(input_ids=torch.tensor([[token]]), **{CACHE: cache})
    first, second = seen[:6], seen[6:]
    for masks in (first, second):
        assert masks[0] is masks[1] is None
        assert masks[2] is masks[3] is masks[4] is masks[5] is not None
    assert second[2].shape[3] == first[2].shape[3] + 1


@torch.no_grad()
def test_flex_attention_beside_another_attached_model() -> None:
    """The wrapper in the registry takes what the function takes that it is around."""
    with runnable("flex_attention"):
        first, second = (tiny_llava(attention="flex_attention") for _ in range(2))
        with lk.attach(first, lk.LightKVConfig(STAGES)):
            lk.attach(second, lk.LightKVConfig(STAGES, attention="mass")).remove()


def test_a_mask_of_blocks_keeps_its_masses_on_another_device() -> None:
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 4, 4, device="cpu")
    moved = with_mass(mask, torch.ones(1, 4)).to("cpu")
    assert torch.equal(mass_beside(moved), torch.ones(1, 4))


@torch.no_grad()
def test_a_picture_on_a_cache_with_mass_is_refused_by_flash_attention() -> None:
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    with lk.attach(model, lk.LightKVConfig(STAGES, attention="mass")):
        cache = model(**inputs)[CACHE]
    held = cache.layers[0].keys.shape
    with runnable("flash_attention_2"):
        other = tiny_llava(attention="flash_attention_2")
        refused = pytest.raises(lk.UnsupportedInputError, match=r'made with attention="mass"')
        call = {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}
        with lk.attach(other, lk.LightKVConfig(STAGES)), refused:
            other(**call, **{CACHE: cache})
    assert cache.layers[0].keys.shape == held


def test_masks_that_only_hide_carry_no_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "is_torch_npu_available", lambda: True)
    model = tiny_llava()
    assert lk.LightKVConfig.for_model(model).attention == "plain"
    with pytest.raises(lk.UnsupportedInputError, match="masks of 'sdpa' only hide"):
        lk.attach(model, lk.LightKVConfig(STAGES, attention="mass"))
    assert lk.LightKVConfig.for_model(tiny_llava(attention="eager")).attention == "mass"


FLASH = r"'flash_attention_2' adds nothing to the logits.*attention=\"plain\""


@torch.no_grad()
def test_flash_attention_is_refused() -> None:
    with runnable("flash_attention_2"):
        model, inputs = tiny_llava(attention="flash_attention_2"), batch(prompt(4, "image", 6))
        with left_untouched(model, inputs), pytest.raises(lk.UnsupportedInputError, match=FLASH):
            lk.attach(model, lk.LightKVConfig(STAGES, attention="mass"))


@torch.no_grad()
def test_flash_attention_refuses_a_cache_with_mass() -> None:
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    with lk.attach(model, lk.LightKVConfig(STAGES, attention="mass")):
        cache = model(**inputs)[CACHE]
    step = {"input_ids": torch.tensor([[7]]), CACHE: cache}
    with runnable("flash_attention_2"):
        model = tiny_llava(attention="flash_attention_2")
        refused = pytest.raises(lk.UnsupportedInputError, match=r'made with attention="mass"')
        with lk.attach(model, lk.LightKVConfig(STAGES)), refused:
            model(**step)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.fixture
def blocks() -> Iterator[str]:
    """An attention function of the user's, with masks of blocks, that adds nothing to logits."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> Any:
        return flex_attention_forward(module, query, key, value, mask)

    AttentionInterface.register("blocks", attend)
    AttentionMaskInterface.register("blocks", flex_attention_mask)
    yield "blocks"
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop("blocks", None)


@torch.no_grad()
def test_an_attention_function_that_adds_nothing_is_refused(blocks: str) -> None:
    model, inputs = tiny_llava(attention=blocks), batch(prompt(4, "image", 6))
    refused = pytest.raises(lk.UnsupportedInputError, match="takes no position_bias")
    with runnable("flex_attention"), left_untouched(model, inputs):
        with refused:
            lk.attach(model, lk.LightKVConfig(STAGES, attention="mass"))
        lk.attach(model, lk.LightKVConfig(STAGES)).remove()
