"""What of vLLM is relied on: settings that nobody would read, and methods that are overridden."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import ModelRegistry
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import config as checks

from lightkv_gnn.vllm import ARCHITECTURES, refuse_unused, tiled, versions
from lightkv_gnn.vllm.unused import UnusedSettings

MODULES = {
    "llava": ("llava",),
    "tiled": ("tiled",),
    "llava_next": ("tiled", "llava_next"),
    "qwen": ("qwen",),
    "internvl": ("tiled", "internvl"),
}
"""Of each module, those whose checks are made when vLLM imports it."""
SETTINGS = {"lightkv": {"retention": 0.25}}


def configured(checkpoint: Path, overrides: dict[str, Any]) -> Any:
    """The configuration of a model, made as an engine makes it; nothing is started."""
    return EngineArgs(model=str(checkpoint), hf_overrides=overrides).create_model_config()


def test_settings_that_nothing_reads_are_refused(checkpoint: Path) -> None:
    says = '"architectures": ."LightKVLlavaForConditionalGeneration". beside it'
    with pytest.raises(ValueError, match=says):
        configured(checkpoint, SETTINGS)


def test_so_they_are_by_every_architecture_that_does_not_compress(checkpoint: Path) -> None:
    configured(checkpoint, {})
    compressed = {name for name, _ in ARCHITECTURES.values()}
    names = set(ModelRegistry.get_supported_archs())
    assert compressed < names
    for name in names:
        check = checks.MODELS_CONFIG_MAP.get(name, checks.VerifyAndUpdateConfig)
        assert issubclass(check, UnusedSettings) == (name not in compressed), name
    config = SimpleNamespace(lightkv={}, architectures=["PaliGemmaForConditionalGeneration"])
    with pytest.raises(ValueError, match="a model with one of LlavaForConditionalGeneration, "):
        checks.MODELS_CONFIG_MAP[
            "PaliGemmaForConditionalGeneration"
        ].verify_and_update_model_config(SimpleNamespace(hf_config=config))


def test_what_is_read_or_not_asked_for_is_not(checkpoint: Path) -> None:
    for names in ({}, {"architectures": ["LightKVLlavaForConditionalGeneration"], **SETTINGS}):
        (name,) = names.get("architectures", ["LlavaForConditionalGeneration"])
        assert configured(checkpoint, names).architecture == name


def test_checks_that_were_there_are_made(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an architecture that had none, one that had, and no check twice."""
    seen: list[str] = []

    class Own(checks.VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            seen.append(model_config.architecture)

    monkeypatch.setitem(checks.MODELS_CONFIG_MAP, "LlavaForConditionalGeneration", Own)
    served = {name: own for name, (own, _) in ARCHITECTURES.items()}
    for _ in range(2):
        refuse_unused(served)
    found = checks.MODELS_CONFIG_MAP["LlavaForConditionalGeneration"]
    assert found.__mro__[1:3] == (UnusedSettings, Own)
    configured(checkpoint, {})
    assert seen == ["LlavaForConditionalGeneration"]
    with pytest.raises(ValueError, match="asks for compression"):
        configured(checkpoint, SETTINGS)


def overridden(module: str) -> Iterator[tuple[str, list[Any]]]:
    """Of a module's classes, the methods of vLLM's that are ours, and vLLM's own."""
    for name, one in inspect.getmembers(import_module(f"lightkv_gnn.vllm.{module}")):
        if not inspect.isclass(one) or not one.__module__.startswith("lightkv_gnn.vllm"):
            continue
        stock = [base for base in one.__mro__ if base.__module__.startswith("vllm.")]
        ours = [base for base in one.__mro__ if base.__module__.startswith("lightkv_gnn.")]
        named = {key for base in ours for key, value in vars(base).items() if callable(value)}
        for method in named - {"__subclasshook__"}:
            found = [vars(base)[method] for base in stock if method in vars(base)]
            if found:
                yield f"{name}.{method}", found


def test_every_method_that_is_overridden_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    check: Callable[..., None] = versions.check_call

    def recorded(function: Any, parameters: Any) -> None:
        looked.append(inspect.unwrap(function))
        check(function, parameters)

    for module in (versions, tiled):  # which checks for the families that it serves
        monkeypatch.setattr(module, "check_call", recorded)
    versions.check_engine()
    always, looked_by = list(looked), {}
    for name in MODULES:  # once more, beside those that are in use
        spec = find_spec(f"lightkv_gnn.vllm.{name}")
        assert spec is not None
        assert spec.loader is not None
        looked.clear()
        spec.loader.exec_module(module_from_spec(spec))
        looked_by[name] = list(looked)
    for name, imported in MODULES.items():
        known = [*always, *(one for part in imported for one in looked_by[part])]
        seen = dict(overridden(name))
        assert seen or name == "tiled"
        missing = {
            method
            for method, found in seen.items()
            if not any(inspect.unwrap(one) in known for one in found)
        }
        assert missing == set(), name
