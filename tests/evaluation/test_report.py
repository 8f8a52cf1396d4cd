"""The page: what it says, read back from Markdown and PNG."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from marks import full
from PIL import Image

from evaluation.factory import make_row, make_rows
from lightkv_gnn import machine
from lightkv_gnn.commands.cli import main
from lightkv_gnn.evaluation import figures
from lightkv_gnn.evaluation.pooling import best_at_budget, pool
from lightkv_gnn.evaluation.report import HEAD, MARK, PAGE, write_report
from lightkv_gnn.evaluation.rows import Row, StageLoss, write_rows
from lightkv_gnn.evaluation.statistics import difference_over_seeds, over_seeds
from lightkv_gnn.evaluation.store import LEFT_OUT, MACHINE

HOSTILE = "_a|b `c`\n# $x_1$ <b>*d*</b> [e](f) \\"

Table = list[dict[str, str]]


def tables(page: str) -> list[Table]:
    """Cells of each table by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        lines = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in block.splitlines()]
        assert {len(line) for line in lines} == {len(lines[0])}
        assert set(lines[0]) <= set(HEAD)
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def report(rows: list[Row], folder: Path, **options) -> tuple[str, list[Path]]:
    """The page without figures' being looked at."""
    files = write_report(rows, folder, **options)
    return files[0].read_text(encoding="utf-8"), files


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(figures, "PLOTS", ())


def test_a_table_for_each_depth_has_none_first(tmp_path, undrawn):
    page, _ = report(make_rows(), tmp_path)
    found = tables(page)
    assert len(found) == 2
    for table in found:
        assert table[0]["method"] == "none"
        assert len(table) == 1 + 2 * 3
        budgets = [row["retention asked"] for row in table[1:]]
        assert budgets == ["55.0%"] * 3 + ["25.0%"] * 3
    assert page.index("First compressed after layer 0") < page.index("after layer 2")


def test_cells_are_the_row(tmp_path, undrawn):
    row = make_row("mean", 0.8)
    stages = (StageLoss(0, 64, 32, 0.25, 0.5), StageLoss(3, 32, 16, float("nan"), 0.125))
    row = replace(row, stages=stages, difference=-0.2, p_value=1e-9)
    page, _ = report([make_row("none", 1.0), row], tmp_path)
    ((none, cells),) = tables(page)
    assert none["accuracy, %"] == "100.0 [94.0, 100.0]"
    assert (none["retention asked"], none["difference, points"], none["p"]) == ("", "", "")
    low, high = 100 * row.difference_low, 100 * row.difference_high
    assert list(cells.values()) == [
        "mean",
        "55.0%",
        "55.0%",
        "1.1 KiB (55.0%)",
        "2.75 M (55.0%)",
        f"80.0 [{100 * row.low:.1f}, {100 * row.high:.1f}]",
        "20.0",
        "40.0",
        f"-20.0 [{low:+.1f}, {high:+.1f}]",
        "< 0.001",
        "0.0123",
        "10.000",
        "2.000",
        "4.500",
        "1.250",
        "0.250, –",
        "0.500, 0.125",
    ]


@pytest.mark.parametrize("binary", [True, False])
def test_seeds_are_pooled(tmp_path, undrawn, binary):
    rows = make_rows(seeds=3, binary=binary)
    page, _ = report(rows, tmp_path)
    assert page.count("3 seeds, 60 questions each.") == 2
    first = next(row for row in tables(page)[0] if row["method"] == "random")
    mine = [row for row in rows if row.method == "random"]
    mine = [row for row in mine if (row.depth, row.retention) == (0, 0.55)]
    base = [row for row in rows if row.method == "none"]
    low, high = over_seeds([row.scores for row in mine])
    pairs = [(row.scores, other.scores) for row, other in zip(mine, base, strict=True)]
    difference = difference_over_seeds(pairs)
    assert first["accuracy, %"].endswith(f"[{100 * low:.1f}, {100 * high:.1f}]")
    assert first["difference, points"] == (
        f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    )


