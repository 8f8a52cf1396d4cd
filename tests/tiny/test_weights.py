"""The bundled weights: loadable from the folder alone, small, and accurate on fresh pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightkv_gnn.tiny import (
    WEIGHTS,
    accuracy,
    format_prompt,
    load,
    object_f1,
    render,
    sample_scene,
)
from lightkv_gnn.tiny.evaluate import Evaluation
from lightkv_gnn.tiny.photo.model import WEIGHTS as PHOTO_WEIGHTS


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """Load the bundled model once."""
    return load()


@pytest.mark.parametrize("weights", [WEIGHTS, PHOTO_WEIGHTS], ids=["tiny", "photo"])
def test_the_folder_is_small_and_holds_no_pickles(weights: Path) -> None:
    files = list(weights.iterdir())
    assert sum(file.stat().st_size for file in files) < 12_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja", ".md"}
    assert json.loads((weights / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("weights", [WEIGHTS, PHOTO_WEIGHTS], ids=["tiny", "photo"])
def test_it_loads_by_the_auto_classes_without_a_word(weights: Path) -> None:
    code = (
        "import sys, transformers as t;"
        f"m = t.AutoModelForImageTextToText.from_pretrained({str(weights)!r});"
        f"p = t.AutoProcessor.from_pretrained({str(weights)!r});"
        "print(type(m).__name__, type(p).__name__, 'torchvision' in sys.modules)"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["LlavaForConditionalGeneration", "LlavaProcessor", "False"]
    noise = [line for line in done.stderr.splitlines() if "Loading weights" not in line]
    assert not any(noise), done.stderr


@pytest.mark.parametrize(("group", "floor"), [("vqa", 0.9), ("hallucination", 0.9)])
def test_accuracy_on_fresh_pictures(loaded: tuple[Any, Any], group: str, floor: float) -> None:
    result = accuracy(*loaded, group, n=100, seed=77)
    assert len(result.correct) == 100
    assert result.accuracy >= floor


def test_accuracy_needs_the_picture(loaded: tuple[Any, Any]) -> None:
    """Blank every picture: the answers must then be guesses."""
    model, processor = loaded

    class Blind:
        device = torch.device("cpu")

        def generate(self, pixel_values: torch.Tensor, **inputs: object) -> torch.Tensor:
            return model.generate(pixel_values=torch.zeros_like(pixel_values), **inputs)

    assert accuracy(Blind(), processor, "vqa", n=60, seed=78).accuracy < 0.45


def test_a_batch_answers_like_one_at_a_time(loaded: tuple[Any, Any]) -> None:
    together = accuracy(*loaded, "captioning", n=4, seed=79)
    apart = accuracy(*loaded, "captioning", n=4, seed=79, batch_size=1)
    assert together.predictions == apart.predictions


def test_unknown_words_do_not_crash(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    image = render(sample_scene(np.random.default_rng(0)))
    text = format_prompt("Please describe this photograph!")
    inputs = processor(images=image, text=text, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1


def test_scores() -> None:
    assert object_f1("red ring , blue star", "blue star , red ring") == 1.0
    assert object_f1("red ring", "red ring , blue star") == pytest.approx(2 / 3)
    assert object_f1("", "red ring") == 0.0
    with pytest.raises(ValueError, match="n >= 1"):
        accuracy(None, None, "vqa", n=0, seed=0)
    assert Evaluation("vqa", (), ()).correct == ()
