"""Several processes share an evaluation out, and leave what one would have left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from marks import full

from evaluation.test_runner import Halves, evaluation
from lightkv_gnn.baselines import METHODS
from lightkv_gnn.evaluation import shards
from lightkv_gnn.evaluation.rows import read_rows
from lightkv_gnn.evaluation.runner import Evaluation
from lightkv_gnn.evaluation.shards import Shard
from lightkv_gnn.evaluation.store import LEFT_OUT, MACHINE, ROWS
from lightkv_gnn.evaluation.tiny_suite import TinySuite

pytestmark = pytest.mark.full  # .ci/run runs them

ROOT = Path(__file__).parents[2]


def untimed(rows):
    return [replace(row, seconds=0, prefill_seconds=0, method_seconds=0) for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process leaves: four rows a method and two of them, with one left out."""
    folder = tmp_path_factory.mktemp("alone")
    return plan(Halves()).run(folder, folder, progress=False)


def plan(suite):
    return evaluation(suite, retentions=(0.5, 0.05))


@pytest.mark.parametrize("world", [2, *full(3), 40])
def test_shards_leave_what_one_process_does(world, alone, tmp_path):
    asked = []
    for rank in reversed(range(world)):  # the first has nothing to wait for then
        suite = Halves()
        shard = Shard(rank, world)
        rows = plan(suite).run(tmp_path, tmp_path, progress=False, shard=shard)
        asked.append(len(suite.asked))
    assert untimed(rows) == untimed(alone)
    assert untimed(read_rows(tmp_path / ROWS)) == untimed(alone)
    assert json.loads((tmp_path / LEFT_OUT).read_text())
    assert len(json.loads((tmp_path / MACHINE).read_text())) == 1
    assert all(count < sum(asked) / 1.5 for count in asked)
    suite = Halves()
    assert plan(suite).run(tmp_path, tmp_path, progress=False) == rows
    assert not suite.asked


def test_the_first_waits_for_the_others(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PAUSE", 0.01)
    staged, out = tmp_path / "staged", tmp_path / "out"
    plan(Halves()).run(staged, tmp_path, progress=False, shard=Shard(1, 2))
    looked = threading.Event()
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: looked.set())
    found = []

    def first():
        found.extend(plan(Halves()).run(out, tmp_path, progress=False, shard=Shard(0, 2)))

    waiting = threading.Thread(target=first)
    waiting.start()
    assert looked.wait(120)
    assert waiting.is_alive()
    assert not (out / ROWS).exists()
    (staged / "parts" / "1").rename(out / "parts" / "1")
    waiting.join(120)
    assert untimed(found) == untimed(read_rows(out / ROWS)) == untimed(alone)


@pytest.mark.parametrize("then", [*full(1, 3), 2])
def test_a_killed_shard_loses_at_most_the_row_it_was_at(then, alone, tmp_path):
    plan(Halves()).run(tmp_path, tmp_path, progress=False, shard=Shard(2, 3))
    suite = Halves()
    suite.fail_after = 5
    with pytest.raises(KeyboardInterrupt):
        plan(suite).run(tmp_path, tmp_path, progress=False, shard=Shard(1, 3))
    part = tmp_path / "parts" / "1" / ROWS
    with part.open("a") as stream:
        stream.write('{"suite": "hal')  # it was writing
    before = len(shards.known_rows(tmp_path))
    assert before > 5
    asked = 0
    for rank in reversed(range(then)):
        suite = Halves()
        rows = plan(suite).run(tmp_path, tmp_path, progress=False, shard=Shard(rank, then))
        asked += len(suite.asked)
    assert untimed(rows) == untimed(alone)
    assert untimed(read_rows(tmp_path / ROWS)) == untimed(alone)
    assert asked == 3 * (len(alone) - before)  # batches of four, four and two questions


def test_launchers_say_which_share_it_is():
    assert Shard.of_process({}) == Shard(0, 1)
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    shard = Shard.of_process(given)
    assert (shard, shard.device("cuda"), shard.device("cpu")) == (Shard(5, 8, 1), "cuda:1", "cpu")
    assert Shard().device("cuda") == "cuda"
    for wrong in ({"RANK": "1"}, {**given, "RANK": "8"}, {**given, "WORLD_SIZE": "two"}):
        with pytest.raises(ValueError, match="expected RANK and WORLD_SIZE, as launchers set them"):
            Shard.of_process(wrong)


# On a CPU, accelerate starts several processes over MPI alone; its launcher for GPUs needs none.
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_share_the_command_out(launcher, tmp_path):
    if find_spec(LAUNCHERS[launcher][0].split(".")[0]) is None:
        pytest.skip(f"{launcher} is not installed")
    models = tmp_path / "models"
    asked = Evaluation(
        {TinySuite(): ("hallucination",)},
        [METHODS[name] for name in ("guided", "mean", "random_pruning")],
        [0.55],
        [0],
        [0],
        4,
    )
    alone = asked.run(tmp_path / "one", models, progress=False)
    options = ["--suite", "tiny", "--group", "hallucination", "--questions", "4", "--json"]
    options += ["--methods", "guided", "mean", "--retention", "0.55", "--models", str(models)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "graphs"), os.environ.get("PYTHONPATH", "")])
    out = tmp_path / "two"
    start = [sys.executable, "-m", *LAUNCHERS[launcher], "lightkv_gnn", "eval"]
    done = subprocess.run(
        [*start, *options, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        stdout=subprocess.PIPE,
    )
    assert untimed(read_rows(out / ROWS)) == untimed(alone)
    references, others = ["none", "downsample"], ["guided", "mean", "random_pruning"]
    assert [row["method"] for row in json.loads(done.stdout)] == [*references, *others]
    parts = [read_rows(out / "parts" / rank / ROWS) for rank in "01"]
    methods = [[row.method for row in part if row.method not in references] for part in parts]
    assert methods == [others[::2], others[1::2]]
