"""Random scenes before photographs: a description, and its pixels at any resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from lightkv_gnn.tiny.photo.photographs import Photograph, Split, sample_photograph
from lightkv_gnn.tiny.photo.things import SIGNS, THINGS, outline, plate
from lightkv_gnn.tiny.scenes import COLOURS, Box, SceneObject, place

__all__ = ["CANVAS", "PhotoScene", "Sign", "render", "sample_scene"]

CANVAS = 192
_UNIT = 4
_SIZES = (16, 32)
_PALE = 110.0
"""Objects brighter than this get a dark rim, others a pale one."""


@dataclass(frozen=True)
class Sign:
    """A plate: ``x`` and ``y`` are its top-left corner, ``height`` its height in pixels."""

    text: str
    x: int
    y: int
    height: int

    @property
    def width(self) -> int:
        """Width of the plate in pixels."""
        return plate(self.text, self.height).width

    @property
    def box(self) -> Box:
        """Its box."""
        return self.x, self.y, self.x + self.width, self.y + self.height


@dataclass(frozen=True)
class PhotoScene:
    """What :func:`render` needs for one picture of 192 by 192 pixels.

    Attributes:
        objects: Things with a colour of their own each, none over another.
        sign: A plate to be read, or None.
        covers: Boxes (left, top, right, bottom) that hide a part of an object.
        photograph: What is behind all.
    """

    objects: tuple[SceneObject, ...]
    sign: Sign | None
    covers: tuple[Box, ...]
    photograph: Photograph


def sample_scene(rng: np.random.Generator, split: Split, signed: bool | None = None) -> PhotoScene:
    """Draw three to eight objects and a sign before a photograph of the split.

    A quarter of the objects are partly hidden: a third of them on one side, by what is behind.

    Args:
        rng: Source of randomness.
        split: Which photographs.
        signed: Whether there is a sign; three times in five if not given.
    """
    if signed is None:
        signed = bool(rng.random() < 0.6)
    count = int(rng.integers(3, 9))
    units = rng.integers(_SIZES[0] // _UNIT, _SIZES[1] // _UNIT + 1, size=count)
    sign = None
    if signed:
        pool = SIGNS if rng.random() < 2 / 3 else tuple(str(number) for number in range(1, 13))
        sign = Sign(pool[int(rng.integers(len(pool)))], 0, 0, int(rng.integers(4, 7)) * _UNIT)
    boxes = [(int(unit) * _UNIT,) * 2 for unit in units]
    if sign is not None:
        boxes.insert(0, (sign.width, sign.height))

    def corner(width: int, height: int) -> tuple[int, int]:
        x = int(rng.integers(1, (CANVAS - width) // _UNIT)) * _UNIT
        return x, int(rng.integers(1, (CANVAS - height) // _UNIT)) * _UNIT

    corners = place(boxes, corner, _UNIT)
    if sign is not None:
        sign = Sign(sign.text, *corners.pop(0), sign.height)
        boxes.pop(0)
    subset = rng.permutation(list(THINGS))[: int(rng.integers(3, 9))]
    things = rng.choice(subset, size=count)
    colours = rng.permutation(list(COLOURS))[:count]
    objects = tuple(
        SceneObject(str(colour), str(thing), x, y, size)
        for colour, thing, (x, y), (size, _) in zip(colours, things, corners, boxes, strict=True)
    )
    covers = tuple(_cover(rng, item) for item in objects if rng.random() < 0.25)
    return PhotoScene(objects, sign, covers, sample_photograph(rng, split))


def render(scene: PhotoScene, size: int = CANVAS) -> Image.Image:
    """Draw the scene as an RGB picture of ``size`` by ``size`` pixels."""
    behind = scene.photograph.pixels(CANVAS)
    image = behind.copy()
    for item in scene.objects:
        colour = COLOURS[item.colour]
        rim = (15, 15, 15) if sum(colour) / 3 > _PALE else (245, 245, 245)
        mask = Image.new("L", (item.size + 4, item.size + 4), 0)
        mask.paste(outline(item.shape, item.size), (2, 2))
        image.paste(rim, (item.x - 2, item.y - 2), mask.filter(ImageFilter.MaxFilter(3)))
        image.paste(colour, (item.x, item.y), outline(item.shape, item.size))
    for box in scene.covers:
        image.paste(behind.crop(box), box)
    if scene.sign is not None:
        image.paste(plate(scene.sign.text, scene.sign.height), (scene.sign.x, scene.sign.y))
    if size != CANVAS:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return image


def _cover(rng: np.random.Generator, item: SceneObject) -> Box:
    """A third of the object's box, rim included, at one of its four sides."""
    part, end = round(item.size / 3), item.size + 2
    left, top, right, bottom = item.x - 2, item.y - 2, item.x + end, item.y + end
    side = int(rng.integers(4))
    return (
        left if side != 1 else item.x + item.size - part,
        top if side != 3 else item.y + item.size - part,
        right if side != 0 else item.x + part,
        bottom if side != 2 else item.y + part,
    )
