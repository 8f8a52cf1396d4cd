"""Runs the evaluations on these pages: ``python docs/evidence/run.py NAME...`` (or all).

Each is one command, ``lightkv-gnn eval``, and its page is made by ``lightkv-gnn report``; this
script keeps their arguments.  A run that was stopped goes on where it was.  ``--device cuda`` runs
the same on a GPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from lightkv_gnn.cli import main as lightkv_gnn

FOLDER = Path(__file__).parent

SEEDS = "--seeds 0 1 2 3 4"
TINY = "--suite tiny --group vqa hallucination --questions 500 --retention 0.3"

RUNS = {
    "cued": f"--suite cued {SEEDS} --depth 0 1",
    "tiny": "--suite tiny --retention 0.55 0.3",
    "limits": f"--suite counting second_question dense {SEEDS}",
    "free": f"--suite plain two_images {SEEDS}",
    "guidance": f"{TINY} --ablation guidance",
    "prompt": f"{TINY} --ablation prompt",
    "windows": f"{TINY} --ablation windows",
    "stages": f"{TINY} --ablation stages",
    "depth": f"{TINY} --ablation depth",
    "positions": f"{TINY} --ablation positions",
    "message": f"{TINY} --ablation message",
}
"""Options of ``lightkv-gnn eval``."""


def main() -> int:
    """Runs what is named, and makes its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*RUNS, []], help=f"of {', '.join(RUNS)}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--models", default="lightkv-models", help="folder of trained models")
    arguments = parser.parse_args()
    for name in arguments.names or RUNS:
        folder = FOLDER / name
        options = f"{RUNS[name]} --device {arguments.device} --models {arguments.models}"
        for command in (
            ["eval", *shlex.split(options), "--out", str(folder)],
            ["report", str(folder / "rows.jsonl"), "--out", str(folder), "--title", name],
        ):
            print("lightkv-gnn", shlex.join(command), file=sys.stderr)
            if status := lightkv_gnn(command):
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
