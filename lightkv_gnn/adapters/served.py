"""Families with an adapter, in the words of the page of families."""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """A row of the page; text models come from the adapters.

    Attributes:
        name: As people call it.
        types: Its ``config.model_type``, and those of others that are alike.
        tile: One tile, on its true grid, and what is never merged.
        videos: Whether it takes any: "yes", "no", or how.
        needs: What else a model must be.
    """

    name: str
    types: tuple[str, ...]
    tile: str
    videos: str = "no"
    needs: str = ""


_OWN = (
    "the picture in its own shape, or a temporal patch (two frames) of a video, from `*_grid_thw`"
)
_QWEN = "as Qwen2-VL"
_THUMBNAIL = "a tile; the thumbnail is one too"
_PADDED = "the picture, padded to a square"

SERVED: tuple[Family, ...] = (
    Family(
        "LLaVA-1.5, LLaVA with Pixtral",
        ("llava",),
        "the picture, scaled to a square; with Pixtral in its own shape, from `image_sizes`; the "
        'class token of CLIP, with `vision_feature_select_strategy="full"`, is never merged',
    ),
    Family(
        "LLaVA-NeXT",
        ("llava_next",),
        "the whole picture; its high-resolution tiles put together, without their padding, are a "
        "second one; newlines, one at the end of every row, are never merged",
    ),
    Family(
        "Granite 4 Vision",
        ("granite4_vision",),
        "as LLaVA-NeXT; a query of a Q-Former for every few patches, in their place",
    ),
    Family("LLaVA-NeXT-Video", ("llava_next_video",), "as LLaVA-NeXT; or a pooled frame", "yes"),
    Family(
        "LLaVA-OneVision",
        ("llava_onevision",),
        "as LLaVA-NeXT, large grids shrunk as the model does; a picture among several; or a pooled "
        "frame; the newline after a picture among several, and after a video, is never merged",
        "yes",
    ),
    Family("Qwen2-VL, Qwen2.5-VL", ("qwen2_vl", "qwen2_5_vl"), _OWN, "yes"),
    Family("Qwen3-VL", ("qwen3_vl",), _QWEN, "yes"),
    Family("Qwen3-VL-MoE", ("qwen3_vl_moe",), _QWEN, "yes"),
    Family(
        "Qwen2.5-Omni, Qwen3-Omni (thinkers)",
        ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
        "as Qwen2-VL; audio is text",
        "yes",
    ),
    Family("InternVL", ("internvl",), _THUMBNAIL, "as images"),
    Family(
        "Gemma 3, ShieldGemma 2",
        ("gemma3", "shieldgemma2"),
        "the picture as a square; a crop of pan and scan is a picture of its own",
    ),
    Family(
        "Idefics3, SmolVLM",
        ("idefics3", "smolvlm"),
        "a tile; the whole picture, which comes last, is one too",
        "SmolVLM: as images",
    ),
    Family("PaliGemma", ("paligemma",), "the picture as a square"),
    Family(
        "GLM-4.1V, GLM-4.5V, GLM-4.6V, GLM-OCR",
        ("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr"),
        "as Qwen2-VL; frames have the placeholder of images",
        "yes",
    ),
    Family("Cosmos 3", ("cosmos3_omni", "cosmos3_edge"), _QWEN, "yes"),
    Family("HyperCLOVA X Vision", ("hyperclovax_vision_v2",), _QWEN, "yes"),
    Family("North Vision", ("cohere_compass",), _QWEN, "yes"),
    Family("MiniMax-M3", ("minimax_m3_vl",), _QWEN, "yes", "of full attention alone"),
    Family(
        "VideoLLaMA 3",
        ("video_llama_3",),
        "as Qwen2-VL, the merging told picture by picture",
        "yes, with `use_token_compression=False`",
    ),
    Family(
        "HunyuanVL",
        ("hunyuan_vl",),
        "as Qwen2-VL; newlines and the marks around it are never merged",
    ),
    Family("PaddleOCR-VL", ("paddleocr_vl",), _QWEN),
    Family("EXAONE 4.5", ("exaone4_5",), _QWEN, "yes"),
    Family("Qwen3.5", ("qwen3_5", "qwen3_5_moe"), _QWEN, "yes"),
    Family(
        "LFM2-VL",
        ("lfm2_vl",),
        "a tile, or the whole picture, in its own shape, from `spatial_shapes`",
    ),
    Family("LFM3-VL", ("lfm3_vl",), _QWEN, "yes"),
    Family(
        "ERNIE 4.5 VL",
        ("ernie4_5_vl_moe",),
        f"{_QWEN}; two frames share their tokens",
        "yes, of an even number of frames, as its processor makes them; of others transformers' "
        "own resampler leaves the last out and fails",
    ),
    Family("Muse Glimmer, Muse Spark", ("muse_glimmer", "muse_spark"), _QWEN, "yes"),
    Family(
        "Kimi K2.5",
        ("kimi_k25",),
        f"{_QWEN}; the frames of a part of a video, as its processor cuts it, are pooled to one",
        "yes",
    ),
    Family(
        "Gemma 4",
        ("gemma4", "gemma4_unified"),
        "the picture, or a frame, in its own shape, from `*_position_ids`",
        "yes",
        "without layers that share keys and values",
    ),
    Family(
        "Llama 4",
        ("llama4",),
        f"{_THUMBNAIL}. transformers 5.24 itself fails with its pictures: its text model returns "
        "no `image_outputs`",
        "no",
        "contexts shorter than `floor_scale`",
    ),
    Family("Granite Docling", ("granite_docling",), "a tile, coarse or fine"),
    Family(
        "Mistral Small 3.1, Ministral 3",
        ("mistral3",),
        "the picture in its own shape, blocks of patches merged, from `image_sizes`",
    ),
    Family("LightOnOCR", ("lighton_ocr",), "as Mistral Small 3.1"),
    Family("Command A Vision, Aya Vision", ("cohere2_vision", "aya_vision"), _THUMBNAIL),
    Family("Ovis 2", ("ovis2",), "a tile; indicators around it are text"),
    Family("GOT-OCR 2, PP-Chart2Table", ("got_ocr2", "pp_chart2table"), "a tile"),
    Family("Qianfan-OCR", ("qianfan_ocr",), _THUMBNAIL),
    Family("DeepSeek-VL", ("deepseek_vl", "deepseek_vl_hybrid"), _PADDED),
    Family("Janus", ("janus",), _PADDED),
    Family("ViP-LLaVA", ("vipllava",), "the picture, scaled to a square"),
    Family(
        "PerceptionLM",
        ("perception_lm",),
        "a pooled tile; the picture, which comes first, is one too",
        "left whole",
    ),
    Family("FastVLM", ("fast_vlm",), _PADDED),
    Family(
        "Video-LLaVA",
        ("video_llava",),
        "the picture, cropped to a square; a frame, whose class token is never merged",
        "yes",
    ),
    Family(
        "Molmo 2",
        ("molmo2",),
        "the whole at low resolution, and its overlapping crops as one grid, from `image_grids`; "
        "or a frame",
        "yes",
    ),
    Family(
        "Step 3.7",
        ("step3p7",),
        "a crop; the whole, which comes last, is one too",
    ),
    Family(
        "Emu3",
        ("emu3",),
        "the picture in its own shape, a code for a square of pixels, from `image_sizes`; the ends "
        "of rows are never merged",
    ),
    Family("Apertus 1.5", ("apertus1p5",), "as Emu3; what ends a row is text"),
    Family(
        "Idefics2",
        ("idefics2",),
        "queries of the picture, or of a sub-image: they have no place, and are one window",
    ),
    Family(
        "MiniCPM-V 4.6 and 4.7, MiniCPM-OCR",
        ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"),
        "the picture, a slice or a frame, in its own shape, from `target_sizes`",
        "yes",
    ),
    Family(
        "Aria",
        ("aria",),
        "queries of the picture, or of a crop: they have no place, and are one window",
    ),
    Family(
        "DeepSeek-OCR 2",
        ("deepseek_ocr2",),
        "queries of a crop, and of the page: they have no place, and are one window; the separator "
        "is never merged",
    ),
)
"""Every family with an adapter, the best known first."""
