"""Questions about a scene, with exact answers, in the four groups of the LightKV paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lightkv_gnn.tiny.scenes import COLOURS, SHAPES, Scene, SceneObject

__all__ = [
    "GROUPS",
    "PLURALS",
    "Objects",
    "Question",
    "ask",
    "caption",
    "count",
    "pick",
    "plurals",
    "presence",
    "shape_of",
]

GROUPS: tuple[str, ...] = ("vqa", "reasoning", "hallucination", "captioning")


def plurals(shapes: Sequence[str]) -> dict[str, str]:
    """What several of each are called."""
    return {shape: shape + ("es" if shape.endswith(("s", "sh")) else "s") for shape in shapes}


PLURALS: dict[str, str] = plurals(SHAPES)

_RELATIONS: dict[str, tuple[str, int]] = {"left": ("left of", 0), "above": ("above", 1)}
_MIN_OFFSET = 6.0


class Objects(Protocol):
    """A scene, as far as it is its objects that are asked about."""

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """The objects."""


@dataclass(frozen=True)
class Question:
    """A question of one group: the words to ask, and the one right answer."""

    group: str
    prompt_text: str
    answer: str


def ask(scene: Scene, group: str, rng: np.random.Generator) -> Question:
    """Draw a question of a group about the scene.

    Args:
        scene: the scene the picture shows, with at least one object.
        group: one of :data:`GROUPS`.
        rng: source of randomness.

    Returns:
        The question and its answer. Yes/no questions have either answer with equal chance.

    Raises:
        ValueError: if the group is unknown or the scene is empty.
    """
    if group not in _MAKERS:
        raise ValueError(f"unknown question group {group!r}; expected one of {', '.join(GROUPS)}")
    if not scene.objects:
        raise ValueError(
            "questions need a scene of at least 1 object, got none; "
            "sample one with sample_scene(rng)"
        )
    text, answer = _MAKERS[group](scene, rng)
    return Question(group, text, answer)


def pick(scene: Objects, rng: np.random.Generator) -> SceneObject:
    """Draw one of the objects."""
    return scene.objects[int(rng.integers(len(scene.objects)))]


def shape_of(scene: Objects, rng: np.random.Generator) -> tuple[str, str]:
    """Ask for the shape of the object of a colour."""
    item = pick(scene, rng)
    return f"what shape is the {item.colour} object ?", item.shape


def _relation(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Compare two centres along one axis, leaving out pairs that are nearly level."""
    words, axis = _RELATIONS[("left", "above")[int(rng.integers(2))]]
    pairs = [
        (first, second)
        for first in scene.objects
        for second in scene.objects
        if second.centre[axis] - first.centre[axis] >= _MIN_OFFSET
    ]
    if not pairs:
        return count(scene, rng)
    first, second = pairs[int(rng.integers(len(pairs)))]
    answer = "yes" if rng.integers(2) else "no"
    if answer == "no":
        first, second = second, first
    return f"is the {first.colour} object {words} the {second.colour} object ?", answer


def count(
    scene: Objects, rng: np.random.Generator, plurals: Mapping[str, str] = PLURALS
) -> tuple[str, str]:
    """Ask for a number of shapes, four times in five about a shape that is there."""
    present = sorted({item.shape for item in scene.objects})
    pool = present if rng.random() < 0.8 else list(plurals)
    shape = pool[int(rng.integers(len(pool)))]
    total = sum(item.shape == shape for item in scene.objects)
    return f"how many {plurals[shape]} are there ?", str(total)


def _reasoning(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return _relation(scene, rng) if rng.random() < 2 / 3 else count(scene, rng)


def presence(
    scene: Objects, rng: np.random.Generator, shapes: Sequence[str] = SHAPES
) -> tuple[str, str]:
    """Ask whether an object is there; a wrong one shares one trait with a real one.

    The answer first says what of that colour is there, which a small model needs to compare.
    """
    item = pick(scene, rng)
    colour, shape = item.colour, item.shape
    answer = f"{colour} {shape} so yes"
    if rng.integers(2):
        absent = sorted(set(COLOURS) - {other.colour for other in scene.objects})
        if absent and rng.integers(2):
            colour = absent[int(rng.integers(len(absent)))]
            answer = "none so no"
        else:
            others = [other for other in shapes if other != item.shape]
            shape = others[int(rng.integers(len(others)))]
            answer = f"{item.colour} {item.shape} so no"
    article = "an" if colour[0] in "aeiou" else "a"
    return f"is there {article} {colour} {shape} ?", answer


def caption(scene: Objects, rng: np.random.Generator) -> tuple[str, str]:
    """List every object in the order of the palette, which needs no ties to be broken."""
    order = list(COLOURS)
    items = sorted(scene.objects, key=lambda item: order.index(item.colour))
    return "list the objects .", " , ".join(f"{item.colour} {item.shape}" for item in items)


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], tuple[str, str]]] = {
    "vqa": shape_of,
    "reasoning": _reasoning,
    "hallucination": presence,
    "captioning": caption,
}
