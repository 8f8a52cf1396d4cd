"""What docs/lmms-eval.md says is so: its commands, tasks, arguments and names."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from lightkv_gnn.baselines.inspection import Seen
from lightkv_gnn.harness.account import Account
from lightkv_gnn.harness.arguments import BASELINES, KNOWN, Arguments
from lightkv_gnn.harness.compression import Cost

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "lmms-eval.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line) for block in BLOCKS for line in block.splitlines() if "--model " in line
]
EIGHT = (
    "coco2017_cap_val",
    "gqa",
    "mme",
    "nocaps_val",
    "pope",
    "seedbench",
    "vizwiz_vqa_val",
    "scienceqa_img",
)

installed = pytest.mark.skipif(not find_spec("lmms_eval"), reason="lmms-eval is not installed")


def value(command, option):
    return command[command.index(option) + 1]


def test_each_benchmark_of_the_paper_has_a_command():
    section = PAGE.partition("## The eight benchmarks")[2].partition("```bash\n")[2]
    lines = section.partition("```")[0].splitlines()
    assert tuple(value(shlex.split(line), "--tasks") for line in lines) == EIGHT


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_arguments_of_commands_are_read(command):
    given = dict(pair.split("=", 1) for pair in value(command, "--model_args").split(","))
    assert Arguments.of(given).pretrained == given["pretrained"]


def test_every_argument_is_in_the_table():
    table = PAGE.partition("## Arguments")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", table)) | {"batch_size", "device"}
    assert set(KNOWN) <= named
    told = table.partition("a method instead of LightKV: ")[2].partition(" |")[0]
    assert re.findall(r"`(\w+)`", told) == list(BASELINES)


def test_every_reported_name_is_in_the_table():
    table = PAGE.partition("## What is reported")[2].partition("\n## ")[0]
    account = Account.of(1, Cost(1, 1, 1, 1), 1, 1, Seen(1.0, [1.0], [1.0]))
    reported = (account + Account.of_agreement(["yes"], ["yes"])).metrics()
    assert len(reported) == 8
    assert {f"avg_{name}" for name in reported} <= set(re.findall(r"`(\w+)`", table))


class Loader(yaml.SafeLoader):
    """Reads lmms-eval's tasks without importing what they name."""


Loader.add_multi_constructor("!function", lambda loader, suffix, node: None)


@installed
def test_the_harness_has_the_tasks_and_they_ask_for_text():
    (folder,) = find_spec("lmms_eval").submodule_search_locations
    found = {}
    for task in EIGHT:
        named = re.compile(rf"^task\s*:\s*[\"']?{task}[\"']?\s*$", re.MULTILINE)
        files = Path(folder, "tasks").rglob("*.yaml")
        (file,) = [file for file in files if named.search(file.read_text(encoding="utf-8"))]
        said = yaml.load(file.read_text(encoding="utf-8"), Loader)
        template = said.get("include")
        if template:
            text = (file.parent / template).read_text(encoding="utf-8")
            said = yaml.load(text, Loader) | said
        found[task] = said["output_type"]
    assert found == dict.fromkeys(EIGHT, "generate_until")


PARSE = """
import json, sys
from lmms_eval.__main__ import parse_eval_args
from lmms_eval.models import get_model_manifest
from lmms_eval.utils import simple_parse_args_string
found = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["lmms-eval", *command]
    _, args = parse_eval_args()
    found.append([args.model, args.tasks, simple_parse_args_string(args.model_args)])
print(json.dumps([found, get_model_manifest("lightkv").chat_class_path]))
"""


@installed
def test_the_harness_takes_the_commands():
    """Its own parser reads them, as we do, and its registry has the model."""
    ours = [command[command.index("--model") :] for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", PARSE, json.dumps(ours)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, path = json.loads(done.stdout.splitlines()[-1])
    assert path == "lightkv_gnn.harness.lmms.LightKV"
    for command, (model, tasks, arguments) in zip(ours, found, strict=True):
        assert (model, tasks) == ("lightkv", value(command, "--tasks"))
        Arguments.of(arguments)


def test_whoever_starts_lmms_eval_waits_for_nothing_of_ours():
    """The entry point is loaded for whatever model."""
    heavy = "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    code = f"import sys, lightkv_gnn.harness as ours; ours.manifest; {heavy}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
