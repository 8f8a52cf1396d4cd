"""What sets single newer families apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from models import CACHE, check_ledger, near
from PIL import Image

import lightkv_gnn as lk
from families.loop_stock import hidden_from_layers
from families.models import LAYERS, VIDEO
from families.more import MORE, model_of
from families.more_inputs import film, places, samples
from families.newer_tiles import CODES
from families.processors import skipped_without_needs
from families.test_more_pictures import CODED, WITHOUT_PLACES
from lightkv_graphs import Tile

AUDIO = 118
THINKERS = [name for name in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker") if name in MORE]
CONFIG = lk.LightKVConfig([lk.Stage(2, 1, 0.5)], message="destination_only")


@pytest.mark.parametrize("family", THINKERS)
@torch.no_grad()
def test_audio_stays_whole_beside_a_picture(family: str) -> None:
    model = model_of(family, "eager", audio_token_id=AUDIO)
    inputs, _ = samples(family, model)
    sound = {
        "input_features": torch.randn(1, 128, 64),
        "feature_attention_mask": torch.ones(1, 64, dtype=torch.long),
    }
    heard = len(model.model.get_audio_features(**sound).last_hidden_state)
    clip = torch.tensor([[119, *[AUDIO] * heard, 117]])
    ids = torch.cat([inputs["input_ids"], clip], 1)
    inputs = {**inputs, **sound, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with lk.attach(model, CONFIG) as handle:
        out = model(**inputs)
        check_ledger(handle.ledger, out[CACHE])
        places = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
        kept = places[handle.trace.kept(0)].tolist()
    gone = set(places.tolist()) - set(kept)
    assert len(gone) == len(places) // 2
    with hidden_from_layers(model, [set()] * 3 + [gone] * (LAYERS - 3)):
        expected = model(**inputs).logits[0]
    left = [place for place in range(ids.shape[1]) if place not in gone]
    near(out.logits[0, left], expected[left])


MROPE = ("cohere_compass", "hunyuan_vl", "minimax_m3_vl", "cosmos3_edge")


@pytest.mark.parametrize("family", [name for name in MROPE if name in MORE])
@torch.no_grad()
def test_positions_close_up_where_they_count_tokens(family: str) -> None:
    model = model_of(family)
    given: list[torch.Tensor] = []

    def read(module: Any, args: Any, kwargs: Any) -> None:
        given.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    model.get_decoder().rotary_emb.register_forward_pre_hook(read, with_kwargs=True)
    model(**samples(family, model)[0])
    positions = given[0]
    counted = torch.equal(positions, torch.arange(positions.shape[-1]).expand_as(positions))
    assert lk.adapter_for(model).positions_close_up == counted


def test_sparse_layers_are_refused() -> None:
    if "minimax_m3_vl" not in MORE:
        pytest.skip("transformers has no MiniMax-M3")
    kinds = ["full_attention", *["minimax_m3_sparse"] * (LAYERS - 1)]
    options: dict[str, Any] = {"layer_types": kinds, "index_head_dim": 16, "index_n_heads": 2}
    model = model_of("minimax_m3_vl", text=options)
    with pytest.raises(lk.UnsupportedModelError, match="layers of 'minimax_m3_sparse'"):
        lk.attach(model, CONFIG)


@torch.no_grad()
def test_a_video_with_tokens_left_out_is_refused() -> None:
    if "video_llama_3" not in MORE:
        pytest.skip("transformers has no VideoLLaMA 3")
    model = model_of("video_llama_3")
    inputs = film("video_llama_3", model)
    mask = torch.arange(18) != 7
    ids = inputs["input_ids"]
    ids = torch.cat([ids[:, :9], ids[:, 10:]], 1)
    inputs = {**inputs, "input_ids": ids}
    inputs |= {"attention_mask": torch.ones_like(ids), "video_compression_mask": mask}
    plain = model(**inputs).logits
    with lk.attach(model, CONFIG), pytest.raises(lk.UnsupportedInputError, match="17 of the 18"):
        model(**inputs)
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_transformers_itself_fails_with_an_odd_number_of_frames_that_share_tokens() -> None:
    """As the page of families says of ERNIE 4.5 VL."""
    model = model_of("ernie4_5_vl_moe")
    inputs = film("ernie4_5_vl_moe", model)
    patches = inputs["pixel_values_videos"][: 5 * 4 * 6]
    grid = torch.tensor([[5, 4, 6]])
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        model.model.get_video_features(patches, grid)


def test_frames_are_laid_out_video_by_video() -> None:
    """Told how many each has, or one video above another, as transformers had it before 5.19."""
    adapter = lk.adapter_for(model_of("gemma4"))
    frames = torch.stack([places(4, 6, 30), places(4, 6, 30), places(6, 4, 30), places(6, 4, 30)])
    told = {"video_position_ids": frames, "num_frames_per_video": torch.tensor([1, 3])}
    tiles = adapter.tiles(lk.Encoded("video", told, (6, 18)))
    assert tiles == [[Tile(2, 3)], [Tile(2, 3), Tile(3, 2), Tile(3, 2)]]
    stacked = {"video_position_ids": frames.unflatten(0, (2, 2))}
    tiles = adapter.tiles(lk.Encoded("video", stacked, (12, 12)))
    assert tiles == [[Tile(2, 3)] * 2, [Tile(3, 2)] * 2]
    pixels = torch.rand(4, 30, 48)
    seen = adapter.seen(lk.Encoded("video", stacked, (12, 12)), pixels.unflatten(0, (2, 2)))
    assert [[tile.shape[-2:] for tile in own] for own in seen] == [[(16, 24)] * 2, [(24, 16)] * 2]


PATCHED = {
    "cosmos3_edge": "Cosmos3Edge",
    "hunyuan_vl": "HunYuanVL",
    "minimax_m3_vl": "MiniMaxM3VL",
    "video_llama_3": "VideoLlama3",
    "paddleocr_vl": "PaddleOCRVL",
    "glm4v": "Glm4v",
}
"""Image processors of the families that are told their grids."""


@pytest.mark.parametrize("family", [name for name in PATCHED if name in MORE])
def test_what_was_seen_is_the_picture_that_was_cut_up(family: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    untouched = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    with skipped_without_needs():
        kind = getattr(hf, f"{PATCHED[family]}ImageProcessorPil", None)
        kind = kind or getattr(hf, f"{PATCHED[family]}ImageProcessor")
        process = kind(patch_size=4, merge_size=2, **untouched)
    made = process(Image.fromarray(picture), return_tensors="pt")
    adapter = lk.adapter_for(model_of(family))
    pixels = made.pop("pixel_values")
    ((seen,),) = adapter.seen(lk.Encoded("image", dict(made), (24,)), pixels)
    assert torch.equal(seen, torch.from_numpy(picture).permute(2, 0, 1).to(seen))


@pytest.mark.parametrize("family", [name for name in WITHOUT_PLACES if name in MORE])
def test_tokens_without_a_place_have_no_windows_and_are_not_shown(family: str) -> None:
    model = model_of(family)
    plain, _ = samples(family, model)
    with pytest.raises(lk.ScheduleError, match="have no place in it: use 1 window"):
        lk.attach(model, lk.LightKVConfig([lk.Stage(2, 2)]))
    assert not any(vars(layer)["_forward_pre_hooks"] for layer in model.get_decoder().layers)
    assert {stage.windows for stage in lk.LightKVConfig.for_model(model).stages} == {1}
    with pytest.raises(lk.UnsupportedModelError, match="cover no pixels"):
        lk.seen_tiles(model, Normalised, plain)


class Normalised:
    """What a processor tells of what it did to pictures."""

    image_mean = image_std = (0.5, 0.5, 0.5)
    rescale_factor = 1 / 255


@torch.no_grad()
def test_a_crop_is_shown_where_its_tokens_lie() -> None:
    if "step3p7" not in MORE:
        pytest.skip("transformers has no Step 3.7")
    model = model_of("step3p7")
    adapter, (inputs, _) = lk.adapter_for(model), samples("step3p7", model)
    local = inputs["pixel_values_local"]
    before = model.model.get_image_features(**pictures_of(inputs)).pooler_output[0]
    for crop in range(len(local)):
        changed = {
            **inputs,
            "pixel_values_local": local + (torch.arange(2) == crop).view(2, 1, 1, 1),
        }
        after = model.model.get_image_features(**pictures_of(changed)).pooler_output[0]
        moved = (after != before).any(1).nonzero()[:, 0] // 4
        assert set(moved.tolist()) == {crop}
        encoded = lk.Encoded("image", pictures_of(changed), (len(after),))
        ((*crops, whole),) = adapter.seen(encoded, inputs["pixel_values"])
        assert torch.equal(torch.stack(crops), changed["pixel_values_local"])
        assert torch.equal(whole, inputs["pixel_values"][0])


def pictures_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("pixel_values", "pixel_values_local", "num_local_patches", "image_sizes")
    return {name: inputs[name] for name in names if name in inputs}


@pytest.mark.parametrize("family", [name for name in CODED if name in MORE])
@torch.no_grad()
def test_codes_lie_where_they_are_seen(family: str) -> None:
    model = model_of(family)
    adapter, (_, inputs) = lk.adapter_for(model), samples(family, model)
    output = model.model.get_image_features(**pictures_of(inputs))
    lengths = tuple(map(len, output.pooler_output))
    encoded = lk.Encoded("image", {"image_sizes": inputs["image_sizes"]}, lengths)
    sizes = inputs["image_sizes"].tolist()
    seen = adapter.seen(encoded, inputs["pixel_values"])
    embed = model.get_input_embeddings()
    end = embed(torch.tensor(CODES[-1] + 1))
    for (tile,), (shown,), size, codes, own, pixels in zip(
        adapter.tiles(encoded),
        seen,
        sizes,
        output.image_tokens,
        output.pooler_output,
        inputs["pixel_values"],
        strict=True,
    ):
        grid = tile.rows, tile.cols
        ids = codes.view(grid) if family == "apertus1p5" else codes + CODES[0]
        assert ids.shape == grid == (size[0] // 2, size[1] // 2)
        assert torch.equal(shown, pixels[:, : size[0], : size[1]])
        rows = own.unflatten(0, (tile.rows, tile.cols + tile.row_end))
        assert torch.equal(rows[:, : tile.cols], embed(ids))
        assert bool((rows[:, tile.cols :] == end).all())


@torch.no_grad()
def test_a_video_without_an_encoder_of_its_own_stays_whole() -> None:
    model = model_of("perception_lm", video_token_id=VIDEO)
    ids = torch.tensor([[3, *[VIDEO] * 48, 4, 5]])
    inputs = {"input_ids": ids, "pixel_values_videos": torch.randn(1, 3, 3, 32, 32)}
    plain = model(**inputs)
    with lk.attach(model, CONFIG):
        out = model(**inputs)
    assert torch.equal(out.logits, plain.logits)


@torch.no_grad()
def test_a_frame_begins_with_its_class_token() -> None:
    if "video_llava" not in MORE:
        pytest.skip("transformers has no Video-LLaVA")
    model = model_of("video_llava")
    for name, weight in model.model.video_tower.named_parameters():
        if ".out_proj." in name:
            weight.zero_()
    adapter, pixels = lk.adapter_for(model), film("video_llava", model)["pixel_values_videos"]
    before = model.model.get_video_features(pixels).pooler_output
    lengths = tuple(map(len, before))
    tiles = adapter.tiles(lk.Encoded("video", {}, lengths))
    changed = pixels.clone()
    changed[0, 1, :, 9, 2] += 3  # of the second frame, row 2 and column 0 of patches
    moved = (model.model.get_video_features(changed).pooler_output != before).any(-1).nonzero()
    ((tile,),) = {tuple(own) for own in tiles}
    assert moved.tolist() == [[1, tile.before + 2 * tile.cols]]
    seen = adapter.seen(lk.Encoded("video", {}, lengths), changed)
    assert torch.equal(seen[1][0], changed[0, 1])
