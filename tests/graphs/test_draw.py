"""Pictures of merges show the survivors, the windows and the right image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import traces
from PIL import Image
from reference import make_layout

from lightkv_graphs import MergeTrace, draw_merges, draw_stages, draw_windows
from lightkv_graphs.draw import CELL

plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")


@pytest.fixture(autouse=True)
def canvas() -> Iterator[None]:
    """Draw without a display, and close what was drawn."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def traced(windows: tuple[int, ...] = (2, 1), **variant: int) -> MergeTrace:
    return traces.traced([[(4, 6)], [(3, 3)]], tuple(enumerate(windows)), **variant)


COLOURS = torch.randint(256, (4, 6, 3), generator=torch.Generator().manual_seed(0))


def picture() -> Image.Image:
    """One flat colour per cell."""
    pixels = COLOURS.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def shown(ax: plt.Axes) -> torch.Tensor:
    return torch.from_numpy(ax.images[0].get_array().data.copy())


@pytest.mark.parametrize("stage", [0, 1, -1, -2])
def test_survivors_have_the_mean_colour_of_their_cells(stage: int) -> None:
    trace = traced()
    ax = draw_merges(trace, picture(), stage=stage)
    assert isinstance(ax, plt.Axes)
    drawn = shown(ax)
    assert drawn.shape == (4 * CELL, 6 * CELL, 3)
    cells = drawn.reshape(4, CELL, 6, CELL, 3)
    assert (cells == cells[:, :1, :, :1]).all()  # flat inside a cell
    survivor = trace.survivor_of(stage)[:24].reshape(4, 6)
    for row in survivor.unique():
        here = survivor == row
        mean = COLOURS[here].double().mean(0)
        assert (cells[:, 0, :, 0][here] - mean).abs().max() <= 1


def test_before_the_first_stage_the_picture_is_shown() -> None:
    ax = draw_merges(traced(), picture(), stage=None)
    assert torch.equal(shown(ax), torch.from_numpy(np.array(picture())))
    assert ax.get_title() == "24 vision tokens"


def segments(ax: plt.Axes, number: int) -> set[tuple[tuple[float, float], ...]]:
    return {
        tuple(sorted(map(tuple, line.tolist()))) for line in ax.collections[number].get_segments()
    }


def borders(labels: torch.Tensor) -> set[tuple[tuple[float, float], ...]]:
    """Pixel lines between neighbouring cells of different labels."""
    rows, cols = labels.shape
    lines = set()
    for row in range(rows):
        for col in range(cols):
            top, left = row * CELL - 0.5, col * CELL - 0.5
            if col + 1 < cols and labels[row, col] != labels[row, col + 1]:
                lines.add(((left + CELL, top), (left + CELL, top + CELL)))
            if row + 1 < rows and labels[row, col] != labels[row + 1, col]:
                lines.add(((left, top + CELL), (left + CELL, top + CELL)))
    return lines


def test_borders_lie_between_survivors_and_between_windows() -> None:
    trace = traced()
    ax = draw_merges(trace, picture(), stage=0)
    assert segments(ax, 0) == borders(trace.survivor_of(0)[:24].reshape(4, 6))
    window = torch.arange(4)[:, None] // 2 * 2 + torch.arange(6)[None, :] // 3
    assert segments(ax, 1) == borders(window)


def test_windows_of_a_later_stage_follow_its_survivors() -> None:
    trace = traced((1, 2))
    ax = draw_merges(trace, picture(), stage=1)
    window = trace.stages[1].window[trace.survivor_of(0)[:24]].reshape(4, 6)
    assert segments(ax, 1) == borders(window)


def test_another_image_of_the_batch() -> None:
    ax = draw_merges(traced(), picture().crop((0, 0, 3 * CELL, 3 * CELL)), image=1)
    assert shown(ax).shape == (3 * CELL, 3 * CELL, 3)
    assert ax.get_title().endswith("after layer 1 (1x1 windows)")


def test_tokens_without_a_place_and_empty_cells_are_left_out() -> None:
    trace = traced(newlines=1, holes=5)
    before = draw_merges(trace, picture(), stage=None)
    places = (trace.layout.image == 0) & (trace.layout.row >= 0)
    assert before.get_title() == f"{int(places.sum())} vision tokens"
    assert draw_merges(trace, picture()).images


def test_draws_into_given_axes() -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert draw_merges(traced(), picture(), ax=right) is right
    assert not left.images
    assert plt.get_fignums() == [figure.number]