def test_numbers_of_seeds_that_differ_are_told(tmp_path, undrawn):
    rows = [make_row("none", 1.0, seed=seed) for seed in (0, 1)]
    rows += [make_row("mean", seed=0), make_row("guided", seed=1, questions=20)]
    page, _ = report(rows, tmp_path)
    assert "2 seeds, 60 questions each: none; 1 seed, 60 questions each: mean" in page
    assert "1 seed, 20 questions each: guided" in page


def test_without_none_the_rows_own_differences_stand(tmp_path, undrawn):
    rows = [make_row("mean", 0.5 + seed / 10, seed=seed) for seed in range(2)]
    page, _ = report(rows, tmp_path)
    assert "There are no rows of `none`" in page
    ((cells,),) = tables(page)
    assert cells["difference, points"].startswith("-45.0 [")


def test_only_none(tmp_path):
    page, files = report([make_row("none", 1.0)], tmp_path)
    assert len(files) == 1
    assert [row["method"] for row in tables(page)[0]] == ["none"]


def test_methods_before_the_decoder_are_in_every_table(tmp_path, undrawn):
    page, _ = report([*make_rows(), make_row("smaller", depth=-1)], tmp_path)
    for table in tables(page):
        assert "smaller" in [row["method"] for row in table]


def test_hard_questions_are_told_of_all_budgets(tmp_path, undrawn):
    """Without compression of each budget's own, and of smaller pictures how many they are."""
    small = [
        make_row(
            "downsample", right, depth=-1, retention=share, hard_questions=60 - round(60 * right)
        )
        for share, right in ((0.55, 0.8), (0.25, 0.4))
    ]
    none = make_row("none", 0.9)
    page, _ = report([none, make_row("mean"), *small], tmp_path)
    (table,) = tables(page)
    by_name = {row["method"] + row["retention asked"]: row["hard, %"] for row in table}
    # All get the easiest right: of the 12 hardest without compression 6, of the 36 hardest 30.
    assert by_name["none"] == "50.0 (55%), 83.3 (25%)"
    assert by_name["downsample55.0%"] == "20.0 (12)"
    assert by_name["mean55.0%"] == "20.0"


def test_rows_from_before_the_honest_columns_are_read(tmp_path, undrawn):
    added = ("agreement", "hard_accuracy", "hard_questions", "prefill_seconds", "method_seconds")
    added += ("effective_rank", "attention_entropy", "answers")
    values = make_row("mean").to_dict()
    old = Row.from_dict({name: value for name, value in values.items() if name not in added})
    assert (old.agreement, old.hard_accuracy, old.answers) == (None, None, ())
    assert Row.from_dict(values) == make_row("mean")
    page, _ = report([old], tmp_path)
    ((cells,),) = tables(page)
    for name in ("hard, %", "agreement, %", "prefill, ms", "method, ms", "effective rank"):
        assert name not in cells  # nobody measured it


def best_of(rows: list[Row]) -> list[str]:
    return [entry.first.method for entry in best_at_budget(pool(rows))]


def test_the_best_is_marked_where_it_is_significantly_better():
    clear, close = make_row("guided", 0.95), make_row("guided", 0.82)
    assert best_of([clear, make_row("mean", 0.7), make_row("random", 0.6)]) == ["guided"]
    assert best_of([close, make_row("mean", 0.8), make_row("random", 0.2)]) == []
    assert best_of([clear]) == []


def test_the_best_is_not_marked_where_the_comparison_is_not_fair():
    clear, other = make_row("guided", 0.95), make_row("mean", 0.5)
    assert best_of([replace(clear, held=0.6), other]) == []
    assert best_of([replace(clear, seed=1), other]) == []
    assert best_of([make_row("guided", 0.95, questions=50), other]) == []
    assert best_of([make_row("guided", 0.95, retention=0.6), other]) == []
    after_prefill = make_row("random_cache", 1.0, depth=-1, flops_ratio=1.0)
    assert best_of([after_prefill, clear, other]) == ["guided"]
    ceilings = [make_row(name, 1.0) for name in ("none", "oracle", "oracle_pruning")]
    assert best_of([*ceilings, clear, other]) == ["guided"]


