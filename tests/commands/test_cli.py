"""The command line, on the bundled model and on checkpoints of every family."""

import json
from pathlib import Path

import numpy as np
import pytest
from families.inputs import PICTURES, batch
from families.models import FAMILIES
from families.models import tiny as build
from families.processors import NEED_TORCHVISION, PARTS, save_checkpoint
from PIL import Image

from lightkv_gnn import Adapter, LightKVConfig, adapter_for, attach, tiny
from lightkv_gnn.adapters.llava import LlavaAdapter
from lightkv_gnn.commands import comparison as demo
from lightkv_gnn.commands.cli import main


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.jpg"
    tiny.render(tiny.sample_scene(np.random.default_rng(3))).resize((300, 200)).save(file)
    return file


def run_json(capsys, *arguments):
    status = main([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


def test_demo_reports_accuracy_ledger_and_files(capsys, tmp_path):
    out = tmp_path / "pictures"
    result = run_json(capsys, "demo", "--questions", 10, "--out", out)
    assert set(result["accuracy"]) == {"none", "ours", "paper", "mean", "random"}
    for row in result["accuracy"].values():
        assert set(row) == {"55%", "30%"}
        for score in row.values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
            assert (score["value"] * 10) == pytest.approx(round(score["value"] * 10))
    compared = {f"{name} at {share}" for name in ("ours", "paper") for share in ("55%", "30%")}
    assert set(result["configs"]) == compared
    assert all(set(answer["compressed"]) == compared for answer in result["answers"])
    ledger = result["ledger"]
    assert ledger["retention"] == pytest.approx(0.55, abs=0.02)
    assert ledger["kv_bytes_observed"] == ledger["kv_bytes"] < ledger["kv_bytes_full"]
    assert ledger["flops"] < ledger["flops_full"]
    assert len(result["answers"]) == len(tiny.GROUPS)
    assert {file.name for file in out.iterdir()} == {"picture.png", "merges.png"}
    assert result["files"] == [str(out / "picture.png"), str(out / "merges.png")]
    assert result["note"] is None


def test_demo_prints_the_same_for_people(capsys, tmp_path):
    assert main(["demo", "--questions", "4", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("uncompressed", "ours at 30%", "retention 54.9%", "merges.png", "scatter"):
        assert words in printed
    rows = [line.split()[0] for line in printed.splitlines() if "[" in line and "%" in line]
    assert rows[-5:] == ["none", "ours", "paper", "mean", "random"]


def test_the_demo_has_a_caption_in_which_one_sees_the_difference(capsys, tmp_path):
    """At 30 % the paper's method forgets objects that ours still names."""
    result = run_json(capsys, "demo", "--questions", 1, "--out", tmp_path)
    (caption,) = [
        answer for answer in result["answers"] if answer["prompt"] == "list the objects ."
    ]
    told = caption["compressed"]
    assert told["ours at 30%"] == caption["full"] == caption["expected"]
    assert len(told["paper at 30%"].split(",")) < len(caption["expected"].split(","))


def test_demo_on_a_model_picture_and_question_of_ones_own(capsys, tmp_path, photo):
    model, processor = tiny.load()
    folder = tmp_path / "my-model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    arguments = ["--image", photo, "--prompt", "what shape is the red object?", "--out", tmp_path]
    own = run_json(capsys, "demo", "--model", folder, *arguments)
    bundled = run_json(capsys, "demo", *arguments)
    assert own["accuracy"] == {}
    assert own["answers"] == bundled["answers"]
    assert own["answers"][0]["prompt"] == "what shape is the red object?"
    assert own["ledger"]["kv_bytes"] == bundled["ledger"]["kv_bytes"]
    assert own["note"] is None
    assert "never seen" in bundled["note"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "nowhere/", "--image", "{photo}", "--prompt", "?"],
            "there is no such folder",
        ),
        (["--model", "nowhere/"], "--model needs --image FILE and --prompt TEXT"),
        (["--image", "nowhere.jpg", "--prompt", "?"], "nowhere.jpg"),
        (["--image", "{text}", "--prompt", "?"], "is not a picture"),
        (["--out", "{text}"], "is a file: give a folder"),
        (["--retention", "1.5"], "retention is 1.5"),
        (["--retention", "0.01"], "no stage on 8 layers keeps 1%"),
    ],
)
def test_bad_input_ends_with_one_line(capsys, tmp_path, photo, arguments, message):
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    filled = [argument.format(photo=photo, text=text) for argument in arguments]
    assert main(["demo", "--out", str(tmp_path / "out"), *filled]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("questions", ["0", "-3", "many"])
def test_number_of_questions_is_checked(capsys, questions):
    assert main(["demo", "--questions", questions]) == 2
    assert "--questions" in capsys.readouterr().err


def test_methods_hold_equally_many_tokens():
    model, processor = tiny.load()
    assert demo.budgets(model, 0.55) == [0.55, 0.3]
    assert demo.budgets(model, 0.25) == [0.25]
    assert demo.budgets(model, 0.303) == [0.303]
    picture = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
    for share in (0.55, 0.3):
        for chosen in demo.methods(model, share).values():
            if chosen is not None:
                answered = demo.ask_all(model, processor, picture, {"?": None}, {"": chosen})
                assert answered.ledger.retention == pytest.approx(share, abs=0.02)


def test_picture_is_what_the_model_sees(photo):
    model, processor = tiny.load()
    with Image.open(photo) as picture:
        configs = {"": LightKVConfig.for_model(model)}
        answered = demo.ask_all(model, processor, picture, {"?": None}, configs)
        scaled = picture.resize((128, 128))
    (seen,) = answered.tiles
    assert seen.size == (128, 128)
    difference = np.asarray(scaled).astype(int) - np.asarray(seen)
    assert np.abs(difference).mean() < 3


@pytest.fixture
def landscape(tmp_path):
    file = tmp_path / "landscape.png"
    noise = np.random.default_rng(0).integers(256, size=(6, 10, 3), dtype="u1")
    Image.fromarray(noise).resize((100, 60)).save(file)
    return file


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.each
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("family", PARTS)
def test_demo_on_a_checkpoint_of_any_family(capsys, tmp_path, landscape, family, template):
    if family in NEED_TORCHVISION:
        pytest.importorskip("torchvision", reason="the family's processor needs it")
    folder, out = tmp_path / family, tmp_path / "out"
    saved = save_checkpoint(family, folder, **SHORT_PROMPTS.get(family, {}))
    if not template:
        (folder / "chat_template.jinja").unlink()
    arguments = ["--image", landscape, "--prompt", "what is it?", "--out", out]
    result = run_json(capsys, "demo", "--model", folder, *arguments)
    assert result["model"] == type(saved).__name__
    assert len(result["answers"]) == 1
    assert result["ledger"]["kv_bytes_observed"] < result["ledger"]["kv_bytes_full"]
    tiles = [file.name for file in out.iterdir() if file.name.startswith("picture")]
    assert len(tiles) == TILES.get(family, 1)
    assert [Path(file).name for file in result["files"]] == [*sorted(tiles), "merges.png"]


SHORT_PROMPTS = {"gemma3": {"text": {"sliding_window": 512}}}
"""Compressed prompts are shorter than windows."""

TILES = {
    "llava_next": 2,
    "llava_next_video": 2,
    "llava_onevision": 2,
    "internvl": 3,
    "idefics3": 7,
    "smolvlm": 7,
}
"""Of a picture of 100 x 60 pixels."""


@pytest.mark.parametrize("family", FAMILIES)
def test_all_stages_are_legal(family):
    model = build(family, **SHORT_PROMPTS.get(family, {}))
    legal = set(adapter_for(model).legal_layers)
    inputs = batch(family, model, [2, PICTURES[family][0], 3])
    for name, config in demo.compared(model, 0.75).items():
        layers = [stage.layer for stage in config.stages]
        assert layers
        assert set(layers) <= legal
        with attach(model, config) as handle:
            model(**inputs)
        assert handle.ledger.retention < 1, name


def test_without_seen_only_the_drawing_is_left_out(capsys, tmp_path, monkeypatch, photo):
    monkeypatch.setattr(LlavaAdapter, "seen", Adapter.seen)
    arguments = ["--image", str(photo), "--prompt", "what shape is the red object ?"]
    assert main(["demo", *arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "compressed" in printed
    assert "nothing is drawn: the model's adapter" in printed
    assert not list((tmp_path / "out").iterdir())


def test_the_demo_says_how_many_objects_an_answer_lost():
    from lightkv_gnn.commands.demo import _lost

    assert _lost("red ring , blue dot , lime dot", "red ring , lime dot") == (
        "  (1 of 3 objects lost)"
    )
    assert _lost("red ring , blue dot", "blue dot , red ring") == ""
    assert _lost("square", "triangle") == ""
