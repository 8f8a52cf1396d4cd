"""``--model_args``: what is read, and what is refused by name."""

from __future__ import annotations

import sys

import pytest

from lightkv_gnn import Stage, destination_only
from lightkv_gnn.baselines import METHODS
from lightkv_gnn.harness.arguments import BASELINES, KNOWN, Arguments, read_schedule
from lightkv_graphs import random_matching


def test_what_is_not_given_has_defaults():
    assert Arguments.of({"pretrained": "my-model"}) == Arguments("my-model")


def test_every_argument_is_read():
    """As lmms-eval gives them: what looks like a number is one, the batch size may be text."""
    read = Arguments.of(
        {
            "pretrained": "my-model",
            "schedule": "11:4:0.5+17:2:0.25+23:1",
            "guidance": "last_token",
            "rotary": False,
            "message": "destination_only",
            "matcher": "random",
            "positions": "reindex",
            "scatter": "torch_scatter",
            "batch_size": "8",
            "max_new_tokens": 32,
            "device": "cuda:1",
            "dtype": "bfloat16",
            "attn_implementation": "sdpa",
            "agreement": True,
        }
    )
    assert read == Arguments(
        "my-model",
        schedule=(Stage(11, 4, 0.5), Stage(17, 2, 0.25), Stage(23, 1)),
        parts={
            "guidance": "last_token",
            "rotary": False,
            "message": destination_only,
            "matcher": random_matching,
            "positions": "reindex",
            "scatter": "torch_scatter",
        },
        batch_size=8,
        max_new_tokens=32,
        device="cuda:1",
        dtype="bfloat16",
        attention="sdpa",
        agreement=True,
    )
    baseline = Arguments.of(
        {"pretrained": "tiny", "lightkv_baseline": "fastv", "retention": 1, "depth": 2}
    )
    assert baseline == Arguments("tiny", 1.0, baseline="fastv", depth=2)


def test_all_known_names_are_read():
    """None of the names that a wrong one is answered with is refused itself."""
    for name in KNOWN:
        with pytest.raises(ValueError, match=r"=|give one of") as refused:
            Arguments.of({"pretrained": "tiny", name: "?:?", "wrong": 1})
        assert "wrong= is not known" in str(refused.value)


def test_parts_of_ones_own_come_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "own_parts_here.py").write_text("def louder(block):\n    return block\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    read = Arguments.of({"pretrained": "tiny", "guidance": "own_parts_here:louder"})
    assert read.parts["guidance"] is sys.modules["own_parts_here"].louder


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"retentoin": 0.5}, "retentoin= is not known: expected some of .*did you mean retention"),
        ({"xyz": 1}, "xyz= is not known: expected some of pretrained, retention"),
        ({"retention": "much"}, "retention=much: expected a fraction"),
        ({"schedule": "11"}, r"schedule=11: expected LAYER:WINDOWS:RATIO with \+.*'11': expected"),
        ({"schedule": "11:4:0.5,17:2"}, "expected LAYER:WINDOWS:RATIO"),
        ({"schedule": "11:4:2"}, r"Stage\.ratio is 2"),
        ({"schedule": "3:1", "retention": 0.5}, "schedule= and retention=: give one"),
        ({"batch_size": "auto"}, "batch_size=auto: expected a whole number from 1 up"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number from 1"),
        ({"max_new_tokens": 1.5}, r"max_new_tokens=1\.5: expected a whole"),
        ({"guidance": "loud"}, "guidance=loud: expected one of text_to_vision, .*import path"),
        (
            {"lightkv_baseline": "oracle"},
            "=oracle: expected one of none, ours, guided",
        ),
        ({"lightkv_baseline": "none", "retention": 0.5}, "retention= means nothing .*=none"),
        ({"lightkv_baseline": "fastv", "guidance": "none"}, "guidance= means nothing .*=fastv"),
        ({"lightkv_baseline": "random_cache", "depth": 2}, "depth= means nothing .*=random_cache"),
        ({"lightkv_baseline": "none", "agreement": True}, "agreement= means nothing .*=none"),
        ({"agreement": "often"}, "agreement=often: expected True or False"),
        ({"depth": 2}, "depth= is for baselines"),
        ({"adapter": "llama"}, "adapter=llama: .*expected 'auto' or one of .*llava"),
        ({"lightkv_baseline": "fastv", "adapter": "auto"}, "adapter= means nothing .*=fastv"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        Arguments.of({"pretrained": "tiny", **given})


def test_a_model_must_be_named():
    with pytest.raises(ValueError, match="no pretrained=: give a folder"):
        Arguments.of({"retention": 0.5})


@pytest.mark.parametrize("path", ["no_such_module_here:part", "math:no_such_part"])
def test_paths_that_lead_nowhere_are_told(path):
    with pytest.raises(ImportError, match=rf"message={path}: .*PYTHONPATH=\."):
        Arguments.of({"pretrained": "tiny", "message": path})


def test_a_schedule_is_written_like_the_stages_of_the_command_line():
    from lightkv_gnn.commands.options import _stage

    texts = ["0:4:0.5", "3:1", "7:2:0.25"]
    assert read_schedule("+".join(texts)) == tuple(map(_stage, texts))


def test_baselines_leave_out_those_that_need_answers_or_other_pictures():
    assert set(METHODS) - set(BASELINES) == {"downsample", "oracle", "oracle_pruning"}
