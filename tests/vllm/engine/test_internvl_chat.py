"""InternVL in OpenGVLab's own format on the real engine; transformers has the same weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import Answer, Engine, close, greedy, start
from families.models import END, IMAGE, START, VIDEO, tiny
from families.processors import tokenizer
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedConfig
from vllm.model_executor.models.internvl import InternVLChatModel

import lightkv_gnn as lk

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
NAMES = {
    r"model\.language_model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
    r"model\.vision_tower\.": "vision_model.",
    r"embeddings\.cls_token": "embeddings.class_embedding",
    r"embeddings\.position_embeddings": "embeddings.position_embedding",
    r"embeddings\.patch_embeddings\.projection": "embeddings.patch_embedding",
    r"encoder\.layer\.": "encoder.layers.",
    r"lambda_(\d)": r"ls\1",
    r"attention\.projection_layer": "attn.proj",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"model\.multi_modal_projector\.layer_norm": "mlp1.0",
    r"model\.multi_modal_projector\.linear_1": "mlp1.1",
    r"model\.multi_modal_projector\.linear_2": "mlp1.3",
}
"""Of weights: in transformers, and in this format."""

FRAMES = 3


class ChatConfig(PreTrainedConfig):
    """What checkpoints of this format bring along as code."""

    model_type = "internvl_chat"

    def __init__(self, vision_config: Any = None, llm_config: Any = None, **kwargs: Any) -> None:
        self.vision_config = PreTrainedConfig(**(vision_config or {}))
        self.llm_config = AutoConfig.for_model(**(llm_config or {"model_type": "qwen2"}))
        super().__init__(**kwargs)


def save_chat(model: Any, folder: Path) -> Path:
    """A checkpoint with a model's weights."""
    vision, text = model.config.vision_config, model.config.text_config
    config = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "vision_config": {
            **{name: getattr(vision, name) for name in ("hidden_size", "intermediate_size")},
            **{name: getattr(vision, name) for name in ("num_attention_heads", "hidden_act")},
            **{name: getattr(vision, name) for name in ("num_hidden_layers", "layer_norm_eps")},
            "image_size": vision.image_size[0],
            "patch_size": vision.patch_size[0],
            "qkv_bias": False,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "initializer_factor": 0.1,
        },
        "llm_config": {**text.to_dict(), "architectures": ["Qwen2ForCausalLM"]},
        "select_layer": -1,
        "force_image_size": None,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
        "dtype": "float32",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = dict(model.state_dict())
    for name in [name for name in weights if name.endswith("q_proj.weight") and "vision" in name]:
        parts = [weights.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        weights[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    named = {}
    for name, weight in weights.items():
        for old, new in NAMES.items():
            name = re.sub(old, new, name)
        named[name] = weight.contiguous()
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    special = {"<IMG_CONTEXT>": IMAGE, "<img>": START, "</img>": END, "<|video_pad|>": VIDEO}
    tokenizer(special, {}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("internvl", text=HEADS)


@pytest.fixture(scope="module")
def engine(model: Any, tmp_path_factory: pytest.TempPathFactory, closing: list[Engine]) -> Engine:
    AutoConfig.register("internvl_chat", ChatConfig, exist_ok=True)
    folder = save_chat(model, tmp_path_factory.mktemp("checkpoints") / "chat")
    started = start(folder, {"retention": 0.25}, "LightKVInternVLChatModel", max_model_len=512)
    closing.append(started)
    return started


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


FILM = np.random.default_rng(1).integers(0, 256, (FRAMES, 40, 40, 3), dtype=np.uint8)
ASKED: list[tuple[list[Any], int]] = [
    ([picture(90, 40)], 3),
    ([picture(40, 90)], 3),
    ([picture(30, 30)], 1),
    ([picture(90, 40), picture(40, 90)], 3),
    ([FILM], FRAMES),
]
"""Pictures, and the tiles of each: with a thumbnail, where there are several."""


def data(pictures: list[Any]) -> dict[str, Any]:
    return {"video" if pictures[0] is FILM else "image": pictures}


def prompt(pictures: list[Any]) -> str:
    return "A " + " ".join(["<video>" if pictures[0] is FILM else "<image>"] * len(pictures)) + " b"


def test_merged_are_the_encoders_tokens_compressed(model: Any, engine: Engine) -> None:
    """The encoder's are transformers' own; each tile is merged for itself."""
    layout = lk.graphs.TokenLayout.from_grids([[(4, 4)]])
    plan = lk.graphs.plan_stage(layout.occupancy, 2, 0.75)
    compress = lk.TokenCompressor(lk.mean, lk.graphs.coverage_matching)
    processor = engine.llm.llm_engine.renderer.get_mm_processor()
    for pictures, tiles in ASKED:
        if len(pictures) > 1:
            continue
        made = processor(prompt(pictures), processor.info.parse_mm_data(data(pictures)))
        inputs = made["mm_kwargs"].get_data()

        def whole(inner: Any, given: Any = inputs) -> torch.Tensor:
            with torch.inference_mode():
                return InternVLChatModel.embed_multimodal(inner, **given)[0].clone()

        (full,) = engine.llm.apply_model(whole)
        pixels = inputs["pixel_values_flat_video" if pictures[0] is FILM else "pixel_values_flat"]
        with torch.no_grad():
            expected = model.model.get_image_features(pixel_values=pixels).pooler_output
        assert len(pixels) == tiles
        torch.testing.assert_close(full, expected.flatten(0, 1), atol=1e-4, rtol=1e-4)
        found = engine.embed(data(pictures), prompt(pictures))
        alone = [compress(tile, layout, plan).hidden_states for tile in full.chunk(tiles)]
        torch.testing.assert_close(found, torch.cat(alone))


def reference(model: Any, engine: Engine, pictures: list[Any], tiles: int) -> Answer:
    """transformers' answer on the engine's survivors, of a prompt that is written down here."""
    merged = [engine.embed(data([one]), prompt([one])) for one in pictures]
    tokens = engine.llm.get_tokenizer()

    def text(of: str) -> list[int]:
        return tokens(of, add_special_tokens=False)["input_ids"]

    ids = text("A ")
    for number, one in enumerate(merged):
        if pictures[0] is FILM:
            for frame in range(tiles):
                each = [START, *[VIDEO] * (len(one) // tiles), END]
                ids += text(f"Frame{frame + 1}: ") + each
        else:
            ids += [*text(" " * (number > 0)), START, *[IMAGE] * len(one), END]
    ids += text(" b")
    found = torch.tensor(ids)[None]
    where = (found == IMAGE) | (found == VIDEO)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(found)
        placed = embeddings.masked_scatter(where[..., None], torch.cat(merged))
    mask = torch.ones_like(found)
    return greedy(model, len(ids), 6, inputs_embeds=placed, attention_mask=mask)


def test_answers_as_transformers_on_the_same_embeddings(model: Any, engine: Engine) -> None:
    asked = [(data(pictures), prompt(pictures)) for pictures, _ in ASKED]
    for found, one in zip(engine.ask(asked, 6, ends=False), ASKED, strict=True):
        close(found, reference(model, engine, *one))
