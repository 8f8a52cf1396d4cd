"""``lightkv-gnn run``, on the bundled model and on checkpoints of several families."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from families.processors import NEED_TORCHVISION, save_checkpoint
from PIL import Image

import lightkv_gnn as lk
from lightkv_gnn import tiny
from lightkv_gnn.adapters import base
from lightkv_gnn.asking import answers, loading
from lightkv_gnn.commands import running
from lightkv_gnn.commands.cli import main
from lightkv_gnn.sources import check_source
from lightkv_graphs import draw_lineage

QUESTION = "list the objects ."
ASK = ("--prompt", QUESTION)


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    tiny.render(tiny.sample_scene(np.random.default_rng(3))).save(file)
    return file


def run_json(capsys, *arguments):
    status = main(["run", *map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


def test_the_answers_are_those_of_the_library(capsys, tmp_path, photo):
    trace = tmp_path / "merges.trace"
    result = run_json(capsys, "tiny", "--image", photo, *ASK, "--compare", "--trace", trace)
    model, processor = tiny.load()
    config = lk.LightKVConfig.for_model(model)
    with Image.open(photo) as picture:
        picture = picture.convert("RGB")
        full = answers.generate(model, processor, picture, QUESTION)
        with lk.attach(model, config) as handle:
            compressed = answers.generate(model, processor, picture, QUESTION)
    assert (result["answer"], result["uncompressed"]) == (compressed, full)
    assert result["config"] == config.to_dict()
    rows = result["ledger"]["rows"]
    assert rows == handle.ledger.to_dict()["rows"]
    assert result["files"] == [str(trace)]
    written = lk.graphs.MergeTrace.load(trace)
    assert written.prompts == (QUESTION,)
    assert len(written) == len(handle.trace) == 1


def test_loading_knows_cpus_by_number_and_attention_by_name(tmp_path):
    """Checkpoints in half precision are float32 on any CPU."""
    save_checkpoint("llava", tmp_path).bfloat16().save_pretrained(tmp_path)
    for source in (str(tmp_path), "tiny"):
        for device in ("cpu", "cpu:0"):
            model, _ = loading.load(source, device, attention="eager")
            assert model.dtype == torch.float32
            assert model.get_decoder().config._attn_implementation == "eager"
    assert loading.load(str(tmp_path), "cpu", "bfloat16")[0].dtype == torch.bfloat16


def test_a_model_on_every_device_there_is(capsys, photo):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    arguments = ["tiny", "--image", photo, *ASK, "--max-new-tokens", 4]
    usual = run_json(capsys, *arguments)
    spread = run_json(capsys, *arguments, "--device", "auto")
    assert spread["answer"] == usual["answer"]
    assert spread["ledger"]["rows"] == usual["ledger"]["rows"]


def test_a_model_is_spread_by_transformers(monkeypatch):
    """Which says what is missing, where accelerate is."""
    asked = {}

    def load(source, **options):
        asked.update(options)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", load)
    loading.load("tiny", "auto", "bfloat16", "eager")
    assert asked == {
        "dtype": "bfloat16",
        "device_map": "auto",
        "attn_implementation": "eager",
    }


@pytest.mark.parametrize(
    "names", [("mean", "cosine", "none"), ("mass_mean", "random", "last_token")]
)
def test_parts_by_their_names(capsys, photo, names):
    message, matcher, guidance = names
    options = ["--message", message, "--matcher", matcher, "--guidance", guidance]
    stage = ["--stage", "0:1:0.5", "--max-new-tokens", 2]
    config = run_json(capsys, "tiny", "--image", photo, *ASK, *options, *stage)["config"]
    expected = (message, f"{matcher}_matching", guidance)
    assert tuple(config[part] for part in ("message", "matcher", "guidance")) == expected


def test_people_get_the_answer_then_the_bill(capsys, tmp_path, photo):
    file = tmp_path / "merges.png"
    arguments = ["run", "tiny", "--image", str(photo), *ASK, "--compare", "--draw", str(file)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "compressed:"
    assert lines[1].startswith("red circle , orange heart")
    assert lines[3] == "uncompressed:"
    assert lines[4].startswith("red circle , orange heart")
    assert lines[6].startswith("merged away: 52% after layer 0 in 2x2 windows")
    assert lines[-3].startswith("retention 54.9%")
    assert lines[-2].startswith("lost after layer 0:")
    assert lines[-1] == f"wrote {file}"
    with Image.open(file) as figure:
        assert min(figure.size) > 100
    assert printed.err == ""


def test_without_comparing_the_answer_stands_alone(capsys, photo):
    arguments = ["run", "tiny", "--image", str(photo), *ASK, "--max-new-tokens", "3"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("red circle ,")
    assert "compressed" not in out.splitlines()[0]


def test_a_schedule_and_guidance_of_ones_own(capsys, photo):
    stages = ["--stage", "1:2:0.25", "--stage", "4:1"]
    options = [*stages, "--guidance", "none", "--max-new-tokens", 1, "--dtype", "bfloat16"]
    result = run_json(capsys, "tiny", "--image", photo, *ASK, *options)
    assert result["config"]["guidance"] == "none"
    assert [tuple(stage.values()) for stage in result["config"]["stages"]] == [
        (1, 2, 0.25),
        (4, 1, 0.5),
    ]
    rows = result["ledger"]["rows"]
    assert [row["planned"]["vision_tokens"] for row in rows] == [256] * 2 + [192] * 3 + [96] * 3
    half = 2 * rows[0]["planned"]["tokens"] * 2 * 96
    assert rows[0]["observed_kv_bytes"] == half
    assert "uncompressed" not in result


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("family", "tiles"), [("llava", 2), ("llava_next", 4), ("gemma3", 2), ("qwen2_5_vl", 2)]
)
def test_several_pictures_on_a_checkpoint(capsys, tmp_path, monkeypatch, photo, family, tiles):
    drawn = []

    def draw(trace, picture, *, image):
        drawn.append(image)
        return draw_lineage(trace, picture, image=image)

    monkeypatch.setattr(running, "draw_lineage", draw)
    if family in NEED_TORCHVISION:
        pytest.importorskip("torchvision", reason="the family's processor needs it")
    options = {"text": {"sliding_window": 512}} if family == "gemma3" else {}
    model = save_checkpoint(family, tmp_path / "model", **options)
    pictures = ["--image", photo, "--image", photo]
    result = run_json(
        capsys, tmp_path / "model", *pictures, *ASK, "--max-new-tokens", 4,
        "--draw", tmp_path / "merges.svg",
    )  # fmt: skip
    assert result["model"] == type(model).__name__
    totals = result["ledger"]["totals"]
    assert totals["kv_bytes_observed"] == totals["kv_bytes"] < totals["kv_bytes_full"]
    names = [str(tmp_path / f"merges-{number}.svg") for number in range(tiles)]
    assert result["files"] == names
    assert drawn == list(range(tiles))
    assert all((tmp_path / f"merges-{number}.svg").is_file() for number in range(tiles))


@pytest.mark.parametrize("missing", ["processor_config.json", "model.safetensors"])
def test_a_model_that_lacks_a_file_is_named(capsys, tmp_path, photo, missing):
    folder = tmp_path / "model"
    shutil.copytree(tiny.WEIGHTS, folder)
    (folder / missing).unlink()
    assert main(["run", str(folder), "--image", str(photo), *ASK]) == 1
    error = capsys.readouterr().err
    assert f"{folder} cannot be loaded: expected a folder with a model" in error


SHAPE = "expected LAYER:WINDOWS:RATIO, such as 11:4:0.5, with whole numbers and a fraction"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["tiny", "--image", "nowhere.png"], 1, "nowhere.png: No such file or directory"),
        (["tiny", "--image", "{text}"], 1, "is not a picture"),
        (["nowhere/", "--image", "{photo}"], 1, "nowhere/: there is no such folder"),
        (["tiny", "--image", "{photo}", "--draw", "a.txt"], 1, "ends with one of .png"),
        (["tiny", "--image", "{photo}", "--trace", "no/a"], 1, "--trace no/a: there is no folder"),
        (["tiny", "--image", "{photo}", "--device", "moon"], 1, "--device moon cannot be used"),
        (["tiny", "--image", "{photo}", "--adapter", "me"], 2, "adapter is 'me': expected 'auto'"),
        (["tiny", "--image", "{photo}", "--stage", "9:1"], 1, "a stage may run after"),
        (["tiny", "--image", "{photo}", "--stage", "x"], 2, f"'x': {SHAPE}"),
        (["tiny", "--image", "{photo}", "--stage", "1:2:.5:3"], 2, f"'1:2:.5:3': {SHAPE}"),
        (["tiny", "--image", "{photo}", "--stage", "1:2:4"], 2, "such as 11:4:0.5 (Stage.ratio"),
        (["tiny", "--image", "{photo}", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
        (["tiny", "--image", "{photo}", "--guidance", "me"], 2, "--guidance"),
        (["tiny"], 2, "--image"),
    ],
)
def test_bad_input_is_named(capsys, tmp_path, photo, arguments, status, message):
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    filled = [argument.format(photo=photo, text=text) for argument in arguments]
    assert main(["run", *filled, *ASK]) == status
    printed = capsys.readouterr()
    assert message in " ".join(printed.err.split())
    assert printed.out == ""
    if status == 1:
        assert printed.err.count("\n") == 1


def test_an_adapter_may_be_chosen(capsys, tmp_path, photo, monkeypatch):
    def told(*options):
        stage = "--stage", "1:4:0.5"
        result = run_json(capsys, "tiny", "--image", photo, *ASK, *stage, *options)
        return result["answer"], result["config"], result["ledger"]["rows"]

    expected = told("--adapter", "llava")
    monkeypatch.delitem(base._ADAPTERS, "llava")
    with pytest.warns(UserWarning, match="is served by the generic adapter"):
        found = told("--adapter", "auto")
    assert found == expected
    drawing = ["--adapter", "auto", "--draw", str(tmp_path / "merges.png")]
    assert main(["run", "tiny", "--image", str(photo), *ASK, *drawing]) == 1
    assert "--draw needs to know which pixels a token covers" in capsys.readouterr().err
    assert main(["run", "tiny", "--image", str(photo), *ASK]) == 1
    assert 'adapter="auto" (--adapter auto)' in capsys.readouterr().err


def test_drawing_needs_matplotlib_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'lightkv-gnn\[draw\]'"):
        running.check_files(None, tmp_path / "a.png")
    running.check_files(tmp_path / "a.trace", None)


def test_ids_of_the_hub_are_not_taken_for_folders():
    check_source("llava-hf/llava-1.5-7b-hf")
    check_source("tiny", "tiny")
    for wrong in ("llava", "a/b/c", "/nowhere", "nowhere/", "./model"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            check_source(wrong)
