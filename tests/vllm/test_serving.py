"""The command line that a compressed server is started with."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from families.processors import save_checkpoint, skipped_without_needs

from lightkv_gnn import tiny
from lightkv_gnn.commands.cli import main
from lightkv_gnn.errors import UnsupportedModelError
from lightkv_gnn.vllm import serving
from lightkv_gnn.vllm.settings import Settings

LLAVA = {"architectures": ["LlavaForConditionalGeneration"]}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM were, whatever is."""
    found = ModuleType("vllm")
    found.__dict__["origin"] = "vllm/__init__.py"
    monkeypatch.setattr(serving, "find_spec", lambda name: found)
    monkeypatch.setattr(serving, "packages_distributions", dict)
    plugin = EntryPoint("lightkv", serving.PLUGIN, serving.GROUP)
    monkeypatch.setattr(serving, "entry_points", lambda group: [plugin])
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


def test_the_command_has_the_settings_and_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    model = str(tiny.WEIGHTS)
    asked = ["serve", model, "--port", "8001", "--retention", "0.5", "--windows", "4"]
    assert main([*asked, "--enforce-eager"]) == 0
    (command,) = started
    assert command[:5] == [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
    ]
    assert command[7:] == ["--port", "8001", "--enforce-eager"]
    found = json.loads(command[6])
    assert found["architectures"] == ["LightKVLlavaForConditionalGeneration"]
    assert Settings.from_dict(found["lightkv"]) == Settings(0.5, 4)
    assert "256 -> 128 tokens, 0.75 -> 0.38 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        # 16 of the whole, and 10 x 4 with a newline for each row: 10 + 10 and 16 / 4 are left.
        ("llava_next", {"full": 66, "compressed": 26}),
        ("internvl", {"full": 48, "compressed": 12}),
    ],
)
def test_costs_of_tiles(
    family: str, tokens: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with skipped_without_needs():
        save_checkpoint(family, tmp_path)
        assert main(["serve", str(tmp_path), "--image", "40x90", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"]["tokens"] == tokens


def test_a_checkpoint_with_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    known = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat"}
    (tmp_path / "config.json").write_text(json.dumps(known), encoding="utf-8")
    assert main(["serve", str(tmp_path), "--trust-remote-code"]) == 0
    assert "is not known for checkpoints with code of their own" in capsys.readouterr().out
    assert "LightKVInternVLChatModel" in started[0][6]


def test_json_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started"))
    assert main(["serve", str(tiny.WEIGHTS), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["picture"]["tokens"] == {"full": 256, "compressed": 64}
    assert str(tiny.WEIGHTS) in told["command"]


@pytest.mark.parametrize(
    "option",
    [
        *("--hf-overrides", "--hf_overrides={}", "--model-impl=vllm", "--hf-over"),
        *("--hf-overrides.rope_theta", "--hf_overrides.architectures+=Other", "--model-im=vllm"),
    ],
)
def test_options_that_would_go_past_it(option: str) -> None:
    with pytest.raises(ValueError, match="is set by compression"):
        serving.server_command("my-model", Settings(0.5), LLAVA, ["--port", "1", option, "{}"])


def test_options_of_similar_names_are_passed_on() -> None:
    options = ["--model-loader-extra-config", "{}", "--hf-token=x", "-O.level", "3", "--", "--x.y"]
    command = serving.server_command("my-model", Settings(0.5), LLAVA, options)
    assert command[-len(options) :] == options


def test_other_families_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="'PaliGemmaForConditionalGeneration' is not"):
        serving.overrides(Settings(0.5), {"architectures": ["PaliGemmaForConditionalGeneration"]})
    with pytest.raises(UnsupportedModelError, match="None is not served"):
        serving.overrides(Settings(0.5), {})


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'vllm>=0\.32,<0\.34'"):
        serving.server_command("my-model", Settings(0.5), LLAVA)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("packages_distributions", {"vllm": ["vllm-of-old"]}, "vLLM is 0.31.0"),
        ("entry_points", [], "is not\ninstalled: pip install it in the environment of vLLM"),
    ],
)
def test_a_vllm_that_would_not_compress(
    name: str,
    value: Any,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(serving, "version", lambda package: "0.31.0")
    monkeypatch.setattr(serving, name, lambda **_: value)
    assert main(["serve", str(tiny.WEIGHTS)]) == 1
    assert says.replace("\n", " ") in capsys.readouterr().err


def test_plugins_that_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EntryPoint("own", serving.PLUGIN, serving.GROUP)
    monkeypatch.setattr(serving, "entry_points", lambda group: [found])
    monkeypatch.setenv("VLLM_PLUGINS", "other, own")
    serving.check_installed()
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(ImportError, match=r"VLLM_PLUGINS is 'other'.*expected own among"):
        serving.check_installed()


@pytest.mark.parametrize("option", ["--retentoin", "--retentions=0.3", "--window"])
def test_options_of_ours_that_are_misspelt(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tiny.WEIGHTS), option, "0.3"]) == 2
    assert f"No such option: {option.partition('=')[0]}; did you mean" in capsys.readouterr().err


def test_matchers_have_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for name in ("stride", "stride_matching"):
        asked = ["serve", str(tiny.WEIGHTS), "--retention", "0.5", "--matcher", name, "--json"]
        assert main(asked) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]


def test_what_is_wrong_ends_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tiny.WEIGHTS), "--retention", "2"]) == 1
    assert "retention is 2" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
