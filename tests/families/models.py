"""Tiny random models of every family, built in code, with weights that matter."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from copies import copied

# Threads cost tiny models more than they give, thirty times more on a busy machine.
torch.set_num_threads(1)

LAYERS = 6
WINDOW = 12
WORDS = range(3, 100)  # ids of ordinary text; the ids above are special tokens
TAGS = range(100, 116)  # one for each place in 4 x 4 sub-images, row by row
IMAGE, VIDEO, START, END, BREAK, NEWLINE, FAKE, GLOBAL = range(120, 128)

TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,  # tied ones make a model repeat its last token
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
QWEN_TOWER = {
    "depth": 2,
    "num_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "patch_size": 4,
    "spatial_merge_size": 2,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}

DECODERS: dict[str, tuple[str, ...]] = {
    "llava": ("qwen2", "qwen3"),
    "llava_next": ("llama", "qwen2"),
    "llava_next_video": ("mistral", "qwen2"),
    "internvl": ("llama", "qwen3"),
    "paligemma": ("gemma2",),
}
"""Types of other text models that models of a family come with."""

DECODER_OPTIONS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16},
    "gemma2": {  # every other layer slides
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
}


@dataclass(frozen=True)
class Recipe:
    """Classes by name, and what their configurations have besides the usual."""

    name: str
    text: str
    vision: str
    text_options: dict[str, Any] = field(default_factory=dict)
    vision_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    """Where another configuration's model is meant."""

    chooses: bool = True
    """Whether what encodes pictures has a choice of attention implementations, too."""

    part: str = "vision_config"
    """What the configuration of what encodes pictures is called."""


def llava(name: str, text: str, side: int, *grids: tuple[int, int], **options: Any) -> Recipe:
    """A model with square tiles of ``side`` x ``side`` tokens, in any of the ``grids``."""
    tower = {**TOWER, "image_size": 7 * side, "patch_size": 7}
    if name == "LlavaOnevision":
        tower["vision_use_head"] = False
    else:
        options["vision_feature_layer"] = -1
    if grids:
        options["image_grid_pinpoints"] = [[7 * side * h, 7 * side * w] for h, w in grids]
    vision = "Siglip" if name == "LlavaOnevision" else "CLIP"
    return Recipe(name, text, f"{vision}Vision", {}, tower, options)


def idefics(name: str) -> Recipe:
    """Idefics3, or its successor, with sub-images of 4 x 4 tokens."""
    tower = {**TOWER, "image_size": 32, "patch_size": 4}
    options = {"scale_factor": 2, "pad_token_id": 0}
    return Recipe(name, "Llama", f"{name}Vision", {}, tower, options)


SIGLIP = {**TOWER, "image_size": 32, "patch_size": 4, "vision_use_head": False}
GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
VIDEOS = {"video_token_id": VIDEO}
RECIPES: dict[str, Recipe] = {
    "llava": llava("Llava", "Llama", 4),
    "llava_pixtral": Recipe(
        "Llava",
        "Mistral",
        "PixtralVision",
        vision_options={**TOWER, "image_size": 64, "patch_size": 8},
        options={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
    "llava_next": llava("LlavaNext", "Mistral", 4, *GRIDS),
    # An even side, because the processor counts tokens of frames as if nothing were cut off.
    "llava_next_video": llava("LlavaNextVideo", "Llama", 6, *GRIDS, **VIDEOS),
    # An odd side, because frames are halved and rounded up; few tiles before features shrink.
    "llava_onevision": llava(
        "LlavaOnevision",
        "Qwen2",
        5,
        *((1, 1), (2, 3), (3, 2), *GRIDS),
        vision_aspect_ratio="anyres_max_4",
        **VIDEOS,
    ),
    "qwen2_vl": Recipe(
        "Qwen2VL",
        "Qwen2VLText",
        "Qwen2VLVision",
        {"rope_parameters": MROPE},
        {"depth": 2, "num_heads": 2, "embed_dim": 32, "hidden_size": 64, "patch_size": 4},
        QWEN,
    ),
    "qwen2_5_vl": Recipe(
        "Qwen2_5_VL",
        "Qwen2_5_VLText",
        "Qwen2_5_VLVision",
        {"rope_parameters": MROPE},
        {**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1]},
        QWEN,
    ),
    "qwen3_vl": Recipe(
        "Qwen3VL",
        "Qwen3VLText",
        "Qwen3VLVision",
        {"rope_parameters": {**MROPE, "mrope_interleaved": True}, "head_dim": 16},
        {**QWEN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        QWEN,
    ),
    "internvl": Recipe(
        "InternVL",
        "Qwen2",
        "InternVLVision",
        vision_options={**TOWER, "image_size": 32, "patch_size": 4},
        options={"image_seq_length": 16, "tie_word_embeddings": False},
    ),
    "gemma3": Recipe(
        "Gemma3",
        "Gemma3Text",
        "SiglipVision",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        },
        SIGLIP,
        {
            "mm_tokens_per_image": 16,
            "boi_token_id": START,
            "eoi_token_id": END,
            "tie_word_embeddings": False,
        },
    ),
    "idefics3": idefics("Idefics3"),
    "smolvlm": idefics("SmolVLM"),
    "paligemma": Recipe(
        "PaliGemma",
        "Gemma",
        "SiglipVision",
        {"head_dim": 16},
        {**SIGLIP, "patch_size": 8},
        {"projection_dim": 64, "hidden_size": 64, "tie_word_embeddings": False},
    ),
}
FAMILIES: tuple[str, ...] = tuple(RECIPES)


@copied
def tiny(
    family: str,
    attention: str = "sdpa",
    *,
    seed: int = 0,
    decoder: str | None = None,
    recipe: Recipe | None = None,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A model of 6 layers; ``text``, ``vision`` and ``options`` override its configurations.

    ``decoder`` is the type of another text model than the usual one, of :data:`DECODERS`, and
    ``recipe`` that of a family which is not in :data:`RECIPES`.
    """
    recipe = copy.deepcopy(
        recipe or RECIPES[family]
    )  # configurations keep and change what they are given
    usual = recipe.text_options if decoder is None else DECODER_OPTIONS.get(decoder, {})
    text = {**TEXT, **usual, **(text or {})}
    text_class = _config_class(recipe.text) if decoder is None else hf.CONFIG_MAPPING[decoder]
    vision = {**recipe.vision_options, **(vision or {})}
    config = getattr(hf, f"{recipe.name}Config")(
        text_config=text_class(**text),
        **{recipe.part: _config_class(recipe.vision)(**vision)},
        **{"image_token_id": IMAGE, **recipe.options, **options},
    )
    torch.manual_seed(seed)
    model = getattr(hf, f"{recipe.model or recipe.name}ForConditionalGeneration")(config).eval()
    _initialise(model)
    model.set_attn_implementation(attention if recipe.chooses else {"text_config": attention})
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _config_class(name: str) -> Any:
    return getattr(hf, f"{name}Config")


def _initialise(model: Any) -> None:
    """Redraws the weights: the usual ones make attention so even that errors do not show."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "embed" in name and weight.ndim < 4:
                weight.normal_(0, 1)
            else:
                weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
            if not re.search("vision|visual", name) and re.search(r"[qk]_proj\.weight", name):
                weight.mul_(2)
        # What a model wrote is given back to it in tests: no placeholders, then.
        model.get_output_embeddings().weight[[IMAGE, VIDEO]] = 0