def test_the_mark_is_on_the_page(tmp_path, undrawn):
    rows = [make_row("none", 1.0), make_row("guided", 0.95), make_row("mean", 0.5)]
    page, _ = report(rows, tmp_path)
    bold = [row["method"] for row in tables(page)[0] if "**" in row["accuracy, %"]]
    assert bold == ["guided"]


def test_names_cannot_break_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "PLOTS", figures.PLOTS[:1])
    rows = make_rows(suite=HOSTILE, group=HOSTILE)
    rows.append(make_row(HOSTILE * 9, suite=HOSTILE, group=HOSTILE))
    rows += [replace(row, group=HOSTILE + "?") for row in rows]  # the same file name but for this
    page, files = report(rows, tmp_path, title=HOSTILE, command="run `it`\nnow")
    assert len({row["method"] for table in tables(page) for row in table}) == 5
    assert "<b>" not in page
    assert "`` run `it` now ``" in page
    assert len(re.findall(r"^#+ ", page, re.MULTILINE)) == 1 + 2 + 4
    named = re.findall(r"\]\(([^)]*\.png)\)", page)
    assert named == [file.name for file in files[1:]]
    assert len(set(named)) == 2 * (1 + len(figures.PLOTS))
    assert all((tmp_path / name).is_file() for name in named)


@pytest.mark.parametrize("binary", [True, *full(False)])
def test_figures_are_pictures_of_page_width(tmp_path, binary):
    _, files = report(make_rows(seeds=2, binary=binary), tmp_path)
    names = [file.stem.split("-")[-1] for file in files[1:]]
    assert names == ["kv", "retention", "depth", "flops", "loss"]
    for file in files[1:]:
        with Image.open(file) as picture:
            assert picture.width == pytest.approx(130 * figures.INCHES, abs=2)
            assert len(picture.convert("RGB").getcolors(100_000)) > 10


def test_figures_show_the_rows():
    entries = pool(make_rows())
    look = figures.styles([entry.first.method for entry in entries])
    canvas = figures.draw(figures.PLOTS[0], entries, look)
    shallow, deep = canvas.axes
    assert [ax.get_title() for ax in canvas.axes] == [
        "first compressed after layer 0",
        "first compressed after layer 2",
    ]
    for depth, ax in ((0, shallow), (2, deep)):
        boxes = {(box[0].get_color(), box[0].get_marker()): box.lines for box in ax.containers}
        drawn = {its: lines[0].get_xydata() for its, lines in boxes.items()}
        bars = {its: lines[2][0].get_segments() for its, lines in boxes.items()}
        assert len(drawn) == len(bars) == 3
        for method, style in look.items():
            mine = [e for e in entries if (e.first.method, e.first.depth) == (method, depth)]
            mine.sort(key=lambda entry: entry.mean("held"))
            points = np.array([(entry.mean("held"), entry.accuracy) for entry in mine])
            its = style["color"], style["marker"]
            assert drawn[its] == pytest.approx(points, abs=0.01)
            ends = np.array(bars[its])[:, :, 1]
            assert ends == pytest.approx(np.array([entry.interval for entry in mine]))
    (legend,) = canvas.legends
    assert [text.get_text() for text in legend.get_texts()] == ["guided", "mean", "random"]


@pytest.mark.parametrize(("held", "width"), [((0.5, 0.501), 0.11), ((0.3, 0.8), 0.55)])
def test_shares_that_are_alike_stand_together(held, width):
    rows = [make_row(f"m{share}", held=share) for share in held]
    (ax,) = figures.draw(figures.PLOTS[0], pool(rows), figures.styles(["m0.5", "m0.3"])).axes
    low, high = ax.get_xlim()
    assert high - low == pytest.approx(width)
    assert (low + high) / 2 == pytest.approx(sum(held) / 2)


