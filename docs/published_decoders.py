"""Text models and towers of :mod:`published_newer`, as numbers."""

from __future__ import annotations

from published import MROPE, Config, text, tower

QWEN3_ROPE = {**MROPE, "mrope_section": [24, 20, 20]}
QWEN3_5_9B: Config = {"model_type": "qwen3_5_text"}
QWEN3_5_35B_A3B: Config = {"model_type": "qwen3_5_moe_text"}
QWEN3_OMNI = text(
    "qwen3_omni_moe_text",
    *(48, 2048, 768, 32, 4),
    head_dim=128,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    rope_parameters=QWEN3_ROPE,
)
# Five layers of sliding windows, then one of full attention with fewer and larger key heads.
GEMMA_4 = {"head_dim": 256, "global_head_dim": 512, "attention_k_eq_v": True}
GEMMA_4 |= {"sliding_window": 1024, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
GEMMA_4_31B = text("gemma4_text", 60, 5376, 21504, 32, 16, num_global_key_value_heads=4, **GEMMA_4)
GEMMA_4_26B_A4B = text(
    "gemma4_text",
    *(30, 2816, 2112, 16, 8),
    num_global_key_value_heads=2,
    enable_moe_block=True,
    num_experts=128,
    top_k_experts=8,
    moe_intermediate_size=704,
    **GEMMA_4,
)
KIMI_K2 = text(
    "deepseek_v3",
    *(61, 7168, 18432, 64, 64),
    moe_intermediate_size=2048,
    n_routed_experts=384,
    num_experts_per_tok=8,
    n_shared_experts=1,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
ATTENDING = (2, 5, 8, 10, 12, 14)
LFM2_1B = text(
    "lfm2",
    *(16, 2048, 12288, 32, 8),
    layer_types=["full_attention" if n in ATTENDING else "conv" for n in range(16)],
)
COHERE = {"head_dim": 128, "sliding_window": 4096, "sliding_window_pattern": 4}
COHERE_7B = text("cohere2", 32, 4096, 14336, 32, 8, **COHERE)
COHERE_111B = text("cohere2", 64, 12288, 36864, 96, 8, **COHERE)
QWEN2_1_5B = text("qwen2", 28, 1536, 8960, 12, 2)
QWEN2_0_5B = text("qwen2", 24, 1024, 2816, 16, 16)
DEEPSEEK_1B = text("llama", 24, 2048, 5632, 16, 16, head_dim=128)
DEEPSEEK_7B = text("llama", 30, 4096, 11008, 32, 32, head_dim=128)
ARIA = text("aria_text", 28, 2560, 1664, 20, 20, moe_num_experts=64, moe_topk=6)
HUNYUAN = text("hunyuan_vl_text", 24, 1024, 3584, 16, 8, head_dim=128)
EXAONE_32B = text("exaone4", 64, 5120, 27392, 40, 8, sliding_window=4096, sliding_window_pattern=4)
STEP_3_7: Config = {
    "model_type": "step3p5",
    "num_sliding_attention_heads": 96,
    "layer_types": ["sliding_attention" if n % 4 else "full_attention" for n in range(45)],
    "sliding_window": 512,
}
PERCEPTION_TOWER = {
    **tower("clip", 448, 14),
    "model_args": {"embed_dim": 1536, "ref_feat_shape": [32, 32]},
}
"""Of transformers, in the place of one of timm's with as many patches."""

EMU3_WORDS = {"<image>": 151646, "<|extra_200|>": 151846, "<|visual token 000000|>": 151854}
"""Of its vocabulary, what its model asks for, and the first of its visual tokens."""

PATCHES_16: Config = {"patch_size": 16, "spatial_merge_size": 2}
DEEPSTACK: Config = {**PATCHES_16, "depth": 27, "deepstack_visual_indexes": [8, 16, 24]}
