"""Every vision token is taken to lie where it lies in its picture, in every family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from carried import carrying, heard_layers, places, still_model
from families.inputs import PICTURES, Picture, Prompt, batch
from families.models import FAMILIES, LAYERS
from followed import Followed
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.stage.messages import destination_only

STAGES = (lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.25))
CONFIG = lk.LightKVConfig(STAGES, guidance="none", message=destination_only)


def forward(model: Any, inputs: dict[str, Tensor]) -> Any:
    return model(**inputs)


def generating(**options: Any) -> Callable[[Any, dict[str, Tensor]], Any]:
    return lambda model, inputs: model.generate(**inputs, max_new_tokens=2, **options)


RUNS: dict[str, tuple[int, Callable[[Any, dict[str, Tensor]], Any]]] = {
    "forward": (1, forward),
    "generate": (1, generating(do_sample=False)),
    "beams": (2, generating(do_sample=False, num_beams=2)),
    "sampling": (2, generating(do_sample=True, num_return_sequences=2)),
}
"""How often each sample is repeated, and how the model is called."""


def mixed(family: str) -> list[Prompt]:
    """A ragged batch: without pictures, next to each other, apart, and of both kinds."""
    images = [picture for picture in PICTURES[family] if picture.kind == "image"]
    videos = [picture for picture in PICTURES[family] if picture.kind == "video"][-1:]
    return [
        (5,),
        (1, images[-1], images[0], 2, images[-1], *videos, 3),
        (2, *videos, images[0], 9),
        (images[-1], 1),
    ]


@pytest.mark.parametrize("run", ["forward", "generate"])
@pytest.mark.parametrize(
    ("family", "picture"),
    [(family, picture) for family in FAMILIES for picture in PICTURES[family]],
    ids=str,
)
def test_one_picture(family: str, picture: Picture, run: str) -> None:
    check(family, [(3, picture, 4)], run)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batches(family: str, run: str) -> None:
    check(family, mixed(family), run)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding(family: str) -> None:
    check(family, mixed(family), "forward", "right")


@torch.no_grad()
def test_class_tokens_of_a_call() -> None:
    """The call's strategy goes before the configuration's."""
    model, full = still_model("llava"), still_model("llava", vision_feature_select_strategy="full")
    inputs = batch("llava", full, *mixed("llava"))
    with lk.attach(model, CONFIG) as handle:
        model(**inputs, vision_feature_select_strategy="full")
        assert handle.trace.layout.row.tolist()[:2] == [-1, 0]


@pytest.mark.parametrize("size", [(2, 100), (1, 500)], ids=str)
@pytest.mark.parametrize("family", ["llava_next", "llava_next_video"])
def test_a_picture_that_is_but_a_line(family: str, size: tuple[int, int]) -> None:
    """Nothing is left of its tiles but the scaled whole."""
    check(family, [(3, Picture(size), 4), (2, PICTURES[family][0], 1)], "forward")


@torch.no_grad()
def test_newlines_of_a_line_that_stands() -> None:
    """Rows without a single column end all the same; the newlines follow the scaled whole."""
    model = still_model("llava_next")
    with lk.attach(model, CONFIG) as handle:
        model(**batch("llava_next", model, (3, Picture((100, 2)), 4)))
        layout = handle.trace.layout
    assert layout.grids == ((4, 4),)
    assert layout.row[16:].tolist() == [-1] * 12


@pytest.mark.parametrize("run", ["forward", "beams"])
def test_class_tokens(run: str) -> None:
    check("llava", mixed("llava"), run, vision_feature_select_strategy="full")


@torch.no_grad()
def check(
    family: str, prompts: Sequence[Prompt], run: str, padding: str = "left", **options: Any
) -> None:
    """Follows the tokens through the layers, and asks whether the trace tells the same."""
    model = still_model(family, **options)
    inputs = batch(family, model, *prompts, padding=padding)
    expected = places(family, model, prompts)
    repeats, call = RUNS[run]
    with carrying(model, expected), lk.attach(model, CONFIG) as handle, heard_layers(model) as seen:
        call(model, inputs)
        trace = handle.trace
    real = inputs["attention_mask"].bool().repeat_interleave(repeats, 0)
    followed = Followed([own for own in expected for _ in range(repeats)], real)
    assert seen[0].shape[:2] == real.shape
    followed.check(seen[:LAYERS], STAGES, trace)
