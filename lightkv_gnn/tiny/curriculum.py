"""The order in which the tiny model meets its training pictures, from easy to final."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightkv_gnn.tiny.model import PATCH_SIZE
from lightkv_gnn.tiny.questions import Question, ask
from lightkv_gnn.tiny.scenes import (
    COLOURS,
    GRID,
    IMAGE_SIZE,
    SHAPES,
    Scene,
    SceneObject,
    sample_background,
    sample_scene,
)

__all__ = [
    "STAGES",
    "VISION_STAGES",
    "Stage",
    "patch_labels",
    "sample_blocks",
    "sample_lesson",
    "shown_in",
]

_FULL_GRID = (3, 4)


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum.

    Attributes:
        questions: how many questions of each group of ``GROUPS`` a picture gets.
        pass_mark: running accuracy that ends the stage once every group of ``gate`` has it.
        gate: the groups that the pass mark is about.
        grids: columns and rows that the blocks may form; each is equally likely.
        blocks: share of pictures whose objects are tiled over a block of the picture.
        cover: least and greatest share of a block's side that the tiles cover.
        cells: least and greatest tile side in pixels.
        aligned: whether the tiles start on the patch grid.
        sizes: least and greatest object side on the other pictures.
        grounding: weight of the loss that ties picture tokens to the words for what they show.
        question_first: share of the pictures with one question before the picture.
    """

    questions: tuple[int, int, int, int]
    pass_mark: float
    grids: tuple[tuple[int, int], ...] = (_FULL_GRID,)
    blocks: float = 0.0
    cover: tuple[float, float] = (1.0, 1.0)
    cells: tuple[int, int] = (8, 8)
    aligned: bool = False
    sizes: tuple[int, int] = (8, 16)
    grounding: float = 1.0
    question_first: float = 0.0
    gate: tuple[str, ...] = ("vqa",)


_EASY_GRIDS = ((2, 2), (2, 3), _FULL_GRID)

VISION_STAGES: tuple[Stage, ...] = (
    Stage((0, 0, 0, 0), 1.01, blocks=1.0, cover=(0.6, 1.0)),
    Stage((0, 0, 0, 0), 1.01, blocks=1.0, cover=(0.3, 1.0), cells=(8, 16)),
    Stage((0, 0, 0, 0), 1.01),
)

STAGES: tuple[Stage, ...] = (
    Stage((6, 0, 0, 1), 0.80, _EASY_GRIDS, blocks=1.0, cover=(0.8, 1.0), cells=(8, 16)),
    Stage((8, 0, 4, 1), 0.85, blocks=0.8, cover=(0.3, 1.0), cells=(8, 16)),
    Stage((6, 3, 6, 1), 0.88, blocks=0.4, cover=(0.2, 0.6), cells=(8, 16)),
    Stage((4, 2, 12, 1), 0.93, question_first=0.4, gate=("vqa", "hallucination")),
    Stage((6, 5, 6, 1), 1.01, grounding=0.3, question_first=0.4),
)


def sample_lesson(
    rng: np.random.Generator, stage: Stage, groups: tuple[str, ...]
) -> tuple[Scene, list[Question], bool]:
    """Draw a picture with its questions.

    Returns:
        The scene to render, its questions in random order, and whether the picture comes first.
    """
    if rng.random() < stage.blocks:
        scene, drawn = sample_blocks(rng, stage)
    else:
        scene = drawn = sample_scene(rng, sizes=stage.sizes)
    questions = [
        ask(scene, group, rng)
        for group, count in zip(groups, stage.questions, strict=True)
        for _ in range(min(count, len(scene.objects)))
    ]
    order = rng.permutation(len(questions))
    image_first = bool(rng.random() >= stage.question_first)
    return drawn, [questions[int(index)] for index in order], image_first


def sample_blocks(rng: np.random.Generator, stage: Stage) -> tuple[Scene, Scene]:
    """Draw a grid of objects, each repeated over part of its own block of the picture.

    Returns:
        The scene to ask about, one object a block, and the scene to draw, with every tile.
    """
    columns, rows = stage.grids[int(rng.integers(len(stage.grids)))]
    colours = [str(colour) for colour in rng.permutation(list(COLOURS))[: columns * rows]]
    objects: list[SceneObject] = []
    tiles: list[SceneObject] = []
    for index, colour in enumerate(colours):
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        left, width = _span(rng, stage, index % columns, columns)
        top, height = _span(rng, stage, index // columns, rows)
        cell = GRID * int(rng.integers(stage.cells[0] // GRID, stage.cells[1] // GRID + 1))
        across, down = max(1, width // cell), max(1, height // cell)
        tiles += [
            SceneObject(colour, shape, left + i * cell, top + j * cell, cell)
            for j in range(down)
            for i in range(across)
        ]
        # The block as a whole is what left, above and the lists are about.
        middle_x, middle_y = left + across * cell // 2, top + down * cell // 2
        objects.append(SceneObject(colour, shape, middle_x - cell // 2, middle_y - cell // 2, cell))
    background = sample_background(rng)
    return Scene(tuple(objects), background), Scene(tuple(tiles), background)


def _span(rng: np.random.Generator, stage: Stage, index: int, parts: int) -> tuple[int, int]:
    """Return the start and length in pixels that the tiles take of one block along one axis."""
    grid = PATCH_SIZE if stage.aligned else GRID
    units = IMAGE_SIZE // grid
    start, end = index * units // parts, (index + 1) * units // parts
    full = end - start
    length = max(stage.cells[1] // grid, round(full * rng.uniform(*stage.cover)))
    offset = int(rng.integers(0, full - length + 1))
    return (start + offset) * grid, length * grid


def patch_labels(scene: Scene, patch: int = PATCH_SIZE, least: int = 12) -> np.ndarray:
    """Say which colour and shape each patch shows.

    Args:
        scene: the scene as it is drawn.
        patch: patch side in pixels.
        least: pixels of a patch that an object's box must cover to count.

    Returns:
        Indices into ``COLOURS`` and ``SHAPES`` as int64 ``[patch, 2]`` in raster order, -1 where
        the patch shows background.
    """
    boxes = [(item.x, item.y, item.size, item.size) for item in scene.objects]
    names = [(list(COLOURS).index(item.colour), SHAPES.index(item.shape)) for item in scene.objects]
    return shown_in(np.arange(0, IMAGE_SIZE, patch), patch, boxes, names, least)


def shown_in(
    starts: np.ndarray,
    patch: float,
    boxes: Sequence[tuple[int, int, int, int]],
    names: Sequence[tuple[int, int]],
    least: float,
) -> np.ndarray:
    """Say which box each patch shows most of.

    Args:
        starts: where patches begin, along either axis, in pixels.
        patch: patch side in pixels.
        boxes: left and top edge, width and height of each.
        names: two numbers for each, which say what it is.
        least: pixels of a patch that a box must cover to count.

    Returns:
        The numbers as int64 ``[patch, 2]`` in raster order, -1 where no box covers enough.
    """
    box = np.array(boxes)

    def overlap(low: np.ndarray, length: np.ndarray) -> np.ndarray:
        ends = np.minimum((low + length)[:, None], starts + patch)
        return np.clip(ends - np.maximum(low[:, None], starts), 0, None)

    down, across = overlap(box[:, 1], box[:, 3]), overlap(box[:, 0], box[:, 2])
    areas = down[:, :, None] * across[:, None, :]
    labels = np.array(names)[areas.argmax(axis=0).ravel()]
    labels[areas.max(axis=0).ravel() < least] = -1
    return labels
