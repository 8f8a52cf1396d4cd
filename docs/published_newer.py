"""Published sizes of families that came later, and where they were read.

As in ``published.py``, numbers are those of a checkpoint's ``config.json``, read in copies of it:
in a public collection of model configurations (LFM2-VL, Llama 4 Scout from an unquantised copy,
Command A Vision from a 4-bit one, Aya Vision, Ovis2, DeepSeek-VL, Janus-Pro, Aria, VideoLLaMA 3,
EXAONE 4.5 from a 4-bit one), or in other projects' tests and documents (Qwen3-Omni, Gemma 4 31B and
26B-A4B, Kimi K2.5, HunyuanOCR 1.5; PerceptionLM from a table of open copies, its own file being
gated).

Others are what transformers falls back to, whose configuration class says that its defaults make a
model like the checkpoint's: Qwen3.5 35B-A3B, ERNIE 4.5 VL, PaddleOCR-VL, Molmo 2, Granite Docling,
Idefics2, Emu3, GLM-4.5V, GLM-OCR, LightOnOCR, Muse Glimmer and Spark, LFM3-VL, and Step 3.7 but for
its sliding layers, which other projects' tests have as three of four, with 96 heads.  So are
Qwen3.5 9B's, whose class names the 27B there, but whose layers, heads and widths are the 9B's, as a
table made of its file has them; GOT-OCR 2's, whose class names its vision tower, and which copies
of its file agree with; and Video-LLaVA's and ViP-LLaVA's, whose text models are LLaMA's of 7B.

Pictures are as transformers' image processors make them, with the sizes that the configuration has
for tiles and patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from published import LLAMA_3_8B, QWEN2_7B, VICUNA_7B, Config, Published, tower
from published_decoders import (
    ARIA,
    COHERE_7B,
    COHERE_111B,
    DEEPSEEK_1B,
    DEEPSEEK_7B,
    DEEPSTACK,
    EMU3_WORDS,
    EXAONE_32B,
    GEMMA_4_26B_A4B,
    GEMMA_4_31B,
    HUNYUAN,
    KIMI_K2,
    LFM2_1B,
    PATCHES_16,
    PERCEPTION_TOWER,
    QWEN2_0_5B,
    QWEN2_1_5B,
    QWEN3_5_9B,
    QWEN3_5_35B_A3B,
    QWEN3_OMNI,
    STEP_3_7,
)


def told(
    name: str,
    checkpoint: str,
    kind: str,
    rows: int,
    cols: int,
    decoder: Config | None = None,
    vision: Config | None = None,
    **arguments: Any,
) -> Published:
    """A family that is told its grid of patches; what is not given, the class has as its default.

    Args:
        name: Of the model.
        checkpoint: Whose numbers these are.
        kind: Its ``model_type``.
        rows: Of tokens.
        cols: Of tokens.
        decoder: Its text model.
        vision: Its tower.
        **arguments: What the encoder is called with, where it is not the usual.
    """
    config: Config = {"model_type": kind}
    config |= {} if decoder is None else {"text_config": decoder}
    config |= {} if vision is None else {"vision_config": vision}
    arguments = arguments or {"image_grid_thw": [(1, 2 * rows, 2 * cols)]}
    return Published(name, checkpoint, config, rows * cols, f"{rows}×{cols}", arguments)


def tiled(
    name: str,
    checkpoint: str,
    kind: str,
    tiles: int,
    side: int,
    decoder: Config | None = None,
    vision: Config | None = None,
    **options: Any,
) -> Published:
    """A family of so many squares of ``side`` x ``side`` tokens."""
    config: Config = {"model_type": kind, **options}
    config |= {} if decoder is None else {"text_config": decoder}
    config |= {} if vision is None else {"vision_config": vision}
    seen = f"{side}×{side}" if tiles == 1 else f"{tiles} × {side}×{side}"
    return Published(name, checkpoint, config, tiles * side**2, seen)


def places(rows: int, cols: int) -> Sequence[Sequence[int]]:
    """Column and row of each patch."""
    return [(col, row) for row in range(rows) for col in range(cols)]


def gemma_4(size: str, decoder: Config) -> Published:
    """Gemma 4: patches of the scaled picture, pooled three by three."""
    name, vision = f"Gemma 4 {size}", {"model_type": "gemma4_vision"}
    where = [places(42, 57)]
    checkpoint = f"google/gemma-4-{size}-it"
    return told(name, checkpoint, "gemma4", 14, 19, decoder, vision, image_position_ids=where)


NEWER: tuple[Published, ...] = (
    told("Qwen3.5 9B", "Qwen/Qwen3.5-9B", "qwen3_5", 24, 32, QWEN3_5_9B, PATCHES_16),
    told(
        *("Qwen3.5 35B-A3B", "Qwen/Qwen3.5-35B-A3B", "qwen3_5_moe", 24, 32),
        QWEN3_5_35B_A3B,
        PATCHES_16,
    ),
    told(
        *("Qwen3-Omni 30B-A3B", "Qwen/Qwen3-Omni-30B-A3B-Instruct", "qwen3_omni_moe_thinker"),
        *(24, 32),
        QWEN3_OMNI,
        DEEPSTACK,
    ),
    gemma_4("31B", GEMMA_4_31B),
    gemma_4("26B-A4B", GEMMA_4_26B_A4B),
    told("Kimi K2.5", "moonshotai/Kimi-K2.5", "kimi_k25", 28, 37, KIMI_K2),
    tiled(
        *("Llama 4 Scout", "meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4", 13, 12),
        {"model_type": "llama4_text"},
        {"model_type": "llama4_vision_model", "image_size": 336},
    ),
    Published(
        "LFM2-VL 1.6B",
        "LiquidAI/LFM2-VL-1.6B",
        {"model_type": "lfm2_vl", "text_config": LFM2_1B, "downsample_factor": 2},
        6 * 256 + 13 * 18,
        "6 × 16×16, 13×18",
        {"spatial_shapes": [(32, 32)] * 6 + [(26, 36)]},
        parts=(*[256] * 6, 13 * 18),
    ),
    told("LFM3-VL 2B", "LiquidAI/LFM3-VL-2B", "lfm3_vl", 24, 32),
    told("ERNIE 4.5 VL 28B-A3B", "baidu/ERNIE-4.5-VL-28B-A3B-PT", "ernie4_5_vl_moe", 27, 37),
    told("Muse Glimmer 30B", "meta-models/Muse-Glimmer-30B", "muse_glimmer", 27, 36),
    told("Muse Spark 816B-A42B", "meta-models/Muse-Spark-Open-816B-A42B", "muse_spark", 27, 36),
    told("GLM-4.5V", "zai-org/GLM-4.5V", "glm4v_moe", 27, 37),
    told("GLM-OCR", "zai-org/GLM-OCR", "glm_ocr", 27, 37),
    told("PaddleOCR-VL 0.9B", "PaddlePaddle/PaddleOCR-VL", "paddleocr_vl", 27, 37),
    Published(
        "HunyuanOCR 1.5",
        "tencent/HunyuanOCR",
        {"model_type": "hunyuan_vl", "text_config": HUNYUAN, "vision_config": PATCHES_16},
        24 * 33 + 2,
        "24×32 and newlines",
        {"image_grid_thw": [(1, 48, 64)]},
    ),
    told(
        *("VideoLLaMA 3 7B", "lkhl/VideoLLaMA3-7B-Image-HF", "video_llama_3", 55, 73, QWEN2_7B),
        {"patch_size": 14},
        image_grid_thw=[(1, 55, 73)],
        image_merge_sizes=[1],
    ),
    told("EXAONE 4.5 33B", "LGAI-EXAONE/EXAONE-4.5-33B", "exaone4_5", 27, 37, EXAONE_32B),
    told(
        *("LightOnOCR 1B", "lightonai/LightOnOCR-1B-1025", "lighton_ocr", 27, 36),
        image_sizes=[(768, 1024)],
    ),
    tiled(
        *("Aya Vision 8B", "CohereLabs/aya-vision-8b", "aya_vision", 13, 13),
        COHERE_7B,
        tower("siglip", 364, 14),
        downsample_factor=2,
    ),
    tiled(
        *("Command A Vision", "CohereLabs/command-a-vision-07-2025", "cohere2_vision", 5, 16),
        COHERE_111B,
        tower("siglip", 512, 16),
        downsample_factor=2,
    ),
    tiled(
        *("Ovis2 2B", "thisisiron/Ovis2-2B-hf", "ovis2", 7, 16, QWEN2_1_5B),
        {"image_size": 448, "patch_size": 14, "hidden_stride": 2, "vocab_size": 65536},
        hidden_size=1536,
    ),
    tiled("GOT-OCR 2", "stepfun-ai/GOT-OCR-2.0-hf", "got_ocr2", 1, 16, QWEN2_0_5B),
    tiled(
        *("DeepSeek-VL 1.3B", "deepseek-community/deepseek-vl-1.3b-chat", "deepseek_vl", 1, 24),
        DEEPSEEK_1B,
        {**tower("siglip", 384, 16), "vision_use_head": False},
    ),
    tiled(
        *("Janus-Pro 7B", "deepseek-community/Janus-Pro-7B", "janus", 1, 24, DEEPSEEK_7B),
        tower("janus", 384, 16),
    ),
    tiled(
        *("ViP-LLaVA 7B", "llava-hf/vip-llava-7b-hf", "vipllava", 1, 24, VICUNA_7B),
        tower("clip", 336, 14),
    ),
    Published(
        "Video-LLaVA 7B",
        "LanguageBind/Video-LLaVA-7B-hf",
        {
            "model_type": "video_llava",
            "text_config": VICUNA_7B,
            "vision_config": tower("clip", 224, 14),
        },
        8 * 257,
        "8 frames of 16×16",
        kind="video",
        parts=(257,) * 8,
    ),
    tiled(
        *("PerceptionLM 8B", "facebook/Perception-LM-8B", "perception_lm", 36, 16, LLAMA_3_8B),
        PERCEPTION_TOWER,
    ),
    Published(
        "Molmo 2 8B",
        "allenai/Molmo2-8B",
        {"model_type": "molmo2"},
        14 * 14 + 23 * 33,
        "14×14, 23×33",
        {"image_grids": [(14, 14, 23, 33)]},
    ),
    Published(
        "Step 3.7 Flash",
        "stepfun-ai/Step-3.7-Flash",
        {"model_type": "step3p7", "text_config": STEP_3_7},
        4 * 81 + 169,
        "4 × 9×9, 13×13",
        {"num_local_patches": [4]},
    ),
    tiled("Granite Docling 500M", "ibm-granite/granite-for-docling-500m", "granite_docling", 13, 8),
    Published(
        "Emu3 Chat",
        "Emu3-community/Emu3-Chat-hf",
        {"model_type": "emu3", "vocabulary_map": EMU3_WORDS},
        96 * 129,
        "96×128 and newlines",
        {"image_sizes": [(768, 1024)]},
    ),
    Published(
        "Idefics2 8B", "HuggingFaceM4/idefics2-8b", {"model_type": "idefics2"}, 64, "64 queries"
    ),
    Published(
        "Aria 25B",
        "rhymes-ai/Aria",
        {
            "model_type": "aria",
            "text_config": ARIA,
            "vision_config": {"image_size": 980, "patch_size": 14},
            "projector_patch_to_query_dict": {"1225": 128, "4900": 256},
        },
        256,
        "256 queries",
        {"num_crops": [1]},
    ),
)
