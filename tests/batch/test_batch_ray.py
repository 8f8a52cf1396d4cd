"""Ray Data as the engine: a real local cluster, whose worker and driver are killed in the midst."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
import pyarrow.parquet as pq
import ray

from lightkv_gnn import tiny
from lightkv_gnn.batch import (
    LocalEngine,
    RayEngine,
    Settings,
    Worker,
    run_batch,
)

pytestmark = pytest.mark.slow

TINY = Settings("tiny", max_new_tokens=4)
ROWS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for number in range(ROWS):
        picture = tiny.render(tiny.sample_scene(np.random.default_rng(number)))
        picture.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "n": number})
    (folder / "5.png").write_bytes(b"broken")
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    """What one process answers."""
    out = tmp_path_factory.mktemp("local")
    run_batch(photos, out, TINY, LocalEngine(4), prompt="list the objects .", progress=False)
    return answers(out)


@pytest.fixture(scope="module")
def cluster():
    # Workers find what the tests have put on the path.
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    # Ray's workers are nice to others, and would hardly run beside other tests.
    ray.init(**options, runtime_env=environment, _system_config={"worker_niceness": 0})
    yield
    ray.shutdown()


def answers(out):
    rows = pq.read_table(out).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: {**row, "seconds": 0} for row in rows}


def errors(out):
    lines = (out / "_errors.jsonl").read_text().splitlines()
    return {line["id"]: line["error"] for line in map(json.loads, lines)}


class Mortal(Worker):
    """A worker that is killed the first time it is asked about row 2."""

    def answer(self, asked):
        folder = self._pictures._folder
        if any(one.row == 2 for one in asked) and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / f"worker-{os.getpid()}").touch()
        return super().answer(asked)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(cluster, photos, expected, tmp_path):
    out = tmp_path / "out"
    engine = RayEngine(batch=2, workers=2, opened=Mortal.opened)
    options = {"prompt": "list the objects .", "rows_per_part": 4, "progress": False}
    done = run_batch(photos, out, TINY, engine, **options)
    assert (photos.parent / "killed").exists()
    assert list(photos.parent.glob("worker-*"))
    assert errors(out) == {"5": "UnidentifiedImageError"}
    assert answers(out) == expected
    assert (done.answered, done.failed) == (ROWS - 1, 1)
    with pytest.raises(ValueError, match="100 GPUs per worker"):
        run_batch(photos, tmp_path / "two", TINY, RayEngine(gpus_per_worker=100), **options)


@pytest.mark.full
def test_a_killed_driver_is_gone_on_with_by_the_command(cluster, photos, expected, tmp_path):
    out = tmp_path / "out"
    options = ["--model", "tiny", "--max-new-tokens", "4", "--prompt", "list the objects ."]
    spread = ["--engine", "ray", "--batch", "1", "--rows-per-part", "1"]
    command = [sys.executable, "-m", "lightkv_gnn", "batch", str(photos), str(out), *options]
    joining = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    call = {"env": joining, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, *spread], **call) as running:
        while running.poll() is None and not list(out.glob("part-*")):
            time.sleep(0.01)
        running.kill()
    kept = {part.name: part.read_bytes() for part in out.glob("part-*")}
    assert kept
    done = run_batch(photos, out, TINY, LocalEngine(4), prompt="list the objects .", progress=False)
    assert done.done_before >= len(kept)
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert answers(out) == expected
    assert errors(out) == {"5": "UnidentifiedImageError"}
