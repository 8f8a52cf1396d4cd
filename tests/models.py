"""Tiny random LLaVA models, built in code, their inputs, and checks that many tests make."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from copies import copied
from families.geometry import Picture, tiles
from families.loop import FamilyLoop
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightkv_gnn import Ledger, seams

# Threads cost tiny models more than they give, thirty times more on a busy machine.
torch.set_num_threads(1)

CACHE = next(name for name in seams.CACHE if name in signature(LlamaForCausalLM.forward).parameters)
"""What the installed transformers calls a cache, among arguments and outputs."""

RESETS = "reset" in vars(DynamicLayer)
"""Whether resetting a dynamic cache empties it; older transformers only write zeros."""

IMAGE_TOKEN = 120
GRID = (4, 4)
LAYERS = 6
TEXT_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


@copied
def tiny_llava(
    text: str = "llama",
    attention: str = "sdpa",
    *,
    side: int = 4,
    seed: int = 0,
    layers: int = LAYERS,
    text_options: dict[str, Any] | None = None,
    **options,
) -> LlavaForConditionalGeneration:
    """A LLaVA of 6 layers and ``side`` x ``side`` vision tokens with weights that matter.

    The usual initialisation makes attention so even that wrong masks or positions do not show.
    """
    text_config = TEXT_CONFIGS[text](
        **{
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **(text_options or {}),
        }
    )
    vision_config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=7 * side,
        patch_size=7,
    )
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1,
        **{"vision_feature_select_strategy": "default", **options},
    )
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.add_(0.2 * torch.randn_like(weight))
                continue
            if "embed" in name:
                weight.normal_(0, 1)
            else:
                weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
            if "language_model" in name and ("q_proj" in name or "k_proj" in name):
                weight.mul_(2)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompt(
    *parts: int | str, side: int = 4, extra: int = 0, seed: int = 0
) -> tuple[list[int], int]:
    """Token ids of a prompt: a number is that many text tokens, "image" is an image."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    images = 0
    for part in parts:
        if part == "image":
            ids += [IMAGE_TOKEN] * (side * side + extra)
            images += 1
        else:
            ids += torch.randint(3, 119, (int(part),), generator=generator).tolist()
    return ids, images


def batch(
    *prompts: tuple[list[int], int], side: int = 4, padding: str = "left", seed: int = 0
) -> dict[str, torch.Tensor]:
    """Model inputs of a padded batch, with random pictures."""
    longest = max(len(ids) for ids, _ in prompts)
    rows, masks = [], []
    for ids, _ in prompts:
        pad = longest - len(ids)
        filler, blank, full = [0] * pad, [0] * pad, [1] * len(ids)
        rows.append(filler + ids if padding == "left" else ids + filler)
        masks.append(blank + full if padding == "left" else full + blank)
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
    images = sum(number for _, number in prompts)
    if images:
        generator = torch.Generator().manual_seed(seed + 1)
        inputs["pixel_values"] = torch.randn(images, 3, 7 * side, 7 * side, generator=generator)
    return inputs


def alone(
    inputs: dict[str, Tensor], *prompts: tuple[list[int], int]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Of each sample of a batch: where its tokens are, and its inputs without the others."""
    taken = 0
    for number, (ids, images) in enumerate(prompts):
        single = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        single["attention_mask"] = single["attention_mask"].long()
        if images:
            single["pixel_values"] = inputs["pixel_values"][taken : taken + images]
        taken += images
        yield inputs["attention_mask"][number].bool(), single


def loop_logits(loop: FamilyLoop, inputs: dict[str, Any]) -> Tensor:
    """Runs the layers written out on one sample without padding: the logits of each token."""
    pictures = inputs.get("pixel_values")
    count = 0 if pictures is None else len(pictures)
    return loop.run(inputs, tiles("llava", loop.model, Picture()) * count)


def greedy(model: nn.Module, inputs: dict[str, Tensor], steps: int = 8, **options) -> Tensor:
    """The tokens that greedy decoding appends, `[batch, step]`."""
    out = model.generate(**inputs, max_new_tokens=steps, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :]


def cache_lengths(cache: Any) -> list[int]:
    """Entries that each layer of a cache holds."""
    return [layer.keys.shape[-2] for layer in cache.layers]


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Asserts that logits agree, relative to the largest of them.

    Without any compression, transformers' own backends differ by a third of the default.
    """
    assert actual.shape == expected.shape
    actual, expected = actual.detach(), expected.detach()
    scale = float(expected.abs().max())
    assert float((actual - expected).abs().max()) <= tolerance * scale


def check_ledger(ledger: Ledger, cache: Any) -> None:
    """Asserts that the plan came true, by the ledger's own account and by the cache's.

    ``cache`` is the one that the prefill left, or None if there was none.
    """
    for row in ledger.rows:
        assert row.observed_kv_bytes == (None if cache is None else row.planned.kv_bytes)
        assert row.planned.vision_tokens <= row.planned.tokens <= row.observed_tokens
        if cache is not None:
            if row.planned.kv_bytes == 0:  # a layer that holds a state
                continue
            keys, values = cache.layers[row.layer].keys, cache.layers[row.layer].values
            assert row.observed_kv_bytes == (keys.numel() + values.numel()) * keys.element_size()
            held = keys.shape[0] * keys.shape[2]
            forgets = cache.layers[row.layer].is_sliding
            assert row.observed_tokens == held or (forgets and row.observed_tokens > held)
            if keys.shape[0] == 1:
                assert row.planned.tokens == row.observed_tokens


def footprint(model: nn.Module) -> dict[str, Any]:
    """Everything that attaching might change: hooks, instance attributes, the registry."""
    found: dict[str, Any] = {
        "registry": dict(ALL_ATTENTION_FUNCTIONS._local_mapping),
        "backends": dict(type(ALL_ATTENTION_FUNCTIONS)._global_mapping),
    }
    for name, module in model.named_modules():
        own = vars(module)
        hooks = {k: list(v) for k, v in own.items() if "hooks" in k and isinstance(v, dict)}
        names = sorted(set(own) - {"_previous_max_cache_length"})  # a note of generate's own
        found[name] = type(module), names, hooks
    everywhere = vars(nn.modules.module)
    found["everywhere"] = {k: list(v) for k, v in everywhere.items() if k.endswith("_hooks")}
    return found


@contextmanager
def left_untouched(model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[None]:
    """Asserts that a block leaves the model as it was, down to the bits of its answers."""
    logits = model(**inputs).logits  # at the first call transformers installs hooks that stay
    before = footprint(model)
    options = {"return_dict_in_generate": True, "output_logits": True}
    first = model.generate(**inputs, max_new_tokens=2, do_sample=False, **options)
    yield
    assert footprint(model) == before
    again = model.generate(**inputs, max_new_tokens=2, do_sample=False, **options)
    assert not [x for x in again[CACHE].layers if "lightkv" in type(x).__module__]
    assert torch.equal(torch.stack(again.logits), torch.stack(first.logits))
    assert torch.equal(model(**inputs).logits, logits)
