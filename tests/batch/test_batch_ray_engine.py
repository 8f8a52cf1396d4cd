"""What the Ray engine does around Ray, without a cluster."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

import lightkv_gnn as lk  # noqa: E402
from lightkv_gnn.batch import Asked, Outcome, RayEngine, Settings, Worker, ray_engine  # noqa: E402
from lightkv_gnn.batch.pictures import FilePictures  # noqa: E402

TINY = Settings("tiny")
ASKED = [Asked(row, f"{row}.png", "what ?") for row in range(10)]


@pytest.fixture
def actor(tmp_path):
    def made(opened=Worker.opened, settings=TINY):
        return ray_engine._Actor(opened, settings, FilePictures(tmp_path))

    return made


def returned(actor):
    return ray_engine._unpacked(actor(pa.Table.from_pylist([one._asdict() for one in ASKED[:2]])))


def test_outcomes_come_back_as_they_were(actor):
    class Sure(Worker):
        def answer(self, asked):
            return [Outcome(one.row, answer=one.prompt, kv_bytes=1 << 40) for one in asked]

    expected = [Outcome(row, answer="what ?", kv_bytes=1 << 40) for row in range(2)]
    assert returned(actor(Sure.opened)) == expected
    missing = returned(actor())
    assert [outcome.error for outcome in missing] == ["FileNotFoundError"] * 2


def test_what_keeps_a_worker_from_being_made_or_going_on_is_told(actor):
    stopped = actor(settings=Settings("tiny", stages=(lk.Stage(40, 4, 0.5),)))
    with pytest.raises(ValueError, match="runs after layer 40"):
        returned(stopped)

    class Faulty(Worker):
        def answer(self, asked):
            raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match=r"Traceback.*\n(.*\n)*RuntimeError: device-side assert"):
        returned(actor(Faulty.opened))


def test_what_workers_die_of_is_asked_singly_and_then_an_error(monkeypatch):
    batches = []

    def answered(self, asked, batch, pictures, settings):
        for start in range(0, len(asked), batch):
            some = asked[start : start + batch]
            batches.append([one.row for one in some])
            if all(one.row not in (2, 7) for one in some):
                yield [Outcome(one.row, answer="yes") for one in some]

    monkeypatch.setattr(RayEngine, "_answered", answered)
    monkeypatch.setattr(ray_engine, "_connected", lambda gpus: nullcontext())
    found = RayEngine(batch=4).outcomes(ASKED, FilePictures("."), Settings("tiny"))
    outcomes = sorted(outcome for some in found for outcome in some)
    assert [outcome.row for outcome in outcomes] == list(range(10))
    assert {outcome.row: outcome.error for outcome in outcomes if outcome.error} == {
        2: "WorkerDied",
        7: "WorkerDied",
    }
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], *([row] for row in range(8))]


def test_wrong_numbers_are_told_of(monkeypatch):
    with pytest.raises(ValueError, match="workers is 0: expected 1 or more"):
        RayEngine(workers=0)
    with pytest.raises(ValueError, match="batch is 0: expected 1 or more"):
        RayEngine(batch=0)
    with pytest.raises(ValueError, match="GPUs per worker is -1"):
        RayEngine(gpus_per_worker=-1)
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install 'lightkv-gnn\\[ray\\]'"):
        list(RayEngine().outcomes(ASKED, FilePictures("."), Settings("tiny")))
