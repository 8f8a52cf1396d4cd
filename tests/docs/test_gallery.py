"""The gallery can be drawn again."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

DATA = re.compile(r'(?<=id="data">).*?(?=</script>)', re.DOTALL)
GALLERY = Path(__file__).parents[2] / "docs" / "gallery"


def script() -> Any:
    """``docs/gallery.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("gallery", GALLERY.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_one_command_draws_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But the rectangular grid, whose model takes minutes to train."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.figure import Figure

    gallery = script()
    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    monkeypatch.setattr(gallery, "OUT", tmp_path)
    monkeypatch.setattr(gallery, "rectangle", Figure)
    gallery.main()
    pages = [folder / "prompts.html" for folder in (tmp_path, GALLERY)]
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in GALLERY.iterdir()} - {"README.md"}
    for name in drawn - {"prompts.html", "rectangle.png"}:
        with Image.open(tmp_path / name) as new, Image.open(GALLERY / name) as old:
            assert new.size == old.size
            low, high = new.convert("L").getextrema()
            assert high - low > 200
    new, old = (re.sub(DATA, "", page.read_text(encoding="utf-8")) for page in pages)
    assert new == old
    page = (GALLERY / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in page for name in drawn)
