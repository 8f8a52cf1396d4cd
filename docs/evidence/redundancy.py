"""How redundant vision tokens are: drawn scenes beside scenes before photographs.

python docs/evidence/redundancy.py [--pictures 100]

Prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

from lightkv_gnn import tiny
from lightkv_gnn.evaluation.cued.backgrounds import Background
from lightkv_gnn.evaluation.cued.drawing import PATCH
from lightkv_gnn.evaluation.cued.model import build
from lightkv_gnn.evaluation.redundancy import nearest_divergence, patch_pixels, shares_below
from lightkv_gnn.evaluation.suite import Subject
from lightkv_gnn.evaluation.suites import CELLS
from lightkv_gnn.tiny.model import PATCH_SIZE
from lightkv_gnn.tiny.photo import scenes as photo
from lightkv_gnn.tiny.photo.model import features, load_photo
from lightkv_gnn.tiny.photo.photographs import sample_photograph

BACKGROUNDS: tuple[Background, ...] = get_args(Background)
LIMITS = (0.01, 0.05, 0.1, 0.2)
DRAWN, BEFORE, ALONE = "drawn scenes", "scenes before photographs", "photographs alone"


def pictures(kind: str, count: int, side: int) -> list[Image.Image]:
    """Pictures of a kind; photographs are those that no model was trained on."""
    rng = np.random.default_rng(2026)
    if kind == DRAWN:
        return [tiny.render(tiny.sample_scene(rng), side) for _ in range(count)]
    if kind == BEFORE:
        return [photo.render(photo.sample_scene(rng, "test"), side) for _ in range(count)]
    return [sample_photograph(rng, "test").pixels(side) for _ in range(count)]


def line(kind: str, what: str, divergence: torch.Tensor) -> str:
    """A row of the table."""
    shares = " | ".join(f"{share:.0%}" for share in shares_below(divergence, LIMITS))
    tokens = divergence.shape[1]
    return f"| {kind} | {what} | {tokens} | {divergence.median():.3f} | {shares} |"


@torch.no_grad()
def rows(model: Any, processor: Any, name: str, count: int) -> list[str]:
    """Lines for all kinds of pictures: of the model's tokens, and of the pixels they show."""
    side = model.config.vision_config.image_size
    found = []
    for kind in (DRAWN, BEFORE, ALONE):
        shown: Sequence[Image.Image] = pictures(kind, count, side)
        pixels = processor.image_processor(list(shown), return_tensors="pt")["pixel_values"]
        tokens = features(model, pixels)
        found.append(line(kind, f"{name}'s tokens", nearest_divergence(tokens)))
        found.append(line(kind, "pixels", nearest_divergence(patch_pixels(pixels, PATCH_SIZE))))
    return found


def cells(name: str, background: Background, count: int) -> str:
    """A line for the pictures of a suite on cells, by their pixels."""
    suite = CELLS[name](background=background)
    subject = Subject(build(side=6, layers=1, seed=0))
    batches = list(suite.batches(subject, suite.groups[0], count, seed=0))
    pixels = torch.cat([batch.inputs["pixel_values"] for batch in batches])
    divergence = nearest_divergence(patch_pixels(pixels, PATCH))
    behind = {"plain": "on black", "photo": "on photographs"}[background]
    return line(f"{name}, {behind}", "pixels", divergence)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100, help="of each kind")
    arguments = parser.parse_args()
    print("| pictures | of what | tokens | median | " + " | ".join(f"< {x}" for x in LIMITS) + " |")
    print("|---" * (4 + len(LIMITS)) + "|")
    print(*rows(*tiny.load(), "the bundled model", arguments.pictures), sep="\n")
    print(*rows(*load_photo(), "the photo model", arguments.pictures), sep="\n")
    for name in ("cued", "counting"):
        print(*(cells(name, behind, arguments.pictures) for behind in BACKGROUNDS), sep="\n")


if __name__ == "__main__":
    main()
