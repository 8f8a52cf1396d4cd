"""Compare a method of your own with the library's: ``python examples/own_method.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lightkv_gnn.baselines import METHODS, StageMethod
from lightkv_gnn.evaluation.runner import Evaluation
from lightkv_gnn.evaluation.suites import SUITES
from lightkv_graphs import Matching, WindowPartition, drop_lowest


def drop_smooth(x: Tensor, partition: WindowPartition) -> Matching:
    """Drops the tokens that differ least from the one before them in raster order."""
    change = (x - x.roll(1, dims=0)).norm(dim=1)
    return drop_lowest(change, x, partition)


smooth = StageMethod("smooth", "mine", {"guidance": "none", "matcher": drop_smooth})


def main() -> None:
    """Asks the tiny model the same questions with each method, and prints what comes out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("lightkv-eval"), help="folder of rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    evaluation = Evaluation(
        suites={SUITES["tiny"](): ["vqa"]},
        methods=[METHODS["guided"], METHODS["mean"], smooth],
        retentions=[0.3],
        depths=[0],
        seeds=[0],
        questions=arguments.questions,
    )
    for row in evaluation.run(arguments.out, models=Path("lightkv-models")):
        print(
            f"{row.method:8} {row.accuracy:6.1%} [{row.low:.1%}, {row.high:.1%}], "
            f"retention {row.held:.1%}, prefill FLOPs {row.flops_ratio:.0%}"
        )


if __name__ == "__main__":
    main()
