"""What stands before the photographs: the bundled shapes, simple things, and signs to be read."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from lightkv_gnn.tiny.questions import plurals
from lightkv_gnn.tiny.shapes import SHAPES, stencil

__all__ = ["ICONS", "PLURALS", "SIGNS", "THINGS", "outline", "plate"]

ICONS: tuple[str, ...] = ("house", "tree", "fish", "moon", "arrow", "cup")
THINGS: tuple[str, ...] = (*SHAPES, *ICONS)
PLURALS: dict[str, str] = plurals(THINGS)
SIGNS: tuple[str, ...] = (
    *("open", "stop", "cafe", "exit", "sale", "taxi", "bus", "park", "bank", "hotel"),
    *("zoo", "milk", "tea", "fire", "work", "home"),
)
"""Words that signs show; numbers from 1 to 12 are the others."""

_SUPERSAMPLE = 8
_POLYGONS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "house": (
        ((0.0, 0.5), (0.5, 0.02), (1.0, 0.5)),
        (
            (0.12, 0.5),
            (0.88, 0.5),
            (0.88, 1.0),
            (0.62, 1.0),
            (0.62, 0.68),
            (0.38, 0.68),
            (0.38, 0.5),
        ),
        ((0.12, 0.5), (0.38, 0.5), (0.38, 1.0), (0.12, 1.0)),
    ),
    "tree": (
        ((0.5, 0.0), (0.85, 0.4), (0.15, 0.4)),
        ((0.5, 0.2), (1.0, 0.78), (0.0, 0.78)),
        ((0.4, 0.78), (0.6, 0.78), (0.6, 1.0), (0.4, 1.0)),
    ),
    "fish": (((0.66, 0.5), (1.0, 0.16), (1.0, 0.84)),),
    "arrow": (
        ((0.5, 0.0), (0.95, 0.45), (0.05, 0.45)),
        ((0.35, 0.45), (0.65, 0.45), (0.65, 1.0), (0.35, 1.0)),
    ),
    "cup": (((0.05, 0.12), (0.72, 0.12), (0.62, 0.95), (0.15, 0.95)),),
}
_ROUND: dict[str, tuple[tuple[tuple[float, float, float, float], int], ...]] = {
    "fish": (((0.0, 0.18, 0.74, 0.82), 255), ((0.14, 0.36, 0.26, 0.48), 0)),
    "moon": (((0.0, 0.0, 1.0, 1.0), 255), ((0.32, -0.06, 1.16, 0.78), 0)),
    "cup": (((0.55, 0.22, 0.98, 0.66), 255), ((0.68, 0.34, 0.86, 0.54), 0)),
}


@lru_cache(maxsize=1024)
def outline(thing: str, size: int) -> Image.Image:
    """The smoothed mask of a thing, one byte per pixel.

    Raises:
        ValueError: An unknown thing.
    """
    if thing in SHAPES:
        return stencil(thing, size)
    if thing not in ICONS:
        raise ValueError(f"unknown thing {thing!r}; expected one of {', '.join(THINGS)}")
    side = size * _SUPERSAMPLE
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for box, fill in _ROUND.get(thing, ()):
        draw.ellipse(tuple((side - 1) * part for part in box), fill=fill)
    for corners in _POLYGONS.get(thing, ()):
        draw.polygon([((side - 1) * x, (side - 1) * y) for x, y in corners], fill=255)
    return mask.resize((size, size), Image.Resampling.BOX)


@lru_cache(maxsize=256)
def plate(text: str, height: int) -> Image.Image:
    """A pale plate with dark letters on it, ``height`` pixels high, as wide as its text."""
    font = ImageFont.load_default(size=height * _SUPERSAMPLE // 2 * 1.6)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    margin = height * _SUPERSAMPLE // 6
    full = height * _SUPERSAMPLE
    image = Image.new("RGB", (right - left + 2 * margin, full), (246, 244, 232))
    draw = ImageDraw.Draw(image)
    draw.text((margin - left, (full - bottom - top) / 2), text, fill=(24, 24, 40), font=font)
    draw.rectangle((0, 0, image.width - 1, full - 1), outline=(24, 24, 40), width=full // 16)
    width = max(1, round(image.width / _SUPERSAMPLE))
    return image.resize((width, height), Image.Resampling.BOX)
