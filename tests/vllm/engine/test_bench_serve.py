"""``lightkv-gnn bench serve`` on a tiny model, in this process."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lightkv_gnn.bench import engines, serving
from lightkv_gnn.bench.shapes import Shape
from lightkv_gnn.commands import bench as command
from lightkv_gnn.commands.cli import main

TINY = Shape(2, 64, 96, 2, 1, side=8, pictures=2)
ASKED = ["bench", "serve", "--shape", "small", "--requests", "6", "--answer", "3", "--rounds", "1"]


def test_blocks_are_those_that_were_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")  # as in a process of its own
    monkeypatch.setitem(command.SHAPES, "small", TINY)
    monkeypatch.setattr(
        serving,
        "_in_a_process",
        lambda folder, case, threads: engines.measure(serving.orders(folder, case)),
    )
    file = tmp_path / "rows.json"
    assert main([*ASKED, "--out", str(file)]) == 0
    names = [one.name for one in fields(serving.ServeRow)]
    assert capsys.readouterr().out.splitlines()[-4].split() == names
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert list(rows[0]) == names
    assert [row["retention"] for row in rows] == [1, 0.5, 0.25]
    assert [row["tokens"] for row in rows] == [64 + 2 * kept for kept in (64, 32, 16)]
    assert [row["blocks"] for row in rows] == [6, 4, 3]
    assert [row["planned_blocks"] for row in rows] == [6, 4, 3]
    assert [row["fits"] for row in rows] == [2, 2, 3]
    assert all(row["fits"] <= row["at_once"] <= 6 for row in rows)
    assert all(row["requests_per_second"] > 0 < row["first_token"] for row in rows)


@pytest.mark.full
def test_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--requests", "3"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert head.split()[:3] == ["shape", "vllm", "retention"]
    assert [row.split()[2] for row in rows] == ["1.000", "0.500", "0.250"]


def test_another_device_is_refused(tmp_path: Path) -> None:
    asked = serving.orders(tmp_path, serving.ServeCase("own", TINY, device="cuda"))
    with pytest.raises(ValueError, match="runs on cpu: expected that"):
        engines.measure(asked)
