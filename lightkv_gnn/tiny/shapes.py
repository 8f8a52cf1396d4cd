"""The shapes of the objects, as smooth masks."""

from __future__ import annotations

import math
from functools import lru_cache

from PIL import Image, ImageDraw

__all__ = ["SHAPES", "stencil"]

SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "diamond",
    "ring",
    "heart",
)

_SUPERSAMPLE = 8


def _star() -> tuple[tuple[float, float], ...]:
    radii = (0.52, 0.2)
    turns = [(radii[k % 2], math.pi * k / 5) for k in range(10)]
    return tuple((0.5 + r * math.sin(t), 0.53 - r * math.cos(t)) for r, t in turns)


def _cross() -> tuple[tuple[float, float], ...]:
    low, high = 0.34, 0.66
    upper = ((low, low), (low, 0.0), (high, 0.0), (high, low), (1.0, low), (1.0, high))
    return upper + tuple((1 - x, 1 - y) for x, y in upper)


_HEART_TIP = ((0.04, 0.44), (0.96, 0.44), (0.5, 1.0))
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)),
    "triangle": ((0.5, 0.03), (1.0, 0.97), (0.0, 0.97)),
    "diamond": ((0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)),
    "cross": _cross(),
    "star": _star(),
}


@lru_cache(maxsize=512)
def stencil(shape: str, size: int) -> Image.Image:
    """Return the smoothed coverage mask of a shape, one byte per pixel."""
    side = size * _SUPERSAMPLE
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            inner = side * 0.28
            draw.ellipse((inner, inner, side - 1 - inner, side - 1 - inner), fill=0)
    elif shape == "heart":
        draw.ellipse((0, side * 0.04, side * 0.54, side * 0.58), fill=255)
        draw.ellipse((side * 0.46, side * 0.04, side - 1, side * 0.58), fill=255)
        draw.polygon([(side * a, side * b) for a, b in _HEART_TIP], fill=255)
    elif shape in _OUTLINES:
        draw.polygon([((side - 1) * a, (side - 1) * b) for a, b in _OUTLINES[shape]], fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")
    return mask.resize((size, size), Image.Resampling.BOX)