def test_a_large_picture_is_not_shrunk() -> None:
    large = picture().resize((12 * CELL, 8 * CELL), Image.Resampling.NEAREST)
    before = draw_merges(traced(), large, stage=None)
    assert torch.equal(shown(before), torch.from_numpy(np.array(large)))
    ax, usual = draw_merges(traced(), large, stage=0), draw_merges(traced(), picture(), stage=0)
    assert torch.equal(shown(ax)[::2, ::2], shown(usual))
    assert segments(ax, 0) == segments(usual, 0)
    assert ax.images[0].get_extent() == usual.images[0].get_extent()
    assert usual.images[0].get_extent() == [-0.5, 6 * CELL - 0.5, 4 * CELL - 0.5, -0.5]


@pytest.mark.parametrize("size", [(30, 90), (300, 100)])
def test_pictures_keep_their_shape(size: tuple[int, int]) -> None:
    figure = draw_stages(traced(), Image.new("RGB", size))
    figure.draw_without_rendering()
    for ax in figure.axes:
        box = ax.get_window_extent()
        assert box.height / box.width == pytest.approx(size[1] / size[0], rel=0.02)


def test_one_panel_per_stage() -> None:
    trace = traced()
    figure = draw_stages(trace, picture())
    assert isinstance(figure, plt.Figure)
    assert [ax.get_title().split()[0] for ax in figure.axes] == ["24", "12", "6"]
    figure.canvas.draw()


def both() -> list[Image.Image]:
    return [picture(), picture().crop((0, 0, 3 * CELL, 3 * CELL))]


def test_one_row_per_image() -> None:
    figure = draw_stages(traced(), both())
    assert [ax.get_title().split()[0] for ax in figure.axes] == ["24", "12", "6", "9", "5", "3"]
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["image 0", "image 1"]
    assert torch.equal(shown(figure.axes[3]), torch.from_numpy(np.array(both()[1])))
    assert not figure.get_supxlabel()


def test_chosen_images() -> None:
    figure = draw_stages(traced(), both(), images=[1])
    assert [ax.get_title().split()[0] for ax in figure.axes] == ["9", "5", "3"]
    alone = draw_stages(traced(), both()[1], images=[1])
    assert torch.equal(shown(alone.axes[1]), shown(figure.axes[1]))


def test_images_left_out_are_counted() -> None:
    figure = draw_stages(traced(), both(), most=1)
    assert len(figure.axes) == 3
    assert figure.get_supxlabel() == "and 1 more"


def test_the_last_image_is_among_the_drawn() -> None:
    """Many families put the whole picture behind its tiles."""
    trace = MergeTrace(make_layout([[(2, 2)] * 5]), ())
    figure = draw_stages(trace, [picture()] * 5, most=3)
    assert [ax.get_ylabel() for ax in figure.axes] == ["image 0", "image 1", "image 4"]


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        ([picture()], {}, "1 pictures for a trace of 2 images"),
        ([picture()] * 2, {"images": [2]}, r"image 2: there are images 0\.\.1"),
        (picture(), {"images": [0, 1]}, r"one picture for images \[0, 1\]"),
    ],
)
def test_pictures_must_fit_the_images(pictures: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_stages(traced(), pictures, **options)


def test_windows_over_a_picture() -> None:
    layout = make_layout([[(4, 6)], [(3, 3)]], newlines=1)
    ax = draw_windows(layout, 2, picture())
    assert torch.equal(shown(ax), torch.from_numpy(np.array(picture())))
    window = torch.arange(4)[:, None] // 2 * 2 + torch.arange(6)[None, :] // 3
    assert segments(ax, 0) == borders(torch.arange(24).view(4, 6))
    assert segments(ax, 1) == borders(window)
    assert ax.get_title() == "4x6 vision tokens, 2x2 windows"
    _, given = plt.subplots()
    assert draw_windows(layout, 3, both()[1], image=1, ax=given) is given
    assert segments(given, 1) == borders(torch.arange(9).view(3, 3))
    with pytest.raises(ValueError, match="image 2"):
        draw_windows(layout, 2, picture(), image=2)
    with pytest.raises(ValueError, match="windows is 0"):
        draw_windows(layout, 0, picture())


def test_a_trace_without_stages_is_one_panel() -> None:
    figure = draw_stages(MergeTrace(make_layout([[(4, 6)]]), ()), picture())
    assert len(figure.axes) == 1


def test_the_last_stage_of_none_is_the_picture() -> None:
    trace = MergeTrace(traced().layout, ())
    assert torch.equal(
        shown(draw_merges(trace, picture())), shown(draw_merges(trace, picture(), stage=None))
    )


@pytest.mark.parametrize("image", [-1, 2])
def test_no_such_image(image: int) -> None:
    with pytest.raises(ValueError, match=rf"image {image}: there are images 0\.\.1"):
        draw_merges(traced(), picture(), image=image)
