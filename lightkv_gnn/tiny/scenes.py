"""Random pictures of small coloured objects, drawn with PIL.

A :class:`Scene` is a plain description; :func:`render` turns the same description into the same
pixels every time, so a seed is enough to repeat a picture. Within one scene every object has its
own colour, which makes "the red object" well defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lightkv_gnn.tiny.shapes import SHAPES, stencil

__all__ = [
    "COLOURS",
    "GRID",
    "IMAGE_SIZE",
    "SHAPES",
    "Background",
    "Box",
    "Scene",
    "SceneObject",
    "place",
    "render",
    "sample_background",
    "sample_scene",
]

IMAGE_SIZE = 128
GRID = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "orange": (255, 140, 15),
    "yellow": (255, 230, 30),
    "lime": (150, 245, 60),
    "green": (15, 135, 45),
    "cyan": (40, 225, 235),
    "blue": (25, 60, 225),
    "purple": (130, 35, 175),
    "pink": (255, 130, 195),
    "brown": (115, 62, 22),
    "black": (12, 12, 12),
    "white": (252, 252, 252),
}


Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge in pixels."""


@dataclass(frozen=True)
class SceneObject:
    """One object: ``x`` and ``y`` are the top-left corner of its box of ``size`` pixels a side."""

    colour: str
    shape: str
    x: int
    y: int
    size: int

    @property
    def box(self) -> Box:
        """Its box."""
        return self.x, self.y, self.x + self.size, self.y + self.size

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box as (x, y) in pixels, with y growing downwards."""
        return self.x + self.size / 2, self.y + self.size / 2


@dataclass(frozen=True)
class Background:
    """A muted backdrop: two tones blended along ``angle`` (radians) plus pixel noise."""

    start: tuple[int, int, int]
    end: tuple[int, int, int]
    angle: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0


@dataclass(frozen=True)
class Scene:
    """Everything :func:`render` needs to draw one picture."""

    objects: tuple[SceneObject, ...]
    background: Background


def sample_background(rng: np.random.Generator) -> Background:
    """Draw a plain, graded or noisy backdrop with equal chance for each kind."""
    tones = [_muted(rng) for _ in range(2)]
    kind = int(rng.integers(3))
    return Background(
        start=tones[0],
        end=tones[1] if kind == 1 else tones[0],
        angle=float(rng.uniform(0, 2 * math.pi)),
        noise=float(rng.uniform(4, 12)) if kind == 2 else 0.0,
        noise_seed=int(rng.integers(2**31)),
    )


def sample_scene(
    rng: np.random.Generator,
    objects: tuple[int, int] = (4, 12),
    sizes: tuple[int, int] = (8, 16),
) -> Scene:
    """Draw a scene of separate objects anywhere on a grid of ``GRID`` pixels.

    The grid is half a patch wide, so most objects straddle patch borders.

    Args:
        rng: source of randomness.
        objects: least and greatest number of objects, both included.
        sizes: least and greatest box side in pixels, both included; multiples of ``GRID``.

    Returns:
        A scene whose objects have distinct colours and do not overlap.

    Raises:
        ValueError: if the ranges cannot be met.
    """
    if not 1 <= objects[0] <= objects[1] <= len(COLOURS):
        raise ValueError(
            f"objects must satisfy 1 <= least <= greatest <= {len(COLOURS)}, got {objects}; "
            "each object needs its own colour"
        )
    if not GRID <= sizes[0] <= sizes[1] <= 6 * GRID or sizes[0] % GRID or sizes[1] % GRID:
        raise ValueError(
            f"sizes must be multiples of {GRID} with {GRID} <= least <= greatest <= {6 * GRID}, "
            f"got {sizes}; larger objects may not fit side by side"
        )
    count = int(rng.integers(objects[0], objects[1] + 1))
    units = rng.integers(sizes[0] // GRID, sizes[1] // GRID + 1, size=count)
    sides = [int(unit) * GRID for unit in units]

    def corner(width: int, height: int) -> tuple[int, int]:
        cells = rng.integers(0, (IMAGE_SIZE - width) // GRID + 1, size=2)
        return int(cells[0]) * GRID, int(cells[1]) * GRID

    corners = place([(side, side) for side in sides], corner)
    colours = rng.permutation(list(COLOURS))[:count]
    shapes = _sample_shapes(rng, count)
    placed = tuple(
        SceneObject(str(colour), shape, x, y, side)
        for colour, shape, (x, y), side in zip(colours, shapes, corners, sides, strict=True)
    )
    return Scene(placed, sample_background(rng))


def render(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """Draw the scene as an RGB picture of ``size`` by ``size`` pixels."""
    image = Image.fromarray(_paint_background(scene.background))
    for item in scene.objects:
        image.paste(COLOURS[item.colour], (item.x, item.y), stencil(item.shape, item.size))
    if size != IMAGE_SIZE:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return image


def _muted(rng: np.random.Generator) -> tuple[int, int, int]:
    grey = rng.uniform(85, 200)
    red, green, blue = (int(channel) for channel in grey + rng.uniform(-14, 14, size=3))
    return red, green, blue


def _sample_shapes(rng: np.random.Generator, count: int) -> list[str]:
    """Draw shapes from a random subset, so that some shapes occur several times."""
    subset = rng.permutation(list(SHAPES))[: int(rng.integers(3, len(SHAPES) + 1))]
    return [str(shape) for shape in rng.choice(subset, size=count)]


def place(
    boxes: Sequence[tuple[int, int]],
    corner: Callable[[int, int], tuple[int, int]],
    gap: int = GRID,
) -> list[tuple[int, int]]:
    """Find top-left corners of boxes that keep ``gap`` pixels between each other.

    Args:
        boxes: width and height of each.
        corner: draws a corner for a box of this width and height.
        gap: least distance in pixels.
    """
    while True:
        corners: list[tuple[int, int]] = []
        for width, height in boxes:
            for _ in range(60):
                x, y = corner(width, height)
                if all(
                    x + width + gap <= u
                    or u + other[0] + gap <= x
                    or y + height + gap <= v
                    or v + other[1] + gap <= y
                    for (u, v), other in zip(corners, boxes, strict=False)
                ):
                    corners.append((x, y))
                    break
            else:
                break
        if len(corners) == len(boxes):
            return corners


def _paint_background(background: Background) -> np.ndarray:
    """Return the backdrop as uint8 ``[row, column, channel]``."""
    axis = np.linspace(-0.5, 0.5, IMAGE_SIZE, dtype=np.float32)
    across, down = math.cos(background.angle), math.sin(background.angle)
    blend = (axis[None, :] * across + axis[:, None] * down) / (abs(across) + abs(down)) + 0.5
    start = np.asarray(background.start, dtype=np.float32)
    end = np.asarray(background.end, dtype=np.float32)
    pixels = start + blend[:, :, None] * (end - start)
    if background.noise:
        noise = np.random.default_rng(background.noise_seed)
        pixels = pixels + background.noise * noise.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)