def test_depth_is_drawn_where_it_varies():
    entries = [entry for entry in pool(make_rows()) if entry.first.depth < 2]
    look = figures.styles([entry.first.method for entry in entries])
    drawn = [plot.name for plot in figures.PLOTS if figures.draw(plot, entries, look)]
    assert drawn == ["retention", "flops", "loss"]


def test_panels_have_something_to_compare():
    """A depth with one method is left to the table; methods without a depth are in every panel."""
    rows = [make_row(name, depth=depth) for name in ("guided", "mean") for depth in (0, 2)]
    rows += [make_row("guided", depth=4), make_row("random_cache", depth=-1)]
    look = figures.styles([row.method for row in rows])
    axes = figures.draw(figures.PLOTS[0], pool(rows), look).axes
    assert [(ax.get_title()[-1], len(ax.containers)) for ax in axes] == [("0", 3), ("2", 3)]


def test_depths_with_budgets_of_their_own_are_one_panel_of_every_figure():
    rows = [make_row("guided", depth=depth, retention=0.5 + depth / 8) for depth in range(4)]
    rows = [replace(row, difference=0, difference_low=0, difference_high=0) for row in rows]
    for plot in figures.PLOTS:
        (ax,) = figures.draw(plot, pool(rows), figures.styles(["guided"])).axes
        assert ax.get_title() == "a budget for each depth"
        places = list(ax.containers[0].lines[0].get_xdata())
        assert len(places) == 4
        assert places == [0, 1, 2, 3] or not plot.layers
        low, high = ax.get_ylim()
        assert high - low >= figures.LOWEST - 1e-9


def test_a_method_looks_the_same_everywhere_and_unlike_others():
    names = ["ours", *(f"method {number}" for number in range(60))]
    look = figures.styles([*names, "none"])
    pairs = {(style["color"], style["marker"]) for style in look.values()}
    assert len(pairs) == len(look) == 61
    assert max(look, key=lambda method: look[method]["linewidth"]) == "ours"
    assert figures.styles(names[::-1]) == look
    library = figures.styles(["mean", "fastv", "none"])
    assert figures.styles(["fastv", *names])["fastv"] == library["fastv"]
    assert library["fastv"] != library["mean"]


def test_of_many_methods_few_are_named():
    right = {
        "fastv": 0.1,
        "guided": 0.2,
        **{f"m{number}": 0.3 + number / 20 for number in range(9)},
    }
    rows = [make_row(name, share) for name, share in right.items()]
    entries = pool(rows)
    canvas = figures.draw(figures.PLOTS[0], entries, figures.styles(list(right)))
    (legend,) = canvas.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["guided", "fastv", "m4", "m5", "m6", "m7", "m8", "4 others"]
    colours = [box.lines[0].get_color() for box in canvas.axes[0].containers]
    assert colours.count("0.75") == 4
    assert len(colours) == len(right)


def test_without_matplotlib_the_page_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("lightkv_gnn.evaluation.report.find_spec", lambda name: None)
    page, files = report(make_rows(), tmp_path)
    assert files == [tmp_path / PAGE]
    assert "pip install 'lightkv-gnn[draw]'" in page
    assert len(tables(page)) == 2


