"""Families with tiles and frames on the real engine: tiny random models, beside transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from asking import BLOCK, Answer, Engine, close, greedy, start
from families.models import IMAGE, VIDEO
from families.processors import save_checkpoint
from PIL import Image
from tiny_models import rename
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    SiglipVisionConfig,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape
from vllm.model_executor.models.llava_next import LlavaNextProcessingInfo
from vllm.model_executor.models.llava_onevision import LlavaOnevisionProcessingInfo

import lightkv_gnn as lk
from lightkv_gnn.vllm import llava_next
from lightkv_gnn.vllm.geometry import NextGeometry

QUARTER = {"retention": 0.25}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SIZES = {"portrait": (90, 40), "landscape": (40, 90), "square": (140, 130)}
FRAMES = 3

Tile = tuple[int, int, int]
"""Rows, columns, and newlines: for each row one, or one at the very end, -1."""


@dataclass(frozen=True)
class Family:
    """What is known of a tiny model, and its grids, written down.

    Attributes:
        architecture: Of vLLM.
        tiles: Of pictures of the sizes.
        frames: Of a video.
        tokens: What stands for a picture, or a video, in a prompt.
        runs: Runs of placeholders that stand for a video.
        options: Of the model.
        thin: (height, width) of a picture that its windows are too many for.
    """

    architecture: str
    tiles: dict[str, list[Tile]]
    frames: list[Tile] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    runs: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    thin: tuple[int, int] | None = None


WHOLE, SQUARE = (4, 4, 0), (5, 5, 0)
EDGE = 35
LLAVA = {"image": "<image>", "video": "<video>"}
FAMILIES = {
    # Two tiles of 4 x 4 and the thumbnail, or four and the thumbnail.
    "internvl": Family(
        "InternVLForConditionalGeneration",
        {"portrait": [WHOLE] * 3, "landscape": [WHOLE] * 3, "square": [WHOLE] * 5},
        [WHOLE] * FRAMES,
        {"image": "<IMG_CONTEXT>", "video": "<video>"},
        runs=FRAMES,
    ),
    # Pictures fill a part of 12 x 4, 4 x 12 and 8 x 8 patches.
    "llava_next": Family(
        "LlavaNextForConditionalGeneration",
        {
            "portrait": [WHOLE, (10, 4, 1)],
            "landscape": [WHOLE, (4, 10, 1)],
            "square": [WHOLE, (8, 8, 1)],
        },
        tokens={"image": "<image>"},
    ),
    # Of 20 x 20 patches, the last picture fills 20 x 18: more than 9 x 1.1 ** 2 tiles of 5 x 5.
    "llava_onevision": Family(
        "LlavaOnevisionForConditionalGeneration",
        {
            "portrait": [SQUARE, (20, 8, 1)],
            "landscape": [SQUARE, (8, 20, 1)],
            "square": [SQUARE, (15, 14, 1)],
        },
        [(3, 3, 0), (3, 3, 0), (3, 3, -1)],
        LLAVA,
        options={
            "vision_aspect_ratio": "anyres_max_9",
            "image_grid_pinpoints": [
                [EDGE * h, EDGE * w] for h, w in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (4, 4))
            ],
        },
        thin=(90, 10),
    ),
}


@dataclass(frozen=True)
class Case:
    """A family on both sides.

    Attributes:
        family: What is known of it.
        model: transformers'.
        processor: Its own.
        stock: vLLM as it is.
        quarter: With a quarter of each picture's tokens; it reads prompts in pieces of 40.
    """

    family: Family
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
    name, family = request.param, FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("checkpoints") / name
    model = save_checkpoint(name, folder, text=HEADS, **family.options).eval()
    if name != "internvl":
        rename(folder)
    processor = AutoProcessor.from_pretrained(folder)
    if name == "llava_onevision":
        processor.vision_aspect_ratio = model.config.vision_aspect_ratio
    options = {"max_model_len": 768, "limit_mm_per_prompt": {"image": 2, "video": 1}}
    named = f"LightKV{family.architecture}"
    engines = [
        start(folder, None, **options),
        start(folder, QUARTER, named, **options, max_num_batched_tokens=40, max_num_seqs=4),
    ]
    closing.extend(engines)
    return Case(family, model, processor, *engines)


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def film() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (FRAMES, 40, 40, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Prompt:
    """Pictures by name, and films, in the order of a prompt."""

    names: tuple[str, ...]

    def kinds(self) -> list[str]:
        return ["video" if name == "film" else "image" for name in self.names]

    def data(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for name, kind in zip(self.names, self.kinds(), strict=True):
            found.setdefault(kind, []).append(film() if kind == "video" else picture(*SIZES[name]))
        return found

    def text(self, family: Family) -> str:
        return "A " + " ".join(family.tokens[kind] for kind in self.kinds()) + " b"

    def asked(self, family: Family) -> tuple[dict[str, list[Any]], str]:
        return self.data(), self.text(family)


PROMPTS = [Prompt((name,)) for name in SIZES]
PROMPTS += [Prompt(("portrait", "landscape")), Prompt(("portrait", "portrait"))]
FILMS = [Prompt(("film",)), Prompt(("landscape", "film"))]


def prompts(family: Family) -> list[Prompt]:
    return PROMPTS + (FILMS if family.frames else [])


def inputs(case: Case, prompt: Prompt) -> Any:
    data = {f"{kind}s": own for kind, own in prompt.data().items()}
    return case.processor(text=prompt.text(case.family), return_tensors="pt", **data)


def embedded(case: Case, engine: Engine, name: str) -> torch.Tensor:
    alone = Prompt((name,))
    return engine.embed(*alone.asked(case.family))


def on_the_same(case: Case, prompt: Prompt) -> Answer:
    """transformers' answer on the survivors of the pictures; of each run the first ones stay."""
    merged = [embedded(case, case.quarter, name) for name in prompt.names]
    left = []
    for one, kind in zip(merged, prompt.kinds(), strict=True):
        runs = case.family.runs if kind == "video" else 1
        left += [len(one) // runs] * runs
    ids, before, quota = [], None, 0
    for token in inputs(case, prompt)["input_ids"][0].tolist():
        vision = token in (IMAGE, VIDEO)
        if vision and before not in (IMAGE, VIDEO):
            quota = left.pop(0)
        if not vision or quota > 0:
            ids.append(token)
        before, quota = token, quota - vision
    assert left == []
    found = torch.tensor(ids)[None]
    where = (found == IMAGE) | (found == VIDEO)
    with torch.no_grad():
        embeddings = case.model.get_input_embeddings()(found)
    embeddings = embeddings.masked_scatter(where[..., None], torch.cat(merged))
    given = {"inputs_embeds": embeddings, "attention_mask": torch.ones_like(found)}
    return greedy(case.model, len(ids), 6, **given)


def test_stock_answers_as_transformers(case: Case) -> None:
    """Encoder, tiles and all."""
    asked = prompts(case.family)
    found = case.stock.ask([one.asked(case.family) for one in asked], 6, ends=False)
    for one, prompt in zip(found, asked, strict=True):
        whole = inputs(case, prompt)
        close(one, greedy(case.model, whole["input_ids"].shape[1], 6, **whole))


def test_compressed_answers_as_transformers_on_the_same_embeddings(case: Case) -> None:
    """Portrait, landscape and square pictures, two in a prompt, and films, all at once."""
    asked = prompts(case.family)
    found = case.quarter.ask([one.asked(case.family) for one in asked], 6, ends=False)
    for one, prompt in zip(found, asked, strict=True):
        close(one, on_the_same(case, prompt))


def merged_alone(features: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """A grid's tokens, `[row, column, channel]`, compressed: each survivor, at its place."""
    layout = lk.graphs.TokenLayout.from_grids([[(rows, cols)]])
    plan = lk.graphs.plan_stage(layout.occupancy, 2, 0.75)
    compress = lk.TokenCompressor(lk.mean, lk.graphs.coverage_matching)
    done = compress(features.flatten(0, 1), layout, plan)
    found = torch.full_like(features.flatten(0, 1), math.nan)
    found[done.layout.row * cols + done.layout.col] = done.hidden_states
    return found.unflatten(0, (rows, cols))


def test_each_tile_is_merged_for_itself_and_newlines_stay(case: Case) -> None:
    every = {**case.family.tiles, **({"film": case.family.frames} if case.family.frames else {})}
    for name, tiles in every.items():
        full, found = (embedded(case, engine, name) for engine in (case.stock, case.quarter))
        expected, at = [], 0
        for rows, cols, newlines in tiles:
            width = cols + (newlines == 1)
            grid = full[at : at + rows * width].unflatten(0, (rows, width))
            at += rows * width
            merged = grid.clone()
            merged[:, :cols] = merged_alone(grid[:, :cols].contiguous(), rows, cols)
            expected.append(merged.flatten(0, 1))
            if newlines == -1:
                expected.append(full[at : at + 1])
                at += 1
        assert at == len(full)
        places = torch.cat(expected)
        torch.testing.assert_close(found, places[~places[:, 0].isnan()])
        ends = sum(rows if newlines == 1 else -newlines for rows, _, newlines in tiles)
        if ends:
            newline = case.model.model.image_newline
            assert int((found == newline).all(1).sum()) == ends
        assert len(found) < 0.55 * len(full)


def test_blocks_fall_as_planned(case: Case) -> None:
    asked = Prompt(("square", "portrait") if case.family.frames else ("square",))
    held = []
    for engine in (case.stock, case.quarter):
        one = asked.asked(case.family)
        prompt = engine.ask([one], 1)[0].prompt
        held.append(engine.blocks(one))
        assert held[-1] == math.ceil(prompt / BLOCK)
    assert held[1] < held[0]


def test_what_is_refused_leaves_the_engine_running(case: Case) -> None:
    engine, family = case.quarter, case.family
    text = f"A {family.tokens['image']} b"
    if family.thin:
        with pytest.raises(ValueError, match="15x1 tokens, too few for 2x2 windows"):
            engine.ask([(picture(*family.thin), text)])
    if case.model.config.model_type != "internvl":  # whose processor takes no sizes in vLLM
        size = {"height": 14, "width": 14}
        resized = {"size": size, "crop_size": size}
        with pytest.raises(ValueError, match="tiles of 14x14 pixels"):
            engine.ask([(picture(40, 40), text)], mm_processor_kwargs=resized)
    width = case.model.config.get_text_config().hidden_size
    with pytest.raises(Exception, match="embed"):
        engine.ask([({"image": torch.zeros(1, 16, width)}, text)])
    assert engine.ask([PROMPTS[0].asked(family)])


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("LlavaNext", {"vision_feature_select_strategy": "full"}, "expected the patches alone"),
        ("LlavaOnevision", {"vision_aspect_ratio": "anyres_max_4"}, "expected 'anyres_max_9'"),
    ],
)
def test_what_cannot_be_is_said_at_the_start(name: str, changed: dict[str, str], says: str) -> None:
    named = f"LightKV{name}ForConditionalGeneration"
    known = LlavaNextConfig() if name == "LlavaNext" else LlavaOnevisionConfig()
    for attribute, value in changed.items():
        setattr(known, attribute, value)
    config = SimpleNamespace(model_config=SimpleNamespace(hf_config=known))
    model = getattr(llava_next, named)
    with pytest.raises(ValueError, match=says):
        model(vllm_config=config)


@pytest.mark.parametrize(
    ("config", "info", "side"),
    [
        (
            LlavaNextConfig(vision_config=CLIPVisionConfig(image_size=336, patch_size=14)),
            LlavaNextProcessingInfo,
            24,
        ),
        (
            LlavaOnevisionConfig(vision_config=SiglipVisionConfig(image_size=384, patch_size=14)),
            LlavaOnevisionProcessingInfo,
            27,
        ),
    ],
    ids=["next", "onevision"],
)
def test_tokens_of_published_shapes_are_as_many_as_vllm_counts(
    config: Any, info: Any, side: int
) -> None:
    geometry = NextGeometry(config)
    edge = config.vision_config.image_size
    for height, width in np.random.default_rng(0).integers(200, 3000, (300, 2)).tolist():
        made = {"pixel_values": [0, 0], "image_sizes": (height, width)}
        whole, tile = geometry.tiles("image", made)
        high, wide = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, edge)
        counted = info._get_num_unpadded_features(
            None,
            original_height=height,
            original_width=width,
            npatches=side,
            num_patch_height=high,
            num_patch_width=wide,
        )
        assert (tile.rows * tile.cols, tile.rows) == counted
        assert (whole.rows, whole.cols) == (side, side)
