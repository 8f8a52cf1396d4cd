"""``lightkv-gnn plan``: its numbers are those of a run, and the table is made of them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from families.models import FAMILIES, IMAGE, WORDS
from families.models import tiny as build
from families.processors import image_processor
from marks import full
from PIL import Image

import lightkv_gnn as lk
from lightkv_gnn import tiny
from lightkv_gnn.adapters.llava import LlavaAdapter
from lightkv_gnn.commands.cli import main
from lightkv_gnn.planning.model import forecast

DOCS = Path(__file__).parents[2] / "docs"
TEXT = 5
SHORT_PROMPTS = {"gemma3": {"text": {"sliding_window": 512}}}
SIZES = {"idefics3": [(60, 100)], "smolvlm": [(100, 60)]}


def save(family: str, folder: Any, **options: Any) -> Any:
    """A model, its configuration and its image processor in a folder; no weights."""
    model = build(family, **options)
    model.config.save_pretrained(folder)
    image_processor(family, model).save_pretrained(folder)
    return model


def prefill(
    family: str, model: Any, sizes: list[tuple[int, int]], tokens: tuple[int, ...], batch: int
) -> Any:
    """The ledger of a real prefill of pictures of such sizes, a token of text after each."""
    pictures = [Image.new("RGB", (width, height), "white") for height, width in sizes]
    asked = {"crop_to_patches": True} if family == "internvl" else {}
    processed = image_processor(family, model)([pictures] * batch, return_tensors="pt", **asked)
    row = [id_ for count in tokens for id_ in (*[IMAGE] * count, WORDS[0])]
    row += [WORDS[1]] * (TEXT - len(tokens))
    ids = torch.tensor([row] * batch)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **processed}
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    if family in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = (ids == IMAGE).int() * (family == "gemma3")
    known = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "image_grid_thw")
    known += ("mm_token_type_ids", "token_type_ids", "pixel_attention_mask", "batch_num_images")
    inputs = {name: value for name, value in inputs.items() if name in known}
    with lk.attach(model, lk.LightKVConfig.for_model(model)) as handle, torch.no_grad():
        model(**inputs)
    return handle.ledger


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_is_the_ledger_of_a_run(family, batch, tmp_path):
    model = save(family, tmp_path, **SHORT_PROMPTS.get(family, {}))
    sizes = SIZES.get(family, [(90, 120)])
    planned = forecast(str(tmp_path), sizes, text=TEXT, batch=batch, dtype=torch.float32)
    ledger = prefill(family, model, sizes, planned.pictures, batch)
    for row, real in zip(planned.ledger.rows, ledger.rows, strict=True):
        assert (row.planned, row.full) == (real.planned, real.full)
        assert row.planned.kv_bytes == real.observed_kv_bytes
        assert row.planned.tokens == real.observed_tokens
    assert 0 < planned.ledger.retention < 1


def test_a_class_token_that_is_kept_counts(tmp_path):
    model = save("llava", tmp_path, vision_feature_select_strategy="full")
    planned = forecast(str(tmp_path), [(50, 50)], text=TEXT, dtype=torch.float32)
    assert planned.pictures == (17,)
    ledger = prefill("llava", model, [(50, 50)], (17,), 1)
    assert [row.planned for row in planned.ledger.rows] == [row.planned for row in ledger.rows]


def test_an_adapter_that_does_not_tell_says_so(tmp_path, monkeypatch):
    save("llava_pixtral", tmp_path)
    monkeypatch.setattr(LlavaAdapter, "expected", lk.Adapter.expected)
    with pytest.raises(lk.UnsupportedModelError, match="give it a method expected"):
        forecast(str(tmp_path), [(50, 50)])


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_5_vl"])
def test_several_pictures_are_added_up(family, tmp_path):
    model = save(family, tmp_path)
    sizes = [(90, 120), (50, 40)]
    planned = forecast(str(tmp_path), sizes, text=TEXT, dtype=torch.float32)
    assert len(planned.pictures) == 2
    ledger = prefill(family, model, sizes, planned.pictures, 1)
    assert [row.planned for row in planned.ledger.rows] == [row.planned for row in ledger.rows]


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "published.py"))


NEED_A_PROCESSOR = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm"}
NEED_A_PROCESSOR |= {"qwen3_vl_moe", "glm4v", "mistral3"}


def test_a_config_json_alone_tells_what_it_can(published, tmp_path):
    """The other families' errors say what is missing."""
    file = tmp_path / "config.json"
    for size in published["SIZES"]:
        file.write_text(json.dumps(size.config))
        kind = size.config["model_type"]
        if kind in NEED_A_PROCESSOR:
            with pytest.raises(lk.UnsupportedInputError, match="preprocessor_config"):
                forecast(str(file), [published["PICTURE"]])
        elif size.kind == "image":
            planned = forecast(str(file), [published["PICTURE"]])
            assert planned.pictures == (size.tokens,), size.name


