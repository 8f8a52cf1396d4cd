"""Pictures that nobody would draw: the right answer, or words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import lightkv_gnn as lk
from lightkv_gnn import tiny
from lightkv_gnn.commands.cli import main

PROMPT = tiny.format_prompt("what shape is the red object ?")
SCENE = tiny.render(tiny.sample_scene(np.random.default_rng(0)))


class Loaded(NamedTuple):
    """The bundled model and its processor."""

    model: Any
    processor: Any

    def inputs(self, images: Any, text: str = PROMPT) -> dict[str, Any]:
        return dict(self.processor(images=images, text=text, return_tensors="pt"))

    def logits(self, inputs: dict[str, Any], ratio: float = 0.5) -> torch.Tensor:
        """Of every step, attached."""
        stages = [lk.Stage(1, 4, ratio), lk.Stage(4, 2, ratio)]
        with lk.attach(self.model, lk.LightKVConfig(stages)) as handle:
            out = self.model.generate(
                **inputs,
                max_new_tokens=3,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            if "pixel_values" in inputs and ratio:
                assert handle.ledger.rows[-1].planned.vision_tokens == 64
        logits = torch.stack(out.logits)
        assert bool(logits.isfinite().all())
        return logits


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """Load them once."""
    return Loaded(*tiny.load())


def white_noise() -> Image.Image:
    noise = np.random.default_rng(0).integers(256, size=(128, 128, 3), dtype="u1")
    return Image.fromarray(noise)


PICTURES = {
    "one pixel": Image.new("RGB", (1, 1), "red"),
    "one row": Image.new("RGB", (300, 1), "red"),
    "one column": Image.new("RGB", (1, 300), "red"),
    "black": Image.new("RGB", (128, 128)),
    "white": Image.new("RGB", (128, 128), "white"),
    "noise": white_noise(),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_nothing(loaded: Loaded, name: str) -> None:
    """All tokens may be equal; nothing becomes NaN, and ratio 0 changes no bit."""
    inputs = loaded.inputs(PICTURES[name])
    first = loaded.logits(inputs)
    assert torch.equal(loaded.logits(inputs), first)
    plain = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(loaded.logits(inputs, 0.0).argmax(-1)[:, 0], plain[0, -len(first) :])


def test_one_pixel_is_a_picture_of_one_colour(loaded: Loaded) -> None:
    pixel, whole = (loaded.inputs(Image.new("RGB", size, "red")) for size in ((1, 1), (128, 128)))
    assert torch.equal(loaded.logits(pixel), loaded.logits(whole))


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK"])
def test_other_modes_are_their_colours(loaded: Loaded, mode: str) -> None:
    picture = SCENE.convert(mode)
    found, expected = (loaded.inputs(one) for one in (picture, picture.convert("RGB")))
    assert torch.equal(loaded.logits(found), loaded.logits(expected))


def test_a_large_picture_is_scaled(loaded: Loaded) -> None:
    large = SCENE.resize((4096, 4096), Image.Resampling.NEAREST)
    found, expected = (loaded.logits(loaded.inputs(one)) for one in (large, SCENE))
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_no_pictures_at_all(loaded: Loaded) -> None:
    inputs = loaded.inputs(None, PROMPT.replace("<image>", ""))
    plain = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    found = loaded.logits(inputs)
    assert torch.equal(found.argmax(-1)[:, 0], plain[0, -len(found) :])
    assert torch.equal(found, loaded.logits(inputs, 0.0))


@pytest.mark.parametrize(("pictures", "places"), [(0, 1), (1, 0), (1, 2), (2, 1)], ids=str)
def test_processors_count_pictures(loaded: Loaded, pictures: int, places: int) -> None:
    with pytest.raises(ValueError, match=r"<image> tokens"):
        loaded.inputs([SCENE] * pictures or None, PROMPT.replace("<image>", "<image>" * places))


@pytest.mark.parametrize(("pictures", "places"), [(1, 0), (1, 2), (2, 1)], ids=str)
def test_past_a_processor_they_are_counted_too(loaded: Loaded, pictures: int, places: int) -> None:
    """By the library or by the model, and the model goes on."""
    right = loaded.inputs(SCENE)
    inputs = loaded.inputs([SCENE] * places or None, PROMPT.replace("<image>", "<image>" * places))
    inputs["pixel_values"] = right["pixel_values"].repeat(pictures, 1, 1, 1)
    before = loaded.logits(right)
    with pytest.raises(ValueError, match=r"placeholders|[Ii]mage features and image tokens"):
        loaded.logits(inputs)
    assert torch.equal(loaded.logits(right), before)


def test_files_that_are_cut_short_or_enormous(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line says so in one line."""
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    SCENE.save(whole)
    cut.write_bytes(whole.read_bytes()[:-200])
    monkeypatch.chdir(tmp_path)
    for file, words in ((cut, "truncated"), (whole, "is too large a picture: Image size")):
        assert main(["demo", "--image", str(file), "--prompt", "what is it ?"]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
