"""Tiny random LLaVA models, built in code."""

from __future__ import annotations

import math

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

IMAGE_TOKEN = 120
GRID = (4, 4)
LAYERS = 6
TEXT_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def tiny_llava(
    text: str = "llama", attention: str = "sdpa", *, side: int = 4, seed: int = 0, **options
) -> LlavaForConditionalGeneration:
    """A LLaVA of 6 layers and ``side`` x ``side`` vision tokens with weights that matter.

    The usual initialisation makes attention so even that wrong masks or positions do not show.
    """
    text_config = TEXT_CONFIGS[text](
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
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
