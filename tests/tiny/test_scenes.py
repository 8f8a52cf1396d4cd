"""Scenes: repeatable, separate objects, one object per colour, small shapes that differ."""

from __future__ import annotations

import numpy as np
import pytest

from lightkv_gnn.tiny.scenes import (
    COLOURS,
    GRID,
    IMAGE_SIZE,
    SHAPES,
    Background,
    Scene,
    SceneObject,
    render,
    sample_scene,
)
from lightkv_gnn.tiny.shapes import stencil

GREY = Background(start=(140, 140, 140), end=(140, 140, 140))


def pixels(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """Return the picture as ``[row, column, channel]``."""
    return np.array(render(scene, size))


def test_same_seed_same_pixels() -> None:
    first = [sample_scene(np.random.default_rng(seed)) for seed in range(5)]
    again = [sample_scene(np.random.default_rng(seed)) for seed in range(5)]
    assert first == again
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(first, again, strict=True))
    assert len({pixels(scene).tobytes() for scene in first}) == 5


def test_objects_are_separate_small_and_of_distinct_colours() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = sample_scene(rng)
        assert 4 <= len(scene.objects) <= 12
        assert len({item.colour for item in scene.objects}) == len(scene.objects)
        taken = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=int)
        for item in scene.objects:
            assert item.size in (8, 12, 16)
            assert item.x % GRID == item.y % GRID == 0
            box = taken[item.y : item.y + item.size, item.x : item.x + item.size]
            assert box.shape == (item.size, item.size)
            box += 1
        assert taken.max() == 1


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_shows_its_colour_inside_its_box_only(colour: str) -> None:
    picture = pixels(Scene((SceneObject(colour, "square", 40, 60, 12),), GREY))
    assert tuple(picture[66, 46]) == COLOURS[colour]
    picture[60:72, 40:52] = 140
    assert (picture == 140).all()


def test_shapes_differ_at_the_smallest_size() -> None:
    masks = {
        shape: pixels(Scene((SceneObject("white", shape, 0, 0, 8),), GREY))[:8, :8, 0] / 255.0
        for shape in SHAPES
    }
    for index, first in enumerate(SHAPES):
        for second in SHAPES[index + 1 :]:
            assert np.abs(masks[first] - masks[second]).mean() > 0.02, (first, second)


def test_other_picture_sizes() -> None:
    scene = sample_scene(np.random.default_rng(2))
    assert pixels(scene, 64).shape == (64, 64, 3)


def test_bad_requests_say_what_was_expected() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="objects must satisfy"):
        sample_scene(rng, objects=(4, 13))
    with pytest.raises(ValueError, match="sizes must be multiples of 4"):
        sample_scene(rng, sizes=(8, 60))
    with pytest.raises(ValueError, match="sizes must be multiples of 4"):
        sample_scene(rng, sizes=(9, 16))
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        render(Scene((SceneObject("red", "blob", 0, 0, 10),), GREY))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_their_own_mirror_images(shape: str) -> None:
    """But for what rounding makes of an edge; the round and the square ones turned, too."""
    mask = np.asarray(stencil(shape, 28)).astype(int)
    assert np.abs(mask - mask[:, ::-1]).max() <= 32
    if shape in ("circle", "ring", "square", "diamond", "cross"):
        assert np.array_equal(mask, mask.T)
