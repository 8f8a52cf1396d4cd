"""A tiny stock LLaVA for the worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from lightkv_gnn.evaluation.cued import words
from lightkv_gnn.evaluation.cued.drawing import PATCH

WIDTH = 64


def build(side: int, layers: int, seed: int) -> LlavaForConditionalGeneration:
    """An untrained model; the global random state is left as it was.

    The vision tower is a patch embedding: features are taken before its only layer (LLaVA, too,
    takes them before the last), and patches have no positions of their own, so that a vision token
    knows its cell alone.  Rotary positions in the decoder tell where it is.

    Args:
        side: Cells per side of a picture.
        layers: Of the decoder.
        seed: Of the initial weights.
    """
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=PATCH,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=side * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=len(words.WORDS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8 * side * side + 64,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        initializer_range=0.1,  # the usual 0.02 is meant for models sixty times as wide
        pad_token_id=words.PAD,
        bos_token_id=words.BEGIN,
        eos_token_id=words.END,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.IMAGE,
        image_seq_length=side * side,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        _favour_matching(model)
    model.generation_config.eos_token_id = None  # answers are of known length
    return model


def _favour_matching(model: Any) -> None:
    """Starts where a token attends to those that resemble it: queries and keys begin equal."""
    with torch.no_grad():
        embeddings = model.model.vision_tower.embeddings
        embeddings.patch_embedding.weight.normal_(0, 0.15)
        embeddings.position_embedding.weight.zero_().requires_grad_(False)
        model.model.language_model.embed_tokens.weight.mul_(10)
        for linear in ("linear_1", "linear_2"):
            getattr(model.model.multi_modal_projector, linear).weight.normal_(0, 0.125)
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def load(folder: Path, side: int) -> LlavaForConditionalGeneration:
    """Reads a model.

    Raises:
        ValueError: It was trained on pictures of another size.
    """
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    if model.config.image_seq_length != side * side:
        raise ValueError(
            f"the model in {folder} takes pictures of {model.config.image_seq_length} cells: "
            f"expected {side} x {side}; name another folder, or remove this one"
        )
    return model
