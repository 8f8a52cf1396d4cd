"""Tiny random models of further families, by kind, and the grids of their pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import transformers as hf

from families.models import (
    IMAGE,
    LAYERS,
    MROPE,
    QWEN,
    QWEN_TOWER,
    SIGLIP,
    TOWER,
    VIDEO,
    WINDOW,
    Recipe,
    llava,
    tiny,
)

Size = tuple[int, ...]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """How a family gets its pictures.

    Attributes:
        sizes: Of three pictures: patches `(time, height, width)`, pixels `(height, width)`, or the
            number of squares.
        grids: The tiles that each of them has.
        argument: What tells the model their sizes; empty for squares.
    """

    sizes: tuple[Size, ...]
    grids: tuple[tuple[Grid, ...], ...]
    argument: str = ""


APART = (((4, 6),), ((2, 3),), ((5, 2),))
THW = Kind(((1, 8, 12), (1, 4, 6), (1, 10, 4)), APART, "image_grid_thw")
SIZED = Kind(((32, 48), (16, 24), (44, 16)), APART, "image_sizes")  # a row of patches is left over
SQUARE = Kind(((1,),) * 3, (((4, 4),),) * 3)
TILED = Kind(((3,), (1,), (2,)), (((4, 4),) * 3, ((4, 4),), ((4, 4),) * 2))

MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}
UNTIED = {"tie_word_embeddings": False}
SAM = {
    **TOWER,
    "image_size": 64,
    "patch_size": 4,
    "output_channels": 8,
    "mlp_dim": 48,
    "global_attn_indexes": [1],
    "window_size": 4,
}
SMALL = {**SIGLIP, "image_size": 16}
QUANTISER = {"base_channels": 32, "channel_multiplier": [1], "num_patches": 4, "projection_dim": 64}


def grid_thw(name: str, text: dict[str, Any], other: str = "", **vision: Any) -> Recipe:
    """Told grids of patches of 4 x 4 pixels, 2 x 2 to a token; ``other`` lends its parts."""
    part = other or name
    text = {"rope_parameters": MROPE, **text}
    return Recipe(name, f"{part}Text", f"{part}Vision", text, {**QWEN_TOWER, **vision}, QWEN)


def sized(name: str, text: str) -> Recipe:
    """A Pixtral tower with patches of 4 x 4 pixels, 2 x 2 to a token."""
    tower = {**TOWER, "image_size": 64, "patch_size": 4}
    return Recipe(name, text, "PixtralVision", {"head_dim": 16}, tower, UNTIED)


def squares(name: str, text: str, tower: dict[str, Any], vision: str, **options: Any) -> Recipe:
    """Squares of 4 x 4 tokens."""
    more = SLIDING if text == "Cohere2" else {}
    return Recipe(name, text, vision, more, tower, {**UNTIED, **options})


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
        THW,
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
MORE = [name for name, (recipe, _) in RECIPES.items() if hasattr(hf, f"{recipe.name}Config")]


FILMED = {
    **dict.fromkeys(("qwen3_vl_moe", "exaone4_5"), VIDEO),
    **dict.fromkeys(("glm4v", "glm46v", "glm4v_moe", "glm_ocr"), IMAGE),
}
"""Families that take videos, and the placeholder of their frames."""


def model_of(family: str, attention: str = "eager", **options: Any) -> Any:
    """A model of 6 layers, as :func:`families.models.tiny` makes it."""
    return tiny(family, attention, recipe=RECIPES[family][0], **options)
