"""Whatever stops a run, and however often: in the end every id is there once."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
import pyarrow.parquet as pq  # noqa: E402

from lightkv_gnn import batch  # noqa: E402
from lightkv_gnn.batch import NothingAnsweredError, Outcome, Settings, run_batch  # noqa: E402

TINY = Settings("tiny")


class StandIn:
    """An engine that answers with the row's number, in the order and sizes that it is told."""

    def __init__(self, sizes=(3,), broken=(), stop_after=None, kill=None):
        self.sizes, self.broken, self.stop_after, self.kill = sizes, broken, stop_after, kill
        self.asked = []

    def outcomes(self, asked, pictures, settings):
        self.asked = waiting = [one.row for one in asked]
        step = 0
        while waiting:
            if step == self.stop_after:
                if self.kill:
                    self.kill()
                raise KeyboardInterrupt
            size = self.sizes[step % len(self.sizes)]
            some, waiting = waiting[-size:], waiting[:-size]
            yield [
                Outcome(row, "OSError", "broken")
                if row in self.broken
                else Outcome(row, "", "", f"{row}")
                for row in some
            ]
            step += 1


def listed(folder, rows, name="list.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps({"image": f"{n}.png", "n": n}) + "\n" for n in range(rows)))
    return file


def run(source, out, engine, **options):
    return run_batch(source, out, TINY, engine, prompt="what ?", progress=False, **options)


def errors_of(out):
    file = out / "_errors.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def ids(out):
    """Every id in the output, those of errors apart."""
    answered = pq.read_table(out)["id"].to_pylist() if list(out.glob("part-*")) else []
    return answered, [error["id"] for error in errors_of(out)]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 25),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    per_part=st.integers(1, 8),
    broken=st.sets(st.integers(1, 24)),
    stops=st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), max_size=4),
)
def test_every_id_ends_in_the_output_once(rows, sizes, per_part, broken, stops):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, out, left = listed(folder, rows), folder / "out", folder / "left"
        for after, killed, torn in stops:

            def kill(torn=torn):
                shutil.copytree(out, left)  # what a kill at this moment leaves
                if torn:
                    (left / ".part-000099.parquet.tmp").write_bytes(b"PAR1")
                    with (left / "_errors.jsonl").open("a") as stream:
                        stream.write('{"id": "0", "err')

            engine = StandIn(sizes, broken, after, kill if killed else None)
            with suppress(KeyboardInterrupt, NothingAnsweredError):
                run(source, out, engine, rows_per_part=per_part)
            if left.exists():
                shutil.rmtree(out)
                left.rename(out)
            answered, failed = ids(out)
            assert len({*answered, *failed}) == len(answered) + len(failed)
        before = {*ids(out)[0], *ids(out)[1]}
        engine = StandIn(sizes, broken)
        with suppress(NothingAnsweredError):
            run(source, out, engine, rows_per_part=per_part)
        assert before.isdisjoint(map(str, engine.asked))
        answered, failed = ids(out)
        assert sorted(answered + failed, key=int) == [str(row) for row in range(rows)]
        assert set(map(int, failed)) == {row for row in broken if row < rows}
        assert not list(out.glob("*.tmp")) + list(out.glob(".*.tmp"))
        if answered:
            for row in pq.read_table(out).to_pylist():
                assert (row["answer"], row["n"], row["image"]) == (
                    row["id"],
                    int(row["id"]),
                    f"{row['id']}.png",
                )


def test_what_an_interrupted_run_has_is_written(tmp_path):
    source, out = listed(tmp_path, 10), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(source, out, StandIn((3,), stop_after=2), rows_per_part=100)
    assert len(ids(out)[0]) == 6
    done = run(source, out, StandIn(), rows_per_part=3)
    assert (done.rows, done.done_before, done.answered, done.failed) == (10, 6, 4, 0)
    assert [part.name for part in done.parts] == ["part-000001.parquet", "part-000002.parquet"]
    assert done.to_dict()["errors"] == str(out / "_errors.jsonl")
    assert not errors_of(out)


