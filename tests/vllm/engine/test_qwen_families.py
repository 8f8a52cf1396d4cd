"""Qwen's families on the real engine: tiny random models, beside transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from asking import Answer, Engine, close, start
from families.models import IMAGE
from families.processors import save_checkpoint
from PIL import Image
from transformers import AutoProcessor

import lightkv_gnn as lk

FAMILIES = {
    "qwen2_vl": "LightKVQwen2VLForConditionalGeneration",
    "qwen2_5_vl": "LightKVQwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "LightKVQwen3VLForConditionalGeneration",
}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
ROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
ONE = "<|vision_start|><|image_pad|><|vision_end|>"
QUARTER = {"retention": 0.25}


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class Case:
    """A family on both sides.

    Attributes:
        name: Of the family.
        model: transformers'.
        processor: Its own.
        stock: vLLM as it is.
        quarter: With a quarter of each picture's tokens.
    """

    name: str
    model: Any
    processor: Any
    stock: Engine
    quarter: Engine


@pytest.fixture(scope="module", params=FAMILIES)
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    closing: list[Engine],
) -> Case:
    name = request.param
    folder = tmp_path_factory.mktemp("checkpoints") / name
    interleaved = {"mrope_interleaved": True} if name == "qwen3_vl" else {}
    text = {**HEADS, "rope_parameters": {**ROPE, **interleaved}}
    model = save_checkpoint(name, folder, text=text).eval()
    options = {"max_model_len": 256, "limit_mm_per_prompt": {"image": 2}}
    engines = [start(folder, one, FAMILIES[name], **options) for one in (None, QUARTER)]
    closing.extend(engines)
    return Case(name, model, AutoProcessor.from_pretrained(folder), *engines)


def positions(ids: list[int], kept: list[int], grids: list[tuple[int, int]]) -> torch.Tensor:
    """Positions of a prompt, `[3, 1, token]`, written down token by token."""
    found, now, number, at = [], 0, -1, 0
    while at < len(ids):
        if ids[at] != IMAGE:
            found.append([now, now, now])
            now, at = now + 1, at + 1
            continue
        number += 1
        rows, cols = grids[number]
        for n in range(kept[number]):
            cell = int((n + 0.5) * rows * cols / kept[number])
            found.append([now, now + cell // cols, now + cell % cols])
        now, at = now + max(rows, cols), at + kept[number]
    return torch.tensor(found).T[:, None]


@torch.no_grad()
def reference(case: Case, engine: Engine, pictures: list[Image.Image], prompt: str) -> Answer:
    """transformers' answer on an engine's embeddings of the pictures, without a cache."""
    inputs = case.processor(images=pictures, text=prompt, return_tensors="pt")
    patches = inputs["image_grid_thw"]
    merged = [engine.embed(picture, ONE) for picture in pictures]
    kept, grids = [len(one) for one in merged], [(h // 2, w // 2) for _, h, w in patches.tolist()]
    text = case.processor.tokenizer(prompt)["input_ids"]
    each = iter(kept)
    ids = [id_ for one in text for id_ in ([one] * next(each) if one == IMAGE else [one])]
    length, decoder = len(ids), case.model.model.language_model
    features = torch.cat(merged)
    scores = []
    for _ in range(6):
        where = torch.tensor(ids)[None] == IMAGE
        embeddings = decoder.embed_tokens(torch.tensor(ids)[None])
        width = embeddings.shape[-1]
        embeddings = embeddings.masked_scatter(where[..., None], features[:, :width])
        deep = {}
        if features.shape[1] > width:
            levels = features[:, width:].split(width, dim=1)
            deep = {"visual_pos_masks": where, "deepstack_visual_embeds": list(levels)}
        hidden = decoder(
            inputs_embeds=embeddings, position_ids=positions(ids, kept, grids), **deep
        ).last_hidden_state
        logits = case.model.lm_head(hidden[0, -1]).log_softmax(-1)
        ids.append(int(logits.argmax()))
        scores.append(logits.max().item())
    return Answer(tuple(ids[length:]), tuple(scores), length, 0)


SIZES = [(80, 40), (40, 88), (48, 48)]


def asked(*sizes: tuple[int, int]) -> tuple[list[Image.Image], str]:
    return [picture(*size) for size in sizes], "A " + " ".join([ONE] * len(sizes)) + " b"


@pytest.mark.parametrize("which", ["stock", "quarter"])
def test_answers_as_transformers(case: Case, which: str) -> None:
    """Portrait, landscape and square pictures, alone, two in a prompt, and all at once."""
    engine = getattr(case, which)
    prompts = [asked(size) for size in SIZES] + [asked(*SIZES[:2]), asked(SIZES[0], SIZES[0])]
    for found, one in zip(engine.ask(prompts, 6), prompts, strict=True):
        close(found, reference(case, engine, *one))


def test_merged_are_the_encoders_tokens_compressed(case: Case) -> None:
    one = picture(*SIZES[0])
    full, found = case.stock.embed(one, ONE), case.quarter.embed(one, ONE)
    patches = case.processor(images=one, text=ONE, return_tensors="pt")["image_grid_thw"]
    _, rows, cols = patches[0].tolist()
    layout = lk.graphs.TokenLayout.from_grids([[(rows // 2, cols // 2)]])
    plan = lk.graphs.plan_stage(layout.occupancy, 2, 0.75)
    width = case.model.config.text_config.hidden_size
    done = lk.TokenCompressor(lk.mean, lk.graphs.coverage_matching)(full[:, :width], layout, plan)
    sums = torch.zeros(len(found), full.shape[1]).index_add(0, done.survivor, full)
    expected = sums / torch.bincount(done.survivor)[:, None]
    torch.testing.assert_close(found, expected)
    assert len(found) < 0.4 * len(full)


def test_what_is_refused_leaves_the_engine_running(case: Case) -> None:
    with pytest.raises(ValueError, match="1x1 tokens, too few for 2x2 windows"):
        case.quarter.ask([asked((8, 8))])
    video = np.zeros((2, 40, 40, 3), dtype=np.uint8)
    prompt = "<|vision_start|><|video_pad|><|vision_end|>"
    with pytest.raises(Exception, match="video"):
        case.quarter.llm.generate(
            {"prompt": prompt, "multi_modal_data": {"video": [video]}}, use_tqdm=False
        )
    assert case.quarter.ask([asked(SIZES[0])])
