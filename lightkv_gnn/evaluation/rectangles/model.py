"""The tiny Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from lightkv_gnn.evaluation.rectangles.words import IDS, WORDS
from lightkv_gnn.evaluation.rectangles.world import CELL

WIDTH, HEADS = 96, 3
PAIRS, THETA = WIDTH // HEADS // 2, 1000.0

LAYERS = 3
"""Layers that think; one that listens comes before them."""


def build_model(seed: int, layers: int = LAYERS) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model; the global random state is left as it was.

    Its tower has no blocks: a cell's four patches become one token, and what equal cells show is
    equal.
    """
    vision = Qwen2_5_VLVisionConfig(
        depth=0,
        hidden_size=64,
        intermediate_size=64,
        num_heads=2,
        out_hidden_size=WIDTH,
        patch_size=CELL // 2,
        spatial_merge_size=2,
        temporal_patch_size=1,
        window_size=CELL,
        fullatt_block_indexes=[],
    )
    text: Any = Qwen2_5_VLTextConfig
    text = text(  # its signature does not name what all configurations take
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=192,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        initializer_range=0.06,  # the usual 0.02 is meant for models ten times as wide
        rope_parameters={
            "rope_type": "default",
            "rope_theta": THETA,
            "mrope_section": [1] * PAIRS,  # time, row, column, time, ...: all turn fast and slowly
        },
        pad_token_id=IDS["<pad>"],
        bos_token_id=IDS["<start>"],
        eos_token_id=IDS["<eos>"],
        tie_word_embeddings=False,
    )
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IDS["<image>"],
        video_token_id=IDS["<video>"],
        vision_start_token_id=IDS["<start>"],
        vision_end_token_id=IDS["<end>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    _favour_matching(model)
    return model


def _favour_matching(model: Any) -> None:
    """Start where a token attends to tokens that resemble it, with words that stand out."""
    decoder = model.get_decoder()
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(8)
        for layer in decoder.layers:
            layer.self_attn.q_proj.weight.mul_(1.5)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            layer.self_attn.o_proj.weight.mul_(0.5)
            layer.mlp.down_proj.weight.mul_(0.5)