def test_a_page_is_written_over_but_not_that_of_others(tmp_path, undrawn):
    report(make_rows(), tmp_path, title="first")
    page, _ = report(make_rows(), tmp_path, title="second")
    assert page.startswith(MARK)
    assert "# second" in page
    (tmp_path / PAGE).write_text("# My project")
    with pytest.raises(FileExistsError, match=r"README\.md is not a report's page"):
        report(make_rows(), tmp_path)
    assert (tmp_path / PAGE).read_text() == "# My project"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows to report"),
        ([make_row(), make_row(right=0.5)], "two rows for Key.*were runs mixed"),
        ([replace(make_row(), questions=59)], "60 scores of 59 questions"),
        ([replace(make_row(), questions=0, scores=())], "0 scores of 0 questions"),
    ],
)
def test_rows_that_do_not_go_together_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_report(rows, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_the_command_makes_a_page_of_several_files(capsys, tmp_path, undrawn):
    facts = machine.describe()
    for number in (0, 1):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        write_rows(make_rows(group=f"g{number}"), folder / "rows.jsonl")
    (tmp_path / "run0" / MACHINE).write_text(
        json.dumps([{**facts, "command": "eval it"}, {**facts, "command": "eval more"}])
    )
    files = [str(tmp_path / f"run{number}" / "rows.jsonl") for number in (0, 1)]
    out = tmp_path / "page"
    assert main(["report", *files, "--out", str(out), "--title", "T", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"rows": 26, "files": [str(out / PAGE)]}
    page = (out / PAGE).read_text()
    assert "# T" in page
    assert "run 1: " in page
    assert "command eval it" in page
    assert "run 2: " in page
    assert "command eval more" in page
    assert f"torch {facts['torch']}" in page
    assert len(tables(page)) == 4
    assert main(["report", *files, "--out", str(out)]) == 0
    assert "from 26 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "suite,group\n", "expected rows as JSON Lines"),
        ("rows.jsonl", "", "has no rows"),
        ("rows.jsonl", '{"suite": "cued"}\n', "line 1: a row has the fields"),
        ("rows.jsonl", "not json\n", "line 1:"),
        ("rows.jsonl", b"\xff\xfe\x00", "is not text"),
        ("rows.jsonl", None, "No such file"),
    ],
)
def test_bad_files_end_with_one_line(capsys, tmp_path, name, content, message):
    file, out = tmp_path / name, tmp_path / "page"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["report", str(file), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_what_was_left_out_stands_on_the_page(capsys, tmp_path, undrawn):
    write_rows(make_rows(), tmp_path / "rows.jsonl")
    key = {"suite": "cued", "group": "vqa", "method": "stride", "retention": 0.1, "depth": 3}
    notes = [{**key, "seed": seed, "reason": "out of *reach*"} for seed in (0, 4)]
    notes.append({**notes[0], "group": "more"})
    (tmp_path / LEFT_OUT).write_text(json.dumps(notes))
    command = ["report", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "page")]
    assert main(command) == 0
    page = (tmp_path / "page" / PAGE).read_text()
    line = (
        "- stride at 10.0%, first compressed after layer 3: out of \\*reach\\*. "
        "cued, vqa (seeds 0, 4); cued, more (seeds 0)\n"
    )
    assert page.count(line) == 1
    del notes[0]["reason"]
    (tmp_path / LEFT_OUT).write_text(json.dumps(notes))
    capsys.readouterr()
    assert main(command) == 1
    assert "a note without 'reason'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cannot be read"), ("{}", "a JSON list"), ("[3]", "a JSON list")]
)
def test_a_bad_machine_file_is_named(capsys, tmp_path, content, message):
    write_rows(make_rows(), tmp_path / "rows.jsonl")
    (tmp_path / MACHINE).write_text(content)
    assert main(["report", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "page")]) == 1
    error = capsys.readouterr().err
    assert MACHINE in error
    assert message in error


def test_the_same_file_twice_is_refused(capsys, tmp_path):
    write_rows(make_rows(), tmp_path / "rows.jsonl")
    file = str(tmp_path / "rows.jsonl")
    assert main(["report", file, file, "--out", str(tmp_path / "page")]) == 1
    assert "two rows for" in capsys.readouterr().err


def test_out_must_be_a_folder(capsys, tmp_path):
    file = tmp_path / "rows.jsonl"
    write_rows(make_rows(), file)
    assert main(["report", str(file), "--out", str(file)]) == 1
    assert "is a file: give a folder" in capsys.readouterr().err


def test_the_machine_is_described_in_plain_values():
    facts = machine.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert {"date", "torch", "transformers", "cpu", "threads", "gpu"} <= set(facts)
    assert facts["cpu"]


def test_the_processor_is_read_where_linux_has_it(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some: CPU 9000\nmodel name\t: other\n")
    assert machine._cpu(file) == "Some: CPU 9000"
    file.write_text("processor\t: 0\n")
    assert machine._cpu(file) == machine._cpu(tmp_path / "nowhere")
