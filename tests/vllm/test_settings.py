"""Settings: what they take, what they refuse, and what is found by them."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lightkv_gnn.stage.compressor import MATCHERS, MESSAGES
from lightkv_gnn.vllm import settings as module
from lightkv_gnn.vllm.settings import Settings

OTHERS = {
    "retention": 0.5,
    "windows": 4,
    "matcher": "cosine_matching",
    "message": "destination_only",
}


def test_names_are_those_of_the_library() -> None:
    assert set(module.MATCHERS) <= set(MATCHERS)
    assert set(module.MESSAGES) <= set(MESSAGES)


def test_settings_survive_a_command_line() -> None:
    settings = Settings(**OTHERS)
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
        ({"retention": 0.5, "guidance": "text_to_vision"}, ValueError, "has 'guidance'"),
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
