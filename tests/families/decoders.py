"""Tiny random models of families whose decoders have layers of several kinds, or read more."""

from __future__ import annotations

from dataclasses import replace

from families.kinds import (
    ANYRES,
    MOE,
    SIZED,
    SLIDING,
    THW,
    TILED,
    UNTIED,
    UNTYPED,
    Kind,
    grid_thw,
    sized,
)
from families.models import LAYERS, MROPE, QWEN_TOWER, SIGLIP, TOWER, VIDEO, WINDOW, Recipe

SHAPED = replace(UNTYPED, sizes=((8, 12), (4, 6), (10, 4)), argument="spatial_shapes")
PLACED = replace(SHAPED, argument="image_position_ids", typed="mm_token_type_ids")

SCALED = {  # queries grow every eight tokens
    "rope_type": "default",
    "rope_theta": 1e4,
    "llama_4_scaling_beta": 0.5,
    "original_max_position_embeddings": 8,
}
LINEAR = {
    "head_dim": 16,
    "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5},
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2),
}
CONV = {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)}
MIXED = ["conv", "full_attention", "conv", "full_attention", "sliding_attention", "full_attention"]
HYBRID = ("qwen3_5", "qwen3_5_moe", "lfm2_vl", "lfm3_vl", "minicpmv4_6")
"""Families in which every other layer holds a state."""

GEMMA = {
    **SLIDING,
    "use_bidirectional_attention": "vision",
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
}
MUSE = {"head_dim": 16, **SLIDING, "layer_rope_theta": [1e4, 0] * (LAYERS // 2)}
MUSE_TOWER = {**TOWER, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}
MUSES = {"video_token_id": VIDEO, "out_hidden_size": 128, "projector_hidden_size": 64}
EAR = {
    "patch_sizes": [4],
    "hidden_sizes": [32],
    "depths": [1],
    "num_hidden_layers": 1,
    "out_hidden_size": 64,
}

DECODERS: dict[str, tuple[Recipe, Kind]] = {
    "ernie4_5_vl_moe": (
        Recipe(
            "Ernie4_5_VLMoe",
            "Ernie4_5_VLMoeText",
            "Ernie4_5_VLMoeVision",
            {
                "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]},
                "moe_k": 2,
                "moe_num_experts": 4,
                "moe_intermediate_size": [32, 16],
            },
            QWEN_TOWER,
            {"video_token_id": VIDEO, **UNTIED},
        ),
        THW,
    ),
    "muse_glimmer": (
        Recipe(
            "MuseGlimmer",
            "MuseGlimmerText",
            "MuseGlimmerVision",
            MUSE,
            MUSE_TOWER,
            MUSES,
        ),
        UNTYPED,
    ),
    "muse_spark": (
        Recipe(
            "MuseSpark",
            "MuseSparkText",
            "MuseSparkVision",
            {**MUSE, **MOE, "num_local_experts": 4, "moe_hidden_size": 32},
            MUSE_TOWER,
            {**MUSES, "audio_config": EAR, **UNTIED},
        ),
        UNTYPED,
    ),
    "llama4": (
        Recipe(
            "Llama4",
            "Llama4Text",
            "Llama4Vision",
            {"no_rope_layer_interval": 2, "num_local_experts": 4, "head_dim": 16},
            {
                **TOWER,
                "intermediate_size": 128,
                "image_size": 32,
                "patch_size": 4,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "vision_output_dim": 32,
            },
            UNTIED,
        ),
        TILED,
    ),
    "qwen3_5": (grid_thw("Qwen3_5", LINEAR, num_position_embeddings=64), THW),
    "qwen3_5_moe": (
        grid_thw(
            "Qwen3_5Moe",
            {**LINEAR, **MOE, "num_experts": 4, "shared_expert_intermediate_size": 32},
            num_position_embeddings=64,
        ),
        THW,
    ),
    "lfm2_vl": (
        Recipe(
            "Lfm2Vl",
            "Lfm2",
            "Siglip2Vision",
            CONV,
            {**TOWER, "patch_size": 4, "num_patches": 64, "vision_use_head": False},
            {"projector_hidden_size": 64, **UNTIED},
        ),
        SHAPED,
    ),
    "lfm3_vl": (
        Recipe(
            "Lfm3Vl",
            "Lfm3",
            "Lfm3VlVision",
            {"head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED},
            {**TOWER, "num_key_value_heads": 1, "patch_size": 4},
            {"video_token_id": VIDEO, "projector_hidden_size": 64, **UNTIED},
        ),
        UNTYPED,
    ),
    "kimi_k25": (
        Recipe(
            "Kimi_K25",
            "DeepseekV3",
            "Kimi_K25Vision",
            {
                **MOE,
                "num_key_value_heads": 4,
                "n_routed_experts": 4,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "q_lora_rank": 32,
                "kv_lora_rank": 16,
                "qk_nope_head_dim": 16,
                "qk_rope_head_dim": 8,
                "v_head_dim": 12,
            },
            {**TOWER, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8},
            {"video_token_id": VIDEO, "projection_hidden_size": 32, **UNTIED},
        ),
        UNTYPED,
    ),
    "gemma4": (
        Recipe(
            "Gemma4",
            "Gemma4Text",
            "Gemma4Vision",
            {**GEMMA, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128},
            {
                **TOWER,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "patch_size": 4,
                "pooling_kernel_size": 2,
            },
            {"video_token_id": VIDEO, "audio_config": None, **UNTIED},
        ),
        PLACED,
    ),
    "gemma4_unified": (
        Recipe(
            "Gemma4Unified",
            "Gemma4UnifiedText",
            "Gemma4UnifiedVision",
            GEMMA,
            {
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "mm_embed_dim": 32,
                "mm_posemb_size": 64,
                "output_proj_dims": 32,
            },
            {"video_token_id": VIDEO, "audio_config": None, **UNTIED},
            chooses=False,
        ),
        replace(PLACED, sizes=((4, 6), (2, 3), (5, 2))),
    ),
    "granite_docling": (
        Recipe(
            "GraniteDocling",
            "GraniteDoclingText",
            "GraniteDoclingVision",
            {"embedding_multiplier": 1.0, "attention_multiplier": 0.25, "logits_scaling": 1.0},
            {
                **TOWER,
                "image_size": 32,
                "patch_size": 4,
                "scale_factor": 2,
                "out_hidden_size": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            UNTIED,
        ),
        TILED,
    ),
    "granite4_vision": (
        Recipe(
            "Granite4Vision",
            "Granite4VisionText",
            "SiglipVision",
            {"attention_multiplier": 0.25},
            {**SIGLIP, "hidden_size": 64},
            {
                "image_grid_pinpoints": [[32, 64], [64, 32]],
                "downsample_rate": "2/4",
                "deepstack_layer_map": [[-1, 0]],
                "spatial_target_layers": [1, 1, 2, 2],
                "vision_feature_select_strategy": "full",
                **UNTIED,
            },
        ),
        ANYRES,
    ),
    "ministral3": (sized("Mistral3", "Ministral3", rope_parameters=SCALED), SIZED),
}
