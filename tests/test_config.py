"""What can be asked for, and that a file says the same."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from dataclasses import FrozenInstanceError
from typing import Any, get_args

import pytest
import torch
from flash_stand_in import flash_on_cpu
from marks import full
from models import batch, prompt, tiny_llava

import lightkv_gnn as lk
from lightkv_gnn.choices import GUIDANCE, MatcherName, MessageName
from lightkv_gnn.costs.schedule import find_stages, layer_average, one_stage
from lightkv_gnn.stage.compressor import MATCHERS, TokenCompressor
from lightkv_gnn.stage.messages import MESSAGES, WeightedMean

STAGES = [lk.Stage(1, 4, 0.5), lk.Stage(3, 2, 0.25), lk.Stage(4, 1, 0.0)]

CONFIGS = {
    "defaults": lk.LightKVConfig(STAGES),
    "no stages": lk.LightKVConfig([]),
    "a third": lk.LightKVConfig([lk.Stage(0, 3, 1 / 3)]),
    **{kind: lk.LightKVConfig(STAGES, guidance=kind) for kind in GUIDANCE},
    **{name: lk.LightKVConfig(STAGES, message=message) for name, message in MESSAGES.items()},
    **{name: lk.LightKVConfig(STAGES, matcher=matcher) for name, matcher in MATCHERS.items()},
    "the rest": lk.LightKVConfig(
        STAGES, rotary=False, positions="reindex", attention="mass", scatter="torch_scatter"
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


def by_cloudpickle(config: lk.LightKVConfig) -> lk.LightKVConfig:
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="Ray is not installed")
    made: lk.LightKVConfig = cloudpickle.loads(cloudpickle.dumps(config))
    return made


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "way",
    [
        lambda config: pickle.loads(pickle.dumps(config)),
        lambda config: pickle.loads(pickle.dumps(config, 0)),
        by_cloudpickle,
        copy.deepcopy,
        copy.copy,
        lambda config: eval(repr(config), {**vars(lk), "Stage": lk.Stage}),
    ],
    ids=["pickle", "pickle of old", "cloudpickle", "deepcopy", "copy", "repr"],
)
def test_copies_are_equal(name: str, way: Any) -> None:
    """What the library has is itself again, and so has its name and its fast paths."""
    config = CONFIGS[name]
    copied = way(config)
    assert copied == config
    assert copied is not config
    assert copied.message is config.message
    assert copied.to_json() == config.to_json()


def square_root(guidance: torch.Tensor, mass: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
    return guidance / 2


def test_a_weighted_mean_of_ones_own_is_copied_as_it_is() -> None:
    """Also one that has the name of one of the library's."""
    for name in ("square_root", "mean"):
        own = WeightedMean(name, square_root)
        for copied in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
            assert copied == own
            assert copied not in MESSAGES.values()


def retentions(config: lk.LightKVConfig) -> str:
    """Runs in another process, which says what it got."""
    assert config.message is MESSAGES["mass_mean"]
    return config.to_json()


