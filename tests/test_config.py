"""What can be asked for, and that a file says the same."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from models import batch, prompt, tiny_llava

import lightkv_gnn as lk
from lightkv_gnn.choices import GUIDANCE
from lightkv_gnn.costs.schedule import layer_average
from lightkv_gnn.stage.compressor import MATCHERS
from lightkv_gnn.stage.messages import MESSAGES

STAGES = [lk.Stage(1, 4, 0.5), lk.Stage(3, 2, 0.25), lk.Stage(4, 1, 0.0)]

CONFIGS = {
    "defaults": lk.LightKVConfig(STAGES),
    "no stages": lk.LightKVConfig([]),
    "a third": lk.LightKVConfig([lk.Stage(0, 3, 1 / 3)]),
    **{kind: lk.LightKVConfig(STAGES, guidance=kind) for kind in GUIDANCE},
    **{name: lk.LightKVConfig(STAGES, message=message) for name, message in MESSAGES.items()},
    **{name: lk.LightKVConfig(STAGES, matcher=matcher) for name, matcher in MATCHERS.items()},
    "the rest": lk.LightKVConfig(
        STAGES, rotary=False, positions="reindex", scatter="torch_scatter"
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_says_the_same(name: str) -> None:
    config = CONFIGS[name]
    text = config.to_json()
    assert lk.LightKVConfig.from_json(text) == config
    assert lk.LightKVConfig.from_dict(config.to_dict()) == config
    assert json.loads(text) == config.to_dict()
    assert set(config.to_dict()) == set(lk.LightKVConfig.__dataclass_fields__)


def test_files_of_different_configurations_differ() -> None:
    texts = {config.to_json() for config in CONFIGS.values()}
    same_as_defaults = {"text_to_vision", "guided_mean", "cosine_matching"}
    assert len(texts) == len(CONFIGS) - len(same_as_defaults)


def test_what_is_missing_takes_its_default() -> None:
    config = lk.LightKVConfig.from_json('{"stages": [{"layer": 2, "windows": 1}]}')
    assert config == lk.LightKVConfig([lk.Stage(2, 1)])
    assert config.stages[0].ratio == 0.5


@pytest.mark.parametrize("field", ["guidance", "message", "matcher"])
def test_a_callable_of_ones_own_has_no_name(field: str) -> None:
    def own(*args: Any) -> None: ...

    config = lk.LightKVConfig(STAGES, **{field: own})
    with pytest.raises(TypeError, match=f"^{field} is .*own.*pass your callable in code"):
        config.to_json()


def test_a_convolution_of_ones_own_has_no_name() -> None:
    with pytest.raises(TypeError, match="message"):
        lk.LightKVConfig(STAGES, message=lk.MergeConv()).to_dict()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({}, ValueError, "needs stages"),
        ({"stages": [], "keep_ratio": 1}, ValueError, r"unknown here: \['keep_ratio'\]"),
        ({"stages": [], "message": "sum"}, ValueError, "'sum'.*guided_mean"),
        ({"stages": [], "matcher": "nearest"}, ValueError, "'nearest'.*cosine_matching"),
        ({"stages": [], "guidance": "both"}, ValueError, "'both'.*vision_to_text"),
        ({"stages": [], "positions": "shift"}, ValueError, "'shift'.*preserve"),
        ({"stages": [], "scatter": "numpy"}, ValueError, "'numpy'.*torch_scatter"),
        ({"stages": [{"layer": 1}]}, ValueError, "with layer, windows"),
        ({"stages": [{"layer": 1, "windows": 1, "keep": 1}]}, ValueError, "'keep': 1"),
        ({"stages": 3}, ValueError, "stages is 3: expected a list"),
        ({"stages": [], "rotary": "false"}, TypeError, "rotary is 'false'"),
        ({"stages": [{"layer": 1, "windows": 1, "ratio": 0.6}]}, ValueError, "expected 0 to 0.5"),
    ],
)
def test_files_with_mistakes(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lk.LightKVConfig.from_dict(values)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 2), ValueError, "layer is -1.*counted from 0"),
        ((1, 0), ValueError, "windows is 0.*1 or more"),
        ((1, 2, 0.991), ValueError, "ratio is 0.991.*merged away, 0 to 0.5"),
        ((1, 2, -0.1), ValueError, "ratio is -0.1"),
        ((1, 2, float("nan")), ValueError, "ratio is nan"),
        ((1.0, 2), TypeError, "layer is 1.0.*an integer"),
        ((1, "2"), TypeError, "windows is '2'.*an integer"),
        ((1, 2, "0.5"), TypeError, "ratio is '0.5'.*a number"),
        ((True, 2), TypeError, "layer is True"),
    ],
)
def test_stages_that_cannot_be(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lk.Stage(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stages": [lk.Stage(3, 1), lk.Stage(1, 1)]}, ValueError, r"\[3, 1\].*ascending"),
        ({"stages": [lk.Stage(1, 2), lk.Stage(1, 1)]}, ValueError, r"\[1, 1\].*each once"),
        ({"stages": [(1, 2, 0.5)]}, TypeError, "expected Stage"),
        ({"guidance": "text"}, ValueError, "expected one of.*or a callable"),
        ({"guidance": None}, ValueError, "guidance is None"),
        ({"message": "mean"}, TypeError, "lightkv_gnn.guided_mean"),
        ({"matcher": None}, TypeError, "graphs.cosine_matching"),
        ({"positions": True}, ValueError, "positions is True"),
        ({"scatter": None}, ValueError, "scatter is None"),
    ],
)
def test_configurations_that_cannot_be(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lk.LightKVConfig(**{"stages": STAGES, **options})


def test_what_messages_recommend_exists() -> None:
    assert callable(lk.guided_mean)
    assert callable(lk.graphs.cosine_matching)


def test_configurations_are_values() -> None:
    config = lk.LightKVConfig(iter(STAGES))  # type: ignore[arg-type]
    assert config.stages == tuple(STAGES)
    assert config == lk.LightKVConfig(STAGES)
    assert hash(config) == hash(lk.LightKVConfig(tuple(STAGES)))
    for thing, field in ((config, "positions"), (STAGES[0], "ratio")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, field, None)


@pytest.mark.parametrize(
    ("layers", "retention"),
    [(2, 0.75), (3, 0.55), (4, 0.55), (6, 0.55), (12, 0.55), (17, 0.55), (6, 0.8), (4, 1.0)],
)
def test_for_model(layers: int, retention: float) -> None:
    model = tiny_llava(layers=layers)
    config = lk.LightKVConfig.for_model(model, retention, positions="reindex")
    assert config.positions == "reindex"
    assert abs(layer_average(config.stages, layers) - retention) <= 0.05
    with lk.attach(model, config):  # fits the model
        pass


def test_for_model_out_of_reach() -> None:
    with pytest.raises(lk.ScheduleError, match=r"nearest keeps 75%.*write the stages out"):
        lk.LightKVConfig.for_model(tiny_llava(layers=2), 0.55)


@torch.no_grad()
def test_for_model_is_what_the_ledger_says() -> None:
    model = tiny_llava(side=16)
    config = lk.LightKVConfig.for_model(model)
    with lk.attach(model, config) as handle:
        model(**batch(prompt(4, "image", 6, side=16), side=16))
    assert handle.ledger.retention == pytest.approx(layer_average(config.stages, 6), abs=1e-9)
    assert handle.ledger.retention == pytest.approx(0.55, abs=0.05)


def test_for_model_needs_an_adapter() -> None:
    with pytest.raises(lk.UnsupportedModelError):
        lk.LightKVConfig.for_model(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
