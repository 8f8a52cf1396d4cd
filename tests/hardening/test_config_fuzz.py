"""Whatever a configuration file holds: a configuration, or an error that says what is wrong."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import repeatable

import lightkv_gnn as lk
from lightkv_gnn.choices import GUIDANCE
from lightkv_gnn.stage.compressor import MATCHERS
from lightkv_gnn.stage.messages import MESSAGES

FIELDS = [*lk.LightKVConfig.__dataclass_fields__]
WHERE = re.compile("|".join([*FIELDS, "Stage", "configuration"]))
WANTED = re.compile("expected|needs stages|counted from 0")
WORDS = [*FIELDS, *GUIDANCE, *MESSAGES, *MATCHERS, "layer", "windows", "ratio", "torch", "reindex"]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([10**30, -(10**400), 1000, 1001]),
    st.floats(),
    st.sampled_from([*WORDS, "", "both", "0.5", "\x00", "ÄÖ"]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=6,
)
stages = st.lists(
    st.fixed_dictionaries(
        {"layer": st.integers(0, 9), "windows": st.integers(1, 4)},
        optional={"ratio": st.sampled_from([0, 0.25, 0.5])},
    ),
    max_size=3,
    unique_by=lambda stage: stage["layer"],
).map(lambda found: sorted(found, key=lambda stage: stage["layer"]))
legal = st.fixed_dictionaries(
    {"stages": stages},
    optional={
        "guidance": st.sampled_from(GUIDANCE),
        "rotary": st.booleans(),
        "message": st.sampled_from([*MESSAGES]),
        "matcher": st.sampled_from([*MATCHERS]),
        "positions": st.sampled_from(["preserve", "reindex"]),
        "scatter": st.sampled_from(["torch", "torch_scatter"]),
    },
)


@st.composite
def mutated(draw: Any) -> Any:
    """A configuration in which up to three things were changed, left out or added."""
    config = copy.deepcopy(draw(legal))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = config
        while place and draw(st.booleans()):
            inner = place[draw(st.sampled_from([*keys_of(place)]))]
            if not isinstance(inner, (dict, list)):
                break
            place = inner
        if isinstance(place, list):
            place.insert(draw(st.integers(0, len(place))), draw(values))
        elif place and draw(st.booleans()):
            del place[draw(st.sampled_from([*place]))]
        else:
            place[draw(st.sampled_from(WORDS))] = draw(values)
    return config


def keys_of(place: dict[str, Any] | list[Any]) -> Any:
    return range(len(place)) if isinstance(place, list) else place


def check_loading(load: Any, given: Any) -> None:
    """It gives a configuration that can be written and read again, or one of two errors."""
    config, words = None, ""
    try:
        config = load(given)
    except (ValueError, TypeError) as error:
        words = str(error)
    if config is None:
        assert WHERE.search(words)
        assert WANTED.search(words)
        return
    assert lk.LightKVConfig.from_json(config.to_json()) == config


@given(config=legal)
@repeatable(50)
def test_legal_configurations_are_read(config: dict[str, Any]) -> None:
    found = lk.LightKVConfig.from_dict(config)
    for name in set(config) - {"stages"}:
        assert found.to_dict()[name] == config[name]
    assert [(s.layer, s.windows) for s in found.stages] == [
        (s["layer"], s["windows"]) for s in config["stages"]
    ]
    assert lk.LightKVConfig.from_json(json.dumps(config)) == found


@given(config=mutated())
@repeatable(400)
def test_mutated_configurations(config: Any) -> None:
    check_loading(lk.LightKVConfig.from_dict, config)
    check_loading(lk.LightKVConfig.from_json, json.dumps(config))


@given(anything=values)
@repeatable(200)
def test_anything_else(anything: Any) -> None:
    check_loading(lk.LightKVConfig.from_dict, anything)
    check_loading(lk.LightKVConfig.from_json, json.dumps(anything))


@given(config=legal, data=st.data())
@repeatable(200)
def test_damaged_files(config: dict[str, Any], data: st.DataObject) -> None:
    """A file cut short, or with characters lost, doubled or replaced."""
    text = json.dumps(config)
    place = data.draw(st.integers(0, len(text)))
    junk = data.draw(st.sampled_from(["", "}", "]", "[", ",", "NaN", "-", "1e999", "\x00"]))
    end = data.draw(st.sampled_from([place, min(place + 1, len(text)), len(text)]))
    damaged = text[:place] + junk + text[end:]
    try:
        json.loads(damaged)
    except ValueError:
        with pytest.raises(ValueError, match=r"expected a configuration as JSON, but: .*line \d"):
            lk.LightKVConfig.from_json(damaged)
    else:
        check_loading(lk.LightKVConfig.from_json, damaged)