class Configs(torch.utils.data.Dataset[str]):
    """A data set that carries a configuration to its workers."""

    def __init__(self, config: lk.LightKVConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        return retentions(self.config)


CARRIED = lk.LightKVConfig(STAGES, message="mass_mean", matcher="resisting", guidance="none")


@pytest.mark.parametrize("method", full("spawn", "forkserver"))
def test_workers_that_load_data_take_them(method: str) -> None:
    loader = torch.utils.data.DataLoader(
        Configs(CARRIED), num_workers=1, multiprocessing_context=method, batch_size=None
    )
    assert list(loader) == [CARRIED.to_json()]


@pytest.mark.parametrize("cluster", full("local"))
def test_ray_takes_them(cluster: str) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    paths = {"PYTHONPATH": ":".join(sys.path)}
    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": paths})
    try:
        carried = ray.remote(lambda config: (config, config.to_json())).remote(CARRIED)
        assert ray.get(carried) == (CARRIED, CARRIED.to_json())
    finally:
        ray.shutdown()


def test_notebooks_show_its_fields() -> None:
    def own(x_i: torch.Tensor, x_j: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight[:, None] * x_j

    shown = lk.LightKVConfig(STAGES, message=own, matcher="coverage")._repr_html_()
    for field in lk.LightKVConfig.__dataclass_fields__:
        assert f"<td>{field}</td>" in shown
    assert "&lt;function" in shown
    assert "coverage_matching" in shown


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
        ({}, ValueError, "needs stages, which are missing here: .*layer, windows and ratio"),
        (
            {"stages": [], "keep_ratio": 1},
            ValueError,
            r"a configuration has \['keep_ratio'\]: expected",
        ),
        ({"stages": [], "message": "sum"}, ValueError, "'sum'.*guided_mean"),
        ({"stages": [], "matcher": "nearest"}, ValueError, "'nearest'.*cosine_matching"),
        ({"stages": [], "message": 3}, ValueError, "message is 3: expected a name"),
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
        ({"message": "sum"}, ValueError, r"message is 'sum'.*'mean'\], or a callable"),
        ({"matcher": "nearest"}, ValueError, "matcher is 'nearest'.*coverage_matching"),
        ({"message": 3}, TypeError, "lightkv_gnn.guided_mean"),
        ({"attention": "count"}, ValueError, r"attention is 'count'.*'plain', 'mass'"),
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


PARITY = ("lightkv", "for_model of cosine_matching")


def preset(name: str, model: torch.nn.Module, *args: Any, **options: Any) -> lk.LightKVConfig:
    if name == "lightkv":
        return lk.LightKVConfig.lightkv(model, *args, **options)
    if name != "for_model":
        options["matcher"] = name.rsplit(maxsplit=1)[-1]
    return lk.LightKVConfig.for_model(model, *args, **options)


@pytest.mark.parametrize(
    ("layers", "retention"),
    [(2, 0.75), (3, 0.55), (4, 0.55), (6, 0.55), (12, 0.55), (17, 0.55), (6, 0.8), (4, 1.0)],
)
@pytest.mark.parametrize("name", ["for_model", *PARITY])
def test_presets_keep_what_is_asked_for(name: str, layers: int, retention: float) -> None:
    model = tiny_llava(layers=layers)
    config = preset(name, model, retention, positions="reindex")
    assert config.positions == "reindex"
    assert abs(layer_average(config.stages, layers) - retention) <= 0.05
    assert name == "for_model" or {stage.ratio for stage in config.stages} <= {0.5}
    with lk.attach(model, config):  # fits the model
        pass


def test_the_presets_are_the_papers_method_and_the_best() -> None:
    model = tiny_llava()
    paper, best = lk.LightKVConfig.lightkv(model), lk.LightKVConfig.for_model(model)
    assert paper.matcher is lk.graphs.cosine_matching
    assert (paper.guidance, paper.attention) == ("vision_to_text", "plain")
    assert paper.stages == find_stages(6, 0.55, (4, 4))
    assert best.matcher is lk.graphs.coverage_matching
    assert (best.guidance, best.attention) == ("text_to_vision", "mass")
    assert best.stages == one_stage(6, 0.55, (4, 4))
    assert lk.LightKVConfig.for_model(model, attention="plain").attention == "plain"


def test_flash_attention_is_given_what_it_can_do() -> None:
    with flash_on_cpu():
        model = tiny_llava(attention="flash_attention_2")
        assert lk.LightKVConfig.for_model(model).attention == "plain"
        with lk.attach(model, lk.LightKVConfig.for_model(model)):
            pass


@pytest.mark.parametrize("retention", [0.3, 0.16, 0.1])
@torch.no_grad()
def test_a_tenth_can_be_kept(retention: float) -> None:
    model = tiny_llava(side=16, layers=12)
    with lk.attach(model, lk.LightKVConfig.for_model(model, retention)) as handle:
        model(**batch(prompt(4, "image", 6, side=16), side=16))
    assert handle.ledger.retention == pytest.approx(retention, abs=0.005)
    assert all(row.observed_kv_bytes == row.planned.kv_bytes for row in handle.ledger.rows)


def test_presets_out_of_reach() -> None:
    for name in PARITY:
        with pytest.raises(lk.ScheduleError, match=r"nearest keeps 75%.*write the stages out"):
            preset(name, tiny_llava(layers=2), 0.55)
    with pytest.raises(
        lk.ScheduleError, match=r"no stage on 4 layers keeps 16%.*ask for 26% or more"
    ):
        lk.LightKVConfig.for_model(tiny_llava(layers=4), 0.16)


@pytest.mark.parametrize("field", ["message", "matcher"])
def test_names_stand_for_what_they_name(field: str) -> None:
    for name, value in {"message": MESSAGES, "matcher": MATCHERS}[field].items():
        named, given = (lk.LightKVConfig(STAGES, **{field: one}) for one in (name, value))
        assert named == given
        assert getattr(named, field) is value
        assert getattr(TokenCompressor(**{field: name}), field) is value
        short = name.removesuffix("_matching")
        assert lk.LightKVConfig(STAGES, **{field: short}) == given
        assert lk.LightKVConfig.from_json(given.to_json().replace(name, short)) == given


def test_names_that_commands_take_are_those_of_the_parts() -> None:
    assert get_args(MessageName) == tuple(MESSAGES)
    assert {f"{name}_matching" for name in get_args(MatcherName)} == set(MATCHERS)


@torch.no_grad()
def test_for_model_is_what_the_ledger_says() -> None:
    model = tiny_llava(side=16)
    config = lk.LightKVConfig.for_model(model)
    with lk.attach(model, config) as handle:
        model(**batch(prompt(4, "image", 6, side=16), side=16))
    assert handle.ledger.retention == pytest.approx(layer_average(config.stages, 6), abs=1e-4)
    assert handle.ledger.retention == pytest.approx(0.55, abs=0.01)


def test_for_model_needs_an_adapter() -> None:
    with pytest.raises(lk.UnsupportedModelError):
        lk.LightKVConfig.for_model(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
