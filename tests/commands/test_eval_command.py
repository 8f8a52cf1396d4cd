"""``lightkv-gnn eval`` as it is called."""

import csv
import json
from pathlib import Path

import pytest
import torch

from lightkv_gnn.baselines import METHODS
from lightkv_gnn.commands import eval as eval_command
from lightkv_gnn.commands.cli import main
from lightkv_gnn.evaluation.ablations import ABLATIONS
from lightkv_gnn.evaluation.rows import read_rows
from lightkv_gnn.evaluation.store import MACHINE
from lightkv_gnn.evaluation.suite import Quick
from lightkv_gnn.evaluation.suites import SUITES
from lightkv_gnn.evaluation.tiny_suite import TinySuite

TINY = ("eval", "--suite", "tiny", "--group", "vqa", "--questions", "8", "--retention", "0.55")
HONEST = ("agreement", "hard_accuracy", "method_seconds", "effective_rank")
CONTRACT = ("suite", "method", "retention", "depth", "seed", "accuracy", "low", "high")


def run(capsys, *arguments):
    status = main([*map(str, arguments)])
    return status, capsys.readouterr()


def test_json_is_a_list_of_rows_and_nothing_else(capsys, tmp_path):
    out = tmp_path / "rows"
    status, printed = run(
        capsys, *TINY, "--methods", "guided", "mean", "--depth", 0, 6, "--out", out, "--json"
    )
    assert status == 0, printed.err
    rows = json.loads(printed.out)
    assert [(row["method"], row["depth"]) for row in rows] == [
        ("none", -1),
        ("downsample", -1),
        ("guided", 0),
        ("mean", 0),
        ("random_pruning", 0),
    ]
    for row in rows:
        assert {*CONTRACT, *HONEST, "kv_bytes", "flops"} <= set(row)
        assert not {"scores", "answers"} & set(row)
        assert row["questions"] == 8
    assert "left out: guided at 55%: no stages from layer 6 of 8 on keep 55%" in printed.err
    kept = read_rows(out / "rows.jsonl")
    assert [row.accuracy for row in kept] == [row["accuracy"] for row in rows]
    with (out / "rows.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    for line, row in zip(table, kept, strict=True):
        assert (line["method"], line["group"]) == (row.method, row.group)
        assert float(line["accuracy"]) == row.accuracy
        for name in ("divergence", "error"):
            expected = [getattr(stage, name) for stage in row.stages]
            assert [float(part) for part in line[name].split()] == pytest.approx(expected, rel=1e-5)


def test_the_table_has_the_rows_of_earlier_runs_too(capsys, tmp_path):
    for method in ("guided", "mean"):
        status, printed = run(capsys, *TINY, "--methods", method, "--out", tmp_path)
        assert status == 0, printed.err
    with (tmp_path / "rows.csv").open(newline="") as stream:
        found = [line["method"] for line in csv.DictReader(stream)]
    assert found == ["none", "downsample", "guided", "random_pruning", "mean"]


def test_people_get_a_line_a_row(capsys, tmp_path):
    status, printed = run(
        capsys, *TINY, "--ablation", "positions", "--out", tmp_path / "rows", "--device", "cpu"
    )
    assert status == 0, printed.err
    lines = printed.out.splitlines()
    assert [line.split()[2] for line in lines[:-1]] == [
        *("none", "downsample", "preserve", "reindex", "random_pruning")
    ]
    assert lines[-1].startswith("wrote ")
    (noted,) = json.loads((tmp_path / "rows" / MACHINE).read_text())
    assert noted["command"].startswith("lightkv-gnn eval --suite tiny --group vqa")


def test_a_suite_without_the_groups_is_not_trained(capsys, tmp_path, monkeypatch):
    class Other(TinySuite):
        groups = ("shape",)

        def subject(self, seed, folder, device="cpu"):
            raise FileNotFoundError("nobody needs it")

    monkeypatch.setitem(SUITES, "cued", Other)
    arguments = ("eval", "--suite", "cued", *TINY[2:], "--methods", "none", "--out", tmp_path)
    status, printed = run(capsys, *arguments, "--json")
    assert status == 0, printed.err
    assert [row["suite"] for row in json.loads(printed.out)] == ["tiny"]


def test_quick_asks_fewer(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(TinySuite, "quick", Quick(4, ("mean",), (0.3,)))
    arguments = ("eval", "--suite", "tiny", "--group", "vqa", "--quick", "--json")
    status, printed = run(capsys, *arguments, "--out", tmp_path / "rows")
    assert status == 0, printed.err
    rows = json.loads(printed.out)
    assert [row["questions"] for row in rows] == [4] * 4
    asked = {row["method"]: row["retention"] for row in rows}
    assert asked == {"none": 1.0, "downsample": 0.3, "mean": 0.3, "random_pruning": 0.3}
    more = ("--methods", "none", "--questions", "3", "--out", tmp_path / "more")
    status, printed = run(capsys, *arguments, *more)
    assert status == 0, printed.err
    assert [row["questions"] for row in json.loads(printed.out)] == [3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--group", "poetry"), "--group poetry: expected one of"),
        (("--questions", "-3"), "questions is -3: expected 1 or more"),
        (("--retention", "1.5"), "retention is 1.5"),
        (("--depth", "-1"), "depth is -1"),
        (("--seeds", "77"), "no tiny LLaVA of seed 77"),
        (("--device", "nowhere"), "--device nowhere cannot be used"),
    ],
)
def test_bad_options(capsys, tmp_path, arguments, message):
    fixed = ("eval", "--suite", "tiny", "--methods", "guided", "--out", tmp_path / "rows")
    status, printed = run(capsys, *fixed, "--questions", "4", *arguments)
    assert status == 1
    assert message in printed.err
    assert printed.out == ""


def test_nothing_but_no_compression_is_no_evaluation(capsys, tmp_path):
    command = (*TINY, "--methods", "guided", "--depth", 6, "--out", tmp_path / "rows")
    status, printed = run(capsys, *command)
    assert status == 1
    assert "no method could be evaluated" in printed.err.splitlines()[-1]
    kept = read_rows(tmp_path / "rows" / "rows.jsonl")
    assert [row.method for row in kept] == ["none", "downsample"]


def test_honest_columns_are_what_one_counts_by_hand(capsys, tmp_path):
    """Questions that smaller pictures get wrong, and answers that are those without compression."""
    group = ("eval", "--suite", "tiny", "--group", "vqa", "--questions", "16")
    status, printed = run(
        capsys, *group, "--retention", "0.3", "--methods", "fastv", "--out", tmp_path
    )
    assert status == 0, printed.err
    rows = {row.method: row for row in read_rows(tmp_path / "rows.jsonl")}
    none, small = rows["none"], rows["downsample"]
    hard = [number for number, score in enumerate(small.scores) if score < 1]
    assert hard
    for row in rows.values():
        if row is none:
            assert row.hard_accuracy is None
            continue
        assert row.hard_questions == len(hard)
        assert row.hard_accuracy == sum(row.scores[n] for n in hard) / len(hard)
        assert row.answers == ()
    assert len(none.answers) == 16
    assert none.agreement == 1.0
    right = [score == 1 for score in none.scores]
    for row in (small, rows["fastv"]):
        # Where all of them answer right or wrong alike, they answer the same word by word.
        both = sum(a == 1 and b for a, b in zip(row.scores, right, strict=True)) / 16
        assert both <= row.agreement <= 1 - abs(sum(row.scores) / 16 - sum(right) / 16)
    assert rows["fastv"].effective_rank < none.effective_rank
    assert rows["fastv"].method_seconds > 0 == none.method_seconds
    assert rows["fastv"].prefill_seconds > rows["fastv"].method_seconds
    assert all(row.prefill_seconds < row.seconds for row in rows.values())


def test_threads_are_as_asked_while_it_runs(capsys, tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def recorded(self, *arguments, **options):
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(eval_command.Evaluation, "run", recorded)
    for threads in ([], ["--threads", "2"]):
        status, printed = run(capsys, *TINY, *threads, "--out", tmp_path)
        assert status == 130
        assert printed.err == "lightkv-gnn: interrupted; what was written is kept\n"
        assert torch.get_num_threads() == before
    assert seen == [1, 2]


def test_a_file_is_no_folder(capsys, tmp_path):
    (tmp_path / "rows").write_text("mine")
    status, printed = run(capsys, *TINY, "--out", tmp_path / "rows")
    assert status == 1
    assert "is a file: give a folder" in printed.err
    assert (tmp_path / "rows").read_text() == "mine"
    status, printed = run(capsys, *TINY, "--out", tmp_path, "--models", tmp_path / "rows")
    assert status == 1
    assert "--models" in printed.err


def test_the_page_on_evaluating_lists_what_there_is():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    for name in (*SUITES, *METHODS):
        assert f"`{name}`" in page
    for name, method in METHODS.items():
        assert f"| `{name}` | {method.source} |" in page


def test_names_are_listed(capsys):
    assert main(["eval", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in (*SUITES, *METHODS, *ABLATIONS):
        assert name in text
