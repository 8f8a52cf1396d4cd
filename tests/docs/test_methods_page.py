"""The pages that name methods are what their script writes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("evaluation.md", "lmms-eval.md")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the script defines, with pages of its own."""
    found = runpy.run_path(str(DOCS / "methods.py"))
    for name in PAGES:
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    monkeypatch.setitem(found["main"].__globals__, "FOLDER", tmp_path)
    return found


def run(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["methods.py", *options])
    status: int = script["main"]()
    return status


def test_the_pages_are_current(script, monkeypatch) -> None:
    assert run(script, monkeypatch, "--check") == 0, "run: python docs/methods.py"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_is_not_is_told_and_written_anew(script, monkeypatch, tmp_path, page) -> None:
    copied = tmp_path / page
    copied.write_text(copied.read_text(encoding="utf-8").replace("`fastv`", "`slowv`"))
    assert run(script, monkeypatch, "--check") == 1
    assert run(script, monkeypatch) == 0
    assert copied.read_bytes() == (DOCS / page).read_bytes()


def test_a_page_without_marks_is_refused(script, monkeypatch, tmp_path) -> None:
    (tmp_path / "evaluation.md").write_text("nothing here")
    with pytest.raises(ValueError, match="a page has no marks"):
        run(script, monkeypatch)
