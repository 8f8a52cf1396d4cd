"""The real lmms-eval, on a task and pictures of this repository; no download."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lightkv_gnn as lk
from lightkv_gnn import tiny
from lightkv_gnn.asking import scores
from lightkv_gnn.asking.prompts import as_chat, as_inputs
from lightkv_gnn.baselines import METHODS, Budget

if not find_spec("lmms_eval"):
    pytest.skip("lmms-eval is not installed", allow_module_level=True)

HERE = Path(__file__).parent
TASK = HERE.parents[1] / "examples" / "lmms_task"


def lines(file: Path) -> list[dict[str, Any]]:
    """Objects of a file with one each line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


ROWS = lines(TASK / "data/test/metadata.jsonl")

HARSH = "0:1:0.5+1:1:0.5+2:1:0.5+3:1:0.5"
PARTS = "guidance=none,message=destination_only,matcher=cosine_matching"
LOSSY = f"pretrained=tiny,schedule={HARSH},{PARTS}"
TWIN = "pretrained=tiny,lightkv_baseline=none"
FASTV = "pretrained=tiny,lightkv_baseline=fastv,retention=0.3"

RUNS: dict[str, dict[str, Any]] = {
    "twin": {"model_args": TWIN},
    "twin, in batches": {"model_args": TWIN, "batch_size": "5"},
    "lossy": {"model_args": LOSSY, "batch_size": "4"},
    "31": {"model_args": LOSSY, "limit": 31},
    "fastv": {"model_args": f"{FASTV},agreement=True"},
    "choices": {
        "model_args": LOSSY,
        "tasks": ["lightkv_choices"],
        "force_simple": True,
        "use_cache": "cache",
    },
    "given": {"model_args": LOSSY, "tasks": ["lightkv_given"], "force_simple": True},
    "simple": {"model_args": LOSSY, "batch_size": "4", "force_simple": True},
    "limited": {"model_args": LOSSY, "limit": 4, "gen_kwargs": "max_new_tokens=1,frames=2"},
}


