"""The table of published models: its arithmetic, its pictures, and its plans on tiny twins."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from families.inputs import PICTURES, Picture, Prompt, batch, truths
from families.models import FAMILIES, IMAGE, VIDEO, tiny
from families.more import RECIPES as FURTHER
from families.processors import square
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.adapters import base

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, Any]]:
    """What docs/families.py defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield runpy.run_path(str(DOCS / "families.py"))


Rows = dict[str, tuple[list[str], list[str]]]


@pytest.fixture(scope="module")
def table(example, pytestconfig: pytest.Config) -> Rows:
    """A model's rows in both tables; in the short run, of every ninth of the newer models."""
    newer = example["NEWER"][:: 1 if pytestconfig.getoption("--all") else 9]
    models = (*example["SIZES"], *newer)
    return {model.name: tuple(map(list, example["cells"](model))) for model in models}


def test_it_prints_and_writes_a_row_for_every_model(example, table, capsys, monkeypatch, tmp_path):
    scope = example["main"].__globals__
    monkeypatch.setitem(scope, "cells", lambda model: table[model.name])
    monkeypatch.setitem(scope, "MODELS", [m for m in example["MODELS"] if m.name in table])
    monkeypatch.setattr(sys, "argv", ["families.py"])
    example["main"]()
    printed = capsys.readouterr().out
    page = tmp_path / "page.md"
    monkeypatch.setitem(scope, "PAGE", page)
    page.write_text(
        "before\n<!-- published: 0 -->\nold<!-- end -->\n<!-- published: 1 -->\n<!-- end -->"
    )
    monkeypatch.setattr(sys, "argv", ["families.py", "--write"])
    example["main"]()
    written = page.read_text()
    assert written.startswith("before\n<!-- published: 0 -->\n\n| model")
    assert "old" not in written
    for text in (printed, written):
        cells = cells_of(text)
        half = len(table) + 2
        for own, head, rows in zip(
            (cells[:half], cells[half:]),
            example["HEADS"],
            zip(*table.values(), strict=True),
            strict=True,
        ):
            assert set("".join(own[1])) == {"-"}
            assert [own[0], *own[2:]] == [list(head), *rows]


def cells_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_family_with_an_adapter_has_a_row(example):
    kinds = {model.config["model_type"] for model in example["MODELS"]}
    ours = {kind for kind, adapter in base._ADAPTERS.items() if "lightkv" in adapter.__module__}
    assert ours - set(FURTHER) <= kinds <= ours
    rows = [line.split("|") for line in (DOCS / "families.md").read_text().splitlines()]
    served = {name for row in rows if len(row) > 6 for name in re.findall(r"`(\w+)`", row[2])}
    assert served - {"model_type"} == ours


def test_a_row_is_what_one_computes_by_hand(table):
    """LLaVA-1.5 7B: 32 layers, 32 key-value heads of 128 channels, 64 tokens of text."""
    held = [640] * 3 + [352] * 29
    weights = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096

    def costs(tokens: list[int]) -> tuple[float, float]:
        values = sum(2 * 32 * 128 * n for n in tokens)
        return 2 * values / 2**20, sum(2 * weights * n + 4 * 4096 * n**2 for n in tokens) / 1e12

    (full_kv, full_flops), (kv, flops) = costs([640] * 32), costs(held)
    assert table["LLaVA-1.5 7B"][0][1:] == [
        "32",
        "576 (24×24)",
        "2/4/50%",
        f"{(sum(held) - 32 * 64) / (32 * 576):.1%}",
        f"{full_kv:.0f} → {kv:.0f} ({kv / full_kv:.0%})",
        f"{full_flops:.1f} → {flops:.1f} ({flops / full_flops:.0%})",
    ]


