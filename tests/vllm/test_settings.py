"""Settings: what they take, what they refuse, and what is found by them."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightkv_gnn.stage.compressor import MATCHERS, MESSAGES
from lightkv_gnn.vllm import settings as module
from lightkv_gnn.vllm.settings import Settings
from lightkv_gnn.vllm.versions import check_options

OTHERS = {
    "retention": 0.5,
    "windows": 4,
    "matcher": "cosine_matching",
    "message": "destination_only",
    "guidance": "text_to_vision",
}


def first_words(block: Any) -> Any:
    """A guidance of one's own."""
    return block.vision_mask.float()


OWN = f"{__name__}:first_words"


def test_names_are_those_of_the_library() -> None:
    assert set(module.MATCHERS) <= set(MATCHERS)
    assert set(module.MESSAGES) <= set(MESSAGES)


@pytest.mark.parametrize("share", [0.5, np.float32(0.5), Fraction(1, 2)])
def test_settings_survive_a_command_line(share: Any) -> None:
    settings = Settings(**{**OTHERS, "matcher": "coverage", "retention": share})
    assert settings.digest == replace(settings, retention=0.5).digest
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert Settings.of_config(SimpleNamespace(lightkv=settings.to_dict())) == settings


def test_every_field_is_in_the_hash() -> None:
    base = Settings(0.75)
    changed = [replace(base, **{name: value}) for name, value in OTHERS.items()]
    assert len(OTHERS) == len(Settings.__dataclass_fields__)
    signed = [one.sign("picture") for one in (base, *changed)] + [base.sign("another")]
    assert len(set(signed)) == len(OTHERS) + 2
    assert replace(base).sign("picture") == base.sign("picture")


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"retention": 0}, ValueError, "above 0, at most 1"),
        ({"retention": 0.001}, ValueError, "expected 0.01 or more"),
        ({"retention": 0.25, "matcher": "cosine_matching"}, ValueError, "expected 0.5 or more"),
        ({"retention": "0.25"}, TypeError, "expected a number"),
        ({"retention": True}, TypeError, "expected a number"),
        ({"retention": 0.5, "windows": 0}, ValueError, "expected 1 to 64"),
        ({"retention": 0.5, "windows": 2.0}, TypeError, "expected an integer"),
        ({"retention": 0.5, "matcher": "covering"}, ValueError, "'coverage_matching'"),
        ({"retention": 0.5, "message": "guided_mean"}, ValueError, "'mass_mean'"),
        ({"retention": 0.5, "gidance": "none"}, ValueError, "did you mean guidance"),
        ({"retention": 0.5, "guidance": "scout"}, ValueError, "'module:function' that can be"),
        ({"retention": 0.5, "guidance": "no_such:one"}, ValueError, "No module named 'no_such'"),
        ({"retention": 0.5, "guidance": "math:e"}, ValueError, "which cannot be called"),
        ({"retention": 0.5, "guidance": "math:none"}, ValueError, "has no attribute 'none'"),
        ({"retention": 0.5, "guidance": None}, TypeError, "expected one of .'none'"),
        ({"retention": 0.5, "guidance": dict}, TypeError, "a function, or where one is"),
        (
            {"retention": 0.5, "matcher": "cosine", "guidance": "text_to_vision"},
            ValueError,
            "cosine_matching does not look at it",
        ),
        ({"retentoin": 0.5}, ValueError, "did you mean retention"),
        ({"windows": 2}, ValueError, "has no retention"),
        ([0.25], ValueError, "expected an object"),
    ],
    ids=str,
)
def test_what_is_refused(values: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Settings.from_dict(values)


def test_no_settings_are_no_silence() -> None:
    with pytest.raises(ValueError, match="without settings"):
        Settings.of_config(SimpleNamespace())


def test_a_matcher_has_one_hash_however_it_is_written() -> None:
    short, long = (Settings(0.5, matcher=name) for name in ("cosine", "cosine_matching"))
    assert short == long
    assert short.digest == long.digest != Settings(0.5).digest


def test_a_function_is_known_by_where_it_is_found() -> None:
    own = Settings(0.5, guidance=first_words)
    assert own == Settings(0.5, guidance=OWN)
    assert own.to_dict()["guidance"] == OWN
    assert own.guide is first_words
    assert own.digest != Settings(0.5, guidance="text_to_vision").digest


@pytest.mark.parametrize(
    "own",
    [lambda block: block, partial(first_words), Settings.sign.__get__(Settings(0.5))],
    ids=["lambda", "partial", "method"],
)
def test_some_functions_have_no_name(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(0.5, guidance=own).guide is own
    monkeypatch.setattr(first_words, "__module__", "__main__")
    assert Settings(0.5, guidance=first_words).guidance is first_words


def options_of(guidance: Any, **options: Any) -> Any:
    """What vLLM was started with, as far as is looked at."""
    settings = {"lightkv": {"retention": 0.5, "guidance": guidance}}
    multimodal = SimpleNamespace(
        is_multimodal_pruning_enabled=lambda: False,
        mm_encoder_only=options.pop("mm_encoder_only", False),
    )
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=False),
        model_config=SimpleNamespace(
            get_multimodal_config=lambda: multimodal, hf_config=SimpleNamespace(**settings)
        ),
        cache_config=SimpleNamespace(**options),
    )


def test_what_has_no_name_shares_no_cache() -> None:
    nameless: Any = partial(first_words)
    with pytest.raises(ValueError, match=r"no name .* or enable_prefix_caching=False"):
        check_options(options_of(nameless, enable_prefix_caching=True))
    check_options(options_of(nameless, enable_prefix_caching=False))
    for named in (first_words, "text_to_vision", "none"):
        check_options(options_of(named, enable_prefix_caching=True))


def test_an_encoder_alone_has_no_layer_to_guide_by() -> None:
    for guidance in ("text_to_vision", first_words):
        with pytest.raises(ValueError, match="mm_encoder_only leaves out"):
            check_options(options_of(guidance, enable_prefix_caching=True, mm_encoder_only=True))
    check_options(options_of("none", enable_prefix_caching=True, mm_encoder_only=True))


def test_the_text_is_in_the_hash_of_what_it_guides() -> None:
    settings = Settings(0.5, guidance="text_to_vision")
    texts = [None, (), (1, 2), (12,), (2, 1)]
    assert len({settings.sign("picture", text) for text in texts}) == len(texts)
