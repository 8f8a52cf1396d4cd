"""Questions about a scene before a photograph, with exact answers, in six groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lightkv_gnn.tiny.photo.scenes import CANVAS, PhotoScene
from lightkv_gnn.tiny.photo.things import PLURALS, THINGS
from lightkv_gnn.tiny.questions import Question
from lightkv_gnn.tiny.scenes import COLOURS, SceneObject

__all__ = ["GROUPS", "MAX_NEW_TOKENS", "ask"]

GROUPS: tuple[str, ...] = ("what", "presence", "where", "count", "read", "list")
MAX_NEW_TOKENS: dict[str, int] = {
    "what": 2,
    "presence": 5,
    "where": 3,
    "count": 2,
    "read": 2,
    "list": 3 * 8,
}
"""With the end mark."""

_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def ask(scene: PhotoScene, group: str, rng: np.random.Generator) -> Question:
    """Draw a question of a group about the scene.

    Args:
        scene: What the picture shows; with a sign where it is to be read.
        group: One of :data:`GROUPS`.
        rng: Source of randomness.

    Raises:
        ValueError: An unknown group, or a sign that is not there.
    """
    if group not in _MAKERS:
        raise ValueError(f"unknown question group {group!r}; expected one of {', '.join(GROUPS)}")
    text, answer = _MAKERS[group](scene, rng)
    return Question(group, text, answer)


def _pick(scene: PhotoScene, rng: np.random.Generator) -> SceneObject:
    return scene.objects[int(rng.integers(len(scene.objects)))]


def _what(scene: PhotoScene, rng: np.random.Generator) -> tuple[str, str]:
    item = _pick(scene, rng)
    return f"what shape is the {item.colour} object ?", item.shape


def _presence(scene: PhotoScene, rng: np.random.Generator) -> tuple[str, str]:
    """As in the bundled model's questions: the answer says first what of that colour is there."""
    item = _pick(scene, rng)
    colour, thing = item.colour, item.shape
    answer = f"{colour} {thing} so yes"
    if rng.integers(2):
        absent = sorted(set(COLOURS) - {other.colour for other in scene.objects})
        if rng.integers(2):
            colour = absent[int(rng.integers(len(absent)))]
            answer = "none so no"
        else:
            others = [other for other in THINGS if other != item.shape]
            thing = others[int(rng.integers(len(others)))]
            answer = f"{item.colour} {item.shape} so no"
    article = "an" if colour[0] in "aeiou" else "a"
    return f"is there {article} {colour} {thing} ?", answer


def _where(scene: PhotoScene, rng: np.random.Generator) -> tuple[str, str]:
    """In which of nine cells the middle of an object lies: its row, then its column."""
    item = _pick(scene, rng)
    column, row = (min(2, int(3 * middle / CANVAS)) for middle in item.centre)
    return f"where is the {item.colour} object ?", f"{_ROWS[row]} {_COLUMNS[column]}"


def _count(scene: PhotoScene, rng: np.random.Generator) -> tuple[str, str]:
    """Of a thing, four times in five of one that is there."""
    present = sorted({item.shape for item in scene.objects})
    pool = present if rng.random() < 0.8 else list(THINGS)
    thing = pool[int(rng.integers(len(pool)))]
    total = sum(item.shape == thing for item in scene.objects)
    return f"how many {PLURALS[thing]} are there ?", str(total)


def _read(scene: PhotoScene, rng: np.random.Generator) -> tuple[str, str]:
    if scene.sign is None:
        raise ValueError("the scene has no sign to be read")
    return "what does the sign say ?", scene.sign.text


def _list(scene: PhotoScene, rng: np.random.Generator) -> tuple[str, str]:
    """Every object, in the order of the palette."""
    order = list(COLOURS)
    items = sorted(scene.objects, key=lambda item: order.index(item.colour))
    return "list the objects .", " , ".join(f"{item.colour} {item.shape}" for item in items)


_MAKERS: dict[str, Callable[[PhotoScene, np.random.Generator], tuple[str, str]]] = {
    "what": _what,
    "presence": _presence,
    "where": _where,
    "count": _count,
    "read": _read,
    "list": _list,
}
