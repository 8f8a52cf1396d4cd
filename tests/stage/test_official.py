"""The official mode equals a loop written from the description of the release, and its outputs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from reference import cosine
from safetensors import safe_open
from torch import Tensor

from lightkv_gnn.stage.official import CompressedSequence, compress_sequence
from lightkv_graphs import leading_cut

Spans = tuple[tuple[int, int], ...]

# --- the release as a loop --------------------------------------------------------------------


class Released(NamedTuple):
    """Rows of the new sequence, survivors within each image, and half-open spans."""

    rows: list[list[float]]
    kept: list[list[int]]
    spans: list[tuple[int, int]]


def released(
    hidden: list[list[float]], logits: list[Any], spans: Spans, windows: int, ratio: float
) -> Released:
    """One stage in float64; ``logits[head][query][key]``.

    The one departure is the library's own: without any text, tokens weigh the same.
    """
    if any(end - start < 8 * windows**2 for start, end in spans) or ratio == 0:
        return Released(hidden, [list(range(e - s)) for s, e in spans], list(spans))
    images = [range(start, end) for start, end in spans]
    text = [t for t in range(len(hidden)) if not any(t in image for image in images)]
    weight = [0.0 if text else 1.0] * len(hidden)
    for head in logits:
        for column in text:
            top = max(row[column] for row in head)
            unit = sum(math.exp(row[column] - top) for row in head)
            for image in images:
                for query in image:
                    weight[query] += math.exp(head[query][column] - top) / unit
    merged: dict[int, list[int]] = {}
    for image in images:
        for window in released_windows(len(image), windows):
            for source, destination in released_edges([hidden[image[t]] for t in window], ratio):
                merged.setdefault(image[window[destination]], []).append(image[window[source]])
    gone = {source for sources in merged.values() for source in sources}
    rows, kept, new = [], [[] for _ in images], []
    place = {
        image[t]: (number, t) for number, image in enumerate(images) for t in range(len(image))
    }
    for token, row in enumerate(hidden):
        if token in gone:
            continue
        if token in merged:
            group = [token, *merged[token]]
            total = sum(weight[t] for t in group)
            row = [
                sum(weight[t] * hidden[t][channel] for t in group) / total
                for channel in range(len(row))
            ]
        if token in place:
            number, inside = place[token]
            kept[number].append(inside)
        rows.append(row)
    for start, end in spans:
        before = sum(t < start for t in gone)
        inside = sum(start <= t < end for t in gone)
        new.append((start - before, end - before - inside))
    return Released(rows, kept, new)


def released_windows(tokens: int, windows: int) -> list[list[int]]:
    """The image in sequence order on a square; the first pieces of a side are the longer ones."""
    side = math.isqrt(tokens) + (math.isqrt(tokens) ** 2 < tokens)
    lengths = [side // windows + 1] * (side % windows)
    lengths += [side // windows] * (windows - side % windows)
    piece = [number for number, length in enumerate(lengths) for _ in range(length)]
    groups: list[list[int]] = [[] for _ in range(windows**2)]
    for token in range(tokens):
        groups[piece[token // side] * windows + piece[token % side]].append(token)
    return groups


def released_edges(x: list[list[float]], ratio: float) -> list[tuple[int, int]]:
    sources, destinations = range(0, len(x), 2), range(1, len(x), 2)
    best = []
    for source in sources:
        similarity = [cosine(x[source], x[destination]) for destination in destinations]
        if similarity:
            highest = max(similarity)
            best.append((-highest, source, destinations[similarity.index(highest)]))
    merges = min(int(np.float32(ratio) * np.float32(len(x))), len(x) // 2)
    return [(source, destination) for _, source, destination in sorted(best)[:merges]]


# --- random sequences -------------------------------------------------------------------------


class Case(NamedTuple):
    """Tokens of text and images by turns (text first), and one stage."""

    segments: tuple[int, ...]
    windows: int
    ratio: float
    heads: int = 2
    scale: float = 1.0


CASES = {
    "one window": Case((4, 25, 6), 1, 0.5),
    "square": Case((4, 64, 6), 2, 0.5),
    "image first": Case((0, 64, 6), 2, 0.3, heads=3),
    "text before alone": Case((6, 40, 0), 2, 0.25, heads=1),
    "uneven pieces": Case((3, 100, 5), 3, 0.5),
    "four windows per side": Case((2, 144, 4), 4, 0.4),
    "folded": Case((3, 90, 7), 2, 0.5),
    "folded short": Case((3, 73, 7), 3, 0.25),
    "just enough": Case((3, 32, 2), 2, 0.5),
    "one too few": Case((3, 31, 2), 2, 0.5),
    "two equal images": Case((3, 49, 2, 49, 4), 2, 0.5),
    "two unequal images": Case((3, 64, 2, 41, 4), 2, 0.5),
    "three images, two side by side": Case((0, 36, 0, 50, 3, 33, 1), 2, 0.3),
    "one of two is too small": Case((3, 64, 2, 31, 4), 2, 0.5),
    "rounding up, 0.29": Case((2, 100, 3), 1, 0.29),
    "rounding up, 0.35": Case((2, 180, 3), 1, 0.35),
    "rounding down, 0.42": Case((2, 150, 3), 1, 0.42),
    "longer pieces first": Case((3, 190, 2), 4, 0.5),
    "capped at half": Case((2, 75, 3), 2, 0.9),
    "all of it": Case((2, 50, 3), 2, 1.0),
    "some windows give nothing": Case((2, 100, 3), 3, 0.1),
    "nothing to merge": Case((2, 30, 3), 1, 0.02),
    "sharp attention": Case((2, 64, 3), 2, 0.5, scale=8.0),
    "no text": Case((0, 64, 0), 2, 0.5),
    "ratio zero": Case((3, 64, 2), 2, 0.0),
    "no images": Case((9,), 2, 0.5),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def spans_of(segments: tuple[int, ...]) -> Spans:
    ends = np.cumsum(segments).tolist()
    return tuple(zip(ends[0::2], ends[1::2], strict=False))


def sequence(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Spans]:
    generator = torch.Generator().manual_seed(seed)
    length = sum(case.segments)
    hidden = torch.randn(1, length, 6, generator=generator, dtype=torch.float64)
    logits = torch.randn(1, case.heads, length, length, generator=generator, dtype=torch.float64)
    return hidden, case.scale * logits, spans_of(case.segments)


def assert_equal(found: CompressedSequence, expected: Released, rtol: float, atol: float) -> None:
    assert [tokens.tolist() for tokens in found.kept] == expected.kept
    assert list(found.image_spans) == expected.spans
    rows = torch.tensor(expected.rows, dtype=torch.float64)[None]
    torch.testing.assert_close(found.hidden_states.double(), rows, rtol=rtol, atol=atol)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_the_loop(case: Case, dtype: torch.dtype) -> None:
    hidden, logits, spans = sequence(case)
    hidden, logits = hidden.to(dtype), logits.to(dtype)
    found = compress_sequence(hidden, logits, spans, windows=case.windows, ratio=case.ratio)
    expected = released(hidden[0].tolist(), logits[0].tolist(), spans, case.windows, case.ratio)
    close = 1e-12 if dtype == torch.float64 else 1e-5
    assert_equal(found, expected, rtol=close, atol=close)
    assert found.hidden_states.dtype == dtype


def test_the_cases_do_what_they_say() -> None:
    left = {}
    for name, case in CASES.items():
        hidden, logits, spans = sequence(case)
        done = released(hidden[0].tolist(), logits[0].tolist(), spans, case.windows, case.ratio)
        left[name] = [len(tokens) for tokens in done.kept]
    assert left["one too few"] == [31]
    assert left["just enough"] == [32 - (4 + 4 + 4 + 3)]
    assert left["one of two is too small"] == [64, 31]
    assert left["rounding up, 0.29"] == [71]  # int(0.29 * 100) is 28
    assert left["rounding up, 0.35"] == [117]  # int(0.35 * 180) is 62
    assert left["rounding down, 0.42"] == [88]  # 0.42 * 150 is 63 exactly
    assert left["capped at half"] == [75 - sum(n // 2 for n in (25, 20, 18, 12))]
    assert left["some windows give nothing"] == [100 - 5]
    assert left["nothing to merge"] == [30]


@pytest.mark.parametrize("schedule", [(4, 2, 1), (2, 2, 1)], ids=str)
def test_chained_stages_equal_the_loop(schedule: tuple[int, ...]) -> None:
    """Later stages fold what is left again, as released."""
    hidden, _, spans = sequence(Case((3, 144, 4, 150, 2), 4, 0.5))
    rows = hidden[0].tolist()
    for number, windows in enumerate(schedule):
        logits = sequence(Case((hidden.shape[1],), 1, 0.5), seed=number)[1]
        expected = released(rows, logits[0].tolist(), spans, windows, 0.5)
        found = compress_sequence(hidden, logits, spans, windows=windows, ratio=0.5)
        assert_equal(found, expected, rtol=1e-11, atol=1e-12)
        hidden, rows, spans = found.hidden_states, expected.rows, found.image_spans
    assert [end - start for start, end in spans] < [144 // 4, 150 // 4]


@every_case
def test_text_is_untouched_and_in_place(case: Case) -> None:
    hidden, logits, spans = sequence(case)
    found = compress_sequence(hidden, logits, spans, windows=case.windows, ratio=case.ratio)

    def text(states: Tensor, images: Spans) -> Tensor:
        keep = torch.ones(states.shape[1], dtype=torch.bool)
        for start, end in images:
            keep[start:end] = False
        return states[0, keep]

    assert torch.equal(text(found.hidden_states, found.image_spans), text(hidden, spans))
    for (start, end), kept in zip(found.image_spans, found.kept, strict=True):
        assert end - start == len(kept)


@pytest.mark.parametrize("name", ["ratio zero", "one too few", "no images"])
def test_where_nothing_is_to_do_the_sequence_comes_back(name: str) -> None:
    case = CASES[name]
    hidden, logits, spans = sequence(case)
    found = compress_sequence(hidden, logits, spans, windows=case.windows, ratio=case.ratio)
    assert torch.equal(found.hidden_states, hidden)
    assert found.image_spans == spans
    assert [tokens.tolist() for tokens in found.kept] == [list(range(e - s)) for s, e in spans]


@pytest.mark.parametrize("depth", [-20.0, -120.0, -3e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_weights_that_vanish_shrink_no_token(depth: float, dtype: torch.dtype) -> None:
    """The release divides by at least 1e-8, and gets NaN in float16."""
    _, logits, spans = sequence(CASES["square"])
    (start, end), row = spans[0], torch.tensor([1.0, -2.0, 0.5]).to(dtype)
    logits[:, :, start:end] += depth
    hidden = row.expand(1, logits.shape[-1], 3)
    found = compress_sequence(hidden, logits.to(dtype), spans, windows=2, ratio=0.5)
    assert found.hidden_states.shape[1] < hidden.shape[1]
    torch.testing.assert_close(found.hidden_states, row.expand_as(found.hidden_states))


def test_half_precision_is_the_float32_result_rounded() -> None:
    hidden, logits, spans = sequence(CASES["two unequal images"])
    half, single = (
        compress_sequence(h, a, spans, windows=2, ratio=0.5)
        for h, a in (
            (hidden.half(), logits.half()),
            (hidden.half().float(), logits.half().float()),
        )
    )
    assert torch.equal(half.hidden_states, single.hidden_states.half())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"hidden_states": torch.zeros(10, 4)},
            r"hidden_states has shape \[10, 4\]: expected \[1,",
        ),
        ({"hidden_states": torch.zeros(2, 10, 4)}, r"hidden_states has shape \[2, 10, 4\]"),
        ({"attention_logits": torch.zeros(2, 10, 10)}, r"attention_logits has shape \[2, 10, 10\]"),
        ({"attention_logits": torch.zeros(2, 1, 10, 10)}, r"expected \[1, head, 10, 10\], raw"),
        ({"attention_logits": torch.zeros(1, 2, 9, 10)}, r"shape \[1, 2, 9, 10\]: expected \[1, h"),
        ({"attention_logits": torch.zeros(1, 2, 10, 9)}, "has 9 keys: expected 10, one per row"),
        ({"windows": 0}, "windows is 0: expected at least one window per side"),
        ({"ratio": -0.1}, "ratio is -0.1: expected a fraction merged away from 0 to 1"),
        ({"ratio": 1.1}, "ratio is 1.1: expected a fraction"),
        ({"ratio": math.nan}, "ratio is nan: expected a fraction"),
        ({"image_spans": [(1, 11)]}, r"image span \(1, 11\): .* half-open spans inside 0..10"),
        ({"image_spans": [(-1, 9)]}, r"image span \(-1, 9\): expected ascending"),
        ({"image_spans": [(3, 3)]}, r"image span \(3, 3\): expected .* non-empty"),
        ({"image_spans": [(5, 3)]}, r"image span \(5, 3\)"),
        ({"image_spans": [(1, 5), (4, 9)]}, r"image span \(4, 9\): expected .* disjoint"),
        ({"image_spans": [(5, 9), (1, 4)]}, r"image span \(1, 4\): expected ascending"),
    ],
)
def test_wrong_input_is_named(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "hidden_states": torch.zeros(1, 10, 4),
        "attention_logits": torch.zeros(1, 2, 10, 10),
        "image_spans": [(1, 9)],
        "windows": 1,
        "ratio": 0.5,
    }
    compress_sequence(**given)
    with pytest.raises(ValueError, match=message):
        compress_sequence(**(given | changed))


# --- what the release returned ----------------------------------------------------------------

FOLDER = os.environ.get("LIGHTKV_GOLDEN")


def manifest() -> dict[str, Any]:
    if not FOLDER:
        return {"cases": []}
    return json.loads((Path(FOLDER) / "manifest.json").read_text(encoding="utf-8"))


def golden_cases() -> list[Any]:
    """The cases, or one that is skipped."""
    reason = "LIGHTKV_GOLDEN names no folder with outputs of the released code"
    if not FOLDER:
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(case, id=case["name"]) for case in manifest()["cases"]]


every_golden_case = pytest.mark.parametrize("case", golden_cases())


def tensors(case: dict[str, Any], stage: int) -> dict[str, Tensor]:
    with safe_open(Path(FOLDER or "") / case["file"], "pt") as file:
        names = list(file.keys())
        prefix = f"stage{stage}." if f"stage{stage}.out" in names else ""
        return {
            name.removeprefix(prefix): file.get_tensor(name)
            for name in names
            if name.startswith(prefix)
        }


def half_open(spans: Tensor | list[list[int]]) -> Spans:
    """The manifest's spans name their last token."""
    pairs = spans.tolist() if isinstance(spans, Tensor) else spans
    return tuple((start, end + 1) for start, end in pairs)


