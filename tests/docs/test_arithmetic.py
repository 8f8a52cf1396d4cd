"""docs/evidence/arithmetic.md is what its script writes, and what one computes by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"
PAGE = EVIDENCE / "arithmetic.md"

LAYERS, CHANNELS, INNER = 32, 4096, 11008
"""Of LLaVA-1.5 7B, whose picture has 576 tokens."""

USUAL, RELEASED = (11, 17, 23), (12, 18, 24)


def test_the_page_is_what_the_script_writes(tmp_path):
    """In a process of its own: an example has the name of a folder of tests."""
    again = tmp_path / "again.md"
    script = [sys.executable, str(EVIDENCE / "arithmetic.py"), str(again)]
    subprocess.run(script, check=True, cwd=tmp_path, capture_output=True)
    assert again.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sections() -> dict[str, list[list[str]]]:
    """Rows of each section's table."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        title: [line.strip("| ").split(" | ") for line in re.findall(r"^\|.*\|$", body, re.M)][2:]
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def held(stages: Sequence[int]) -> list[int]:
    """Vision tokens of every layer."""
    return [576 >> sum(stage < layer for stage in stages) for layer in range(LAYERS)]


def flops(tokens: Sequence[int]) -> int:
    weights = 4 * CHANNELS**2 + 3 * CHANNELS * INNER + 2 * CHANNELS
    return sum(2 * weights * n + 4 * CHANNELS * n**2 for n in tokens)


def saved(stages: Sequence[int], text: int, more: int = 0) -> float:
    """Share of the FLOPs, with more of them in the whole."""
    full = flops([576 + text] * LAYERS)
    return (full - flops([n + text for n in held(stages)])) / (full + more)


def test_sizes(sections):
    by_name = {row[0]: row for row in sections["The usual schedule on published sizes"]}
    share = sum(held(USUAL)) / (576 * LAYERS)
    mib = 576 * LAYERS * 2 * CHANNELS * 2 / 2**20
    row = by_name["LLaVA-1.5 7B"]
    assert row[4] == f"{mib:.0f} → {mib * share:.0f} ({share:.1%})"
    assert row[7] == f"{saved(USUAL, 64):.1%}"
    for row in by_name.values():
        vision, whole, work = (float(re.search(r"\((.*)%\)", cell)[1]) for cell in row[4:7])
        assert vision < whole  # text dilutes
        assert work < whole  # squares sharpen
        assert float(row[7][:-1]) == pytest.approx(100 - work, abs=0.11)


def test_indexing(sections):
    for row in sections["Which layer a number means: 57.4 %"]:
        layers, numbers = int(row[1]), [int(number) for number in row[2].split(", ")]
        for shift, cell in ((0, row[3]), (1, row[5])):
            a, b, c = (number - shift for number in numbers)
            share = ((a + 1) + (b - a) / 2 + (c - b) / 4 + (layers - 1 - c) / 8) / layers
            assert cell == f"{share:.1%}"
    first = sections["Which layer a number means: 57.4 %"][0]
    assert (first[3], first[5]) == ("57.4%", "54.7%")


def test_lengths(sections):
    rows = sections["Compute, by length of the text"]
    for row, stages in zip(rows, (USUAL, RELEASED), strict=False):
        assert row[0] == "LLaVA-1.5 7B"
        assert row[3:8] == [f"{saved(stages, text):.1%}" for text in (16, 64, 256, 1024, 4096)]
        longest = int(row[8])
        assert saved(stages, longest) >= 0.4 > saved(stages, longest + 1)
        tower = 24 * (2 * 12 * 1024**2 * 577 + 4 * 1024 * 577**2)
        assert row[9] == f"{saved(stages, 64, tower):.1%}"


def test_what_the_words_say_of_the_tables(sections):
    rows = {
        (row[0], row[1].split(":")[0]): row for row in sections["Compute, by length of the text"]
    }
    at_64 = {key: float(row[4][:-1]) for key, row in rows.items()}
    assert at_64["LLaVA-1.5 7B", "released"] < 40
    assert at_64["Qwen2.5-VL 7B", "released"] < 40
    assert at_64["LLaVA-1.5 13B", "released"] > 40
    assert at_64["LLaVA-NeXT 13B", "released"] > 40
    text = PAGE.read_text(encoding="utf-8")
    for name, words in (("LLaVA-1.5", "up to\n76 to 82 tokens"), ("LLaVA-NeXT", "318 to 360")):
        found = {int(row[8]) for key, row in rows.items() if name in key[0] and key[1] == "55 %"}
        assert found == {int(number) for number in re.findall(r"\d+", words)}
        assert words in text
    compute = [
        float(row[4][:-1]) for row in sections["Figure 6: compression layers on LLaVA-NeXT-13B"]
    ]
    assert 24 < min(compute) < 26
    assert 74 < max(compute) < 77


def test_memory(sections):
    rows = sections["Figure 1: memory of a prefill, LLaVA"][:3]
    weights = 2 * LAYERS * (4 * CHANNELS**2 + 3 * CHANNELS * INNER + 2 * CHANNELS)
    for row in rows:
        kv = [
            int(row[1]) * 4 * CHANNELS * n
            for n in ((576 + 64) * LAYERS, sum(held(USUAL)) + 64 * LAYERS)
        ]
        expected = [f"{value / 2**30:.2f}" for value in (weights, *kv)]
        assert row[2:] == [*expected, f"{(kv[0] - kv[1]) / (weights + kv[0]):.1%}"]


def test_retentions_are_those_asked_for(sections):
    for row in sections["Figure 4: retention on Qwen2.5-VL"]:
        assert float(row[2][:-1]) == pytest.approx(float(row[0][:-1]), abs=1.5)
        assert float(row[3][:-1]) == pytest.approx(100 - float(row[2][:-1]), abs=0.11)
