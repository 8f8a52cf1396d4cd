"""Tiny random models of families that came later, whose pictures are tiles, codes or queries."""

from __future__ import annotations

from dataclasses import replace

from families.decoders import LINEAR
from families.kinds import MOE, QUERIES, SAM, SLIDING, SQUARE, TILED, UNTIED, Kind, squares
from families.models import IMAGE, MROPE, RECIPES, TOWER, VIDEO, Recipe

CODES = range(128, 144)
VOCABULARY = {"<image>": IMAGE, "<|extra_200|>": CODES[-1] + 1}
VOCABULARY |= {f"<|visual token {number:06d}|>": id_ for number, id_ in enumerate(CODES)}
CODED = Kind(((16, 24), (8, 12), (20, 8)), (((8, 12),), ((4, 6),), ((10, 4),)), "image_sizes")
CODER = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
CODER |= {"codebook_size": len(CODES), "attn_resolutions": []}
PAIRED = Kind(
    ((2,),) * 3,
    (((4, 4), (2, 3)), ((4, 4), (3, 2)), ((4, 4), (1, 4))),
    "image_grids",
    typed="mm_token_type_ids",
)
CROPPED = Kind(((1,),) * 3, (((2, 2), (2, 2), (4, 4)), ((4, 4),), ((2, 2), (4, 4))), cut=True)
SEPARATED = ([], [], [IMAGE])
PAGES = Kind(((1,),) * 3, (((1, 144),) * 2, ((1, 144),), ((1, 144),) * 2), text=SEPARATED, cut=True)
PERCEIVER = {"resampler_n_latents": 8, "resampler_depth": 1, "resampler_n_heads": 2}
PERCEIVER |= {"resampler_head_dim": 8, "num_key_value_heads": 1, "hidden_size": 64}
EAR = {"model_type": "wavtokenizer_encoder", "codebook_size": 8, "codebook_dim": 16}
EAR |= {"num_filters": 2, "hidden_size": 16, "upsampling_ratios": [2], "num_lstm_layers": 1}
READER = {**TOWER, "hidden_size": 64, "num_key_value_heads": 1}

TILES: dict[str, tuple[Recipe, Kind]] = {
    "shieldgemma2": (
        replace(RECIPES["gemma3"], name="ShieldGemma2", model="Gemma3"),
        replace(SQUARE, typed="token_type_ids"),
    ),
    "perception_lm": (  # with a tower of transformers in the place of one of timm's
        squares(
            "PerceptionLM",
            "Llama",
            {**TOWER, "image_size": 32, "patch_size": 4}
            | {"model_args": {"embed_dim": 32, "ref_feat_shape": [8, 8]}},
            "CLIPVision",
            projector_pooling_ratio=2,
        ),
        TILED,
    ),
    "fast_vlm": (  # the same
        squares(
            "FastVlm",
            "Qwen2",
            {**SAM, "image_size": 16, "output_channels": 32},
            "SamVision",
            image_seq_length=16,
        ),
        SQUARE,
    ),
    "video_llava": (
        squares(
            "VideoLlava",
            "Llama",
            {**TOWER, "image_size": 16, "patch_size": 4},
            "CLIPVision",
            video_token_id=VIDEO,
            vision_feature_layer=-1,
        ),
        SQUARE,
    ),
    "molmo2": (
        Recipe(
            "Molmo2",
            "Molmo2Text",
            "Molmo2Vision",
            {"head_dim": 16},
            {**TOWER, "patch_size": 4, "head_dim": 16, "num_key_value_heads": 2}
            | {"image_size": [32, 32], "num_position_embeddings": 64},
            {
                "image_patch_id": IMAGE,
                "adapter_config": {
                    "hidden_size": 32,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "head_dim": 16,
                    "intermediate_size": 48,
                    "text_hidden_size": 64,
                    "vision_feature_layer": [-1],
                },
                **UNTIED,
            },
        ),
        PAIRED,
    ),
    "step3p7": (
        Recipe(
            "Step3p7",
            "Step3p7Text",
            "Step3p7Vision",
            {
                **MOE,
                **SLIDING,
                "n_routed_experts": 4,
                "share_expert_dim": 32,
                "head_dim": 16,
                "num_sliding_attention_heads": 8,
            },
            {**TOWER, "image_size": 64, "patch_size": 4, "max_position_embeddings": 256},
            UNTIED,
        ),
        CROPPED,
    ),
    "emu3": (
        Recipe(
            "Emu3",
            "Emu3Text",
            "Emu3VQVAE",
            {"vocab_size": 160},
            {**CODER, "embed_dim": 8, "latent_channels": 8, "hidden_size": 32},
            {"vocabulary_map": VOCABULARY, **UNTIED},
            part="vq_config",
        ),
        replace(CODED, edges=(0, 1, 0)),
    ),
    "apertus1p5": (
        Recipe(
            "Apertus1p5",
            "Apertus1p5Text",
            "Apertus1p5VisionTokenizer",
            {"vocab_size": 160, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            {**CODER, "embed_dim": 8, "latent_channels": 8},
            {
                "image_token_offset": CODES[0],
                "audio_token_offset": CODES[-1] + 1,
                "audio_config": EAR,
            },
            chooses=False,
        ),
        CODED,
    ),
    "idefics2": (
        squares(
            "Idefics2",
            "Mistral",
            {**TOWER, "image_size": 16, "patch_size": 4},
            "Idefics2Vision",
            perceiver_config=PERCEIVER,
        ),
        QUERIES,
    ),
    "aria": (
        squares(
            "Aria",
            "AriaText",
            {**TOWER, "image_size": 16, "patch_size": 4},
            "Idefics3Vision",
            projector_patch_to_query_dict={16: 8, 64: 12},
        ),
        QUERIES,
    ),
    "deepseek_ocr2": (
        Recipe(
            "DeepseekOcr2",
            "DeepseekOcr2Text",
            "DeepseekOcr2Vision",
            {**MOE, "n_routed_experts": 4, "mlp_layer_types": ["dense", *["sparse"] * 5]},
            {"sam_config": {**SAM, "downsample_channels": [8, 64]}, "encoder_config": READER},
            UNTIED,
        ),
        PAGES,
    ),
}

PACKED = Kind(((8, 12), (4, 8), (12, 4)), (((2, 3),), ((1, 2),), ((3, 1),)), "target_sizes")
TEXTS = {
    "minicpmv4_6": ("MiniCPMV4_6", "Qwen3_5Text", LINEAR),
    "minicpmv4_7": ("MiniCPMV4_7", "Qwen3VLText", {"rope_parameters": MROPE}),
    "minicpm_ocr": ("MiniCPMOcr", "Qwen3", {}),
}
for family, (name, text, options) in TEXTS.items():
    turned = text == "Qwen3VLText"  # by three coordinates
    TILES[family] = (
        Recipe(
            name,
            text,
            f"{name}Vision",
            {"head_dim": 16, **options},
            {**TOWER, "image_size": 64, "patch_size": 4},
            {"insert_layer_id": 0, "downsample_mode": "16x", "video_token_id": VIDEO, **UNTIED},
        ),
        replace(PACKED, typed="mm_token_type_ids" if turned else "", stamped=turned),
    )
