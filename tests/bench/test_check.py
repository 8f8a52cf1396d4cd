"""What is checked before figures count, and the command that measures everything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightkv_gnn.bench import check, every
from lightkv_gnn.bench.cases import StageCase
from lightkv_gnn.bench.check import check_all
from lightkv_gnn.bench.prefill import Contest
from lightkv_gnn.bench.shapes import Shape
from lightkv_gnn.bench.subjects import SUBJECTS, Step, ours
from lightkv_gnn.commands import bench as command
from lightkv_gnn.commands.cli import main
from lightkv_gnn.stage.scatter import TritonBackend

CASE = StageCase(64, 32, 2)
CPU = torch.device("cpu")


@pytest.fixture
def contest() -> Contest:
    return Contest("tiny", Shape(6, 32, 48, 4, 2, side=8), 1, 0.55, torch.float32, CPU)


def wrong(case: StageCase) -> Step:
    return lambda: ours(case)() * 1.1


def short(case: StageCase) -> Step:
    return lambda: ours(case)()[1:]


def broken(case: StageCase) -> Step:
    def step() -> Tensor:
        raise Exception("out of resource: shared memory\nmore of it")  # as Triton's are

    return step


def unprepared(case: StageCase) -> Step:
    raise ValueError("no such tile")


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUBJECTS, "compiled", ours)


@pytest.mark.usefixtures("quickly")
def test_a_cpu_has_no_waits(contest: Contest) -> None:
    rows = {row.check: row for row in check_all(CASE, contest)}
    assert rows["lean computes what ours does"].passed
    assert rows["compiled computes what ours does"].passed
    for name, why in (
        ("graphed computes what ours does", "needs a GPU"),
        ("a stage waits for nothing", "only a GPU"),
        ("the layers of a prefill wait for nothing", "only a GPU"),
    ):
        assert rows[name].passed is None
        assert why in rows[name].detail


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("subject", "detail"),
    [
        (wrong, "AssertionError: only 0.0% of the survivors agree"),
        (short, "AssertionError: [31, 32] instead of [32, 32]"),
        (broken, "Exception: out of resource: shared memory"),
        (unprepared, "ValueError: no such tile"),
    ],
)
def test_what_computes_something_else_is_found(
    subject: Step, detail: str, contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUBJECTS, "lean", subject)
    row = next(iter(check_all(CASE, contest)))
    assert (row.passed, row.detail) == (False, detail)


def last_first(cosine: Tensor, weight: Tensor, *others: object) -> Tensor:
    return torch.arange(weight.shape[1]).flip(0).float().expand_as(weight)


def test_what_chooses_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert re.fullmatch(r"(.*)% is lost, without kernels \1%", check._loses_alike(CASE))
    monkeypatch.setattr(TritonBackend, "greedy", property(lambda self: last_first))
    with pytest.raises(AssertionError, match="is lost, without kernels"):
        check._loses_alike(CASE)


def test_waiting_within_the_layers_is_an_error(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode is on from the first layer to the last; afterwards, on an error too, as it was."""
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: "before")
    monkeypatch.setattr(check, "_check_gpu", lambda device: None)
    layers = contest.model.get_decoder().layers
    between: list[list[object]] = []
    hook = layers[2].register_forward_hook(lambda *_: between.append(list(modes)))
    assert check._layers_wait_not(contest) == "nothing waited"
    assert between == [[], ["error"]]
    assert modes == ["error", "default", "before"]
    hook.remove()

    def fail(*_: object) -> None:
        if modes:
            raise RuntimeError("called a synchronizing operation")

    modes.clear()
    hook = layers[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="synchronizing"):
        check._layers_wait_not(contest)
    hook.remove()
    assert modes == ["error", "before"]
    assert not layers[0]._forward_pre_hooks


TINY = {
    "check": ["check", "--tokens", "64", "--channels", "64", "--shape", "small"],
    "stage": ["stage", "--tokens", "64", "--channels", "64", "--rounds", "2"],
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every, "ON_A_CPU", TINY)


@pytest.mark.usefixtures("quickly", "tiny")
def test_everything_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "all", str(tmp_path / "new" / "folder"), "--quick", "--json"]) == 0
    for name in TINY:
        written = json.loads((tmp_path / "new" / "folder" / f"{name}.json").read_text())
        assert written["rows"]
        assert written["machine"]["command"].startswith(f"lightkv-gnn bench {name}")
    printed = capsys.readouterr()
    files = [str(tmp_path / "new" / "folder" / f"{name}.json") for name in TINY]
    assert json.loads(printed.out) == {"files": files}
    assert f"== stage: {files[1]}" in printed.err


@pytest.mark.usefixtures("quickly", "tiny")
def test_nothing_is_measured_where_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SUBJECTS, "lean", wrong)
    assert main(["bench", "all", str(tmp_path), "--quick"]) == 1
    printed = capsys.readouterr()
    assert "does not hold: lean computes what ours does" in printed.err
    assert printed.out.startswith("== check: ")
    assert [file.name for file in tmp_path.iterdir()] == ["check.json"]


@pytest.mark.parametrize("parts", [every.ON_A_CPU, every.ON_A_GPU])
def test_all_parts_are_commands(
    parts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(command, "_measure", lambda rows, called, *_: seen.append(called))
    for arguments in parts.values():
        command._call(arguments)
    assert [called.split()[:3] for called in seen] == [
        ["lightkv-gnn", "bench", arguments[0]] for arguments in parts.values()
    ]
    assert {called.split()[2] for called in seen} == {
        "check",
        "stage",
        "prefill",
        "decode",
        "growth",
    }
    assert next(iter(parts)) == "check"