def call(*command: object, folder: Path, **environment: str) -> str:
    """Runs a command of this Python's environment offline, and gives what it printed."""
    names = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **names, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def answers(samples: list[dict[str, Any]]) -> list[str]:
    """In the order of the documents; in files, lmms-eval writes a single answer without a list."""
    found = [sample["filtered_resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
    return [one if isinstance(one, str) else one[0] for one in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lmms")


SHAPES = sorted({row["answer"] for row in ROWS if row["group"] == "vqa"})

ASKED = f"""
dataset_path: imagefolder
dataset_kwargs:
  data_dir: {TASK / "data"}
process_docs: !function choices.of_shapes
test_split: test
doc_to_visual: !function choices.pictures
doc_to_text: question
doc_to_target: answer
"""

CHOICES = f"""{ASKED}
task: lightkv_choices
output_type: multiple_choice
doc_to_choice: {SHAPES}
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""

GIVEN = f"""{ASKED}
task: lightkv_given
output_type: loglikelihood
process_results: !function choices.of_pair
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""

FUNCTIONS = """
def of_shapes(rows):
    return rows.filter(lambda row: row["group"] == "vqa")


def pictures(row):
    return [row["image"].convert("RGB")]


def of_pair(row, results):
    value, greedy = results[0]
    return {"perplexity": value, "acc": int(greedy)}
"""


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    tasks = folder / "tasks"
    shutil.copytree(TASK, tasks)
    (tasks / "lightkv_choices.yaml").write_text(CHOICES, encoding="utf-8")
    (tasks / "lightkv_given.yaml").write_text(GIVEN, encoding="utf-8")
    (tasks / "choices.py").write_text(FUNCTIONS, encoding="utf-8")
    runs = [json.dumps(run) for run in RUNS.items()]
    return call(sys.executable, HERE / "several_runs.py", tasks, "out.json", *runs, folder=folder)


@pytest.fixture(scope="module")
def results(printed: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return found


def asked_directly(model: Any, processor: Any, cost: Any) -> tuple[list[str], list[Any]]:
    """Each question alone, by the library itself, and ``cost()`` after each."""
    found, costs = [], []
    for row in ROWS:
        with Image.open(TASK / "data/test" / row["file_name"]) as picture:
            inputs = processor(
                images=picture.convert("RGB"),
                text=tiny.format_prompt(row["question"]),
                return_tensors="pt",
            )
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=5)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        found += processor.batch_decode(new, skip_special_tokens=True)
        costs.append(cost())
    return [text.strip() for text in found], costs


def score(texts: list[str]) -> float:
    return sum(text == row["answer"] for text, row in zip(texts, ROWS, strict=True)) / len(ROWS)


def test_the_uncompressed_twin_answers_as_the_library_does(results):
    model, processor = tiny.load()
    expected, _ = asked_directly(model, processor, lambda: None)
    for name in ("twin", "twin, in batches"):
        assert answers(results[name]["samples"]["lightkv_tiny"]) == expected
        scores = results[name]["results"]["lightkv_tiny"]
        assert scores["exact_match,none"] == score(expected)
        cost = results[name]["throughput"]
        assert cost["avg_retention"] == 1
        assert cost["avg_kv_bytes"] == cost["avg_kv_bytes_full"]
    assert score(expected) > 0.9


def test_compressed_answers_and_costs_are_those_of_attach(results):
    model, processor = tiny.load()
    stages = [lk.Stage(layer, 1, 0.5) for layer in range(4)]
    parts = dict(part.split("=") for part in PARTS.split(","))
    config = lk.LightKVConfig.for_model(model, stages=stages, **parts)
    with lk.attach(model, config) as handle:
        expected, ledgers = asked_directly(model, processor, lambda: handle.ledger)
    found = results["lossy"]
    assert answers(found["samples"]["lightkv_tiny"]) == expected
    assert found["results"]["lightkv_tiny"]["exact_match,none"] == score(expected)
    assert 0.2 < score(expected) < 0.9
    assert found["throughput"]["avg_retention"] == pytest.approx(ledgers[0].retention)


def test_baselines_are_those_of_the_library(results):
    model, processor = tiny.load()
    with METHODS["fastv"].applied(model, Budget.of(model, 0.3, 0)) as applied:
        expected, bills = asked_directly(model, processor, applied.bill)
    found = results["fastv"]
    assert answers(found["samples"]["lightkv_tiny"]) == expected
    cost = found["throughput"]
    assert cost["avg_retention"] == pytest.approx(
        sum(bill.retention for bill in bills) / len(bills)
    )
    assert cost["avg_kv_bytes"] == sum(bill.kv_bytes for bill in bills) / len(bills)
    full, _ = asked_directly(model, processor, lambda: None)
    same = sum(one == other for one, other in zip(expected, full, strict=True))
    assert cost["avg_agreement"] == same / len(full)
    assert 0 < cost["avg_method_seconds"] < cost["avg_seconds_to_first_token"]
    assert cost["avg_effective_rank"] < results["twin"]["throughput"]["avg_effective_rank"]


def test_the_simple_model_answers_and_pays_as_the_one_for_conversations(results):
    simple, lossy = results["simple"], results["lossy"]
    assert answers(simple["samples"]["lightkv_tiny"]) == answers(lossy["samples"]["lightkv_tiny"])
    for name in ("total_gen_tokens", "avg_retention", "avg_kv_bytes"):
        assert simple["throughput"][name] == lossy["throughput"][name]


def scored_directly() -> list[list[scores.Score]]:
    """Of each question about a shape, every shape, by a compressed model, which gets some wrong."""
    model, processor = tiny.load()
    stages = [lk.Stage(layer, 1, 0.5) for layer in range(4)]
    parts = dict(part.split("=") for part in PARTS.split(","))
    found = []
    with lk.attach(model, lk.LightKVConfig.for_model(model, stages=stages, **parts)):
        for row in ROWS:
            if row["group"] != "vqa":
                continue
            with Image.open(TASK / "data/test" / row["file_name"]) as picture:
                inputs = as_inputs(model, processor, picture.convert("RGB"), row["question"])
            text = as_chat(processor, row["question"])
            ids = [scores.answer_ids(processor.tokenizer, text, shape) for shape in SHAPES]
            found.append(scores.score(model, inputs, ids))
    return found


def test_choices_and_given_answers_are_as_likely_as_the_library_says(results):
    found = scored_directly()
    answers = [row["answer"] for row in ROWS if row["group"] == "vqa"]
    right = 0
    for sample, own, answer in zip(
        results["choices"]["samples"]["lightkv_choices"], found, answers, strict=True
    ):
        said = [float(value) for value, _ in sample["filtered_resps"]]
        assert said == pytest.approx([-one.log_likelihood for one in own], abs=1e-4)
        right += SHAPES[max(range(len(SHAPES)), key=lambda n: own[n].log_likelihood)] == answer
    assert 0.2 < right / len(found) < 1
    assert results["choices"]["results"]["lightkv_choices"]["acc,none"] == right / len(found)

    given = [own[SHAPES.index(answer)] for own, answer in zip(found, answers, strict=True)]
    metrics = results["given"]["results"]["lightkv_given"]
    mean = sum(one.log_likelihood for one in given) / len(given)
    assert metrics["perplexity,none"] == pytest.approx(math.exp(-mean), rel=1e-4)
    assert metrics["acc,none"] == sum(one.greedy for one in given) / len(given)
    for name in ("choices", "given"):
        assert results[name]["throughput"]["avg_retention"] < 0.5


def test_costs_stand_beside_the_scores(results):
    for name, found in results.items():
        cost = found["throughput"]
        assert cost["total_gen_tokens"] > 0
        assert 0 < cost["avg_seconds_to_first_token"] < cost["total_elapsed_time"], name
        assert cost["avg_kv_bytes"] <= cost["avg_kv_bytes_full"]
    counts = results["lossy"]["samples"]["lightkv_tiny"][0]["token_counts"][0]
    assert counts["input_tokens"] > 256
    assert 0 < counts["output_tokens"] <= 5


def test_options_of_the_command_line_reach_generate(results, printed):
    found = results["limited"]
    assert found["throughput"]["total_gen_tokens"] == 4
    assert printed.count("generate has no option frames, which is ignored") == 1


@pytest.fixture(scope="module")
def in_two_processes(folder: Path) -> str:
    """The documented command with accelerate, on a CPU; gives what it printed."""
    return call(
        *(Path(sys.executable).with_name("accelerate"), "launch"),
        *("--multi_gpu", "--num_processes", 2, "--num_machines", 1),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0),
        *("-m", "lmms_eval", "--model", "lightkv", "--model_args", LOSSY),
        *("--tasks", "lightkv_tiny", "--include_path", TASK, "--limit", 31),
        *("--output_path", "two", "--log_samples"),
        folder=folder,
        ACCELERATE_USE_CPU="true",
    )


def test_two_processes_answer_and_pay_as_one(in_two_processes, folder, results):
    """Of 31 questions one process has 16, and the other is given one of its 15 twice."""
    (file,) = (folder / "two").rglob("*_results.json")
    (samples,) = (folder / "two").rglob("*_samples_lightkv_tiny.jsonl")
    one, two = results["31"], json.loads(file.read_text(encoding="utf-8"))
    assert answers(lines(samples)) == answers(one["samples"]["lightkv_tiny"])
    for name, value in one["results"]["lightkv_tiny"].items():
        assert two["results"]["lightkv_tiny"][name] == pytest.approx(value)
    for name in ("total_gen_tokens", "avg_retention", "avg_kv_bytes", "avg_kv_bytes_full"):
        assert two["throughput"][name] == pytest.approx(one["throughput"][name])
        assert f"|{name}" in in_two_processes
    assert two["throughput"]["avg_seconds_to_first_token"] > 0
    assert "Running on rank 1" in in_two_processes
