"""The command that makes a page of a trace's file, and the handle's own way to it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from traces import traced

from lightkv_gnn import LightKVConfig, attach, seen_tiles, tiny
from lightkv_gnn.commands.cli import main
from lightkv_gnn.sources import read_picture


def shown(file):
    return json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)[1])


@pytest.fixture
def saved(tmp_path):
    file = tmp_path / "red.safetensors"
    traced([[(6, 8)]], guided=True).with_prompts(["what is red?"]).save(file)
    return file


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "#336699").save(file)
    return file


def test_the_page_is_beside_the_trace(capsys, saved):
    assert main(["view", str(saved)]) == 0
    page = saved.with_suffix(".html")
    assert capsys.readouterr().out == f"wrote {page}: open it in a browser\n"
    (view,) = shown(page)["views"]
    assert (view["prompts"], view["name"], view["layers"]) == (["what is red?"], "", None)


def test_two_traces_a_picture_prompts_and_a_title(capsys, saved, photo, tmp_path):
    other = tmp_path / "blue.safetensors"
    traced([[(6, 8)]]).save(other)
    page = tmp_path / "both.html"
    prompts = ["--prompt", "red?", "--prompt", "blue?"]
    options = ["--image", photo, *prompts, "-o", page, "--title", "Red & blue", "--json"]
    assert main(["view", *map(str, [saved, other, *options])]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(page)]
    data = shown(page)
    assert len(data["pictures"]) == 1
    assert [(view["name"], view["prompts"]) for view in data["views"]] == [
        ("red", ["red?"]),
        ("blue", ["blue?"]),
    ]
    assert "<title>Red &amp; blue</title>" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.safetensors"], "nowhere.safetensors"),
        (["{text}"], "holds no valid trace"),
        (["{saved}", "--image", "{text}"], "is not a picture that Pillow can read"),
        (["{saved}", "--image", "{photo}", "--image", "{photo}"], "2 pictures for a trace of 1"),
        (["{saved}", "--prompt", "a", "--prompt", "b"], "2 --prompt for 1 traces"),
        (["{saved}", "{other}"], "view 1 has other vision tokens than view 0"),
        (["{saved}", "-o", "{saved}"], "is read here: name another file"),
        (["{saved}", "-o", "{folder}/x/../red.safetensors"], "is read here: name another file"),
        (["{saved}", "--image", "{photo}", "-o", "{photo}"], "is read here: name another file"),
        (["{saved}", "-o", "nowhere/page.html"], "nowhere/page.html"),
    ],
)
def test_bad_input_ends_with_one_line(capsys, saved, photo, tmp_path, arguments, message):
    text, other = tmp_path / "notes.txt", tmp_path / "other.safetensors"
    text.write_text("no trace")
    traced([[(6, 6)]]).save(other)
    (tmp_path / "x").mkdir()
    files = {"folder": tmp_path, "text": text, "saved": saved, "photo": photo, "other": other}
    assert main(["view", *(argument.format(**files) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))
    with Image.open(photo) as kept:
        assert kept.size == (80, 60)


def test_pictures_are_turned_as_processors_turn_them(saved, tmp_path, monkeypatch, capsys):
    picture = Image.new("RGB", (80, 60))
    picture.paste("#ff0000", (0, 0, 80, 30))
    turned = picture.getexif()
    turned[0x0112] = 6  # to be shown turned clockwise
    file = tmp_path / "turned.jpg"
    picture.save(file, exif=turned)
    opened = read_picture(file)
    assert opened.size == (60, 80)
    assert opened.getpixel((50, 40))[0] > 200
    assert opened.getpixel((10, 40))[0] < 50
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert main(["view", str(saved), "--image", str(file)]) == 1
    assert "is too large a picture" in capsys.readouterr().err


def test_a_handle_explores_its_prefill(tmp_path):
    model, processor = tiny.load()
    picture = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
    text = tiny.format_prompt("list the objects .")
    inputs = processor(images=picture, text=text, return_tensors="pt")
    with attach(model, LightKVConfig.for_model(model)) as handle:
        assert handle._repr_html_() is None
        model(**inputs)
    seen = seen_tiles(model, processor, inputs)
    page = handle.explore(tmp_path / "page.html", image=seen, prompt="list them", answer="all")
    (view,) = shown(page)["views"]
    assert (view["prompts"], view["answer"]) == (["list them"], "all")
    rows = handle.ledger.rows
    assert [layer["tokens"] for layer in view["layers"]] == [r.planned.vision_tokens for r in rows]
    assert [layer["full"] for layer in view["layers"]] == [r.full.vision_tokens for r in rows]
    assert [layer["kv_bytes"] for layer in view["layers"]] == [r.planned.kv_bytes for r in rows]
    assert [layer["kv_bytes_full"] for layer in view["layers"]] == [r.full.kv_bytes for r in rows]
    assert shown(page)["pictures"][0].startswith("data:image/png;base64,")
    assert handle._repr_html_().startswith("<iframe srcdoc=")
    assert handle.view(name="mine").name == "mine"
    with pytest.raises(ValueError, match="2 pictures for a trace of 1 images"):
        handle.explore(tmp_path / "other.html", image=[*seen, picture])
