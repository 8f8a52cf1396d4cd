"""The worker answers batches as ``run`` answers one by one, and sets aside what it cannot."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from families.processors import NEED_TORCHVISION, PARTS, save_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
import pyarrow.parquet as pq  # noqa: E402

import lightkv_gnn as lk  # noqa: E402
from lightkv_gnn import tiny  # noqa: E402
from lightkv_gnn.asking import answers  # noqa: E402
from lightkv_gnn.batch import (  # noqa: E402
    Asked,
    Outcome,
    Settings,
    Worker,
    read_items,
)
from lightkv_gnn.batch.pictures import FilePictures  # noqa: E402
from lightkv_gnn.commands.cli import main  # noqa: E402
from lightkv_gnn.sources import read_picture  # noqa: E402

PROMPTS = ("list the objects .", "what shape is the cyan object ?", "how many objects are there ?")


def scene(number):
    return tiny.render(tiny.sample_scene(np.random.default_rng(number)))


@pytest.fixture
def photos(tmp_path):
    """Rows with pictures and prompts of several lengths, in ``list.jsonl``."""
    rows = []
    for number in range(7):
        scene(number).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "prompt": PROMPTS[number % 3]})
    file = tmp_path / "list.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def one_by_one(model, processor, config, file, tokens):
    """The answer and the bill of each row, asked alone."""
    items = read_items(file)
    found = []
    for asked in items.asked(set()):
        picture = items.pictures.read(asked)
        with lk.attach(model, config) as handle:
            answer = answers.generate(
                model, processor, picture, asked.prompt, max_new_tokens=tokens
            )
        found.append((answer, handle.ledger))
    return found


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_batches_are_answered_as_rows_alone(batch, photos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["batch", photos, out, "--model", "tiny", "--batch", batch, "--json"]
    assert main([*map(str, arguments), "--max-new-tokens", "12"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["answered"], told["failed"]) == (7, 7, 0)
    model, processor = tiny.load()
    alone = one_by_one(model, processor, lk.LightKVConfig.for_model(model), photos, 12)
    assert len({answer for answer, _ in alone}) > 3
    rows = pq.read_table(out).to_pylist()
    for row, (answer, ledger) in zip(rows, alone, strict=True):
        totals = ledger.totals()
        assert row["answer"] == answer
        assert row["vision_tokens"] == 256
        assert row["vision_tokens_left"] == ledger.rows[-1].planned.vision_tokens == 124
        assert row["retention"] == pytest.approx(ledger.retention)
        assert row["kv_bytes"] == totals["kv_bytes"] == totals["kv_bytes_observed"]
        assert row["kv_bytes_full"] == totals["kv_bytes_full"]
        assert row["seconds"] > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("family", PARTS)
def test_families_answer_in_batches_as_alone(family, tmp_path):
    if family in NEED_TORCHVISION:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="num2words is not installed")
    model = save_checkpoint(family, tmp_path).eval()
    processor = pytest.importorskip("transformers").AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == PARTS[family].processor
    config = lk.LightKVConfig([lk.Stage(lk.adapter_for(model).legal_layers[0], 2, 0.5)])
    noise = np.random.default_rng(0)
    lines = []
    for number, size in enumerate(((40, 70), (60, 30), (50, 50))):
        pixels = noise.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "prompt": "What" + " is it" * number}))
    file = tmp_path / "list.jsonl"
    file.write_text("\n".join(lines))
    alone = one_by_one(model, processor, config, file, 5)
    items = read_items(file)
    processor.tokenizer.padding_side = "right"
    with Worker(model, processor, config, items.pictures, max_new_tokens=5) as worker:
        found = worker.answer(items.asked(set()))
        rows = [[row.planned for row in ledger.rows] for ledger in worker._handle.ledgers]
    assert [outcome.answer for outcome in found] == [answer for answer, _ in alone]
    assert rows == [[row.planned for row in ledger.rows] for _, ledger in alone]
    assert [row.full for row in worker._handle.ledgers[1].rows] == [
        row.full for row in alone[1][1].rows
    ]


@pytest.fixture(scope="module")
def bundled():
    return tiny.load()


def save_broken(folder):
    """A broken picture of each kind, by the class of its error."""
    content = io.BytesIO()
    scene(0).save(content, "PNG")
    (folder / "OSError.png").write_bytes(content.getvalue()[:500])
    (folder / "UnidentifiedImageError.png").write_bytes(b"no picture")
    content = io.BytesIO()
    scene(0).save(content, "BMP")
    sides = (60000).to_bytes(4, "little") * 2
    bomb = content.getvalue()[:18] + sides + content.getvalue()[26:]
    (folder / "DecompressionBombError.png").write_bytes(bomb)
    return ["OSError", "UnidentifiedImageError", "DecompressionBombError", "FileNotFoundError"]


def test_broken_pictures_are_errors_and_the_others_answered(photos, tmp_path, capsys):
    broken = save_broken(tmp_path)
    with photos.open("a") as stream:
        for kind in broken:
            stream.write(json.dumps({"image": f"{kind}.png", "prompt": "?"}) + "\n")
    out = tmp_path / "out"
    arguments = ["batch", str(photos), str(out), "--model", "tiny", "--max-new-tokens", "3"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("11 rows: 7 answered and 4 failed in ")
    assert f"what failed is in {out / '_errors.jsonl'}" in printed.out
    errors = [json.loads(line) for line in (out / "_errors.jsonl").read_text().splitlines()]
    assert [error["error"] for error in errors] == broken
    assert [error["id"] for error in errors] == ["7", "8", "9", "10"]
    assert (
        errors[1]["message"] == "UnidentifiedImageError.png is not a picture that Pillow can read"
    )
    assert len(pq.read_table(out)) == 7
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "11 done before, 4 of them failed" in printed
    assert "--retry-errors asks it again" in printed


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_whatever_a_file_holds_the_worker_goes_on(kind, cut, changes, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    content = io.BytesIO()
    scene(0).save(content, kind)
    damaged = bytearray(content.getvalue())
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    (folder / "damaged").write_bytes(damaged[: int(cut * len(damaged))])
    scene(1).save(folder / "good.png")

    class Pictures:
        def read(self, asked):
            return read_picture(folder / asked.image)

    class Reader(Worker):
        def __init__(self):
            self._pictures = Pictures()

        def _generate(self, shown):
            return [Outcome(asked.row, answer="yes") for asked, _ in shown]

    found = Reader().answer([Asked(0, "damaged", "?"), Asked(1, "good.png", "?")])
    assert sorted(outcome.row for outcome in found) == [0, 1]
    assert not next(outcome for outcome in found if outcome.row == 1).error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("aspect ratio"), KeyError(1)]
)
def test_a_batch_that_cannot_be_is_halved_down_to_what_cannot(error, photos, bundled, monkeypatch):
    model, processor = bundled
    items = read_items(photos)
    sizes, real = [], answers.generate_all

    def limited(model, processor, pictures, prompts, **options):
        sizes.append(len(pictures))
        if len(pictures) > 2 or any("cyan" in prompt for prompt in prompts):
            raise error
        return real(model, processor, pictures, prompts, **options)

    monkeypatch.setattr("lightkv_gnn.batch.worker.generate_all", limited)
    config = lk.LightKVConfig.for_model(model)
    with Worker(model, processor, config, items.pictures, max_new_tokens=2) as worker:
        found = sorted(worker.answer(items.asked(set())))
    assert sizes[0] == 7
    assert [outcome.row for outcome in found] == list(range(7))
    assert [outcome.row for outcome in found if outcome.error] == [1, 4]
    assert found[1].error == type(error).__name__


def test_other_errors_stop_the_run_and_the_model_is_as_before(photos, bundled, monkeypatch):
    model, processor = bundled
    items = read_items(photos)

    def broken(*given, **options):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr("lightkv_gnn.batch.worker.generate_all", broken)
    config = lk.LightKVConfig.for_model(model)
    with (
        pytest.raises(RuntimeError, match="device-side"),
        Worker(model, processor, config, items.pictures) as worker,
    ):
        worker.answer(items.asked(set()))
    lk.attach(model, config).remove()


def test_a_tokenizer_without_padding_gets_some(photos, monkeypatch):
    model, processor = tiny.load()
    processor.tokenizer.pad_token = None
    items = read_items(photos)
    config = lk.LightKVConfig.for_model(model)
    with Worker(model, processor, config, items.pictures, max_new_tokens=2) as worker:
        assert not any(outcome.error for outcome in worker.answer(items.asked(set())))


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--workers", "2"], 2, "--workers and --gpus-per-worker are for --engine ray"),
        (["--batch", "0"], 2, "--batch"),
        (["--model", "./missing"], 1, "./missing: there is no such folder"),
        (["--stage", "40:4:0.5"], 1, "runs after layer 40"),
        (["--adapter", "nothing"], 2, "adapter is 'nothing': expected 'auto'"),
        (["--device", "nowhere"], 1, "--device nowhere cannot be used"),
    ],
)
def test_wrong_options_are_told_of(options, status, told, photos, tmp_path, capsys):
    model = [] if "--model" in options else ["--model", "tiny"]
    assert main(["batch", str(photos), str(tmp_path / "out"), *model, *options]) == status
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with(photos, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--model", "tiny", "--max-new-tokens", "4", "--batch", "1", "--rows-per-part", "2"]
    command = ["batch", str(photos), str(out), *options]
    running = subprocess.Popen([sys.executable, "-m", "lightkv_gnn", *command])
    while running.poll() is None and not list(out.glob("part-*")):
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    kept = {part.name: part.read_bytes() for part in out.glob("part-*")}
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["done_before"] >= 2
    assert told["done_before"] + told["answered"] == 7
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert sorted(pq.read_table(out)["id"].to_pylist()) == [str(row) for row in range(7)]


def test_parts_of_a_worker_have_names(tmp_path):
    stages = (lk.Stage(0, 1, 0.5),)
    given = Settings("tiny", stages=stages, message="mean", matcher="cosine", guidance="none")
    with Worker.opened(given, FilePictures(tmp_path)) as worker:
        config = worker._handle.config
    parts = {"message": lk.mean, "matcher": "cosine_matching", "guidance": "none"}
    assert config == lk.LightKVConfig(stages, attention="mass", **parts)
    assert {"message": "mean", "matcher": "cosine"}.items() <= given.to_dict().items()
