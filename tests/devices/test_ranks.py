"""Tensor parallelism: two processes with half of the heads each merge like one with all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import families.inputs
import pytest
import torch
from families.inputs import PICTURES
from families.models import tiny
from models import batch, near, prompt, tiny_llava
from rank_worker import CASES

import lightkv_gnn as lk
from lightkv_gnn.stage.ranks import Ranks

pytest.importorskip("accelerate", reason="transformers splits models with accelerate's help")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLE = str(ROOT / "examples" / "split_heads.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def launched(*arguments: str) -> str:
    """What processes print that Python starts."""
    ours = [str(folder) for folder in (ROOT, ROOT / "graphs")]
    path = os.pathsep.join([*ours, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    told = [line for line in done.stderr.splitlines() if "[rank" in line]
    assert done.returncode == 0, "\n".join(told) or done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with what the worker found, and what the example printed."""
    folder = tmp_path_factory.mktemp("ranks")
    qwen = tiny("qwen2_5_vl")
    picture = PICTURES["qwen2_5_vl"][0]
    inputs = {
        "llava": batch(prompt(4, "image", 6), prompt(2, "image", 1, "image", 3, seed=1)),
        "qwen2_5_vl": families.inputs.batch("qwen2_5_vl", qwen, (4, picture, 6), (9,)),
    }
    for name, model in {"llava": tiny_llava(), "qwen2_5_vl": qwen}.items():
        model.save_pretrained(folder / name)
        torch.save(inputs[name], folder / name / "inputs.pt")
    scripts = [[str(HERE / "rank_worker.py"), str(folder)], [EXAMPLE]]
    return folder, launched(str(HERE / "side_by_side.py"), json.dumps(scripts))


@pytest.fixture(scope="module")
def found(ran: tuple[Path, str]) -> dict[str, dict[str, Any]]:
    """What the model gave in one piece, and on each of two processes."""
    return {name: torch.load(ran[0] / f"{name}.pt") for name in ("whole", "rank-0", "rank-1")}


@pytest.mark.parametrize("case", CASES)
def test_processes_merge_alike(found: dict[str, dict[str, Any]], case: str) -> None:
    """To the bit: each goes on with its own copy of what is left."""
    first, second = found["rank-0"][case], found["rank-1"][case]
    for name in ("survivors", "weights", "guidance"):
        for one, other in zip(first[name], second[name], strict=True):
            assert torch.equal(one, other), name
    assert torch.equal(first["tokens"], second["tokens"])
    assert torch.equal(first["logits"], second["logits"])
    assert first["ledger"] == second["ledger"]
    assert first["lost"] == second["lost"]
    assert bool(first["lost"]) == (case == "coverage with mass")


@pytest.mark.parametrize("case", CASES)
def test_they_merge_like_one(found: dict[str, dict[str, Any]], case: str) -> None:
    whole, split = found["whole"][case], found["rank-0"][case]
    for one, other in zip(whole["survivors"], split["survivors"], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole["guidance"], split["guidance"], strict=True):
        near(one, other, 1e-4)
    assert torch.equal(whole["tokens"], split["tokens"])
    near(split["logits"], whole["logits"], 2e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_ledger_tells_of_all_of_them(found: dict[str, dict[str, Any]], case: str) -> None:
    """It is that of one process, of whose keys and values each holds a half."""
    assert found["rank-0"][case]["ledger"] == found["whole"][case]["ledger"]
    for rank in ("rank-0", "rank-1"):
        assert 2 * found[rank][case]["kv heads"] == found["whole"][case]["kv heads"]


def test_sharded_weights_change_nothing(found: dict[str, dict[str, Any]]) -> None:
    """FSDP brings a layer's weights together before it runs."""
    whole = found["whole"]["forward"]
    for rank in ("rank-0", "rank-1"):
        sharded = found[rank]["sharded"]
        assert torch.equal(sharded["logits"], whole["logits"])
        assert sharded["ledger"] == whole["ledger"]


def test_gradients_are_those_of_one(found: dict[str, dict[str, Any]]) -> None:
    whole, split = found["whole"]["gradients"], found["rank-1"]["gradients"]
    assert whole.keys() == split.keys()
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0
        near(split[name], gradient, 1e-4)


@pytest.mark.parametrize("torchrun", [False, pytest.param(True, marks=pytest.mark.full)])
def test_the_example_runs(ran: tuple[Path, str], torchrun: bool) -> None:
    printed = launched(*TORCHRUN, EXAMPLE) if torchrun else ran[1]
    assert "MergeTrace(vision tokens 256 -> 124, after layers [0])" in printed
    assert "this process has 2 heads" in printed
    assert "merged alike on all processes: True" in printed


def test_heads_that_were_split_by_others_are_noticed() -> None:
    """Alone, a process would merge by what it has of them."""
    ranks = Ranks(heads=4)
    ranks.check(torch.zeros(1, 4, 5, 2))
    with pytest.raises(lk.UnsupportedInputError, match=r"2 heads here, expected 4, of 4 on 1 proc"):
        ranks.check(torch.zeros(1, 2, 5, 2))
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    attention = model.model.language_model.layers[1].self_attn
    attention.num_key_value_groups = 1
    attention.q_proj = torch.nn.Linear(64, 32, bias=False)
    with (
        lk.attach(model, lk.LightKVConfig([lk.Stage(1, 2)])),
        pytest.raises(lk.UnsupportedInputError, match="else than transformers' own plan"),
    ):
        model(**inputs)
