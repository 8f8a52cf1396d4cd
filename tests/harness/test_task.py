"""The task for lmms-eval in the examples holds what its generator makes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
from PIL import Image

TASK = Path(__file__).parents[2] / "examples" / "lmms_task"


def test_its_pictures_and_questions_are_made_by_make_py(tmp_path):
    runpy.run_path(str(TASK / "make.py"))["main"](tmp_path)
    kept = TASK / "data" / "test"
    names = sorted(file.name for file in kept.iterdir())
    assert names == sorted(file.name for file in tmp_path.iterdir())
    for name in names:
        if name.endswith(".png"):
            with Image.open(kept / name) as one, Image.open(tmp_path / name) as other:
                assert np.array_equal(one, other)
        else:
            assert (kept / name).read_text() == (tmp_path / name).read_text()


def test_its_answers_are_scored_word_by_word():
    utils = runpy.run_path(str(TASK / "utils.py"))
    text = (TASK / "data/test/metadata.jsonl").read_text(encoding="utf-8")
    rows = list(map(json.loads, text.splitlines()))
    assert len(rows) == 32
    document = rows[0]
    right = utils["score"](document, [f" {document['answer']} "])
    assert right == {"exact_match": 1.0, document["group"]: 1.0}
    assert utils["score"](document, ["no idea"])["exact_match"] == 0.0
    assert Path(utils["FOLDER"]) == TASK / "data"
