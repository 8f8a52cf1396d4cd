"""Rows come one by one, are kept, and are not computed twice."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import tiny_llava
from torch import Tensor

from lightkv_gnn import LightKVConfig, __version__, attach, plan_prefill
from lightkv_gnn.baselines import METHODS, Budget
from lightkv_gnn.costs.schedule import layer_average
from lightkv_gnn.evaluation import runner, store
from lightkv_gnn.evaluation.asking import ask_all
from lightkv_gnn.evaluation.rows import read_rows
from lightkv_gnn.evaluation.runner import Evaluation
from lightkv_gnn.evaluation.statistics import paired_difference
from lightkv_gnn.evaluation.store import LEFT_OUT, MACHINE, ROWS
from lightkv_gnn.evaluation.suite import Batch, Subject, Suite

SIDE, TEXT = 8, 5


class Halves(Suite):
    """Is the model's next token an even number?  Two groups, some questions a batch."""

    name = "halves"
    groups = ("even", "odd")

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self.fail_after: int | None = None
        self.size = 4

    def subject(self, seed: int, folder: Path, device: str = "cpu") -> Subject:
        with torch.random.fork_rng(devices=[]):
            return Subject(tiny_llava(side=SIDE, seed=seed).to(device).eval())

    def batches(
        self, subject: Subject, group: str, questions: int, seed: int, side: float = 1.0
    ) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        inputs = _inputs(subject, questions, generator)
        relevant = torch.rand(questions, SIDE**2, generator=generator) < 0.1
        for start in range(0, questions, self.size):
            own = slice(start, min(start + self.size, questions))
            chosen = {name: values[own] for name, values in inputs.items()}
            yield Batch(chosen, ("?",) * (own.stop - start), relevant[own])

    def ask(self, subject: Subject, group: str, batch: Batch) -> list[float]:
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append((len(batch.answers), group))
        with torch.no_grad():
            best = subject.model(**batch.inputs).logits[:, -1].argmax(-1)
        return [float(token % 2 == (group == "odd")) for token in best]


def _inputs(subject: Subject, number: int, generator: torch.Generator) -> dict[str, Tensor]:
    image = torch.full((number, SIDE**2), subject.model.config.image_token_id)
    words = torch.randint(3, 100, (number, TEXT), generator=generator)
    pixels = torch.randn(number, 3, 7 * SIDE, 7 * SIDE, generator=generator)
    return {
        "input_ids": torch.cat([words[:, :1], image, words[:, 1:]], dim=1),
        "attention_mask": torch.ones(number, SIDE**2 + TEXT, dtype=torch.int64),
        "pixel_values": pixels,
    }


def evaluation(suite: Suite, methods=("guided", "mean"), retentions=(0.5,), depths=(0, 1), n=10):
    chosen = [METHODS[name] for name in methods]
    return Evaluation({suite: suite.groups}, chosen, retentions, depths, (0, 1), n)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run's folder, and its rows."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, evaluation(Halves()).run(folder, folder, progress=False)


@pytest.fixture
def rows(whole):
    return whole[1]


