"""What a call knows of its pictures comes from the encoders, and is of these pictures."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from families.inputs import PICTURES, Picture, Prompt, batch
from families.models import IMAGE, tiny
from models import left_untouched
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.adapters import base as registry
from lightkv_gnn.adapters.llava import LlavaAdapter
from lightkv_graphs import Tile

CONFIG = lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)])
WIDE, HIGH = Picture((1, 8, 12)), Picture((1, 12, 8))
"""As many tokens each."""


@cache
def model_of(family: str) -> Any:
    return tiny(family)


def qwen(*prompts: Prompt, **options: Any) -> dict[str, Tensor]:
    return batch("qwen2_vl", model_of("qwen2_vl"), *prompts, **options)


def encoded(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The call with its pictures encoded by hand."""
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    output = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    return {**rest, "mm_encoder_outputs": {"image": output}}


# --- whose pictures -------------------------------------------------------------------------------


def fail(*_: Any) -> None:
    raise InterruptedError


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize("where", ["encoder", "decoder"])
@torch.no_grad()
def test_records_of_a_failed_call_are_not_used(where: str, way: str) -> None:
    model = model_of("qwen2_vl")
    calls = {"forward": model, "generate": lambda **given: model.generate(**given, max_length=99)}
    first, second = qwen((2, WIDE, 3)), qwen((2, HIGH, 3))
    module = model.model.visual if where == "encoder" else model.get_decoder().layers[2]
    with lk.attach(model, CONFIG) as handle:
        expected = model(**second).logits
        hook = module.register_forward_pre_hook(fail)
        with pytest.raises(InterruptedError):
            calls[way](**first)
        hook.remove()
        assert torch.equal(model(**second).logits, expected)
        assert handle.trace.layout.grids == ((6, 4),)


@pytest.mark.parametrize("copied", [lambda x: x, copy.copy, copy.deepcopy])
@torch.no_grad()
def test_pictures_may_be_encoded_in_the_context(copied: Callable[[Any], Any]) -> None:
    model, inputs = model_of("qwen2_vl"), qwen((2, WIDE, 3, HIGH, 1))
    with lk.attach(model, CONFIG) as handle:
        expected = model(**inputs).logits
        call = copied(encoded(model, inputs))
        assert torch.equal(model(**call).logits, expected)
        model(**qwen((2, HIGH, 5)))
        beams = model.generate(**copied(call), max_new_tokens=2, num_beams=2, do_sample=False)
        assert handle.trace.layout.grids == ((4, 6), (6, 4)) * 2
        again = model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        assert torch.equal(again, beams)


@torch.no_grad()
def test_encoded_pictures_keep_their_order() -> None:
    """With pictures of unequal sizes, to be told apart."""
    model, inputs = model_of("qwen2_vl"), qwen((2, WIDE, 3, PICTURES["qwen2_vl"][1], 1))
    with lk.attach(model, CONFIG):
        call = encoded(model, inputs)
        output = call["mm_encoder_outputs"]["image"]
        output.pooler_output = output.pooler_output[::-1]
        with pytest.raises(lk.UnsupportedInputError, match=r"\[15, 24\].*encoded as \[24, 15\]"):
            model(**call)


# --- adapters of others ---------------------------------------------------------------------------
LIES: dict[str, Any] = {
    "too small": lambda encoded: [[Tile(3, 3)] for _ in encoded.lengths],
    "a newline too many": lambda encoded: [[Tile(4, 4, after=1)] for _ in encoded.lengths],
    "a picture too few": lambda encoded: [[Tile(4, 4)] for _ in encoded.lengths[1:]],
    "pictures taken together": lambda encoded: [[Tile(4, 4) for _ in encoded.lengths]],
}


class Lying(LlavaAdapter):
    """Tells wrong tiles."""

    lie: Any = None

    def tiles(self, encoded: lk.Encoded) -> Any:
        return type(self).lie(encoded)


class Blind(LlavaAdapter):
    """Knows what its placeholders are, but not how its model encodes pictures."""

    encoders: ClassVar[Any] = {"image": "init_weights"}
    placeholders: ClassVar[Any] = {"image": IMAGE}


@pytest.mark.parametrize("lie", [*LIES, "another method"])
@torch.no_grad()
def test_wrong_adapters_are_named(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = (
        model_of("llava"),
        batch("llava", model_of("llava"), (4, Picture(), 2), (3, Picture())),
    )
    adapter, message = Lying, r"Lying\.tiles\(\) lays out .* is not right"
    if lie in LIES:
        monkeypatch.setattr(Lying, "lie", staticmethod(LIES[lie]))
    else:
        adapter, message = Blind, "did not pass through the encoder.*override its encoders"
    monkeypatch.setitem(registry._ADAPTERS, "llava", adapter)
    with (
        left_untouched(model, inputs),
        lk.attach(model, CONFIG),
        pytest.raises(ValueError, match=message),
    ):
        model(**inputs)


# --- the encoders themselves ----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen3_vl", "idefics3"])
def test_encoders_look_and_end_as_they_were(family: str) -> None:
    base = model_of(family).base_model
    names = [name for name in ("get_image_features", "get_video_features") if hasattr(base, name)]
    before = {name: inspect.signature(getattr(base, name)) for name in names}
    with lk.attach(model_of(family), CONFIG):
        assert {name: inspect.signature(getattr(base, name)) for name in names} == before
        assert {getattr(base, name).__name__ for name in names} == set(names)
        assert set(names) <= set(vars(base))
    assert not set(names) & set(vars(base))


def test_encoders_of_others() -> None:
    """One put on the instance before is put back; one put there meanwhile stays."""
    base = model_of("llava").base_model
    own, other = base.get_image_features, lambda: None
    try:
        base.get_image_features = own
        with lk.attach(model_of("llava"), CONFIG):
            assert base.get_image_features is not own
        assert base.get_image_features is own
        with lk.attach(model_of("llava"), CONFIG):
            base.get_image_features = other
        assert base.get_image_features is other
    finally:
        del base.get_image_features
    with lk.attach(model_of("llava"), CONFIG):
        del base.get_image_features


@torch.no_grad()
def test_threads_have_pictures_of_their_own() -> None:
    """Both have encoded before either goes on; each finds its own layout."""
    model, calls = model_of("qwen2_vl"), [qwen((2, WIDE, 3)), qwen((2, HIGH, 3))]
    barrier = threading.Barrier(2, timeout=30)
    found: dict[int, Tensor] = {}

    def together(*_: Any) -> None:
        barrier.wait()

    def run(number: int) -> None:
        with torch.no_grad():
            found[number] = model(**calls[number]).logits

    with lk.attach(model, CONFIG):
        expected = [model(**call).logits for call in calls]
        hook = model.model.visual.register_forward_hook(together)
        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hook.remove()
    assert all(torch.equal(found[number], own) for number, own in enumerate(expected))
