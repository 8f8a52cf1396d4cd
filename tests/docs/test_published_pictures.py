"""Pictures of published models are what transformers' own image processors make of one."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from families.processors import skipped_without_needs, square
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"

PATCHES_16 = {"patch_size": 16, "size": {"shortest_edge": 2**16, "longest_edge": 2**24}}
TOLD: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(
        ("Qwen3.5 9B", "Qwen3.5 35B-A3B", "Qwen3-Omni 30B-A3B", "LFM3-VL 2B"),
        ("Qwen2VL", PATCHES_16),
    ),
    **dict.fromkeys(("Gemma 4 31B", "Gemma 4 26B-A4B"), ("Gemma4", {})),
    "Kimi K2.5": ("Kimi_K25", {}),
    "LFM2-VL 1.6B": ("Lfm2Vl", {}),
    "ERNIE 4.5 VL 28B-A3B": ("Ernie4_5_VLMoe", {}),
    "Muse Glimmer 30B": ("MuseGlimmer", {}),
    "GLM-4.5V": ("Glm4v", {}),
    "GLM-OCR": ("Glm46V", {}),
    "PaddleOCR-VL 0.9B": ("PaddleOCRVL", {}),
    "HunyuanOCR 1.5": ("HunYuanVL", {}),
    "VideoLLaMA 3 7B": ("VideoLlama3", {}),
    "EXAONE 4.5 33B": ("Qwen2VL", {}),
    "LightOnOCR 1B": ("Pixtral", {}),
    "Step 3.7 Flash": ("Step3p7", {}),
    "Molmo 2 8B": ("Molmo2", {}),
    "Emu3 Chat": ("Emu3", {}),
    "Aria 25B": ("Aria", {}),
}
"""Image processors whose output tells the model what the row has as its arguments."""

CUT: dict[str, tuple[str, dict[str, Any], int]] = {
    "Llama 4 Scout": ("Llama4", {}, 144),
    "Aya Vision 8B": ("GotOcr2", {"size": square(364), "crop_to_patches": True}, 169),
    "Command A Vision": ("Cohere2Vision", {}, 256),
    "Ovis2 2B": ("Ovis2", {"size": square(448), "crop_to_patches": True, "max_patches": 12}, 256),
    "GOT-OCR 2": ("GotOcr2", {}, 256),
    "DeepSeek-VL 1.3B": ("DeepseekVL", {}, 576),
    "Janus-Pro 7B": ("Janus", {}, 576),
    "PerceptionLM 8B": ("PerceptionLM", {"tile_size": 448, "max_num_tiles": 36}, 256),
    "Granite Docling 500M": ("GraniteDocling", {}, 64),
}
"""Image processors that cut tiles, and the tokens of each."""


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The newer models, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        found = runpy.run_path(str(DOCS / "published_newer.py"))
    return {model.name: model for model in found["NEWER"]}


def processed(name: str, **options: Any) -> Any:
    picture = np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8)
    with skipped_without_needs():
        process = getattr(hf, f"{name}ImageProcessor")(**options)
        return process(images=[Image.fromarray(picture)], return_tensors="pt")


@pytest.mark.full
@pytest.mark.parametrize("name", TOLD)
def test_what_a_model_is_told_is_what_the_row_says(published: dict[str, Any], name: str) -> None:
    output = processed(TOLD[name][0], **TOLD[name][1])
    assert published[name].arguments
    for argument, expected in published[name].arguments.items():
        found = torch.as_tensor(output[argument])
        if argument == "image_position_ids":
            found = found[:, (found[0] >= 0).all(-1)]
        assert found.flatten().tolist() == torch.tensor(expected).flatten().tolist()


@pytest.mark.full
@pytest.mark.parametrize("name", CUT)
def test_tiles_are_as_many_as_the_row_says(published: dict[str, Any], name: str) -> None:
    processor, options, tokens = CUT[name]
    tiles = processed(processor, **options)["pixel_values"].shape[:-3].numel()
    assert published[name].tokens == tiles * tokens
