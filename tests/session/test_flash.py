"""Flash attention: its masks, its windows, packed sequences, and its packages where there are any.

That the answers are right is in test_backends.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import test_batches
import test_equivalence
import test_generation
import torch
from flash_stand_in import VERSIONS, flash_on_cpu
from marks import policies
from models import CACHE, batch, cache_lengths, left_untouched, near, prompt, tiny_llava
from transformers import DynamicCache, StaticCache

import lightkv_gnn as lk
from lightkv_graphs import stride_matching

FLASH = "flash_attention_2"
STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
CONFIG = lk.LightKVConfig(STAGES)
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]


@pytest.fixture
def ran() -> Iterator[list[str]]:
    """Flash attention on the CPU; the kernels that ran."""
    with flash_on_cpu() as calls:
        yield calls


@policies
@pytest.mark.parametrize("schedule", test_equivalence.SCHEDULES)
@pytest.mark.parametrize("text", ["mistral", "qwen2"])
def test_other_models_equal_the_loop(
    text: str, schedule: str, positions: str, ran: list[str]
) -> None:
    test_equivalence.test_equals_the_loop(text, FLASH, positions, schedule, "two images adjacent")


@policies
@pytest.mark.parametrize("name", test_batches.BATCHES)
def test_generate_of_batches_equals_each_alone(name: str, positions: str, ran: list[str]) -> None:
    test_batches.test_generate_equals_each_alone(name, FLASH, positions)


@pytest.mark.parametrize("method", test_generation.METHODS)
def test_cached_equals_uncached(method: str, ran: list[str]) -> None:
    test_generation.test_cached_equals_uncached(method, FLASH, "reindex")


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_every_version_has_its_padding_removed(version: int, ran: list[str]) -> None:
    inputs, plain = batch(*RAGGED), tiny_llava()
    model, real = tiny_llava(attention=f"flash_attention_{version}"), inputs["attention_mask"] > 0
    with lk.attach(model, CONFIG), lk.attach(plain, CONFIG):
        ran.clear()
        near(model(**inputs).logits[real], plain(**inputs).logits[real])
    # The vision tower has no padding.
    assert ran == ["flash_attn_func"] * 2 + ["flash_attn_varlen_func"] * 6


@policies
@torch.no_grad()
def test_masks_tell_padding_and_nothing_else(positions: str, ran: list[str]) -> None:
    model, seen = tiny_llava(attention=FLASH), []
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(
                (kwargs["attention_mask"], kwargs["position_ids"])
            ),
            with_kwargs=True,
        )
    with lk.attach(model, lk.LightKVConfig(STAGES, positions=positions)):
        cache = model(**batch(RAGGED[0]))[CACHE]
        # Gaps in the ids would be taken for borders between packed sequences.
        assert [ids is None for _, ids in seen] == [False] * 2 + [True] * 4
        model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        assert [mask for mask, _ in seen] == [None] * 12
        seen.clear()
        # Equal lengths have no mask until the survivors are ragged.
        cache = model(**batch(prompt(2, "image", "image", 6), prompt(40, seed=2)))[CACHE]
        model(input_ids=torch.tensor([[5], [6]]), **{CACHE: cache})
    for (mask, _), held in zip(seen, [None, None, 40, 40, 40, 40] * 2, strict=True):
        assert (mask is None) == (held is None)
        assert mask is None or mask.shape[0] == 2
    assert [mask.sum(1).tolist() for mask, _ in seen[2:6:2]] == [[24, 40], [16, 40]]
    assert [mask.sum(1).tolist() for mask, _ in seen[8::2]] == [[25, 41], [17, 41]]
    assert set(ran) == {"flash_attn_func", "flash_attn_varlen_func"}


def windowed(window: int = 14) -> Any:
    return tiny_llava("mistral", FLASH, text_options={"sliding_window": window})


@policies
def test_a_sliding_window_serves_up_to_its_length(positions: str, ran: list[str]) -> None:
    inputs: dict[str, Any] = {**batch(prompt(4, "image", 6)), "do_sample": False}
    config = lk.LightKVConfig(STAGES, positions=positions)
    unlimited, model = windowed(4096), windowed(32)
    refused = pytest.raises(ValueError, match="grew past the sliding window of 32")
    with lk.attach(unlimited, config), lk.attach(model, config):
        expected = unlimited.generate(**inputs, max_new_tokens=7)
        assert torch.equal(model.generate(**inputs, max_new_tokens=7), expected)
        with refused:
            model.generate(**inputs, max_new_tokens=9)
        uncached = model.generate(**inputs, max_new_tokens=6, use_cache=False)
        expected = unlimited.generate(**inputs, max_new_tokens=6, use_cache=False)
        assert torch.equal(uncached, expected)
        with refused:
            model.generate(**inputs, max_new_tokens=9, use_cache=False)


@torch.no_grad()
def test_a_sliding_window_over_a_cache_without_one(ran: list[str]) -> None:
    """The kernel would count merged tokens, and so look back too far."""
    model, inputs = windowed(28), batch(prompt(4, "image", 6))
    with lk.attach(model, CONFIG):
        cache = model(**inputs, **{CACHE: DynamicCache()})[CACHE]
        for _ in range(2):
            model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        refused = pytest.raises(lk.UnsupportedInputError, match=r"29 tokens.*window of 28.*merged")
        before = cache_lengths(cache)
        with refused:
            model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        assert cache_lengths(cache) == before
        empty = DynamicCache()
        with pytest.raises(lk.UnsupportedInputError, match="sliding window of 28"):
            model(**batch(prompt(8, "image", 6)), **{CACHE: empty})
        assert empty.get_seq_length() == 0


@torch.no_grad()
def test_layers_without_a_window_are_not_held_to_it(ran: list[str]) -> None:
    options = {"use_sliding_window": True, "sliding_window": 14}
    kinds = ["sliding_attention", *["full_attention"] * 5]
    model = tiny_llava("qwen2", FLASH, text_options={**options, "layer_types": kinds})
    plain = tiny_llava("qwen2", text_options={**options, "layer_types": kinds})
    inputs = batch(prompt(4, "image", 6))
    with lk.attach(model, CONFIG), lk.attach(plain, CONFIG):
        logits = model(**inputs, use_cache=False).logits
        near(logits, plain(**inputs, use_cache=False).logits)


def packed(**options: Any) -> dict[str, Any]:
    """Two sequences in one row."""
    made = {**batch(prompt(4, "image", 6, 4, "image", 3)), **options}
    made.pop("attention_mask")
    return made


def wide(inputs: dict[str, Any]) -> dict[str, Any]:
    length = inputs["input_ids"].shape[1]
    return {**inputs, "attention_mask": torch.ones(1, 1, length, length).tril().bool()}


BORDERS = torch.tensor([0, 26, 49], dtype=torch.int32)
LENGTHS = {"max_length_q": 26, "max_length_k": 26}
REFUSED: dict[str, tuple[dict[str, Any], str, int]] = {
    "positions that start again": (
        packed(position_ids=torch.cat([torch.arange(26), torch.arange(23)])[None]),
        "start anew within a row.*one prompt per row",
        0,
    ),
    "lengths of sequences": (
        packed(cu_seq_lens_q=BORDERS, cu_seq_lens_k=BORDERS, **LENGTHS),
        "packed into one row.*one prompt per row",
        0,
    ),
    "positions with a gap": (
        packed(position_ids=torch.cat([torch.arange(26), torch.arange(30, 53)])[None]),
        "gaps are borders between packed sequences",
        2,
    ),
    "a mask of one's own": (
        wide(batch(prompt(4, "image", 6))),
        r"attention_mask has shape \[1, 1, 26, 26\].*takes padding masks only",
        2,
    ),
    "a static cache": (
        {**batch(prompt(4, "image", 6)), CACHE: 64},
        'static caches are not supported with flash.*"sdpa"',
        2,
    ),
}
"""Inputs, message, and attentions that run before: the vision tower's."""


