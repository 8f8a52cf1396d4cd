"""One table of mistakes: each is refused in words that say what was expected and what came."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import batch, greedy, left_untouched, prompt, tiny_llava
from reference import features, make_layout
from torch import nn
from torch_geometric.nn import SAGEConv, SimpleConv

import lightkv_gnn as lk
from lightkv_gnn.baselines import METHODS, Budget, progressive, single
from lightkv_gnn.bench.measure import side_by_side
from lightkv_gnn.commands.cli import main
from lightkv_gnn.evaluation.rows import Row, write_rows
from lightkv_gnn.evaluation.runner import Evaluation
from lightkv_gnn.machine import check_device, threads
from lightkv_gnn.stage.guidance import GuidanceBlock, prompt_guidance
from lightkv_gnn.stage.scatter import backend
from lightkv_graphs import (
    Matching,
    PromptMatching,
    Tile,
    TokenLayout,
    plan_stage,
    window_partition,
)

STAGES = [lk.Stage(1, 2, 0.5)]
CONFIG = lk.LightKVConfig(STAGES)
LAYOUT = make_layout([[(4, 4)]])
PLAN = plan_stage(LAYOUT.occupancy, 2, 0.5)
X, GUIDANCE = features(LAYOUT)
PICTURE = [prompt(4, "image", 6)]

Refused = tuple[str, Callable[[], Any], type[Exception], str]


def config(**options: Any) -> Callable[[], Any]:
    return lambda: lk.LightKVConfig(**{"stages": STAGES, **options})


def read(text: str) -> Callable[[], Any]:
    return lambda: lk.LightKVConfig.from_json(text)


def tokens(**changes: Any) -> Callable[[], Any]:
    """A layout of one row of three tokens."""
    given: dict[str, Any] = {
        "sample": torch.zeros(3, dtype=torch.int64),
        "image": torch.zeros(3, dtype=torch.int64),
        "row": torch.zeros(3, dtype=torch.int64),
        "col": torch.arange(3),
        "grids": [(1, 3)],
    }
    return lambda: TokenLayout.from_tokens(**{**given, **changes})


def compress(
    x: Any = X, layout: Any = LAYOUT, plan: Any = PLAN, guidance: Any = GUIDANCE, **options: Any
) -> Callable[[], Any]:
    return lambda: lk.TokenCompressor(**options)(x, layout, plan, guidance)


def returning(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def matching(*edges: tuple[int, int], **options: Any) -> Callable[[], Any]:
    """A matcher that returns these edges; two of each window are planned."""
    index = torch.tensor(edges).t().contiguous()
    return compress(matcher=returning(Matching(index, torch.zeros(len(edges)), **options)))


def guide(kind: Any, vision: int = 3) -> Callable[[], Any]:
    states = torch.randn(1, 2, vision + 2, 4)
    place = torch.arange(vision + 2)[None]
    real = torch.ones(1, vision + 2, dtype=torch.bool)
    parts = place[:, :vision], place[:, vision:], real[:, :vision], real[:, vision:]
    return lambda: prompt_guidance(GuidanceBlock(states, states, *parts, 0.5), kind)


def row(**changes: Any) -> Callable[[], Any]:
    kinds = {"str": "x", "int": 1, "float": 0.5}
    values = {name: kinds.get(str(f.type), []) for name, f in Row.__dataclass_fields__.items()}
    return lambda: Row.from_dict({**values, **changes})


def methods(name: str, retention: float = 0.55, depth: int = 1) -> Callable[[], Any]:
    def run() -> None:
        model = tiny_llava()
        with METHODS[name].applied(model, Budget.of(model, retention, depth)):
            pass

    return run


def evaluation(**changes: Any) -> Callable[[], Any]:
    given = {"retentions": [0.5], "depths": [0], "seeds": [0], "questions": 1}
    return lambda: Evaluation(suites={}, methods=[], **{**given, **changes})


GOOD = {"stages": [{"layer": 1, "windows": 2}]}
VALID = json.dumps(GOOD)
PAIRS = [(0, 1), (4, 5), (2, 3), (6, 7), (8, 9), (12, 13), (10, 11), (14, 15)]

TABLE: dict[str, list[Refused]] = {
    "Stage": [
        ("layer below 0", lambda: lk.Stage(-1, 1), ValueError, "layer is -1.*counted from 0"),
        ("layer no integer", lambda: lk.Stage(None, 1), TypeError, "layer is None.*an integer"),
        ("no windows", lambda: lk.Stage(1, 0), ValueError, "windows is 0: expected 1 or more"),
        ("too many windows", lambda: lk.Stage(1, 10**6), ValueError, "1000000: .*at most 1000"),
        ("windows no integer", lambda: lk.Stage(1, 2.0), TypeError, "windows is 2.0.*an integer"),
        ("ratio a percentage", lambda: lk.Stage(1, 1, 50), ValueError, "ratio is 50.*0 to 0.5"),
        ("ratio no number", lambda: lk.Stage(1, 1, None), TypeError, "ratio is None.*a number"),
        ("ratio no number at all", lambda: lk.Stage(1, 1, 1j), TypeError, "ratio is 1j.*a number"),
    ],
    "LightKVConfig": [
        ("one stage", config(stages=lk.Stage(1, 1)), TypeError, r"Stage\(.*: expected a list of"),
        ("stages a number", config(stages=3), TypeError, "stages is 3: expected a list of Stage"),
        ("stages nothing", config(stages=None), TypeError, "stages is None: expected a list"),
        ("stages of dicts", config(stages=[{}]), TypeError, r"stages holds {}: expected Stage\("),
        ("stages backwards", config(stages=[lk.Stage(2, 1), *STAGES]), ValueError, "ascending"),
        ("message a class", config(message=SimpleConv), TypeError, "SimpleConv.*expected a call"),
        ("matcher a class", config(matcher=PromptMatching), TypeError, "PromptM.*expected a call"),
        ("guidance a class", config(guidance=dict), ValueError, "'dict'>: expected one of"),
        ("guidance a number", config(guidance=1), ValueError, "guidance is 1: expected one of"),
        ("matcher a name", config(matcher="nearest"), ValueError, "'nearest': expected one of"),
        ("rotary a number", config(rotary=1), TypeError, "rotary is 1: expected True or False"),
        ("positions", config(positions=[]), ValueError, r"positions is \[\]: expected one of"),
        ("scatter", config(scatter="cuda"), ValueError, "scatter is 'cuda': expected one of"),
        (
            "too much with a known matcher",
            config(stages=[lk.Stage(1, 1, 0.6)], matcher=PromptMatching()),
            ValueError,
            "ratio is 0.6, but PromptMatching.*expected 0 to 0.5",
        ),
    ],
    "LightKVConfig, files": [
        ("no file", read(""), ValueError, "expected a configuration as JSON, but: Expecting"),
        ("cut short", read(VALID[:-3]), ValueError, "as JSON, but: .*line 1"),
        ("a list", read("[]"), ValueError, "a configuration is a list: expected a mapping"),
        ("null", read("null"), ValueError, "a configuration is a NoneType: expected a mapping"),
        ("endless", read("[" * 10**5), ValueError, "as JSON, but: .*recursion"),
        ("endless number", read("9" * 5000), ValueError, "as JSON, but: .*4300 digits"),
        ("no text", lambda: lk.LightKVConfig.from_json(3), TypeError, "must be str.*not int"),
        (
            "other keys",
            lambda: lk.LightKVConfig.from_dict({**GOOD, 1: 2, None: 3}),
            ValueError,
            r"a configuration has \[1, None\]: expected some of",
        ),
        (
            "a list for a name",
            lambda: lk.LightKVConfig.from_dict({**GOOD, "message": []}),
            ValueError,
            r"message is \[\]: expected a name",
        ),
    ],
    "LightKVConfig.for_model": [
        ("retention a text", lambda: fitted("0.5"), TypeError, "retention is '0.5'.*a number"),
        ("retention 0", lambda: fitted(0), lk.ScheduleError, "retention is 0: .*above 0"),
        ("retention nan", lambda: fitted(np.nan), lk.ScheduleError, "retention is nan"),
        ("retention a percentage", lambda: fitted(55), lk.ScheduleError, "retention is 55"),
        ("no model", lambda: lk.LightKVConfig.for_model(None), TypeError, "no adapter for NoneTyp"),
    ],
    "attach": [
        ("a name", lambda: attached("a/b"), TypeError, "text 'a/b', expected.*from_pretrained"),
        ("a processor", lambda: attached(Unlike()), TypeError, "model is a Unlike, expected.*Auto"),
        (
            "a pipeline",
            lambda: attached(Unlike(nn.Linear(1, 1))),
            TypeError,
            "Unlike around a model, expected.*its attribute model",
        ),
        ("a module", lambda: attached(nn.Linear(1, 1)), TypeError, "Linear, whose config names no"),
    ],
    "TokenLayout": [
        ("no rows", lambda: TokenLayout.from_grids([[(0, 3)]]), ValueError, "0x3 .*1x1 or more"),
        ("samples left out", lambda: TokenLayout.from_grids([(4, 4)]), TypeError, "each sample a"),
        ("one side", lambda: TokenLayout.from_tiles([[(2,)]]), TypeError, r"Tile\(rows, cols\)"),
        ("halves", lambda: TokenLayout.from_tiles([[(1.5, 2)]]), TypeError, "of integers"),
        ("nothing", lambda: TokenLayout.from_tiles(None), TypeError, "tiles is None: expected"),
        ("texts", lambda: TokenLayout.from_tiles([["ab"]]), TypeError, "tiles is .*of integers"),
        (
            "less than nothing around",
            lambda: TokenLayout.from_tiles([[Tile(1, 1, -1)]]),
            ValueError,
            r"\(-1, 0, 0\) around it: expected 1x1 or more, and 0 or more around",
        ),
        ("a list", tokens(sample=[0, 0, 0]), TypeError, "sample is of list: expected a tensor"),
        ("fractions", tokens(row=torch.rand(3)), TypeError, "row is of torch.float32: expected"),
        ("shape", tokens(col=torch.arange(2)), ValueError, r"col has shape \[2\]: expected \[tok"),
        ("outside", tokens(col=torch.arange(1, 4)), ValueError, "token 2 .*outside its image's"),
        ("twice", tokens(col=torch.tensor([0, 1, 1])), ValueError, "token 2 .*duplicate"),
        ("backwards", tokens(col=torch.tensor([2, 1, 0])), ValueError, "token 1 .*raster order"),
        ("no mass", tokens(mass=torch.zeros(3).long()), ValueError, "token 0 .*mass below 1"),
        ("one grid too many", tokens(grids=[(1, 3), (1, 1)]), ValueError, "image 1 has no tokens"),
    ],
    "plan_stage": [
        ("no windows", lambda: plan_stage(LAYOUT.occupancy, 0, 0.5), ValueError, "at least one"),
        ("windows", lambda: plan_stage(LAYOUT.occupancy, 1.5, 0.5), TypeError, "is 1.5: .*integer"),
        ("ratio", lambda: plan_stage(LAYOUT.occupancy, 1, 1.5), ValueError, "ratio is 1.5: expect"),
        ("no ratio", lambda: plan_stage(LAYOUT.occupancy, 1, "x"), TypeError, "is 'x': .*number"),
        ("a layout", lambda: plan_stage(LAYOUT, 1, 0.5), TypeError, "expected .*layout.occupancy"),
        (
            "another layout",
            lambda: window_partition(make_layout([[(4, 4), (2, 2)]]), PLAN),
            ValueError,
            "made from another layout .*plan this stage from its own",
        ),
    ],
    "TokenCompressor": [
        ("features integers", compress(X.long()), TypeError, "x is of torch.int64: .*floating"),
        ("features complex", compress(X + 0j), TypeError, "x is of torch.complex128: .*floating"),
        ("features a list", compress(X.tolist()), TypeError, "x is of list: .*floating"),
        ("one token too few", compress(X[1:]), ValueError, r"\[15, 6\]: expected .*16 tokens"),
        ("guidance integers", compress(guidance=GUIDANCE.long()), TypeError, "guidance is of torc"),
        ("guidance shape", compress(guidance=GUIDANCE[1:]), ValueError, r"\[15\]: expected \[tok"),
        ("no message", compress(message=3), TypeError, "message is 3: expected a callable"),
        ("no matcher", compress(matcher=3), TypeError, "matcher is 3: expected a callable"),
        ("scatter", compress(scatter="x"), ValueError, "scatter is 'x': expected one of"),
        ("scatter itself", lambda: backend(None), ValueError, "is None: expected one of"),
        (
            "unweighted",
            compress(message=SAGEConv(6, 6)),
            TypeError,
            "SAGEConv takes no edge_weight",
        ),
    ],
    "messages": [
        ("nothing", compress(message=returning(None)), TypeError, "a NoneType: expected a tensor"),
        ("a list", compress(message=returning([1])), TypeError, r"a list: expected .* = \[16, 6\]"),
        ("weights", compress(message=lambda i, j, w: w), ValueError, r"shape \[8\]: expected"),
        ("too wide", compress(message=lambda i, j, _: torch.cat([i, j], 1)), ValueError, "8, 12"),
    ],
    "matchers": [
        ("nothing", compress(matcher=returning(None)), TypeError, "returned .*expected a Matching"),
        (
            "lists",
            compress(matcher=returning(Matching([[0], [1]], [0.5]))),  # type: ignore[arg-type]
            TypeError,
            "returned a list as edge_index: expected a tensor",
        ),
        ("too few", matching((0, 1)), ValueError, r"\[2, 1\].*: expected \[2, 8\]"),
        ("twice", matching(*PAIRS[:7], (0, 1)), ValueError, "one source twice"),
        ("into one that leaves", matching(*PAIRS[:7], (1, 5)), ValueError, "that leaves"),
        ("out of its window", matching(*PAIRS[:7], (14, 3)), ValueError, "between windows"),
        ("no token", matching(*PAIRS[:7], (14, 16)), ValueError, r"no int64 in 0\.\.15"),
        (
            "dropped",
            matching(*PAIRS, dropped=torch.ones(3)),
            ValueError,
            r"dropped \[3\]: expected",
        ),
        ("protect", lambda: PromptMatching(protect=2), ValueError, "protect is 2: expected a fra"),
        ("protect a text", lambda: PromptMatching(protect="2"), TypeError, "'2': expected a numb"),
    ],
    "guidance": [
        ("name", guide("both"), ValueError, "guidance is 'both': expected one of"),
        ("nothing", guide(returning(None)), TypeError, r"returned NoneType: .* = \[1, 3\]"),
        ("numpy", guide(returning(np.ones((1, 3)))), TypeError, "returned ndarray: expected a ten"),
        ("complex", guide(returning(torch.ones(1, 3) + 0j)), TypeError, "torch.complex64: expec"),
        ("shape", guide(returning(torch.ones(3))), ValueError, r"\[3\]: expected .* = \[1, 3\]"),
        ("negative", guide(returning(-torch.ones(1, 3))), ValueError, "negative or not finite"),
        ("nan", guide(returning(torch.full((1, 3), torch.nan))), ValueError, "not finite"),
    ],
    "plan_prefill and seen_tiles": [
        ("no configuration", lambda: forecast(STAGES), TypeError, "expected a LightKVConfig"),
        ("no inputs", lambda: forecast(CONFIG, None), TypeError, "a NoneType: expected a mapping"),
        ("no pictures", lambda: forecast(CONFIG, batch(prompt(4))), ValueError, "no pictures in"),
        ("no bytes", lambda: forecast(CONFIG, bytes_per_value=0), ValueError, "is 0: expected 1"),
        ("no layer", lambda: forecast(lk.LightKVConfig([lk.Stage(5, 1)])), ValueError, "0 to 4"),
        ("seen: no pictures", lambda: seen(batch(prompt(4))), ValueError, "there are no pictures"),
        ("seen: no inputs", lambda: seen(3), TypeError, "inputs is a int: expected a mapping"),
        (
            "seen: no processor",
            lambda: seen(batch(*PICTURE)),
            TypeError,
            "a NoneType without image",
        ),
        ("seen: no model", lambda: lk.seen_tiles(None, None, {}), TypeError, "no adapter for None"),
    ],
    "methods": [
        ("retention", methods("fastv", 1.5), lk.ScheduleError, "retention is 1.5: expected a fr"),
        ("depth", methods("guided", depth=6), lk.ScheduleError, "depth is 6: expected a layer"),
        ("too little", methods("pyramid_drop", 0.01), lk.ScheduleError, "keep 1%|keeps? .*1%"),
        ("progressive", lambda: progressive(6, 0.0, 1), lk.ScheduleError, "retention is 0.0"),
        ("single", lambda: single(6, 0.5, -1), lk.ScheduleError, "depth is -1: expected a layer"),
    ],
    "evaluation": [
        ("row a list", lambda: Row.from_dict([]), ValueError, r"a row has the fields .*here: \[\]"),
        ("row too short", lambda: Row.from_dict({"suite": "x"}), ValueError, r"here: \['suite'\]"),
        ("row: scores", row(scores=3), ValueError, "a row's stages or scores cannot be read"),
        ("row: a score", row(scores=["x"]), ValueError, "could not convert|cannot be read"),
        ("row: stages", row(stages=[{"layer": 1}]), ValueError, "stages or scores cannot be read"),
        ("file", lambda: write_rows([], Path("rows.txt")), ValueError, "expected .jsonl or .csv"),
        ("retentions", evaluation(retentions=[0]), ValueError, "retention is 0: expected a fract"),
        ("depths", evaluation(depths=[-1]), ValueError, "depth is -1: expected a decoder layer"),
        ("questions", evaluation(questions=0), ValueError, "questions is 0: expected 1 or more"),
        ("threads", lambda: threads(0).__enter__(), ValueError, "threads is 0: expected 1 or"),
        ("device", lambda: check_device("gpu"), ValueError, "--device gpu cannot be used"),
        ("rounds", lambda: rounds(1), ValueError, "rounds is 1: expected 2 or more"),
    ],
}

CASES = [
    pytest.param(run, error, words, id=f"{group}: {name}")
    for group, refused in TABLE.items()
    for name, run, error, words in refused
]


class Unlike:
    """Not a model; may have one inside, as pipelines do."""

    def __init__(self, model: Any = None) -> None:
        self.model = model


def attached(model: Any) -> Any:
    return lk.attach(model, CONFIG)


def fitted(retention: Any) -> lk.LightKVConfig:
    return lk.LightKVConfig.for_model(tiny_llava(), retention)


def forecast(asked: Any, inputs: Any = False, **options: Any) -> Any:
    inputs = batch(*PICTURE) if inputs is False else inputs
    return lk.plan_prefill(tiny_llava(), asked, inputs, **options)


def rounds(number: int) -> Any:
    return side_by_side({"nothing": lambda: None}, torch.device("cpu"), rounds=number)


def seen(inputs: Any) -> Any:
    return lk.seen_tiles(tiny_llava(), None, inputs)


@pytest.mark.parametrize(("run", "error", "words"), CASES)
def test_mistakes_are_named(run: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run()


def test_the_cases_differ_from_what_is_right_in_one_thing() -> None:
    """What the helpers above make of nothing wrong is accepted."""
    assert config()() == CONFIG
    assert read(VALID)() == lk.LightKVConfig([lk.Stage(1, 2)])
    assert len(tokens()()) == 3
    assert len(compress()().kept) == len(matching(*PAIRS)().kept) == 8
    assert guide(returning(torch.ones(1, 3)))().weight.shape == (1, 3)
    assert row()().suite == "x"
    assert evaluation()().questions == 1
    assert forecast(CONFIG).rows
    methods("guided")()


# --- a model is as before -------------------------------------------------------------------------

GENERATING: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "stages of another model": ({"stages": [lk.Stage(6, 1)]}, lk.ScheduleError, "layer=6"),
    "windows of another model": ({"stages": [lk.Stage(1, 5)]}, lk.ScheduleError, "5 windows"),
    "message: nothing": ({"message": returning(None)}, TypeError, "the message returned a NoneTy"),
    "message: arguments": ({"message": lambda x: x}, TypeError, "positional argument"),
    "guidance: nothing": ({"guidance": returning(None)}, TypeError, "guidance callable returned"),
    "guidance: shape": ({"guidance": returning(torch.ones(2))}, ValueError, r"shape \[2\]: expec"),
    "matcher: nothing": ({"matcher": returning(None)}, TypeError, "expected a Matching"),
    "matcher: arguments": ({"matcher": lambda x: x}, TypeError, "positional argument"),
    "matcher: lists": (
        {"matcher": returning(Matching([], []))},  # type: ignore[arg-type]
        TypeError,
        "returned a list as edge_index",
    ),
}


@pytest.mark.parametrize("case", GENERATING)
def test_a_model_is_as_before(case: str) -> None:
    options, error, words = GENERATING[case]
    model, inputs = tiny_llava(), batch(*PICTURE)

    def run() -> None:
        with lk.attach(model, config(**options)()):
            greedy(model, inputs, 2)

    with left_untouched(model, inputs), pytest.raises(error, match=words):
        run()


# --- the command line -----------------------------------------------------------------------------

WRONG_OPTIONS = {
    "demo --questions 0": "'--questions': Input should be greater than or equal to 1",
    "eval --methods nothing": "'nothing'",
    "eval --questions many": "'--questions': Input should be a valid integer",
    "eval --threads 0": "'--threads': Input should be greater than or equal to 1",
    "bench nothing": "No such command 'nothing'",
    "bench stage --dtype int8": "'int8' is not one of 'float32', 'bfloat16', 'float16'",
    "bench stage --channels 0": "'--channels': Input should be greater than or equal to 1",
    "bench stage --windows -1": "'--windows': Input should be greater than or equal to 1",
    "bench growth --batch 0": "'--batch': Input should be greater than or equal to 1",
    "bench stage --rounds 0": "'--rounds': Input should be greater than or equal to 1",
    "bench decode --threads 0": "'--threads': Input should be greater than or equal to 1",
    "bench prefill --batch 2 0": "'--batch': Input should be greater than or equal to 1",
    "report": "Missing argument 'ROWS...'",
    "": "Usage: lightkv-gnn",
}
WRONG_VALUES = {
    "demo --retention nan": "retention is nan: expected a fraction",
    "demo --model nowhere/": "--model needs --image FILE",
    "eval --questions 0": "questions is 0: expected 1 or more",
    "eval --retention 7 --questions 1": "retention is 7.0: expected a fraction",
    "eval --depth -1 --questions 1": "depth is -1: expected a decoder layer",
    "eval --device abacus": "--device abacus cannot be used",
    "bench stage --tokens 0": "tokens is 0: expected 1 or more",
    "bench stage --rounds 1 --tokens 4 --batch 1": "rounds is 1: expected 2 or more",
    "bench stage --subject nobody:nothing --tokens 4": "nobody",
    "bench prefill --quick --retention 0": "retention is 0.0: expected a fraction",
    "report nowhere/rows.jsonl": "nowhere/rows.jsonl",
    "report rows.csv": "expected rows as JSON Lines",
}


@pytest.mark.parametrize("line", WRONG_OPTIONS)
def test_options_that_cannot_be(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert WRONG_OPTIONS[line] in (told.err if line else told.out + told.err)


@pytest.mark.parametrize("line", WRONG_VALUES)
def test_values_that_cannot_be(
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line of words, after a bar at most, and nothing written."""
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 1
    error = capsys.readouterr().err.splitlines()
    assert WRONG_VALUES[line] in error[-1]
    assert [text for text in error if text and "row/s" not in text] == error[-1:]
    assert not [*tmp_path.iterdir()]
