"""The command ``lightkv-gnn bench-all``: checks a device, and measures everything on it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightkv_gnn.bench import command
from lightkv_gnn.evaluation import machine

TOGETHER = ["ours", "lean", "triton", "graphed", "floor"]
LARGE = ["llava-1.5-7b", "llava-next-7b", "llava-next-13b", "qwen2.5-vl-7b"]

ON_A_GPU: Mapping[str, Sequence[str]] = {
    "check": ["check", "--shape", "mid"],
    "stage": ["stage", "--subject", *TOGETHER],
    "compiled": [
        *("stage", "--tokens", "2880", "--channels", "4096"),
        *("--subject", *TOGETHER, "compiled", "full_logits"),
    ],
    "prefill": ["prefill", "--shape", *LARGE],
    "decode": ["decode", "--shape", LARGE[0], "--batch", "1", "8", "32", "--memory", "80"],
    "growth": ["growth", "--subject", *TOGETHER],
}
"""Arguments of each part, by the name of its file."""

ON_A_CPU: Mapping[str, Sequence[str]] = {
    "check": ["check", "--tokens", "576"],
    "stage": ["stage"],
    "compiled": ["stage", "--tokens", "576", "--subject", "ours", "lean", "compiled"],
    "prefill": ["prefill"],
    "decode": ["decode", "--batch", "1", "8", "--memory", "1"],
    "growth": ["growth", "--subject", "ours", "lean"],
}


def add_parser(commands: Any) -> None:
    """Adds the command to those of a parser."""
    every = commands.add_parser("bench-all", help="check a device, and run every benchmark on it")
    every.add_argument("folder", type=Path, help="for a file of rows of each part; made")
    every.add_argument("--device", default="cpu", help="cpu or cuda")
    every.add_argument("--quick", action="store_true", help="fewer and smaller")
    every.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs all parts, each into its file.

    Raises:
        ValueError: There is no such device, or a check failed; the other parts are not run then.
        OSError: A file cannot be written.
    """
    machine.check_device(options.device)
    options.folder.mkdir(parents=True, exist_ok=True)
    on_gpu = options.device.startswith("cuda")
    common = ["--device", options.device, "--dtype", "bfloat16" if on_gpu else "float32"]
    common += ["--quick"] if options.quick else []
    for name, arguments in (ON_A_GPU if on_gpu else ON_A_CPU).items():
        file = options.folder / f"{name}.json"
        print(f"== {name}: {file}", flush=True)
        measure([*arguments, *common, "--out", str(file)])
        if name == "check":
            rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
            failed = [row["check"] for row in rows if row["passed"] is False]
            if failed:
                raise ValueError(f"on {options.device} this does not hold: {'; '.join(failed)}")


def measure(arguments: Sequence[str]) -> None:
    """Runs ``lightkv-gnn bench`` with these arguments."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    options = parser.parse_args(["bench", *arguments])
    options.command = " ".join(["lightkv-gnn bench", *arguments])
    options.run(options)