def check_stage(
    found: CompressedSequence, given: dict[str, Tensor], stage: dict[str, Any], dtype: str
) -> None:
    tolerance = manifest()["tolerance"][dtype]
    torch.testing.assert_close(found.hidden_states, given["out"], **tolerance)
    assert found.hidden_states.shape[1] == stage["out_len"]
    assert found.image_spans == half_open(given["new_img_indices"])
    assert found.image_spans == half_open(stage["new_img_indices"])
    if stage["skipped"]:
        assert torch.equal(found.hidden_states, given["hidden_states"])
        assert [len(kept) for kept in found.kept] == [stage["tokens_per_image"]] * len(found.kept)
    else:
        assert torch.stack(found.kept).tolist() == given["idxs_sorted"].tolist()


@every_golden_case
def test_equals_the_release(case: dict[str, Any]) -> None:
    for number, stage in enumerate(case["stages"]):
        given = tensors(case, number)
        found = compress_sequence(
            given["hidden_states"],
            given["attentions"],
            half_open(given["img_indices"]),
            windows=stage["windows"],
            ratio=stage["ratio"],
        )
        check_stage(found, given, stage, case["dtype"])


@every_golden_case
def test_chains_equal_the_release(case: dict[str, Any]) -> None:
    """Every stage gets what ours made of the stage before."""
    first = tensors(case, 0)
    hidden, spans = first["hidden_states"], half_open(first["img_indices"])
    for number, stage in enumerate(case["stages"]):
        given = tensors(case, number)
        found = compress_sequence(
            hidden, given["attentions"], spans, windows=stage["windows"], ratio=stage["ratio"]
        )
        check_stage(found, given | {"hidden_states": hidden}, stage, case["dtype"])
        hidden, spans = found.hidden_states, found.image_spans


@every_golden_case
def test_windows_equal_the_release(case: dict[str, Any]) -> None:
    for number, stage in enumerate(case["stages"]):
        if stage["skipped"]:
            continue
        labels = tensors(case, number)["window_labels"]
        side = math.isqrt(len(labels) - 1) + 1
        token, windows = torch.arange(len(labels)), stage["windows"]
        row, col = (leading_cut(c, side, windows) for c in (token // side, token % side))
        assert torch.equal(row * windows + col, labels)
        expected = released_windows(len(labels), windows)
        assert [len(window) for window in expected] == stage["window_sizes"]