def test_errors_stay_until_they_are_asked_again(tmp_path):
    source, out = listed(tmp_path, 6), tmp_path / "out"
    assert run(source, out, StandIn(broken={1, 4})).failed == 2
    assert errors_of(out)[0] == {
        "id": "4",
        "image": "4.png",
        "prompt": "what ?",
        "error": "OSError",
        "message": "broken",
    }
    engine = StandIn()
    assert run(source, out, engine).done_before == 6
    assert engine.asked == []
    again = StandIn(broken={4})
    assert run(source, out, again, retry_errors=True).answered == 1
    assert again.asked == [1, 4]
    answered, failed = ids(out)
    assert sorted(answered) == ["0", "1", "2", "3", "5"]
    assert failed == ["4"]


def test_an_input_that_grew_is_gone_on_with(tmp_path):
    out = tmp_path / "out"
    run(listed(tmp_path, 3), out, StandIn())
    engine = StandIn()
    run(listed(tmp_path, 5), out, engine)
    assert engine.asked == [3, 4]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"settings": Settings("tiny", retention=0.3)}, "retention = 0.55, this run has 0.3"),
        ({"settings": Settings("tiny", max_new_tokens=5)}, "max_new_tokens = 128, this run has 5"),
        ({"settings": Settings("other")}, "model = 'tiny', this run has 'other'"),
        ({"prompt": "where ?"}, r"prompt = 'what \?', this run has 'where \?'"),
        ({"source": "other.jsonl"}, "input = .*list.jsonl', this run has .*other.jsonl"),
    ],
)
def test_answers_of_other_settings_are_not_mixed_in(changed, told, tmp_path):
    arguments = {"source": listed(tmp_path, 3), "settings": TINY, "prompt": "what ?"}
    listed(tmp_path, 3, "other.jsonl")
    out = tmp_path / "out"
    run_batch(out=out, engine=StandIn(), progress=False, **arguments)
    before = sorted((file.name, file.read_bytes()) for file in out.iterdir())
    if "source" in changed:
        changed = {"source": tmp_path / changed["source"]}
    with pytest.raises(ValueError, match=told):
        run_batch(out=out, engine=StandIn(), progress=False, **{**arguments, **changed})
    assert sorted((file.name, file.read_bytes()) for file in out.iterdir()) == before
    batched = run_batch(out=out, engine=StandIn((1,)), progress=False, rows_per_part=1, **arguments)
    assert batched.done_before == 3


def test_two_runs_do_not_write_at_once(tmp_path):
    source, out = listed(tmp_path, 3), tmp_path / "out"

    def other():
        with pytest.raises(ValueError, match="another run is writing there"):
            run(source, out, StandIn())

    with pytest.raises(KeyboardInterrupt):
        run(source, out, StandIn((1,), stop_after=1, kill=other))
    assert run(source, out, StandIn()).answered == 2


def test_folders_of_others_are_left_alone(tmp_path):
    source, out = listed(tmp_path, 3), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("!")
    with pytest.raises(ValueError, match=r"has files, such as thesis.tex, and no _settings.json"):
        run(source, out, StandIn())
    Image.new("RGB", (2, 2)).save(out / "a.png")
    with pytest.raises(ValueError, match=r"is in .*, which is read"):
        run(out, out / "answers", StandIn())
    assert not (out / "answers").exists()
    with pytest.raises(ValueError, match="rows per part is 0"):
        run(source, tmp_path / "new", StandIn(), rows_per_part=0)


def test_an_engine_that_forgets_or_repeats_rows_is_found_out(tmp_path):
    class Forgetful(StandIn):
        def outcomes(self, asked, pictures, settings):
            yield [Outcome(0, answer="0")]
            yield [Outcome(row, answer="") for row in self.sizes]

    source = listed(tmp_path, 3)
    with pytest.raises(RuntimeError, match="left out 1 rows"):
        run(source, tmp_path / "one", Forgetful((1,)))
    with pytest.raises(RuntimeError, match="answered row 0 unasked"):
        run(source, tmp_path / "two", Forgetful((0,)))
    assert ids(tmp_path / "two") == (["0"], [])


def test_nothing_but_errors_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match="none of the 3 rows could be answered; the first says: bro"
    ):
        run(listed(tmp_path, 3), tmp_path / "out", StandIn(broken={0, 1, 2}))
    assert len(errors_of(tmp_path / "out")) == 3


def test_public_names_are_there():
    assert all(hasattr(batch, name) for name in batch.__all__)
