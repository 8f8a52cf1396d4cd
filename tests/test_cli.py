"""The command line, on the bundled model."""

import json

import numpy as np
import pytest

from lightkv_gnn import demo, seen_picture, tiny
from lightkv_gnn.cli import main


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
    assert set(result["accuracy"]) == {"none", "guided", "mean", "random"}
    for row in result["accuracy"].values():
        assert set(row) == set(result["schedules"]) == {"default", "early", "steep"}
        for score in row.values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
            assert (score["value"] * 10) == pytest.approx(round(score["value"] * 10))
    assert result["schedules"]["early"][0]["layer"] == 0
    ledger = result["ledger"]
    assert ledger["retention"] == pytest.approx(0.55, abs=0.02)
    assert ledger["kv_bytes_observed"] == ledger["kv_bytes"] < ledger["kv_bytes_full"]
    assert ledger["flops"] < ledger["flops_full"]
    assert len(result["answers"]) == len(tiny.GROUPS)
    assert {file.name for file in out.iterdir()} == {"picture.png", "merges.png"}
    assert result["files"] == [str(out / "picture.png"), str(out / "merges.png")]


def test_demo_prints_the_same_for_people(capsys, tmp_path):
    assert main(["demo", "--questions", "4", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("uncompressed", "compressed", "vision tokens held", "merges.png", "scatter"):
        assert words in printed
    rows = [line.split()[0] for line in printed.splitlines() if "[" in line and "%" in line]
    assert rows[-4:] == ["none", "guided", "mean", "random"]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere/", "--image", "{photo}", "--prompt", "?"], "nowhere/ is no folder"),
        (["--model", "nowhere/"], "--model needs --image FILE and --prompt TEXT"),
        (["--image", "nowhere.jpg", "--prompt", "?"], "nowhere.jpg"),
        (["--image", "{text}", "--prompt", "?"], "is not a picture"),
        (["--retention", "1.5"], "retention is 1.5"),
        (["--retention", "0.01"], "no schedule of halving stages"),
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
    with pytest.raises(SystemExit):
        main(["demo", "--questions", questions])
    assert "--questions" in capsys.readouterr().err


def test_methods_hold_equally_many_tokens():
    model, processor = tiny.load()
    for config in demo.schedules(model, 0.55).values():
        held = set()
        for chosen in demo.methods(config).values():
            if chosen is None:
                continue
            picture = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
            answered = demo.ask_all(model, processor, picture, {"list the objects .": None}, chosen)
            held.add(answered.ledger.retention)
        assert len(held) == 1


def test_picture_is_what_the_model_sees(photo):
    from PIL import Image

    processor = tiny.build_processor()
    with Image.open(photo) as picture:
        seen = seen_picture(processor, picture)
    assert seen.size == (128, 128)
    again = seen_picture(processor, seen)
    assert np.abs(np.asarray(again).astype(int) - np.asarray(seen).astype(int)).max() <= 1


def test_prompts_follow_the_chat_template():
    processor = tiny.build_processor()
    question = "what shape is the red object ?"
    assert demo.as_chat(processor, question) == tiny.format_prompt(question)
    processor.chat_template = None
    assert demo.as_chat(processor, question) == f"USER: <image>\n{question} ASSISTANT:"
