"""Questions about a scene before a photograph, with exact answers, in six groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from lightkv_gnn.tiny.photo.scenes import CANVAS, PhotoScene
from lightkv_gnn.tiny.photo.things import PLURALS, THINGS
from lightkv_gnn.tiny.questions import Question, caption, count, pick, presence, shape_of

__all__ = ["COLUMNS", "GROUPS", "MAX_NEW_TOKENS", "ROWS", "ask"]

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

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


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


def _where(scene: PhotoScene, rng: np.random.Generator) -> tuple[str, str]:
    """In which of nine cells the middle of an object lies: its row, then its column."""
    item = pick(scene, rng)
    column, row = (min(2, int(3 * middle / CANVAS)) for middle in item.centre)
    return f"where is the {item.colour} object ?", f"{ROWS[row]} {COLUMNS[column]}"


def _read(scene: PhotoScene, rng: np.random.Generator) -> tuple[str, str]:
    if scene.sign is None:
        raise ValueError("the scene has no sign to be read")
    return "what does the sign say ?", scene.sign.text


_MAKERS: dict[str, Callable[[PhotoScene, np.random.Generator], tuple[str, str]]] = {
    "what": shape_of,
    "presence": partial(presence, shapes=THINGS),
    "where": _where,
    "count": partial(count, plurals=PLURALS),
    "read": _read,
    "list": caption,
}
