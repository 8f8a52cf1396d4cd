"""The README's program and the examples run, on the bundled model."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lightkv_gnn as lk
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
        ("before_the_decoder.py", "256 image tokens, merged to 64"),
    ],
)
def test_example_runs(command, printed, capsys, monkeypatch, tmp_path):
    name, *options = command.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert printed in capsys.readouterr().out


def test_a_stage_before_the_language_model():
    """As docs/serving.md has it."""
    text = (ROOT / "docs" / "serving.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"lk": lk, "features": torch.randn(576, 8)}
    exec(program, names)
    assert names["few"].shape == (288, 8)


def test_readme_program_runs(capsys, monkeypatch, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = next(block for block in blocks if "from_pretrained" in block)
    monkeypatch.chdir(tmp_path)
    image = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
    exec(program.replace("my-model/", str(tiny.WEIGHTS)), {"image": image})
    assert "MergeTrace(vision tokens 256 ->" in capsys.readouterr().out
    assert (tmp_path / "merges.png").is_file()