def test_memory_is_what_one_computes_by_hand(published, tmp_path, capsys):
    """LLaVA-1.5 7B: 32 layers, 32 key-value heads of 128 channels, in bf16."""
    size = published["SIZES"][0]
    (tmp_path / "config.json").write_text(json.dumps(size.config))
    arguments = ["plan", str(tmp_path), "--image", "1024x768", "--batch", "4", "--json"]
    assert main([*arguments, "--stage", "11:4:0.5", "--stage", "17:2", "--stage", "23:1"]) == 0
    result = json.loads(capsys.readouterr().out)
    token = 4 * 2 * 32 * 128 * 2
    full, light = result["memory"]["full"], result["memory"]["compressed"]
    assert full["vision_kv"] == 32 * 576 * token
    assert light["vision_kv"] == (12 * 576 + 6 * 288 + 6 * 144 + 8 * 72) * token
    assert full["text_kv"] == light["text_kv"] == 32 * 64 * token
    assert full["hidden_states"] == light["hidden_states"] == 4 * 640 * 4096 * 2
    assert full["weights"] == light["weights"]
    assert 6.7e9 < full["weights"] / 2 < 6.9e9  # the tower is smaller than the published one
    assert full["total"] == sum(value for name, value in full.items() if name != "total")
    assert result["images"] == [{"width": 1024, "height": 768, "vision_tokens": 576}]
    assert [stage["layer"] for stage in result["config"]["stages"]] == [11, 17, 23]
    assert result["ledger"]["totals"]["kv_bytes"] == light["vision_kv"] + light["text_kv"]


def test_windows_that_slide_forget_vision_first(tmp_path):
    model = save("gemma3", tmp_path)  # every other layer has a window of 12 tokens
    planned = forecast(str(tmp_path), [(32, 32)], text=TEXT, dtype=torch.float32)
    each = 2 * lk.adapter_for(model).decoder_size(4).kv_channels * 4
    assert planned.full.text_kv == 6 * TEXT * each
    assert planned.full.vision_kv == 3 * (16 + 11 - TEXT) * each
    longer = forecast(str(tmp_path), [(32, 32)], text=20, dtype=torch.float32)
    assert longer.full.text_kv == 3 * (20 + 11) * each
    assert longer.full.vision_kv == 3 * 16 * each


@pytest.mark.filterwarnings("ignore:lightkv_gnn.* is served by the generic adapter")
@pytest.mark.parametrize("family", ["llava", "llava_pixtral", "qwen3_vl", *full("paligemma")])
def test_the_generic_adapter_plans_the_same(tmp_path, family):
    save(family, tmp_path)
    sizes, options = [(64, 96), (48, 32)], {"batch": 2, "stages": [lk.Stage(2, 1, 0.5)]}
    expected = forecast(str(tmp_path), sizes, **options)
    found = forecast(str(tmp_path), sizes, **options, adapter=lk.GenericAdapter)
    assert found.pictures == expected.pictures
    assert found.ledger.totals() == expected.ledger.totals()


def test_the_generic_adapter_does_not_plan_what_it_cannot_tell(tmp_path):
    """Squares of 4 x 4 tokens, of 8 x 8 patches that are pooled: both could be meant."""
    save("gemma3", tmp_path)
    with pytest.raises(lk.UnsupportedModelError, match="not certain, of an unknown number of"):
        forecast(str(tmp_path), [(64, 96)], adapter=lk.GenericAdapter)


def test_people_get_tables(published, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(published["SIZES"][0].config))
    assert main(["plan", str(tmp_path), "--image", "1024x768"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "LlavaForConditionalGeneration, 32 layers, bfloat16, batch 1"
    assert lines[1] == "a picture of 1024x768 pixels: 576 vision tokens"
    cells = {line[:28].strip(): line[28:].split() for line in lines}
    assert cells["0-2, each"] == ["576", "640", "10.00", "100%", "265.8", "100%"]
    assert " ".join(cells["layers, whole batch"]) == "vision tokens KV MiB share GFLOP share"
    assert cells["3-31, each"][:4] == ["288", "352", "5.50", "55%"]
    assert cells["KV of vision"] == ["0.281", "0.154", "55%"]
    assert cells["KV of text"] == ["0.031", "0.031", "100%"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--image", "1024"], 2, "'1024': expected WIDTHxHEIGHT"),
        (["--image", "0x3"], 2, "'0x3': expected WIDTHxHEIGHT"),
        ([], 2, "--image"),
        (["--image", "9x9", "--stage", "11"], 2, "'11': expected LAYER:WINDOWS:RATIO"),
        (["--image", "9x9", "--stage", "1:2:3"], 2, "Stage.ratio is 3.0"),
        (["--image", "9x9", "--stage", "77:2"], 1, "a stage may run after"),
        (["--image", "9x9", "--retention", "0.01"], 1, "no stage on 6 layers keeps 1%"),
        (["--image", "9x9", "--batch", "0"], 2, "--batch"),
    ],
)
def test_bad_options_are_named(capsys, tmp_path, arguments, status, message):
    save("llava", tmp_path)
    assert main(["plan", str(tmp_path), *arguments]) == status
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_bundled_model_goes_by_its_name(capsys):
    plans = []
    for source in ("tiny", str(tiny.WEIGHTS)):
        assert main(["plan", source, "--image", "256x256", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
        assert plans[-1].pop("source") == source
    assert plans[0] == plans[1]


def test_a_model_that_is_none_ends_with_one_line(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for source, message in (
        (str(tmp_path), "model type 'llama'. docs/families.md lists the families"),
        (str(tmp_path / "nothing" / "here"), "nothing/here: there is no such folder"),
    ):
        assert main(["plan", source, "--image", "9x9"]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