PROCESSORS = {
    "Qwen2-VL 7B": ("qwen2_vl", "Qwen2VL", {}, 4),
    "Qwen2.5-VL 7B": ("qwen2_vl", "Qwen2VL", {}, 4),
    "Qwen3-VL 8B": (
        "qwen2_vl",
        "Qwen2VL",
        {"patch_size": 16, "size": {"shortest_edge": 2**16, "longest_edge": 2**24}},
        4,
    ),
    "Qwen3-VL 30B-A3B": (
        "qwen2_vl",
        "Qwen2VL",
        {"patch_size": 16, "size": {"shortest_edge": 2**16, "longest_edge": 2**24}},
        4,
    ),
    "GLM-4.1V 9B": ("glm4v", "Glm4v", {}, 4),
    "PaddleOCR-VL 0.9B": ("paddleocr_vl", "PaddleOCRVL", {}, 4),
    "Aya Vision 8B": (
        "got_ocr2",
        "GotOcr2",
        {"size": square(364), "crop_to_patches": True},
        1 / 169,
    ),
    "InternVL3 8B": ("got_ocr2", "GotOcr2", {"crop_to_patches": True}, 1 / 256),
    "Idefics3 8B": (
        "idefics3",
        "Idefics3",
        {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
        1 / 169,
    ),
    "SmolVLM2 2.2B": (
        "smolvlm",
        "SmolVLM",
        {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
        1 / 81,
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_its_pictures_are_cut_as_processors_cut_them(example, name):
    module, prefix, options, parts_per_token = PROCESSORS[name]
    path = f"transformers.models.{module}.image_processing_pil_{module}"
    processor = getattr(importlib.import_module(path), f"{prefix}ImageProcessorPil")(**options)
    parts = processor.get_number_of_image_patches(*example["PICTURE"], options)
    parts = parts[0] if isinstance(parts, tuple) else parts
    [model] = [model for model in example["MODELS"] if model.name == name]
    assert parts == model.tokens * parts_per_token


CASES = [
    (family, kind)
    for family in FAMILIES
    for kind in ("image", "video")
    if any(picture.kind == kind for picture in PICTURES[family])
]


def prompts(family: str, kind: str) -> list[Prompt]:
    """Two prompts of different lengths."""
    pictures: list[Picture] = [each for each in PICTURES[family] if each.kind == kind]
    if kind == "video" and family.startswith("llava"):  # these take videos of one length only
        pictures = pictures[-1:]
    return [(4, pictures[0], 6), (2, pictures[-1], 11)]


def vision_tokens(
    family: str, model: Any, kind: str, inputs: dict[str, Tensor], *prompts: Prompt
) -> lk.VisionTokens:
    """What the library finds in a call, from the geometry that the prompts must have."""
    pictures = chain.from_iterable(truths(family, model, prompt) for prompt in prompts)
    lengths = tuple(sum(tile.tokens for tile in tiles) for tiles in pictures)
    mask = inputs["input_ids"] == (IMAGE if kind == "image" else VIDEO)
    encoded = lk.Encoded(kind, inputs, lengths)
    return lk.VisionTokens({kind: mask}, inputs["attention_mask"].bool(), {kind: encoded})


@pytest.mark.parametrize(("family", "kind"), CASES)
@torch.no_grad()
def test_on_a_tiny_twin_the_plan_is_what_is_observed(family, kind):
    model = tiny(family)
    batch_of = prompts(family, kind)
    inputs = batch(family, model, *batch_of)
    config = lk.LightKVConfig.for_model(model, retention=0.55)
    with lk.attach(model, config) as handle:
        model(**inputs, use_cache=True)
    tokens = vision_tokens(family, model, kind, inputs, *batch_of)
    plan = lk.plan_prefill(model, config, tokens)
    assert plan.rows == lk.plan_prefill(model, config, inputs).rows
    seen = handle.ledger.rows
    assert [(row.planned, row.full) for row in plan.rows] == [
        (row.planned, row.full) for row in seen
    ]
    assert [row.planned.kv_bytes for row in plan.rows] == [row.observed_kv_bytes for row in seen]
    assert plan.rows[-1].planned.kv_bytes < plan.rows[-1].full.kv_bytes


def test_an_adapter_of_ones_own_runs(capsys, monkeypatch):
    monkeypatch.setattr(base, "_ADAPTERS", dict(base._ADAPTERS))
    runpy.run_path(str(ROOT / "examples" / "custom_adapter.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "grids [8x12]" in printed
    assert "MergeTrace(vision tokens 96 -> 48, after layers [0])" in printed
    assert "retention 56.2%" in printed


@pytest.mark.parametrize("document", ["README.md", "docs/families.md"])
def test_documents_hold_what_it_prints(example, table, document):
    names = [model.name for model in example["MODELS"]]
    rows = cells_of((ROOT / document).read_text())
    shown = [row for row in rows if row[0] in names and "`" not in row[1]]  # no family's row
    assert shown
    for name, *cells in shown:
        assert name not in table or any(set(cells) <= set(row) for row in table[name]), name
    if document != "README.md":
        assert [row[0] for row in shown] == [*names, *names]
