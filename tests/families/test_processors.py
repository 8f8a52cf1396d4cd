"""Checkpoint folders load offline, and their processors suit their models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from families.geometry import IDEFICS, Picture, canvases, truths
from families.models import FAMILIES, IMAGE, TAGS, tiny
from families.processors import PARTS, image_processor, save_checkpoint, skipped_without_needs

# PaliGemma's processor has NumPy read a tensor in a way that PyTorch does not yet support.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = ((40, 70), (60, 30))


def photo(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def picture_of(family: str, inputs: dict[str, Tensor], size: tuple[int, int]) -> Picture:
    """What the processor made of the only picture."""
    if "image_grid_thw" in inputs:
        return Picture(tuple(inputs["image_grid_thw"][0].tolist()))
    if "image_sizes" in inputs:
        return Picture(tuple(inputs["image_sizes"][0].tolist()))
    if family in IDEFICS:
        tags = [tag for tag in inputs["input_ids"][0].tolist() if tag in TAGS]
        rows, cols = divmod(max(tags) - TAGS[0], 4)
        return Picture((rows + 1, cols + 1))
    return Picture((len(inputs["pixel_values"]),) if family == "internvl" else ())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_generates_from_pictures(family: str, tmp_path: Path) -> None:
    with skipped_without_needs():
        saved = save_checkpoint(family, tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    made = AutoProcessor.from_pretrained(tmp_path)
    assert type(made).__name__ == PARTS[family].processor
    assert type(loaded) is type(saved)
    expected = dict(saved.named_parameters())
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, expected[name])

    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = made.apply_chat_template([{"role": "user", "content": content}])
    for size in SIZES:
        inputs = made(images=photo(*size), text=text, return_tensors="pt")
        geometry = truths(family, loaded, [picture_of(family, inputs, size)])[0]
        count = int((inputs["input_ids"] == IMAGE).sum())
        assert count == sum(tile.tokens for tile in geometry)
        assert "What is it?" in made.decode(inputs["input_ids"][0])
        tokens = loaded.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 3

    both = [[photo(*size)] for size in SIZES]
    inputs = made(images=both, text=[text, text + "!"], padding=True, return_tensors="pt")
    assert inputs["attention_mask"][0, 0] + inputs["attention_mask"][1, 0] == 1  # left padding
    tokens = loaded.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert tokens.shape == (2, inputs["input_ids"].shape[1] + 3)


CUT_UP = ("llava_next", "llava_next_video", "llava_onevision", "qwen2_vl", "idefics3", "smolvlm")


@pytest.mark.parametrize("family", CUT_UP)
@pytest.mark.parametrize("axis", [0, 1])
def test_pixels_lie_as_the_geometry_assumes(family: str, axis: int) -> None:
    """What grows along a picture grows along its tiles and patches, and only that way."""
    model = tiny(family)
    shade = np.indices((90, 90))[axis] * 2
    image = Image.fromarray(np.repeat(shade[..., None], 3, axis=-1).astype(np.uint8))
    options = {"return_row_col_info": True} if family in IDEFICS else {}
    with skipped_without_needs():
        process = image_processor(family, model)
    inputs = process(image, return_tensors="pt", **options)
    pixels = inputs["pixel_values"]
    if family == "qwen2_vl":
        picture = Picture(tuple(inputs["image_grid_thw"][0].tolist()))
        whole = canvases(family, model, picture, pixels[None])[0][0]
    elif "rows" in inputs:
        rows, cols = inputs["rows"][0][0], inputs["cols"][0][0]
        tiles = pixels[0, : rows * cols].mean(1).unflatten(0, (rows, cols))
        whole = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    else:
        whole = canvases(family, model, Picture((90, 90)), pixels)[1][0]
    along, across = whole.diff(dim=axis), whole.diff(dim=1 - axis)
    assert whole.numel() > 100
    assert bool((along > 0).all())
    assert float(across.abs().max()) < 1e-3 * float(whole.std())
