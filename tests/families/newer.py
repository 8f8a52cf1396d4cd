"""Tiny random models of families that came later, by kind."""

from __future__ import annotations

from dataclasses import replace

from families.kinds import MOE, SLIDING, THW, UNTIED, UNTYPED, Kind, grid_thw
from families.models import END, IMAGE, MROPE, QWEN, QWEN_TOWER, START, TOWER, VIDEO, Recipe
from families.newer_tiles import TILES

DEEPSTACK = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
LISTENER = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
STARTS = {**QWEN, "vision_start_token_id": START, "audio_start_token_id": 119}

OMNI = replace(UNTYPED, text=([START], [], [END]))
LINED = replace(THW, edges=(1, 1, 1), stamped=False)

NEWER: dict[str, tuple[Recipe, Kind]] = {
    "qwen2_5_omni_thinker": (
        Recipe(
            "Qwen2_5OmniThinker",
            "Qwen2_5OmniText",
            "Qwen2_5OmniVisionEncoder",
            {"rope_parameters": MROPE},
            {**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1]},
            {**STARTS, "audio_config": {**LISTENER, "output_dim": 64}},
        ),
        OMNI,
    ),
    "qwen3_omni_moe_thinker": (
        Recipe(
            "Qwen3OmniMoeThinker",
            "Qwen3OmniMoeText",
            "Qwen3OmniMoeVisionEncoder",
            {**MOE, "num_experts": 4, "head_dim": 16, "rope_parameters": MROPE},
            {**QWEN_TOWER, **DEEPSTACK},
            {**STARTS, "audio_config": {**LISTENER, "output_dim": 64}},
        ),
        OMNI,
    ),
    "cosmos3_omni": (
        grid_thw("Cosmos3Omni", {"head_dim": 16}, "Qwen3VL", **DEEPSTACK),
        THW,
    ),
    "cosmos3_edge": (
        Recipe(
            "Cosmos3Edge",
            "Cosmos3EdgeText",
            "Cosmos3EdgeVision",
            {"rope_parameters": MROPE, "head_dim": 16},
            {**TOWER, "patch_size": 4, "num_patches": 16},
            {**QWEN, "projector_hidden_size": 48},
        ),
        THW,
    ),
    "hunyuan_vl": (
        Recipe(
            "HunYuanVL",
            "HunYuanVLText",
            "HunYuanVLVision",
            {"rope_parameters": {**MROPE, "mrope_section": [2, 2, 2, 2]}, "head_dim": 16},
            {**TOWER, "patch_size": 4, "max_image_size": 32},
            UNTIED,
        ),
        LINED,
    ),
    "hyperclovax_vision_v2": (
        Recipe(
            "HyperCLOVAXVisionV2",
            "HyperCLOVAX",
            "Qwen2_5_VLVision",
            {},
            {**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1]},
            {"video_token_id": VIDEO},
        ),
        UNTYPED,
    ),
    "cohere_compass": (
        Recipe(
            "CohereCompass",
            "CohereCompassText",
            "CohereCompassVision",
            {
                **SLIDING,
                "rope_parameters": {"full_attention": MROPE, "sliding_attention": MROPE},
            },
            {**QWEN_TOWER, **DEEPSTACK},
            QWEN,
        ),
        THW,
    ),
    "minimax_m3_vl": (
        Recipe(
            "MiniMaxM3VL",
            "MiniMaxM3VLText",
            "MiniMaxM3VLVision",
            {
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "shared_intermediate_size": 32,
                "dense_intermediate_size": 32,
                "head_dim": 16,
                "rotary_dim": 8,
            },
            {**TOWER, "patch_size": 4},
            {"video_token_id": VIDEO, "projector_hidden_size": 64},
            "MiniMaxM3Sparse",
        ),
        UNTYPED,
    ),
    "video_llama_3": (
        Recipe("VideoLlama3", "Qwen2", "VideoLlama3Vision", {}, {**TOWER, "patch_size": 4}, QWEN),
        UNTYPED,
    ),
}
NEWER |= TILES
FILMED_TOO = {"molmo2": IMAGE} | dict.fromkeys(
    (
        "video_llava",
        "minicpmv4_6",
        "minicpmv4_7",
        "minicpm_ocr",
        "qwen2_5_omni_thinker",
        "qwen3_omni_moe_thinker",
        "cosmos3_omni",
        "cosmos3_edge",
        "hyperclovax_vision_v2",
        "cohere_compass",
        "minimax_m3_vl",
        "video_llama_3",
    ),
    VIDEO,
)
"""Families that take videos, and the placeholder of their frames."""
