"""The examples run, on the bundled model; README and docs do in test_documents.py."""

import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FEW = "--steps 3 --vision-steps 1 --decay-steps 1 --batch-size 2 --questions 1"


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("compress.py", "retention"),
        ("own_messages.py", "a PyG convolution"),
        ("own_parts.py", "own guidance"),
        ("see_merges.py", "as networkx"),
        ("compare_prompts.py", "live on in different places"),
        ("export_merges.py saved", "the heaviest survivor"),
        ("own_method.py --questions 4", "smooth"),
        ("plan_deployment.py", "of those without"),
        (f"train_tiny.py --out trained {FEW}", "question first captioning"),
        ("before_the_decoder.py", "256 vision tokens, merged to 64"),
        (f"train_photo.py --out trained {FEW}", "list       exact"),
    ],
)
def test_example_runs(command, printed, capsys, monkeypatch, tmp_path):
    name, *options = command.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_are_short_and_listed(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
    assert f"](../examples/{example.name})" in (ROOT / "docs/examples.md").read_text("utf-8")


def test_plans_of_a_deployment_fit_more_samples_where_less_is_held(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plan_deployment.py"])
    runpy.run_path(str(ROOT / "examples" / "plan_deployment.py"), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["100%", "75%", "55%", "40%"]
    ratios = [float(row[-2]) for row in rows]
    assert ratios[0] == 1
    assert ratios == sorted(set(ratios))


def test_many_images_go_on_where_they_stopped(capsys, monkeypatch, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["many_images.py"])
    for told in ("6 answered, 1 failed, 0 done before", "0 answered, 0 failed, 7 done before"):
        runpy.run_path(str(ROOT / "examples" / "many_images.py"), run_name="__main__")
        printed = capsys.readouterr().out
        assert told in printed
        assert "000.png: red triangle , orange ring" in printed
        assert "(56% of the cache)" in printed
        assert "broken.png is not a picture that Pillow can read" in printed


def test_each_request_to_the_server_gets_its_own_figures():
    """Of many at once: what each gets alone."""
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    testclient = pytest.importorskip("fastapi.testclient", reason="httpx is not installed")
    server = runpy.run_path(str(ROOT / "examples" / "server.py"))
    try:
        with testclient.TestClient(server["app"]) as client, ThreadPoolExecutor(8) as pool:
            ask = partial(server["ask"], client)
            alone = list(map(ask, range(8)))
            together = list(pool.map(ask, range(8)))
    finally:
        server["handle"].remove()
    assert together == alone
    assert len({tuple(found["lost"]) for found in alone}) == len(alone)
    assert len({found["kv_bytes"] for found in alone}) > 1
