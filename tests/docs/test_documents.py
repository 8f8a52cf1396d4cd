"""Every Python block and every command in the documents runs, or where that is dear, parses.

A document's blocks share their names, from top to bottom, and a folder with the bundled model as
``my-model/`` and a picture as ``photo.jpg`` and in ``photos/``.  Pages in ``docs/how-to`` begin
with the names of the first program in ``docs/start.md``, as they say.
``<!--- skip: next "why" -->`` marks what cannot run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

import lightkv_gnn
import lightkv_graphs
from lightkv_gnn import tiny
from lightkv_gnn.adapters import base
from lightkv_gnn.commands import cli

ROOT = Path(__file__).parents[2]
HOW_TO, START = ROOT / "docs" / "how-to", ROOT / "docs" / "start.md"
CHEAP = {"doctor", "plan", "run", "view"}
"""Commands that run here, if a model of theirs is at hand."""


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command; in a block with prompts, lines without one are output."""
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def check(words: Sequence[str]) -> None:
    """Runs a command, or checks that there is such a one."""
    program, *rest = words
    if program == "lightkv-gnn":
        lightkv(rest)
    elif program == "make":
        target = rest[0]
        assert f"\n{target}: " in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif program == "python" and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file()
    elif program == "pip":
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extras in re.findall(r"\.\[(.*)\]", " ".join(rest)):
            for extra in extras.split(","):
                assert f"\n{extra} = [" in project


def lightkv(words: Sequence[str]) -> None:
    """Parses the options of a command of ours, and runs it where it is cheap."""
    name, *rest = words
    if name.startswith("-"):
        assert name in {"--help", "--version", "--install-completion"}
        return
    command = cli._load(cli.COMMANDS[name][0])
    if rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    command.make_context(name, list(rest))
    at_hand = name not in {"plan", "run"} or rest[0] in {"tiny", "my-model/"}
    if name in CHEAP and at_hand:
        assert cli.main(words) == 0


def check_all(example: Example) -> None:
    for words in commands(example.parsed):
        check(words)


PYTHON = Sybil([PythonCodeBlockParser()])
SYBIL = Sybil(
    [
        *PYTHON.parsers,
        SkipParser(),
        *(CodeBlockParser(language, check_all) for language in ("bash", "console", "sh")),
    ]
)
DOCUMENTS = {
    path: SYBIL.parse(path)
    for path in (
        *sorted(ROOT.glob("*.md")),
        *sorted(ROOT.glob("docs/**/*.md")),
        ROOT / "lightkv_gnn/tiny/weights/README.md",
    )
}
EXAMPLES = [
    pytest.param(document, example, id=f"{path.relative_to(ROOT).as_posix()}:{example.line}")
    for path, document in DOCUMENTS.items()
    for example in document.examples()
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Document], Path]:
    """Makes a document's folder when its first block runs."""
    folders: dict[str, Path] = {}

    def folder_of(document: Document) -> Path:
        if document.path not in folders:
            folder = folders[document.path] = tmp_path_factory.mktemp("document")
            (folder / "my-model").symlink_to(tiny.WEIGHTS, target_is_directory=True)
            picture = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
            (folder / "photos").mkdir()
            for name in ("photo.jpg", "photos/photo.jpg"):
                picture.save(folder / name)
        return folders[document.path]

    return folder_of


@pytest.fixture(scope="module", autouse=True)
def registry() -> Iterator[None]:
    """Forgets afterwards the adapters that documents register."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_ADAPTERS", dict(base._ADAPTERS))
        yield


def begin(document: Document) -> None:
    """Gives a page of ``docs/how-to`` the names it begins with."""
    if Path(document.path).parent == HOW_TO and "model" not in document.namespace:
        program = next(iter(PYTHON.parse(START).examples()))
        names: dict[str, Any] = {}
        exec(program.parsed, names)
        document.namespace.update(names)


@pytest.mark.filterwarnings("ignore:lightkv_gnn.* is served by the generic adapter")
@pytest.mark.parametrize(("document", "example"), EXAMPLES)
def test_block_runs(
    document: Document,
    example: Example,
    workshop: Callable[[Document], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(workshop(document))
    begin(document)
    example.evaluate()


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_outside_the_site_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    "package", [lightkv_gnn, lightkv_graphs], ids=lambda package: package.__name__
)
def test_the_reference_has_every_public_name(package: ModuleType) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    names = {name for name in package.__all__ if not isinstance(getattr(package, name), ModuleType)}
    assert {
        name for name in names if not re.search(rf"auto\w+:: ([\w.]+\.)?{name}\n", pages)
    } == set()


def test_the_changelog_begins_with_the_version() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1]
    first = re.search(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1]
    assert first in {version, "Unreleased"}
