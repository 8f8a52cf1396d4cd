"""Photographs to put behind objects; ``photographs/LICENCES.md`` has their authors and licences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

__all__ = ["PHOTOGRAPHS", "Photograph", "Split", "names", "sample_photograph"]

PHOTOGRAPHS = Path(__file__).parent / "photographs"

Split = Literal["train", "test"]
"""Photographs to train on, and others to test on; no photograph is in both."""


@dataclass(frozen=True)
class Photograph:
    """A square part of a photograph, perhaps mirrored.

    Attributes:
        split: Which photographs.
        name: Its file, without the ending.
        left: Left edge of the part, as a fraction of the side.
        top: Top edge, likewise.
        side: Side of the part, likewise.
        mirrored: Whether left and right change places.
    """

    split: Split
    name: str
    left: float
    top: float
    side: float
    mirrored: bool

    def pixels(self, size: int) -> Image.Image:
        """The part as an RGB picture of ``size`` by ``size`` pixels."""
        whole = _read(self.split, self.name)
        edge = whole.width
        left, top, side = (edge * part for part in (self.left, self.top, self.side))
        image = whole.resize(
            (size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
        )
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else image


def names(split: Split) -> tuple[str, ...]:
    """The photographs of a split, by name."""
    return tuple(sorted(path.stem for path in (PHOTOGRAPHS / split).glob("*.jpg")))


def sample_photograph(rng: np.random.Generator, split: Split) -> Photograph:
    """Draw a photograph and a part of it, half of its side at least."""
    side = float(rng.uniform(0.5, 1.0))
    left, top = (float(edge) for edge in rng.uniform(0, 1 - side, size=2))
    known = names(split)
    name = known[int(rng.integers(len(known)))]
    return Photograph(split, name, left, top, side, bool(rng.integers(2)))


@lru_cache(maxsize=64)
def _read(split: Split, name: str) -> Image.Image:
    with Image.open(PHOTOGRAPHS / split / f"{name}.jpg") as image:
        return image.convert("RGB")
