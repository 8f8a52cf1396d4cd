"""The page of families is what the registry says, and names every type that transformers has."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lightkv_gnn.adapters import base, families
from lightkv_gnn.adapters.served import SERVED
from lightkv_gnn.adapters.unserved import UNSERVED

SCRIPT = Path(__file__).parents[2] / "docs" / "registry.py"
PAGE = SCRIPT.with_name("families.md")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the script defines, with a page of its own."""
    found = runpy.run_path(str(SCRIPT))
    ours = {
        name: kind
        for name, kind in base._ADAPTERS.items()
        if kind.__module__.startswith("lightkv_gnn")
    }
    monkeypatch.setattr(base, "_ADAPTERS", ours)
    copied = tmp_path / "families.md"
    copied.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setitem(found["main"].__globals__, "PAGE", copied)
    return found


def run(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["registry.py", *options])
    status: int = script["main"]()
    return status


def test_the_page_is_current(script, monkeypatch) -> None:
    assert run(script, monkeypatch, "--check") == 0, "run: python docs/registry.py"


def test_every_type_of_transformers_is_on_the_page() -> None:
    named = set(re.findall(r"`([^`]+)`", PAGE.read_text(encoding="utf-8")))
    assert not set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - named


def test_every_type_with_an_adapter_is_in_one_row(script) -> None:
    rows = [name for family in SERVED for name in family.types]
    assert sorted(rows) == sorted(base._ADAPTERS)


def test_what_is_old_is_seen_and_written_anew(script, monkeypatch) -> None:
    page = script["main"].__globals__["PAGE"]
    current = page.read_text(encoding="utf-8")
    taken = dict(base._ADAPTERS)
    del taken["got_ocr2"]
    monkeypatch.setattr(base, "_ADAPTERS", {**taken, "pp_chart2table": taken["llava"]})
    rows = tuple(one._replace(types=one.types[-1:]) for one in SERVED)
    monkeypatch.setitem(script["served"].__globals__, "SERVED", rows)
    assert run(script, monkeypatch, "--check") == 1
    assert page.read_text(encoding="utf-8") == current
    assert run(script, monkeypatch) == 0
    assert run(script, monkeypatch, "--check") == 0
    changed = page.read_text(encoding="utf-8")
    assert (
        "| GOT-OCR 2, PP-Chart2Table | `pp_chart2table` | llama, mistral, qwen2, qwen3 |" in changed
    )
    possible = len(families()) + sum(one.target for one in UNSERVED.values())
    assert f"**{len(families())} of the {possible} model types" in changed
