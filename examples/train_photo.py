"""Train the photo LLaVA from the tiny one: ``python examples/train_photo.py --out my-model``."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lightkv_gnn.evaluation.photo_suite import PhotoSuite
from lightkv_gnn.evaluation.suite import Subject
from lightkv_gnn.tiny.model import export
from lightkv_gnn.tiny.photo.training import RECIPE, PhotoTrainer

SETTINGS = ("steps", "vision_steps", "decay_steps", "batch_size", "learning_rate", "seed")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name, value in asdict(RECIPE).items():
        if name in SETTINGS:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    parser.add_argument("--checkpoint", type=Path, help="folder to save the state of the run in")
    parser.add_argument("--resume", action="store_true", help="continue from --checkpoint")
    parser.add_argument("--questions", type=int, default=300, help="fresh questions a group")
    arguments = parser.parse_args()
    if arguments.resume and arguments.checkpoint is None:
        parser.error("--resume needs --checkpoint, the folder to continue from")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = replace(RECIPE, **{name: getattr(arguments, name) for name in SETTINGS})
    trainer = PhotoTrainer(recipe, arguments.device)
    if arguments.resume:
        trainer.resume(arguments.checkpoint)
    trainer.run(arguments.checkpoint)
    suite, subject = PhotoSuite(), Subject(trainer.model.eval(), trainer.processor)
    export(subject.model, subject.processor, arguments.out)
    for group in suite.groups:
        batches = suite.batches(subject, group, arguments.questions, 0)
        scores = [score for batch in batches for score in suite.ask(subject, group, batch)]
        print(f"{group:10} exact {sum(scores) / len(scores):.3f}", flush=True)


if __name__ == "__main__":
    main()
