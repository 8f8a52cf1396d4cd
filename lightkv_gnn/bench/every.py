"""Everything that is measured on a device, after what has to hold on it was checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lightkv_gnn import machine

TOGETHER = ["ours", "coverage", "lean", "triton", "coverage_triton", "graphed", "floor"]
LARGE = ["llava-1.5-7b", "llava-next-7b", "llava-next-13b", "qwen2.5-vl-7b"]

ON_A_GPU: Mapping[str, Sequence[str]] = {
    "check": ["check", "--shape", "mid"],
    "check_ragged": [
        *("check", "--shape", "small", "--tokens", "576", "--channels", "4096"),
        *("--batch", "4", "--ragged"),
    ],
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


def run_all(
    folder: Path,
    device: str,
    measure: Callable[[Sequence[str]], None],
    *,
    quick: bool,
) -> list[Path]:
    """Runs all parts, each into its file.

    Args:
        folder: For the files; made.
        device: To measure on.
        measure: Runs ``lightkv-gnn bench`` with the arguments it is given.
        quick: Fewer and smaller.

    Raises:
        ValueError: There is no such device, or a check failed; the other parts are not run then.
        OSError: A file cannot be written.
    """
    machine.check_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = device.startswith("cuda")
    common = ["--device", device, "--dtype", "bfloat16" if on_gpu else "float32"]
    common += ["--quick"] if quick else []
    files = []
    for name, arguments in (ON_A_GPU if on_gpu else ON_A_CPU).items():
        files.append(folder / f"{name}.json")
        print(f"== {name}: {files[-1]}", flush=True)
        measure([*arguments, *common, "--out", str(files[-1])])
        if name.startswith("check"):
            rows = json.loads(files[-1].read_text(encoding="utf-8"))["rows"]
            failed = [row["check"] for row in rows if row["passed"] is False]
            if failed:
                raise ValueError(f"on {device} this does not hold: {'; '.join(failed)}")
    return files