@pytest.mark.parametrize("case", REFUSED)
@torch.no_grad()
def test_what_flash_attention_would_get_wrong_is_refused(case: str, ran: list[str]) -> None:
    inputs, message, before = REFUSED[case]
    model = tiny_llava(attention=FLASH)
    if slots := inputs.get(CACHE):
        cache = StaticCache(config=model.config.text_config, max_cache_len=slots)
        inputs = {**inputs, CACHE: cache}
    with left_untouched(model, batch(*RAGGED)), lk.attach(model, CONFIG):
        ran.clear()
        with pytest.raises(lk.UnsupportedInputError, match=message):
            model(**inputs, use_cache=False)
        assert len(ran) == before


@pytest.fixture(params=["stand-in", "flash-attn"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, torch.dtype, float]]:
    """Device, number format and tolerance: the same test runs with the package, where it is."""
    if request.param == "stand-in":
        with flash_on_cpu():
            yield "cpu", torch.float32, 1e-5
        return
    if not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None:
        pytest.skip("needs a CUDA device and the flash-attn package; the stand-in ran this test")
    yield "cuda", torch.bfloat16, 3e-2


@policies
@torch.no_grad()
def test_the_package_answers_like_sdpa(
    place: tuple[str, torch.dtype, float], positions: str
) -> None:
    """A padded prefill, steps, a second turn with images, and steps again.

    Merges by place: by likeness, bfloat16 would decide who is merged.
    """
    device, dtype, tolerance = place
    config = lk.LightKVConfig(STAGES, matcher=stride_matching, positions=positions)
    second = batch(*[prompt(2, "image", 3, seed=6)] * 3, seed=9)
    answers = []
    for attention in (FLASH, "sdpa"):
        model = tiny_llava(attention=attention).to(device, dtype)
        mask, cache, answer = torch.ones(3, 0, dtype=torch.int64), DynamicCache(), []
        with lk.attach(model, config):
            for turn in (batch(*RAGGED), second):
                for call in (turn, *steps(5)):
                    new = call.get("attention_mask", torch.ones_like(call["input_ids"]))
                    mask = torch.cat([mask, new], 1)
                    call = {**call, "attention_mask": mask}
                    call = {name: value.to(device) for name, value in call.items()}
                    if "pixel_values" in call:
                        call["pixel_values"] = call["pixel_values"].to(dtype)
                    logits = model(**call, **{CACHE: cache}).logits.float().cpu()
                    answer.append(logits[new.bool()])
        answers.append((torch.cat(answer), cache_lengths(cache)))
    (flash, flash_lengths), (expected, lengths) = answers
    near(flash, expected, tolerance)
    assert flash_lengths == lengths
    assert lengths[0] > lengths[2] > lengths[4]


def steps(count: int) -> list[dict[str, torch.Tensor]]:
    """Calls of one token per sample."""
    return [{"input_ids": torch.tensor([[7 + i], [8 + i], [9 + i]])} for i in range(count)]
