"""Qwen's families on the real engine: tiny random models, beside transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from asking import Answer, Engine, close, start
from families.models import IMAGE, VIDEO
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
FILM = "<|vision_start|><|video_pad|><|vision_end|>"
FPS = 1.0
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
    options = {"max_model_len": 512, "limit_mm_per_prompt": {"image": 2, "video": 1}}
    engines = [start(folder, one, FAMILIES[name], **options) for one in (None, QUARTER)]
    closing.extend(engines)
    return Case(name, model, AutoProcessor.from_pretrained(folder), *engines)


@dataclass(frozen=True)
class Run:
    """Placeholders without text between them.

    Attributes:
        grid: Rows and columns of the picture, or of each frame.
        kept: Tokens that are left of each frame.
        times: When each frame is.
    """

    grid: tuple[int, int]
    kept: list[int]
    times: list[int]


def film(*size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Four frames of (height, width), of which two and two share their tokens."""
    frames = np.random.default_rng(size[0]).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    known = {"fps": FPS, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    return frames, {**known, "do_sample_frames": False}


def data(pictures: list[Any]) -> dict[str, Any]:
    """Pictures and films as vLLM takes them."""
    kinds = {"image": [one for one in pictures if isinstance(one, Image.Image)]}
    kinds["video"] = [one for one in pictures if not isinstance(one, Image.Image)]
    return {kind: own for kind, own in kinds.items() if own}


def processed(case: Case, pictures: list[Any], prompt: str) -> Any:
    """What transformers makes of a prompt."""
    given = data(pictures)
    films = {
        "videos": [frames for frames, _ in given.get("video", [])] or None,
        "video_metadata": [
            {name: value for name, value in known.items() if name != "do_sample_frames"}
            for _, known in given.get("video", [])
        ],
        "do_sample_frames": False,
    }
    if films["videos"] is None:
        films = {}
    return case.processor(images=given.get("image"), text=prompt, return_tensors="pt", **films)


def runs(case: Case, pictures: list[Any], inputs: Any, merged: list[torch.Tensor]) -> list[Run]:
    """The placeholders of a prompt, written down picture by picture."""
    grids = {
        kind: iter(inputs[f"{kind}_grid_thw"].tolist())
        for kind in ("image", "video")
        if f"{kind}_grid_thw" in inputs
    }
    found = []
    for one, tokens in zip(pictures, merged, strict=True):
        kind = "image" if isinstance(one, Image.Image) else "video"
        frames, rows, cols = next(grids[kind])
        grid, kept = (rows // 2, cols // 2), [len(tokens) // frames] * frames
        if case.name == "qwen3_vl":  # with the time as text before each frame
            found += [Run(grid, [own], [0]) for own in kept]
            continue
        pace = 1.0  # two frames are two seconds, each of four positions
        if case.name == "qwen2_5_vl" and kind == "video":
            pace = 2 / FPS * case.model.config.vision_config.tokens_per_second
        found.append(Run(grid, kept, [int(pace * frame) for frame in range(frames)]))
    return found


def positions(ids: list[int], placed: list[Run]) -> torch.Tensor:
    """Positions of a prompt, `[3, 1, token]`, written down token by token."""
    found, now, number, at = [], 0, -1, 0
    while at < len(ids):
        if ids[at] not in (IMAGE, VIDEO):
            found.append([now, now, now])
            now, at = now + 1, at + 1
            continue
        number += 1
        run = placed[number]
        rows, cols = run.grid
        for kept, time in zip(run.kept, run.times, strict=True):
            for n in range(kept):
                cell = int((n + 0.5) * rows * cols / kept)
                found.append([now + time, now + cell // cols, now + cell % cols])
        now, at = now + max(rows, cols, run.times[-1] + 1), at + sum(run.kept)
    return torch.tensor(found).T[:, None]


def left(ids: list[int], placed: list[Run]) -> list[int]:
    """A prompt's tokens with as many placeholders as are left, the first of each run."""
    found, number, quota = [], -1, 0
    for before, token in zip([0, *ids], ids, strict=False):
        vision = token in (IMAGE, VIDEO)
        if vision and before not in (IMAGE, VIDEO):
            number += 1
            quota = sum(placed[number].kept)
        if not vision or quota > 0:
            found.append(token)
        quota -= vision
    return found


@torch.no_grad()
def reference(
    case: Case,
    engine: Engine,
    pictures: list[Any],
    prompt: str,
    merged: list[torch.Tensor] | None = None,
) -> Answer:
    """transformers' answer on an engine's embeddings of the pictures, without a cache."""
    inputs = processed(case, pictures, prompt)
    merged = merged or [
        engine.embed(data([one]), ONE if isinstance(one, Image.Image) else FILM) for one in pictures
    ]
    placed = runs(case, pictures, inputs, merged)
    ids = left(inputs["input_ids"][0].tolist(), placed)
    length, decoder = len(ids), case.model.model.language_model
    features = torch.cat(merged)
    scores = []
    for _ in range(6):
        where = (torch.tensor(ids)[None] == IMAGE) | (torch.tensor(ids)[None] == VIDEO)
        embeddings = decoder.embed_tokens(torch.tensor(ids)[None])
        width = embeddings.shape[-1]
        embeddings = embeddings.masked_scatter(where[..., None], features[:, :width])
        deep = {}
        if features.shape[1] > width:
            levels = features[:, width:].split(width, dim=1)
            deep = {"visual_pos_masks": where, "deepstack_visual_embeds": list(levels)}
        hidden = decoder(
            inputs_embeds=embeddings, position_ids=positions(ids, placed), **deep
        ).last_hidden_state
        logits = case.model.lm_head(hidden[0, -1]).log_softmax(-1)
        ids.append(int(logits.argmax()))
        scores.append(logits.max().item())
    return Answer(tuple(ids[length:]), tuple(scores), length, 0)


SIZES = [(80, 40), (40, 88), (48, 48)]


def asked(*sizes: tuple[int, int]) -> tuple[list[Any], str]:
    return [picture(*size) for size in sizes], "A " + " ".join([ONE] * len(sizes)) + " b"


FILMS: list[tuple[list[Any], str]] = [
    ([film(24, 40)], f"A {FILM} b"),
    ([film(40, 24), picture(*SIZES[0])], f"A {FILM} b {ONE} c"),
    ([picture(*SIZES[1]), film(24, 24)], f"A {ONE} b {FILM} c"),
]


@pytest.mark.parametrize("which", ["stock", "quarter"])
def test_answers_as_transformers(case: Case, which: str) -> None:
    """Portrait, landscape and square pictures and films, alone, two in a prompt, and all at once.

    Each frame of a film is merged for itself.
    """
    engine = getattr(case, which)
    prompts = [asked(size) for size in SIZES] + [asked(*SIZES[:2]), asked(SIZES[0], SIZES[0])]
    prompts += FILMS
    every = [(data(pictures), prompt) for pictures, prompt in prompts]
    for found, one in zip(engine.ask(every, 6, ends=False), prompts, strict=True):
        close(found, reference(case, engine, *one))


def test_stock_positions_are_those_of_transformers(case: Case) -> None:
    """What is written down here is what the model would do.

    After a film, text of Qwen2.5-VL goes on after its last frame, as in vLLM; in transformers,
    after its rows and columns, which is where its last frame may be.
    """
    for pictures, prompt in [asked(*SIZES[:2]), *FILMS]:
        inputs = processed(case, pictures, prompt)
        merged = [
            case.stock.embed(data([one]), ONE if isinstance(one, Image.Image) else FILM)
            for one in pictures
        ]
        ids = inputs["input_ids"]
        vision = torch.where(ids == VIDEO, 2, (ids == IMAGE).int())
        known = {
            name: inputs[name]
            for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
            if name in inputs
        }
        expected, _ = case.model.model.get_rope_index(ids, vision, **known)
        found = positions(ids[0].tolist(), runs(case, pictures, inputs, merged))
        films = (ids[0] == VIDEO).nonzero()
        same = int(films[-1]) + 1 if case.name == "qwen2_5_vl" and len(films) else len(ids[0])
        assert torch.equal(found[..., :same], expected[..., :same])


def test_merged_are_the_encoders_tokens_compressed(case: Case) -> None:
    """Of a picture, and of each frame of a film for itself."""
    for one, prompt in [([picture(*SIZES[0])], ONE), ([film(24, 40)], FILM)]:
        full, found = (engine.embed(data(one), prompt) for engine in (case.stock, case.quarter))
        inputs = processed(case, one, prompt)
        name = "image_grid_thw" if prompt == ONE else "video_grid_thw"
        frames, rows, cols = inputs[name][0].tolist()
        layout = lk.graphs.TokenLayout.from_grids([[(rows // 2, cols // 2)]])
        plan = lk.graphs.plan_stage(layout.occupancy, 2, 0.75)
        width = case.model.config.text_config.hidden_size
        compress = lk.TokenCompressor(lk.mean, lk.graphs.coverage_matching)
        for whole, few in zip(full.chunk(frames), found.chunk(frames), strict=True):
            done = compress(whole[:, :width], layout, plan)
            sums = torch.zeros(len(few), whole.shape[1]).index_add(0, done.survivor, whole)
            expected = sums / torch.bincount(done.survivor)[:, None]
            torch.testing.assert_close(few, expected)
        assert len(found) < 0.7 * len(full)


def test_what_is_refused_leaves_the_engine_running(case: Case) -> None:
    with pytest.raises(ValueError, match="1x1 tokens, too few for 2x2 windows"):
        case.quarter.ask([asked((8, 8))])
    with pytest.raises(ValueError, match="1x1 tokens, too few for 2x2 windows"):
        case.quarter.ask([(data([film(8, 8)]), FILM)])
    assert case.quarter.ask([asked(SIZES[0])])
