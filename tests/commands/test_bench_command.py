"""``lightkv-gnn bench`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import CACHE

from lightkv_gnn.bench.prefill import Contest, DecodeRow, compare_decode
from lightkv_gnn.bench.serving import ServeCase, rows_of
from lightkv_gnn.bench.shapes import Shape, build, inputs_of
from lightkv_gnn.bench.subjects import USUAL
from lightkv_gnn.commands import bench as command
from lightkv_gnn.commands.cli import main

TINY = Shape(6, 32, 48, 4, 2, side=8, pictures=2)
STAGE = ["bench", "stage", "--tokens", "64", "--channels", "64", "--rounds", "2"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(command.SHAPES, "small", TINY)


def test_stages_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    threads = torch.get_num_threads()
    assert main([*STAGE, "--json", "--out", str(file)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["subject"] for row in rows] == list(USUAL)
    assert {(row["tokens"], row["channels"], row["windows"], row["batch"]) for row in rows} == {
        (64, 64, 4, 1)
    }
    assert all(row["seconds"] > 0 and row["extra_bytes"] > 0 for row in rows)
    written = json.loads(file.read_text())
    assert written["rows"] == rows
    assert written["machine"]["threads"] == 1
    assert written["machine"]["command"].startswith("lightkv-gnn bench stage --tokens 64")
    assert torch.get_num_threads() == threads


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*STAGE, "--subject", "ours", "--batch", "1", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("torch: ") for line in lines)
    head, one, two = lines[-3:]
    assert head.split()[:6] == ["subject", "tokens", "channels", "windows", "batch", "ragged"]
    assert (one.split()[4], two.split()[4]) == ("1", "2")
    assert " ms" in one
    assert " MiB" in one


@pytest.mark.usefixtures("tiny")
def test_prefill_ratios_are_of_the_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "prefill", "--quick", "--rounds", "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["tokens"] == 2 * 64 + 64
    assert row["seconds_ratio"] == row["seconds"] / row["seconds_full"]
    assert 0.5 < row["retention"] < 0.6
    assert 0 < row["flops_ratio"] < 1
    assert 0 < row["kv_ratio"] < 1
    assert row["gain_share"] == pytest.approx((1 - row["seconds_ratio"]) / (1 - row["flops_ratio"]))


@pytest.mark.usefixtures("tiny")
def test_decoding_tells_how_many_samples_fit(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "decode", "--quick", "--batch", "2", "--memory", "0.001", "--json"]
    assert main(arguments) == 0
    (row,) = json.loads(capsys.readouterr().out)
    cpu = torch.device("cpu")
    weights = sum(p.nbytes for p in build(TINY, torch.float32, cpu).parameters())
    for which in ("", "_full"):
        left = int(0.001 * 2**30) - weights - row[f"largest_batch{which}"] * row[f"kv_bytes{which}"]
        assert 0 <= left < row[f"kv_bytes{which}"]
    assert row["kv_bytes_full"] == 2 * 6 * 2 * (32 // 4) * (2 * 64 + 64) * 4
    assert row["kv_bytes"] < row["kv_bytes_full"]


@pytest.mark.usefixtures("tiny")
def test_memory_is_asked_about_once_for_a_shape(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def compare(contest: Contest, rounds: int, memory: int | None) -> DecodeRow:
        asked.append(memory)
        return compare_decode(contest, rounds, memory)

    monkeypatch.setattr("lightkv_gnn.bench.parts.compare_decode", compare)
    arguments = ["bench", "decode", "--quick", "--batch", "1", "2", "--memory", "0.001", "--json"]
    assert main(arguments) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert asked == [int(0.001 * 2**30), None]
    for name in ("largest_batch", "largest_batch_full"):
        assert one[name] == two[name] > 0


def test_growth_has_an_exponent_for_each_subject(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "growth", "--tokens", "16", "64", "--batch", "1", "2"]
    arguments += ["--channels", "64", "--windows", "1", "--rounds", "2", "--subject", "ours"]
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["over"], row["values"]) for row in rows] == [
        ("tokens", [16, 64]),
        ("batch", [1, 2]),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*STAGE, "--subject", "leaner"], "subject 'leaner': expected ours"),
        ([*STAGE[:3], "0"], "tokens is 0"),
        ([*STAGE, "--rounds", "1"], "rounds is 1"),
        ([*STAGE, "--out", "nowhere/rows.json"], "there is no folder nowhere"),
        (["bench", "growth", "--tokens", "16"], "tokens has 1 sizes"),
        ([*STAGE, "--device", "nowhere"], "--device nowhere cannot be used"),
        (["bench", "serve", "--retention", "2"], "retention is 2"),
        (["bench", "serve", "--memory", "0.001"], "memory is 1073741 bytes: expected"),
    ],
)
def test_bad_options_end_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_serving_wants_vllm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightkv_gnn.vllm.serving.find_spec", lambda name: None)
    assert main(["bench", "serve", "--quick"]) == 1
    assert "vLLM is not installed here: pip install" in capsys.readouterr().err


def test_planned_for_engines_by_hand() -> None:
    """Of 8 x 8 tokens in two pictures and 64 of text, in blocks of 32 with 15 of an answer."""
    case = ServeCase("own", TINY, retentions=(0.25,), requests=9)
    assert [case.prompt(one) for one in (None, *case.settings)] == [128 + 64, 32 + 64]
    assert [case.blocks(one) for one in (None, *case.settings)] == [7, 4]
    assert [case.blocks(one, 0) for one in (None, *case.settings)] == [6, 3]
    assert case.block_bytes == 2 * 6 * 2 * (32 // 4) * 32 * 4
    assert case.cache_bytes == case.block_bytes * (3 * 7 + 1)


def test_rows_are_beside_the_uncompressed() -> None:
    case = ServeCase("own", TINY, retentions=(0.25,), requests=9)
    seen = {"blocks": 6, "cache_blocks": 22, "at_once": 3, "rate": 2.0, "first": 0.5}
    full = {**seen, "tokens": 192, "first_loaded": 4.0}
    less = {**seen, "tokens": 96, "blocks": 3, "rate": 5.0, "first": 0.25, "first_loaded": 1.0}
    one, two = rows_of(case, {"vllm": "0.32.0", "engines": [full, less]})
    assert (one.retention, one.rate_ratio, one.first_ratio, one.loaded_ratio) == (1, 1, 1, 1)
    assert (two.retention, two.rate_ratio, two.first_ratio, two.loaded_ratio) == (
        *(0.25, 2.5, 0.5, 0.25),
    )
    assert (one.fits, two.fits) == (3, 5)
    assert (one.planned_blocks, two.planned_blocks) == (6, 3)


def test_a_compressed_prefill_never_holds_more() -> None:
    """Also where little is saved, and with pictures that do not end the sequence.

    Where next to nothing is, the mask that adds the mass costs more: docs/limits.md.
    """
    cpu = torch.device("cpu")
    for retention in (0.8, 0.55):
        contest = Contest(
            "own", Shape(8, 256, 512, 4, 4, side=16), 1, retention, torch.float32, cpu
        )
        peaks = contest.peaks(contest.prefill)
        assert peaks["light"] <= peaks["full"], retention


def test_compression_is_all_that_differs_and_leaves_nothing_behind() -> None:
    contest = Contest("tiny", TINY, 2, 0.55, torch.float32, torch.device("cpu"))
    cached: list[int] = []

    def run() -> None:
        cached.append(contest.prefill()[CACHE].layers[-1].keys.shape[2])

    before = contest.prefill().logits
    contest.side_by_side(run, rounds=2)
    assert torch.equal(contest.prefill().logits, before)
    light, full = sorted(set(cached))
    assert light < full == 2 * 64 + 64
    assert cached.count(light) == cached.count(full) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_dtype_and_the_seed(dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    first, second = (build(TINY, dtype, torch.device("cpu")) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other)
    inputs = inputs_of(TINY, 3, first)
    assert (inputs["input_ids"] == first.config.image_token_id).sum(1).tolist() == [128] * 3
    assert inputs["pixel_values"].dtype == dtype
