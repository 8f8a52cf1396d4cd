"""Train the bundled tiny LLaVA from scratch: ``python examples/train_tiny.py --out weights``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from lightkv_gnn.tiny import GROUPS, accuracy
from lightkv_gnn.tiny.model import export
from lightkv_gnn.tiny.recipe import Recipe
from lightkv_gnn.tiny.training import Trainer

SETTINGS = ("steps", "vision_steps", "decay_steps", "batch_size", "learning_rate", "seed")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name, value in asdict(Recipe()).items():
        if name in SETTINGS:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    parser.add_argument("--checkpoint", type=Path, help="folder to save the state of the run in")
    parser.add_argument("--resume", action="store_true", help="continue from --checkpoint")
    parser.add_argument("--questions", type=int, default=1000, help="fresh questions a group")
    arguments = parser.parse_args()
    if arguments.resume and arguments.checkpoint is None:
        parser.error("--resume needs --checkpoint, the folder to continue from")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = Recipe(**{name: getattr(arguments, name) for name in SETTINGS})
    trainer = Trainer(recipe, arguments.device)
    if arguments.resume:
        trainer.resume(arguments.checkpoint)
    trainer.run(arguments.checkpoint)
    model, processor = trainer.model.eval(), trainer.processor
    export(model, processor, arguments.out)
    for first in (True, False):
        for group in GROUPS:
            got = accuracy(model, processor, group, arguments.questions, 0, image_first=first)
            low, high = got.interval()
            order = "picture first" if first else "question first"
            shown = f"exact {got.accuracy:.3f} [{low:.3f}, {high:.3f}] F1 {got.f1:.3f}"
            print(f"{order:14} {group:13} {shown}", flush=True)


if __name__ == "__main__":
    main()
