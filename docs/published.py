"""Published sizes of every family, as numbers: what the costs of a prefill depend on.

Each entry is what the checkpoint's ``config.json`` says, or where it says nothing, what its
configuration class in transformers falls back to.  A vision tower is given by its patches alone;
its width and depth change nothing here, and neither does the vocabulary.

Not read in the checkpoint's own files: Idefics3's layers and heads, which are those of Llama 3.1
8B, the model it was made from; and SmolVLM2's numbers, which are those of SmolVLM-Instruct and of
SmolLM2-1.7B.  Derivatives of InternVL3 8B and of both PaliGemmas stand for the originals.
Qwen3-VL 30B-A3B's numbers are from a copy of its file in another project's tests, GLM-4.1V's and
Mistral Small 3.1's are what transformers falls back to, which names these checkpoints there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]

PICTURE = (768, 1024)
"""(height, width) of the picture, in pixels, before a processor has seen it."""


@dataclass(frozen=True)
class Published:
    """A model, and what its processor makes of a picture.

    Attributes:
        name: Of the model.
        checkpoint: Whose ``config.json`` the numbers are from.
        config: Of the model.
        tokens: Vision tokens of the picture; the adapter's layout has to come to the same.
        seen: What they are.
        arguments: What the encoder is called with besides pixels.
        kind: "image" or "video".
        parts: Tokens of each entry of what the encoder returns, if it returns several.
    """

    name: str
    checkpoint: str
    config: Config
    tokens: int
    seen: str
    arguments: Config = field(default_factory=dict)
    kind: str = "image"
    parts: tuple[int, ...] = ()


def text(
    kind: str, layers: int, hidden: int, inner: int, heads: int, kv_heads: int, **more: Any
) -> Config:
    """A text model."""
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


def tower(kind: str, image: int, patch: int) -> Config:
    """A vision tower."""
    return {"model_type": f"{kind}_vision_model", "image_size": image, "patch_size": patch}


VICUNA_7B = text("llama", 32, 4096, 11008, 32, 32)
VICUNA_13B = text("llama", 40, 5120, 13824, 40, 40)
MISTRAL_7B = text("mistral", 32, 4096, 14336, 32, 8, sliding_window=None)
LLAMA_3_8B = text("llama", 32, 4096, 14336, 32, 8)
SMOLLM2 = text("llama", 24, 2048, 8192, 32, 32, head_dim=64)
QWEN2_7B = text("qwen2", 28, 3584, 18944, 28, 4)
GEMMA_2B = text("gemma", 18, 2048, 16384, 8, 1, head_dim=256)
GEMMA_2_2B = text("gemma2", 26, 2304, 9216, 8, 4, head_dim=256, sliding_window=4096)
# Five layers of sliding windows, then one of full attention.
GEMMA_3 = {"head_dim": 256, "sliding_window": 1024, "sliding_window_pattern": 6}
GEMMA_3_4B = text("gemma3_text", 34, 2560, 10240, 8, 4, **GEMMA_3)
GEMMA_3_12B = text("gemma3_text", 48, 3840, 15360, 16, 8, **GEMMA_3)
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
QWEN2_VL_7B = text("qwen2_vl_text", 28, 3584, 18944, 28, 4, rope_parameters=MROPE)
QWEN2_5_VL_3B = text("qwen2_5_vl_text", 36, 2048, 11008, 16, 2, rope_parameters=MROPE)
QWEN2_5_VL_7B = text("qwen2_5_vl_text", 28, 3584, 18944, 28, 4, rope_parameters=MROPE)
QWEN3_ROPE = {**MROPE, "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
QWEN3_VL_8B = text(
    "qwen3_vl_text", 36, 4096, 12288, 32, 8, head_dim=128, rope_parameters=QWEN3_ROPE
)
QWEN3_VL_30B_A3B = text(
    "qwen3_vl_moe_text",
    48,
    2048,
    6144,
    32,
    4,
    head_dim=128,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    rope_parameters=QWEN3_ROPE,
)
GLM_4_9B = text("glm4v_text", 40, 4096, 13696, 32, 2)
MISTRAL_24B = text("mistral", 40, 5120, 32768, 32, 8, head_dim=128, sliding_window=None)

CLIP = tower("clip", 336, 14)
SIGLIP = tower("siglip", 384, 14)
ANYRES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ANYRES_6X6 = [[384 * rows, 384 * cols] for rows in range(1, 7) for cols in range(1, 7)]
QWEN_TOWER = {"patch_size": 14, "spatial_merge_size": 2}
QWEN3_TOWER = {
    "patch_size": 16,
    "spatial_merge_size": 2,
    "depth": 27,
    "deepstack_visual_indexes": [8, 16, 24],
}


def llava(checkpoint: str, decoder: Config, name: str) -> Published:
    """LLaVA-1.5: the picture, cropped to a square."""
    config = {"model_type": "llava", "text_config": decoder, "vision_config": CLIP}
    return Published(name, f"llava-hf/{checkpoint}", config, 576, "24×24")


def llava_next(checkpoint: str, decoder: Config, name: str) -> Published:
    """LLaVA-NeXT: the whole, and four tiles without their padding, 36 rows of 48 and a newline."""
    config = {
        "model_type": "llava_next",
        "text_config": decoder,
        "vision_config": CLIP,
        "image_grid_pinpoints": ANYRES,
    }
    seen, sizes = "24×24, 36×48 and newlines", {"image_sizes": [PICTURE]}
    return Published(name, f"llava-hf/{checkpoint}", config, 576 + 36 * 49, seen, sizes)


def qwen(checkpoint: str, decoder: Config, vision: Config, rows: int, cols: int) -> Published:
    """Qwen: the picture, scaled to a whole number of patches, merged two by two."""
    kind = decoder["model_type"].removesuffix("_text")
    config = {"model_type": kind, "text_config": decoder, "vision_config": vision}
    grid = {"image_grid_thw": [(1, 2 * rows, 2 * cols)]}
    name = checkpoint.removesuffix("-Instruct").replace("VL-", "VL ")
    return Published(name, f"Qwen/{checkpoint}", config, rows * cols, f"{rows}×{cols}", grid)


def gemma_3(size: str, decoder: Config) -> Published:
    """Gemma 3: the picture as a square, without pan and scan."""
    config = {
        "model_type": "gemma3",
        "text_config": decoder,
        "vision_config": tower("siglip", 896, 14),
        "mm_tokens_per_image": 256,
    }
    return Published(f"Gemma 3 {size}", f"google/gemma-3-{size.lower()}-it", config, 256, "16×16")


def paligemma(name: str, checkpoint: str, decoder: Config, image: int) -> Published:
    """PaliGemma: the picture as a square."""
    vision = {**tower("siglip", image, 14), "vision_use_head": False}
    config = {"model_type": "paligemma", "text_config": decoder, "vision_config": vision}
    side = image // 14
    return Published(name, f"google/{checkpoint}", config, side**2, f"{side}×{side}")


def idefics(name: str, checkpoint: str, decoder: Config, image: int, scale: int) -> Published:
    """Idefics3, SmolVLM2: three rows of four tiles, and the whole."""
    kind = "smolvlm" if name.startswith("Smol") else "idefics3"
    vision = {**tower("", image, 14), "model_type": f"{kind}_vision"}
    config = {
        "model_type": kind,
        "text_config": decoder,
        "vision_config": vision,
        "scale_factor": scale,
    }
    side = image // 14 // scale
    return Published(name, checkpoint, config, 13 * side**2, f"13 × {side}×{side}")


SIZES: tuple[Published, ...] = (
    llava("llava-1.5-7b-hf", VICUNA_7B, "LLaVA-1.5 7B"),
    llava("llava-1.5-13b-hf", VICUNA_13B, "LLaVA-1.5 13B"),
    llava_next("llava-v1.6-vicuna-7b-hf", VICUNA_7B, "LLaVA-NeXT 7B (Vicuna)"),
    llava_next("llava-v1.6-mistral-7b-hf", MISTRAL_7B, "LLaVA-NeXT 7B (Mistral)"),
    llava_next("llava-v1.6-vicuna-13b-hf", VICUNA_13B, "LLaVA-NeXT 13B"),
    Published(
        "LLaVA-NeXT-Video 7B",
        "llava-hf/LLaVA-NeXT-Video-7B-hf",
        {
            "model_type": "llava_next_video",
            "text_config": VICUNA_7B,
            "vision_config": CLIP,
            "image_grid_pinpoints": ANYRES,
            "spatial_pool_stride": 2,
        },
        8 * 144,
        "8 frames of 12×12",
        kind="video",
    ),
    Published(
        "LLaVA-OneVision 7B",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        {
            "model_type": "llava_onevision",
            "text_config": QWEN2_7B,
            "vision_config": SIGLIP,
            "image_grid_pinpoints": ANYRES_6X6,
            "vision_aspect_ratio": "anyres_max_9",
        },
        729 + 54 * 74,
        "27×27, 54×73 and newlines",
        {"image_sizes": [PICTURE]},
    ),
    qwen("Qwen2-VL-7B-Instruct", QWEN2_VL_7B, QWEN_TOWER, 27, 37),
    qwen("Qwen2.5-VL-3B-Instruct", QWEN2_5_VL_3B, QWEN_TOWER, 27, 37),
    qwen("Qwen2.5-VL-7B-Instruct", QWEN2_5_VL_7B, QWEN_TOWER, 27, 37),
    qwen("Qwen3-VL-8B-Instruct", QWEN3_VL_8B, QWEN3_TOWER, 24, 32),
    qwen("Qwen3-VL-30B-A3B-Instruct", QWEN3_VL_30B_A3B, QWEN3_TOWER, 24, 32),
    Published(
        "GLM-4.1V 9B",
        "zai-org/GLM-4.1V-9B-Thinking",
        {"model_type": "glm4v", "text_config": GLM_4_9B, "vision_config": QWEN_TOWER},
        27 * 37,
        "27×37",
        {"image_grid_thw": [(1, 54, 74)]},
    ),
    Published(
        "Mistral Small 3.1 24B",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        {
            "model_type": "mistral3",
            "text_config": MISTRAL_24B,
            "vision_config": {"model_type": "pixtral", "image_size": 1540, "patch_size": 14},
            "spatial_merge_size": 2,
        },
        28 * 37,
        "28×37",
        {"image_sizes": [(28 * 28, 37 * 28)]},
    ),
    Published(
        "InternVL3 8B",
        "OpenGVLab/InternVL3-8B-hf",
        {
            "model_type": "internvl",
            "text_config": QWEN2_7B,
            "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]},
            "image_seq_length": 256,
            "downsample_ratio": 0.5,
        },
        13 * 256,
        "13 × 16×16",
    ),
    gemma_3("4B", GEMMA_3_4B),
    gemma_3("12B", GEMMA_3_12B),
    idefics("Idefics3 8B", "HuggingFaceM4/Idefics3-8B-Llama3", LLAMA_3_8B, 364, 2),
    idefics("SmolVLM2 2.2B", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", SMOLLM2, 384, 3),
    paligemma("PaliGemma 3B (224)", "paligemma-3b-pt-224", GEMMA_2B, 224),
    paligemma("PaliGemma 2 3B (448)", "paligemma2-3b-pt-448", GEMMA_2_2B, 448),
)