@pytest.fixture
def done(whole, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(whole[0], tmp_path / "done")


def test_a_row_for_every_cell_in_order(rows, done):
    expected = [
        ("halves", group, method, retention, depth, seed)
        for seed in (0, 1)
        for group in ("even", "odd")
        for method, retention, depth in [
            ("none", 1.0, -1),
            *((m, r, d) for m in ("guided", "mean") for r in (0.5,) for d in (0, 1)),
        ]
    ]
    assert [tuple(row.key) for row in rows] == expected
    assert read_rows(done / ROWS) == rows


def test_costs_are_the_plans_and_differences_are_paired(rows, tmp_path):
    suite = Halves()
    full = {(row.group, row.seed): row for row in rows if row.method == "none"}
    for row in rows:
        base = full[row.group, row.seed]
        assert row.questions == len(row.scores) == 10
        assert row.accuracy == pytest.approx(sum(row.scores) / 10)
        assert row.low <= row.accuracy <= row.high
        assert row.difference == pytest.approx(row.accuracy - base.accuracy)
        difference = (row.difference, row.difference_low, row.difference_high, row.p_value)
        assert difference == paired_difference(row.scores, base.scores)
        assert row.kv_ratio == pytest.approx(row.kv_bytes / base.kv_bytes)
        assert row.flops_ratio == pytest.approx(row.flops / base.flops)
        assert row.seconds > 0
        subject = suite.subject(row.seed, tmp_path)
        inputs = _inputs(subject, 1, torch.Generator())
        config = LightKVConfig(())
        if row.method != "none":
            budget = Budget.of(subject.model, row.retention, row.depth)
            config = METHODS[row.method].config(budget)
            assert row.held == pytest.approx(layer_average(config.stages, budget.layers), abs=0.1)
        totals = plan_prefill(subject.model, config, inputs).totals()
        assert (row.held, row.kv_bytes, row.flops) == pytest.approx(
            (totals["retention"], totals["kv_bytes"], totals["flops"])
        )
        assert [stage.layer for stage in row.stages] == [s.layer for s in config.stages]
        tokens = held = SIDE**2
        after = {stage.layer: stage for stage in row.stages}
        for layer in range(5):
            if layer in after:
                assert after[layer].before == tokens
                tokens = after[layer].after
            held += tokens
        assert row.held == pytest.approx(held / (6 * SIDE**2))


def test_scores_are_those_of_asking_by_hand(rows, tmp_path):
    suite = Halves()
    row = next(row for row in rows if tuple(row.key) == ("halves", "odd", "mean", 0.5, 1, 1))
    subject = suite.subject(1, tmp_path)
    budget = Budget.of(subject.model, 0.5, 1)
    by_hand: list[float] = []
    with attach(subject.model, METHODS["mean"].config(budget)):
        for batch in suite.batches(subject, "odd", 10, 1):
            by_hand += suite.ask(subject, "odd", batch)
    assert list(row.scores) == by_hand
    assert len(set(by_hand)) == 2


def test_asking_in_batches_is_asking_at_once(tmp_path):
    """With the hints of every batch, which change what is lost."""
    suite, method = Halves(), METHODS["oracle"]
    subject = suite.subject(1, tmp_path)
    budget = Budget.of(subject.model, 0.5, 1)
    asked = ask_all(suite, subject, "odd", method, budget, 10, 1)
    suite.size = 10
    (batch,) = suite.batches(subject, "odd", 10, 1)
    with method.applied(subject.model, budget) as applied:
        applied.hints.relevant = batch.relevant
        assert list(asked.scores) == suite.ask(subject, "odd", batch)
        bill, losses = applied.bill(), applied.compressor.losses
    assert (asked.retention, 10 * asked.kv_bytes, 10 * asked.flops) == pytest.approx(
        (bill.retention, bill.kv_bytes, bill.flops)
    )
    assert len(losses) > 1
    for stage, loss in zip(asked.stages, losses, strict=True):
        left = loss.before - loss.after
        assert (10 * stage.before, 10 * stage.after) == (loss.before, loss.after)
        assert stage.divergence == pytest.approx(float(loss.divergence) / left, rel=1e-4)
        lost = math.sqrt(loss.squared_error / loss.squared_norm)
        assert stage.error == pytest.approx(lost, rel=1e-4)


def test_what_is_done_is_not_done_again(rows, done):
    again = Halves()
    assert evaluation(again).run(done, done, progress=False) == rows
    assert again.asked == []
    more = Halves()
    rows = evaluation(more, methods=("guided", "mean", "stride")).run(done, done, progress=False)
    assert {row.method for row in rows} == {"none", "guided", "mean", "stride"}
    assert sum(number for number, _ in more.asked) == 10 * sum(r.method == "stride" for r in rows)


def test_a_run_that_was_stopped_goes_on(rows, tmp_path):
    stopped = Halves()
    stopped.fail_after = 10
    with pytest.raises(KeyboardInterrupt):
        evaluation(stopped).run(tmp_path, tmp_path, progress=False)
    kept = read_rows(tmp_path / ROWS)
    assert 0 < len(kept) < len(rows)
    found = evaluation(Halves()).run(tmp_path, tmp_path, progress=False)
    assert [(row.key, row.scores) for row in found] == [(row.key, row.scores) for row in rows]
    assert len(read_rows(tmp_path / ROWS)) == len(rows)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_being_written_is_written_again(rows, done, cut):
    file = done / ROWS
    file.write_text(file.read_text()[:-cut])
    again = Halves()
    found = evaluation(again).run(done, done, progress=False)
    assert [(row.key, row.scores) for row in found] == [(row.key, row.scores) for row in rows]
    assert {row.key for row in read_rows(file)} == {row.key for row in rows}
    assert sum(number for number, _ in again.asked) == 10


def test_a_line_that_is_no_row_is_named(done):
    with (done / ROWS).open("a") as stream:
        stream.write('{"suite": "halves"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 21: a row has the fields"):
        evaluation(Halves()).run(done, done, progress=False)


def test_rows_of_another_number_of_questions_are_refused(done):
    with pytest.raises(ValueError, match=r"rows of \[10\] questions, this run asks 12"):
        evaluation(Halves(), n=12).run(done, done, progress=False)


def test_rows_of_another_version_are_refused(done, monkeypatch):
    before = (done / ROWS).read_bytes()
    monkeypatch.setattr(store, "__version__", "9.9.9")
    with pytest.raises(ValueError, match=f"made by version {__version__}, this is 9.9.9"):
        evaluation(Halves()).run(done, done, progress=False)
    assert (done / ROWS).read_bytes() == before


def test_a_budget_out_of_reach_is_left_out_noted_and_said(tmp_path, capsys):
    asked = evaluation(Halves(), retentions=(0.1, 0.75), depths=(1,))
    rows = asked.run(tmp_path, tmp_path)
    assert {row.retention for row in rows} == {1.0, 0.75}
    asked.run(tmp_path, tmp_path, progress=False)
    noted = json.loads((tmp_path / LEFT_OUT).read_text())
    assert [(note["group"], note["method"], note["seed"]) for note in noted] == [
        (group, method, seed)
        for seed in (0, 1)
        for group in ("even", "odd")
        for method in ("guided", "mean")
    ]
    assert all(note["reason"].startswith("no stages from layer 1 of 6 on") for note in noted)
    printed = capsys.readouterr()
    assert "left out: guided at 10%: no stages from layer 1 of 6 on keep 10%" in printed.err
    assert printed.out == ""


def test_pictures_that_stay_as_they_are_are_left_out(tmp_path):
    asked = evaluation(Halves(), methods=("downsample",))
    rows = asked.run(tmp_path, tmp_path, progress=False)
    assert {row.method for row in rows} == {"none"}
    reasons = {note["reason"] for note in json.loads((tmp_path / LEFT_OUT).read_text())}
    assert reasons == {"the pictures of 'halves' cannot be made smaller"}


def test_random_methods_repeat_and_leave_the_generator_alone(tmp_path):
    def scores(folder: Path) -> list[tuple[float, ...]]:
        run = evaluation(Halves(), methods=("random_pruning", "random_weights"))
        return [row.scores for row in run.run(folder, folder, progress=False)]

    state = torch.get_rng_state()
    first = scores(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert scores(tmp_path / "b") == first


def test_no_compression_runs_even_if_not_asked_for(tmp_path):
    rows = evaluation(Halves(), methods=("none",)).run(tmp_path, tmp_path, progress=False)
    assert [row.method for row in rows] == ["none"] * 4
    for row in rows:
        assert (row.difference, row.p_value, row.kv_ratio, row.held) == (0, 1, 1, 1)


def test_what_machine_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.machine, "describe", lambda: {"cpu": "an abacus"})
    for command in ("eval --one", "eval --two", "eval --one"):
        evaluation(Halves(), methods=()).run(tmp_path, tmp_path, command=command, progress=False)
    more = evaluation(Halves(), methods=("mean",))
    more.run(tmp_path, tmp_path, command="eval --three", progress=False)
    noted = json.loads((tmp_path / MACHINE).read_text())
    assert noted == [  # the second and the third time, everything was there
        {"cpu": "an abacus", "device": "cpu", "command": command}
        for command in ("eval --one", "eval --three")
    ]
