"""Runs the evaluations on these pages: ``python docs/evidence/run.py NAME...`` (all if none).

Each is one command or two, ``lightkv-gnn eval``, whose page ``lightkv-gnn report`` makes; this
script keeps their options.  A run that was stopped goes on where it was.  With ``--device cuda``
the same runs on a GPU.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from lightkv_gnn.commands.cli import main as lightkv_gnn

FOLDER = Path(os.path.relpath(Path(__file__).parent))

SEEDS = "--seeds 0 1 2 3 4"


CUED = f"--suite cued {SEEDS} --questions 500 --retention 0.6 0.47 --ablation"
FIELD = (
    "ours coverage guided mean random_pruning stride pooling fastv window_fastv pyramid_drop "
    "sparsevlm_like divprune_like scope_like cdpruner_like anchorprune_like d2pruner_like "
    "apet_like visiontrim_like visionzip_like"
)
"""Methods that are published, and what to compare them with."""

TINY = "--suite tiny --group hallucination --questions 500 --ablation"


RUNS = {
    "cued": [f"--suite cued {SEEDS}"],
    "tiny": [
        "--suite tiny --group vqa hallucination --retention 0.55 0.3",
        "--suite tiny --group reasoning captioning --retention 0.55 --methods guided "
        "vision_to_text mean random_pruning fastv pyramid_drop divprune_like oracle",
    ],
    "coverage": [
        f"--suite cued counting second_question dense plain two_images {SEEDS} "
        "--questions 300 --retention 0.75 0.55 0.4 --methods ours coverage_mass coverage "
        "guided_mass guided vision_to_text divprune_like fastv",
        "--suite tiny --questions 300 --retention 0.75 0.55 0.3 0.2 0.16 --methods ours "
        "coverage_mass coverage guided_mass guided vision_to_text divprune_like fastv",
    ],
    "matcher": [
        "--suite cued counting --seeds 0 1 2 --questions 300 --retention 0.55 0.4 "
        "--ablation matcher",
        "--suite tiny --group captioning --questions 300 --retention 0.3 0.2 --ablation matcher",
    ],
    "default": [
        f"--suite cued counting second_question {SEEDS} --questions 300 --retention 0.55 0.4 "
        "--ablation default",
        "--suite tiny --group captioning --questions 300 --retention 0.3 0.2 --ablation default",
        "--suite tiny --group captioning --questions 300 --retention 0.75 0.55 --methods ours "
        "--depth 0 1 2 3 4 5",
    ],
    "field": [
        "--suite cued counting --seeds 0 1 2 --questions 300 --retention 0.55 0.4 "
        f"--methods {FIELD}",
        f"--suite tiny --group captioning vqa --questions 300 --retention 0.3 --methods {FIELD}",
    ],
    "photographs": [
        f"--suite cued counting second_question --background photo {SEEDS} --questions 300 "
        "--retention 0.75 0.6 0.47 --methods ours guided coverage divprune_like fastv "
        "random_pruning",
    ],
    "photo": [
        "--suite photo --questions 200 --retention 0.55 0.3 0.16 --methods ours guided coverage "
        "divprune_like fastv scope_like random_pruning",
        *(
            f"--suite photo --group list --questions 200 --retention 0.16 --ablation {choice}"
            for choice in ("default", "matcher")
        ),
    ],
    "limits": [
        "--suite counting second_question dense --seeds 0 1 2 --questions 256 "
        "--methods guided mean mass_mean fastv oracle"
    ],
    "free": [
        "--suite plain two_images --seeds 0 1 2 --questions 500 "
        "--methods guided vision_to_text mean fastv oracle"
    ],
    "rectangles": [
        f"--suite rectangles --retention 0.47 --seeds 0 1 2 --questions 500 --ablation {choice}"
        for choice in ("geometry", "positions")
    ]
    + [
        "--suite rectangles --retention 0.55 0.47 --seeds 0 1 2 --questions 500 --methods ours "
        "coverage_mass coverage guided divprune_like fastv"
    ],
    **{
        choice: [f"{CUED} {choice}", f"{TINY} {choice} --retention 0.3"]
        for choice in ("guidance", "prompt", "message", "positions")
    },
    **{
        choice: [
            f"--suite cued counting second_question dense plain two_images {SEEDS} "
            f"--questions 300 --retention 0.55 0.4 --ablation {choice}",
            "--suite tiny --group captioning --questions 300 --retention 0.55 0.3 0.16 "
            f"--ablation {choice}",
        ]
        for choice in ("windows", "stages")
    },
    "depth": ["--suite tiny --group hallucination captioning --questions 300 --ablation depth"],
}
"""Options of ``lightkv-gnn eval`` for each page."""


def main() -> int:
    """Runs what is named, and makes its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--models", default="lightkv-models", help="folder of trained models")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(RUNS)):
        parser.error(f"there is no {unknown[0]}: expected some of {', '.join(RUNS)}")
    for name in arguments.names or RUNS:
        folder = FOLDER / name
        place = ["--device", arguments.device, "--models", arguments.models, "--out", str(folder)]
        commands = [["eval", *shlex.split(options), *place] for options in RUNS[name]]
        page = ["report", str(folder / "rows.jsonl"), "--out", str(folder), "--title", name]
        for command in (*commands, page):
            print(shlex.join(["lightkv-gnn", *command]), file=sys.stderr)
            if status := lightkv_gnn(command):
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
