"""The README's program and the examples run, on the bundled model."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from lightkv_gnn import tiny

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("compress.py", "vision tokens held"),
        ("own_parts.py", "own guidance"),
        ("see_merges.py", "as networkx"),
        ("compare_prompts.py", "live on in different places"),
        ("export_merges.py saved", "the heaviest survivor"),
        ("own_method.py --questions 4", "smooth"),
    ],
)
def test_example_runs(command, printed, capsys, monkeypatch, tmp_path):
    name, *options = command.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert printed in capsys.readouterr().out


def test_many_images_go_on_where_they_stopped(capsys, monkeypatch, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["many_images.py"])
    for told in ("6 answered, 1 failed, 0 done before", "0 answered, 0 failed, 7 done before"):
        runpy.run_path(str(ROOT / "examples" / "many_images.py"), run_name="__main__")
        printed = capsys.readouterr().out
        assert told in printed
        assert "000.png: red triangle , orange ring" in printed
        assert "(56% of the cache)" in printed
        assert "broken.png is not a picture that Pillow can read" in printed


def test_readme_program_runs(capsys, monkeypatch, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = next(block for block in blocks if "from_pretrained" in block)
    monkeypatch.chdir(tmp_path)
    image = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
    exec(program.replace("my-model/", str(tiny.WEIGHTS)), {"image": image})
    assert "MergeTrace(vision tokens 256 ->" in capsys.readouterr().out
    assert (tmp_path / "merges.png").is_file()
