"""Train the bundled tiny LLaVA from scratch: ``python examples/train_tiny.py --out weights``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lightkv_gnn.tiny import GROUPS, accuracy
from lightkv_gnn.tiny.model import export
from lightkv_gnn.tiny.recipe import Recipe
from lightkv_gnn.tiny.training import Trainer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=recipe.steps)
    parser.add_argument("--vision-steps", type=int, default=recipe.vision_steps)
    parser.add_argument("--decay-steps", type=int, default=recipe.decay_steps)
    parser.add_argument("--batch-size", type=int, default=recipe.batch_size)
    parser.add_argument("--learning-rate", type=float, default=recipe.learning_rate)
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    parser.add_argument("--checkpoint", type=Path, help="folder to save the state of the run in")
    parser.add_argument("--resume", action="store_true", help="continue from --checkpoint")
    parser.add_argument("--questions", type=int, default=1000, help="fresh questions a group")
    arguments = parser.parse_args()
    if arguments.resume and arguments.checkpoint is None:
        parser.error("--resume needs --checkpoint, the folder to continue from")
    return arguments


def main() -> None:
    """Train, save, and print the accuracy on fresh pictures."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = Recipe(
        steps=arguments.steps,
        vision_steps=arguments.vision_steps,
        decay_steps=arguments.decay_steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    trainer = Trainer(recipe, arguments.device)
    if arguments.resume:
        trainer.resume(arguments.checkpoint)
    trainer.run(arguments.checkpoint)
    model = trainer.model.eval()
    export(model, trainer.processor, arguments.out)
    for image_first in (True, False):
        for group in GROUPS:
            result = accuracy(
                model, trainer.processor, group, arguments.questions, 0, image_first=image_first
            )
            low, high = result.interval()
            order = "picture first" if image_first else "question first"
            print(
                f"{order:14} {group:13} exact {result.accuracy:.3f} [{low:.3f}, {high:.3f}] "
                f"F1 {result.f1:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
