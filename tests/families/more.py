"""Tiny random models of further families, by kind, and the grids of their pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import transformers as hf

from families.decoders import DECODERS
from families.kinds import (
    MOE,
    QUANTISER,
    SAM,
    SIZED,
    SLIDING,
    SMALL,
    SQUARE,
    THW,
    TILED,
    UNTIED,
    UNTYPED,
    Kind,
    grid_thw,
    sized,
    squares,
)
from families.models import (
    IMAGE,
    MROPE,
    QWEN,
    QWEN_TOWER,
    SIGLIP,
    TOWER,
    VIDEO,
    Recipe,
    llava,
    tiny,
)
from families.newer import FILMED_TOO, NEWER

RECIPES: dict[str, tuple[Recipe, Kind]] = {
    "qwen3_vl_moe": (
        grid_thw(
            "Qwen3VLMoe",
            {**MOE, "num_experts": 4, "head_dim": 16},
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
        THW,
    ),
    "glm4v": (grid_thw("Glm4v", {}, image_size=32), THW),
    "glm46v": (grid_thw("Glm46V", {}, "Glm4v", image_size=32), THW),
    "glm4v_moe": (
        grid_thw(
            "Glm4vMoe",  # half of the channels turn, and the first layer has no experts
            {
                **MOE,
                "n_routed_experts": 4,
                "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
            },
            image_size=32,
        ),
        THW,
    ),
    "glm_ocr": (grid_thw("GlmOcr", {"head_dim": 16}, image_size=32), THW),
    "paddleocr_vl": (
        Recipe(
            "PaddleOCRVL",
            "PaddleOCRText",
            "PaddleOCRVision",
            {"rope_parameters": MROPE, "head_dim": 16},
            {**TOWER, "image_size": 32, "patch_size": 4},
            {**QWEN, **UNTIED},
        ),
        THW,
    ),
    "exaone4_5": (
        Recipe(
            "Exaone4_5_",
            "Exaone4",
            "Exaone4_5_Vision",
            SLIDING,
            {**QWEN_TOWER, "num_key_value_heads": 1, "fullatt_block_indexes": [1]},
            {"image_token_id": IMAGE, "video_token_id": QWEN["video_token_id"]},
        ),
        UNTYPED,
    ),
    "mistral3": (sized("Mistral3", "Mistral"), SIZED),
    "lighton_ocr": (sized("LightOnOcr", "Qwen3"), SIZED),
    "cohere2_vision": (
        squares("Cohere2Vision", "Cohere2", SIGLIP, "SiglipVision", alignment_intermediate_size=64),
        TILED,
    ),
    "aya_vision": (squares("AyaVision", "Cohere2", SIGLIP, "SiglipVision"), TILED),
    "ovis2": (
        squares(
            "Ovis2",
            "Qwen2",
            {**TOWER, "image_size": 32, "patch_size": 4, "hidden_stride": 2, "vocab_size": 64},
            "Ovis2Vision",
            hidden_size=64,
            vocab_size=128,
            visual_indicator_token_ids=list(range(115, 120)),
        ),
        TILED,
    ),
    "got_ocr2": (
        squares("GotOcr2", "Qwen2", SAM, "GotOcr2Vision"),
        TILED,
    ),
    "qianfan_ocr": (
        squares(
            "QianfanOCR", "Qwen3", {**TOWER, "image_size": 32, "patch_size": 4}, "QianfanOCRVision"
        ),
        TILED,
    ),
    "deepseek_vl": (squares("DeepseekVL", "Llama", SMALL, "SiglipVision"), SQUARE),
    "deepseek_vl_hybrid": (
        squares(
            "DeepseekVLHybrid",
            "Llama",
            SMALL,
            "SiglipVision",
            high_res_vision_config={"model_type": "sam_vision_model", **SAM},
        ),
        SQUARE,
    ),
    "janus": (
        squares(
            "Janus",
            "Llama",
            {**TOWER, "image_size": 16, "patch_size": 4, "projection_dim": 64, "mlp_ratio": 1.5},
            "JanusVision",
            vq_config=QUANTISER,
        ),
        SQUARE,
    ),
    "vipllava": (
        llava("VipLlava", "Llama", 4, vision_feature_layer=[-1, 1]),
        SQUARE,
    ),
}
for family, name, of in (
    ("glmga", "Glmga", "glm46v"),
    ("pp_chart2table", "PPChart2Table", "got_ocr2"),
):
    recipe, kind = RECIPES[of]  # of the same model
    RECIPES[family] = replace(recipe, name=name, model=recipe.name), kind
RECIPES |= NEWER | DECODERS
MORE = [name for name, (recipe, _) in RECIPES.items() if hasattr(hf, f"{recipe.name}Config")]


FILMED = {
    **dict.fromkeys(("qwen3_vl_moe", "exaone4_5"), VIDEO),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "lfm3_vl", "ernie4_5_vl_moe"), VIDEO),
    **dict.fromkeys(("kimi_k25", "gemma4", "gemma4_unified"), VIDEO),
    **dict.fromkeys(("muse_glimmer", "muse_spark"), VIDEO),
    **dict.fromkeys(("glm4v", "glm46v", "glm4v_moe", "glm_ocr"), IMAGE),
    **FILMED_TOO,
}
"""Families that take videos, and the placeholder of their frames."""


def model_of(family: str, attention: str = "eager", **options: Any) -> Any:
    """A model of 6 layers, as :func:`families.models.tiny` makes it."""
    if family == "llama4":  # asks its text model, since transformers 5.24, for what it lacks
        hf.modeling_outputs.MoeCausalLMOutputWithPast.image_outputs = None
    return tiny(family, attention, recipe=RECIPES[family][0], **options)
