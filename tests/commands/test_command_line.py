"""What all commands have in common."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
from PIL import Image

import lightkv_gnn
from lightkv_gnn import __version__
from lightkv_gnn.commands import cli
from lightkv_gnn.commands.cli import COMMANDS, main
from lightkv_gnn.commands.options import _repeated, make_app

ROOT = Path(__file__).parents[2]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "graphs")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_needs_no_torch():
    code = """
import sys
from lightkv_gnn.commands.cli import main
assert main(["--help"]) == 0
assert main([]) == 2
assert not {"torch", "transformers", "torch_geometric"} & set(sys.modules)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert summary in done.stdout


MISTAKES = {
    "run tiny --image missing.png --prompt ?": "missing.png: No such file or directory",
    "run ./missing --image photo.png --prompt ?": "./missing: there is no such folder",
    "run my-model --image photo.png --prompt ?": "my-model: there is no such folder, and",
    "run tiny --image photo.png --prompt ? --retention 1.5": "retention is 1.5: expected",
    "run tiny --image photo.png --prompt ? --guidance texts": "'--guidance'",
    "run tiny --prompt ?": "'--image'",
    "plan ./missing --image 64x64": "./missing: there is no such folder",
    "plan llava --image 64x64": "llava: there is no such folder, and it is no id",
    "plan tiny --image 64": "expected WIDTHxHEIGHT",
    "batch missing out --model tiny": "missing: there is no such file or folder",
    "batch . out --model ./missing": "./missing: there is no such folder",
    "batch . out --model tiny --workers 2": "for --engine ray",
    "batch . out --model tiny --batch 0": "'--batch'",
    "view missing.safetensors": "missing.safetensors: No such file or directory",
}


def test_cheap_mistakes_are_told_of_before_torch_is_imported(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    code = f"""
import os, sys
from lightkv_gnn.commands.cli import main
os.chdir({str(tmp_path)!r})
for command in {list(MISTAKES)!r}:
    print("command:", command, file=sys.stderr)
    assert main(command.split()) in (1, 2)
for name in ("run", "plan", "batch", "view", "doctor"):
    assert main([name, "--help"]) == 0
assert not {{"torch", "transformers", "torch_geometric"}} & set(sys.modules)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    told = done.stderr.split("command: ")[1:]
    for (command, expected), lines in zip(MISTAKES.items(), told, strict=True):
        assert expected in lines.removeprefix(command)
    assert not list(tmp_path.glob("out*"))


def test_it_is_a_module_too():
    done = python("-m", "lightkv_gnn", "--version")
    assert (done.returncode, done.stdout) == (0, f"lightkv-gnn {__version__}\n")
    done = python("-m", "lightkv_gnn", "dmo")
    assert done.returncode == 2
    assert "No such command 'dmo'. Did you mean 'demo'" in done.stderr


def test_the_shell_completes_commands_options_and_names(monkeypatch, capsys):
    def asked(words: str) -> dict[str, str]:
        called = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return {"_LIGHTKV_GNN_COMPLETE": "complete_bash", **called}

    def completed(words: str) -> list[str]:
        for name, value in asked(words).items():
            monkeypatch.setenv(name, value)
        main([])
        return capsys.readouterr().out.split()

    as_a_shell_does = python("-m", "lightkv_gnn", **asked("lightkv-gnn "))
    assert as_a_shell_does.stdout.split() == list(COMMANDS) == completed("lightkv-gnn ")
    assert completed("lightkv-gnn eval --ab") == ["--ablation"]
    assert completed("lightkv-gnn eval --suite two") == ["two_images"]
    assert completed("lightkv-gnn bench gr") == ["growth"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown_and_installed(shell, tmp_path):
    command = ("-m", "lightkv_gnn", "--show-completion", shell)
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    done = python(*command, **environment)
    assert done.returncode == 0, done.stderr
    assert f"_LIGHTKV_GNN_COMPLETE=complete_{shell}" in done.stdout
    done = python("-m", "lightkv_gnn", "--install-completion", shell, **environment)
    assert done.returncode == 0, done.stderr
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert any(f"_LIGHTKV_GNN_COMPLETE=complete_{shell}" in text for text in written)


PARTS = ["stage", "growth", "prefill", "decode", "check", "all"]


@pytest.mark.parametrize(
    "command",
    [*([name] for name in COMMANDS if name != "bench"), *(["bench", part] for part in PARTS)],
)
def test_every_command_has_help_and_json(command, capsys):
    assert main([*command, "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: lightkv-gnn {' '.join(command)} [OPTIONS]")
    assert "--json" in text
    assert main([*command, "--nonsense"]) == 2
    assert "No such option: --nonsense" in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a command that raises an error."""

    def plug_in(error: BaseException) -> None:
        module = ModuleType("lightkv_failing")
        module.app = make_app()

        @module.app.command()
        def fail() -> None:
            raise error

        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "fail", (module.__name__, "Fails."))

    return plug_in


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("expected\n  one\n\nand an example"), 1, "lightkv-gnn: expected one\n"),
        (TypeError("no"), 1, "lightkv-gnn: no\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "lightkv-gnn: x: No such file\n"),
        (FileNotFoundError("x is missing"), 1, "lightkv-gnn: x is missing\n"),
        (ImportError("pip install it"), 1, "lightkv-gnn: pip install it\n"),
        (torch.OutOfMemoryError("tried 9 GiB"), 1, "lightkv-gnn: tried 9 GiB\n"),
        (KeyboardInterrupt(), 130, "lightkv-gnn: interrupted; what was written is kept\n"),
        (typer.BadParameter("not that"), 2, "Error: Invalid value: not that\n"),
    ],
)
def test_errors_end_with_one_line_and_a_status(failing, capsys, error, status, told):
    failing(error)
    assert main(["fail"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == told or (status == 2 and printed.err.endswith(told))


def test_errors_of_ours_keep_their_traceback(failing):
    failing(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["fail"])


def test_who_stops_reading_is_no_error(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llava"}))
    code = f"""
import os, sys
from lightkv_gnn.commands.cli import main
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 1)
sys.exit(main(["plan", {str(file)!r}, "--image", "9x9", "--json"]))
"""
    done = python("-c", code, PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("--seeds 0 1 2", "--seeds 0 --seeds 1 --seeds 2"),
        ("--seeds 0 --seeds 1", "--seeds 0 --seeds 1"),
        ("--seeds=0 1 --out a", "--seeds=0 --seeds 1 --out a"),
        ("--depth 0 -1 --quick", "--depth 0 --depth -1 --quick"),
        ("--quick --out a b", "--quick --out a b"),
        ("--depth -1", "--depth -1"),
    ],
)
def test_an_option_takes_several_values_at_once(given, read):
    assert list(_repeated(given.split(), {"--seeds", "--depth"})) == read.split()


def test_public_names_come_from_where_types_are_checked():
    source = ast.parse((ROOT / "lightkv_gnn" / "__init__.py").read_text())
    (checked,) = (node for node in source.body if isinstance(node, ast.If))
    homes: dict[str, str] = {}
    for line in checked.body:
        for alias in line.names:
            module = getattr(line, "module", None)
            homes[alias.asname or alias.name] = f"{module}.{alias.name}" if module else alias.name
    assert set(homes) == set(lightkv_gnn.__all__) <= set(dir(lightkv_gnn))
    for name, home in homes.items():
        value = getattr(lightkv_gnn, name)
        if isinstance(value, ModuleType):
            assert value.__name__ == home
        else:
            module = sys.modules[home.rpartition(".")[0]]
            assert value is getattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        lightkv_gnn.atach  # noqa: B018
