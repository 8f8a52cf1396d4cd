"""Figures of guidance, windows, lineage and layers show what the trace says."""

from __future__ import annotations

import io
import math
import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import traces
from PIL import Image

from lightkv_graphs import (
    MergeTrace,
    draw_guidance,
    draw_layers,
    draw_lineage,
    draw_merges,
    draw_stages,
    draw_window,
)
from lightkv_graphs.build import MERGES

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lightkv_graphs.draw.canvas import CELL
from lightkv_graphs.draw.guidance import limits_of


def traced(guided: bool = True, **variant: Any) -> MergeTrace:
    return traces.traced([[(4, 6), (3, 3)], [(5, 2)]], guided=guided, newlines=True, **variant)


def picture(rows: int = 4, cols: int = 6) -> Image.Image:
    """Cells of flat colours, each another."""
    cells = torch.arange(rows * cols * 3).reshape(rows, cols, 3) * 255 // (rows * cols * 3)
    pixels = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def shown(ax: Any) -> torch.Tensor:
    return torch.from_numpy(ax.images[-1].get_array().filled(math.nan).copy())


# --- guidance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [0, 1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, -1])
def test_cells_have_the_guidance_of_their_token_relative_to_the_mean(
    stage: int, image: int
) -> None:
    trace = traced()
    rows, cols = trace.layout.grids[image]
    ax = draw_guidance(trace, picture(), stage=stage, image=image)
    number = stage % 3
    before = trace.before(stage)
    own = trace.layout.samples[image]
    heard = trace.stages[number].guidance
    assert heard is not None
    free = [n for n in range(len(before)) if before.sample[n] == own and not before.protected[n]]
    share = {n: math.exp(float(heard[n])) for n in free}
    mean = sum(share.values()) / len(share)
    row_of = trace.survivor_of(number - 1) if number else torch.arange(len(trace.layout))
    drawn = shown(ax)
    assert drawn.shape == (rows, cols)
    for token in range(len(trace.layout)):
        if trace.layout.image[token] == image and trace.layout.row[token] >= 0:
            place = int(trace.layout.row[token]), int(trace.layout.col[token])
            assert float(drawn[place]) == pytest.approx(share[int(row_of[token])] / mean)
    assert ax.get_title().endswith(f"after layer {trace.stages[stage].layer}")
    assert "1 = mean" in ax.figure.axes[1].get_ylabel()


def test_cells_without_tokens_have_no_guidance() -> None:
    trace = traced(holes=5)
    ax = draw_guidance(trace, picture())
    here = (trace.layout.image == 0) & (trace.layout.row >= 0)
    held = torch.zeros(4, 6, dtype=torch.bool)
    held[trace.layout.row[here], trace.layout.col[here]] = True
    assert torch.equal(~shown(ax).isnan(), held)


def test_limits() -> None:
    trace = traced()
    ax = draw_guidance(trace, picture(), limits=(0.25, 8.0))
    assert ax.images[-1].get_clim() == (0.25, 8.0)
    ticks = [label.get_text() for label in ax.figure.axes[1].get_yticklabels()]
    assert ticks == ["0.5", "1", "2", "5"]
    values = torch.tensor([[0.0, 1e-9], [torch.nan, 4.0]])
    assert limits_of([values, torch.tensor([2.0])]) == pytest.approx((0.004, 4.0))
    assert limits_of([torch.ones(3)]) == (0.5, 2.0)
    assert limits_of([torch.zeros(3)]) == (0.5, 2.0)


def test_tokens_without_guidance_are_drawn_at_the_low_end() -> None:
    trace = traced()
    assert trace.stages[0].guidance is not None
    trace.stages[0].guidance[0] = -torch.inf
    ax = draw_guidance(trace, picture())
    assert float(shown(ax)[0, 0]) == ax.images[-1].get_clim()[0] > 0
    trace.stages[0].guidance.fill_(-torch.inf)
    assert bool((shown(draw_guidance(trace, picture())) == 1).all())


def test_no_such_guidance() -> None:
    with pytest.raises(ValueError, match="stage 1 heard no prompt"):
        draw_guidance(traced(guided=False), picture(), stage=1)
    with pytest.raises(ValueError, match="stage -1 heard no prompt"):
        draw_guidance(MergeTrace(traced().layout, ()), picture(), stage=-1)
    with pytest.raises(IndexError, match="stage 3: this trace has 3 stages"):
        draw_guidance(traced(), picture(), stage=3)
    with pytest.raises(ValueError, match="image 3: there are images"):
        draw_guidance(traced(), picture(), image=3)


# --- one window -------------------------------------------------------------------------------


def crossing(one: Any, other: Any) -> bool:
    """Whether two segments from left to right have a point in common that ends neither."""
    (a, b), (c, d) = one, other
    if max(a[0], c[0]) >= min(b[0], d[0]):
        return False
    left, right = a[1] - c[1], b[1] - d[1]
    return left * right < 0


@pytest.mark.parametrize(
    ("stage", "window"), [(0, 0), (0, 17), (1, 4), (2, 0), (2, 2)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.0])
def test_a_window_is_drawn_edge_by_edge(stage: int, window: int, ratio: float) -> None:
    trace = traces.traced([[(20, 26), (9, 9)], [(5, 2)]], guided=True, ratio=ratio)
    graph = trace.graph(stage, window=window)
    ax = draw_window(trace, window, stage=stage)
    vision, merges = graph["vision"], graph[MERGES]
    places = list(zip(vision.row.tolist(), vision.col.tolist(), strict=True))
    labels = [text.get_text().split()[0] for text in ax.texts]
    assert sorted(labels) == sorted(f"{row},{col}" for row, col in places)
    spots = {text.get_text().split()[0]: text.get_position() for text in ax.texts}
    assert len(set(spots.values())) == len(places)
    assert len(ax.patches) == len(places)
    number = merges.num_edges
    assert f": {len(places)} tokens, {number} join another, " in ax.get_title()
    if not number:
        assert not ax.collections
        return
    (edges,) = ax.collections
    drawn = torch.from_numpy(edges.get_array().data.copy())
    assert torch.allclose(drawn, 1 - merges.similarity.double())
    widths = torch.as_tensor(edges.get_linewidths())
    assert torch.equal(widths.argsort(), merges.weight.double().argsort())
    lines = [tuple(map(tuple, line.tolist())) for line in edges.get_segments()]
    for line, source, end in zip(lines, *merges.edge_index.tolist(), strict=True):
        for point, token, side in ((line[0], source, 1.1), (line[1], end, -1.1)):
            text = spots["{},{}".format(*places[token])]
            assert point == pytest.approx((text[0] + side, text[1]))
    assert not any(crossing(one, other) for one, other in combinations(lines, 2))


def test_survivors_tell_their_own_share() -> None:
    trace = traced()
    graph = trace.graph(2, window=0)
    told = {
        match[1]: int(match[2])
        for text in draw_window(trace, 0, stage=2).texts
        if (match := re.match(r"(\S+)  (\d+)%", text.get_text()))
    }
    number = {f"{r},{c}": n for n, (r, c) in enumerate(_places(graph))}
    receives = set(graph[MERGES].edge_index[1].tolist())
    assert {number[name] for name in told} == receives
    kept, weight = (
        graph["vision", "keeps", "vision"].edge_index[0],
        graph["vision", "keeps", "vision"].weight,
    )
    for name, percent in told.items():
        own = float(weight[kept == number[name]])
        assert percent == pytest.approx(100 * own, abs=0.51)


def _places(graph: Any) -> list[tuple[int, int]]:
    return list(zip(graph["vision"].row.tolist(), graph["vision"].col.tolist(), strict=True))


def test_patches_are_cut_from_the_picture() -> None:
    trace = traced()
    graph = trace.graph(2, window=0)
    ax = draw_window(trace, 0, picture(), stage=2)
    whole = torch.from_numpy(np.array(picture()))
    assert len(ax.images) == graph["vision"].num_nodes > 4
    names = {(t.get_position()[1], round(t.get_position()[0], 1)): t.get_text() for t in ax.texts}
    for image in ax.images:
        left, right, bottom, top = image.get_extent()
        x, y = (left + right) / 2, (top + bottom) / 2
        (name,) = [n for (ty, tx), n in names.items() if ty == y and abs(abs(tx - x) - 0.6) < 0.06]
        row, col = map(int, name.split()[0].split(","))
        pixels = torch.from_numpy(image.get_array().data.copy())
        assert bool((pixels == whole[row * 8, col * 8]).all())


def test_no_such_window() -> None:
    with pytest.raises(ValueError, match="no token lies in image None, window 99"):
        draw_window(traced(), 99)
    with pytest.raises(ValueError, match="window 48 has protected tokens only"):
        draw_window(traced(), 48)


def test_unknown_similarities_are_grey() -> None:
    trace = traced()
    trace.stages[2].similarity[~trace.stages[2].stays] = -torch.inf
    (edges,) = draw_window(trace, 0, stage=2).collections
    edges.update_scalarmappable()
    assert {tuple(colour[:3].round(2)) for colour in edges.get_colors()} == {(0.6, 0.6, 0.6)}


# --- lineage ----------------------------------------------------------------------------------


def titled(figure: Figure) -> dict[str, Any]:
    """Panels by their titles, without the bar's."""
    return {ax.get_title(): ax for ax in figure.axes if ax.get_title()}


def test_lineage_has_guidance_above_what_each_stage_left() -> None:
    figure = draw_lineage(traced().with_prompts(["what costs $3 or $4?", "why?"]), picture())
    panels = titled(figure)
    heard = [panels.pop(f"guidance heard after layer {layer}") for layer in (3, 7, 9)]
    assert [title.split()[0] for title in panels] == ["24", "16", "8", "4"]
    assert figure.get_suptitle() == r"what costs \$3 or \$4?"
    limits = {ax.images[-1].get_clim() for ax in heard}
    values = torch.cat([shown(ax).flatten() for ax in heard])
    assert limits == {(float(values.min()), float(values.max()))}
    figure.draw_without_rendering()
    for above, below in zip(heard, list(panels.values())[1:], strict=True):
        over, under = above.get_position(), below.get_position()
        assert over.y0 > under.y1
        assert over.x0 == pytest.approx(under.x0, abs=0.01)


def test_lineage_of_one_stage_is_a_row_without_a_gap() -> None:
    whole = traced()
    figure = draw_lineage(MergeTrace(whole.layout, whole.stages[:1]), picture())
    figure.draw_without_rendering()
    places = [ax.get_position() for ax in titled(figure).values()]
    assert len(places) == 3
    assert len({round(place.y0, 2) for place in places}) == 1


def test_lineage_without_guidance_is_one_row() -> None:
    figure = draw_lineage(traced(guided=False), picture())
    assert [ax.get_title().split()[0] for ax in figure.axes] == ["24", "16", "8", "4"]
    alone = draw_lineage(MergeTrace(traced().layout, ()), picture())
    assert len(alone.axes) == 1


@pytest.mark.parametrize("by", ["patch", "survivor"])
def test_the_patches_that_come_together_are_left_unveiled(by: str) -> None:
    trace = traced()
    survivor = int(trace.survivor_of()[trace.layout.row.eq(2).nonzero()[0]])
    members = trace.members(survivor)
    place = int(trace.layout.row[members[-1]]), int(trace.layout.col[members[-1]])
    chosen: Any = {"patch": place} if by == "patch" else {"survivor": survivor}
    figure = draw_lineage(trace, picture(), **chosen)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[trace.layout.row[members], trace.layout.col[members]] = True
    assert 1 < len(members) < 24
    assert figure.get_suptitle() == f"where {len(members)} patches come together"
    panels = titled(figure)
    assert len(panels) == 7
    for ax in panels.values():
        veil = torch.from_numpy(ax.images[-1].get_array().data.copy())
        assert torch.equal(veil[:, :, 3] == 0, mask)
    last = panels["4 after layer 9 (1x1 windows)"].collections[-1].get_segments()
    changes = [(mask[:, 1:] != mask[:, :-1]).sum(), (mask[1:] != mask[:-1]).sum()]
    assert len(last) == sum(map(int, changes))
    first = panels["24 vision tokens"].collections[-1].get_segments()
    assert len(first) > len(last)
    assert all(0 <= point[0] + 0.5 <= 6 * CELL for line in first for point in line)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"patch": (4, 0)}, r"no token lies at patch \(4, 0\) of image 0, 4x6"),
        ({"patch": (0, -1)}, r"no token lies at patch \(0, -1\)"),
        ({"patch": (0, 1)}, r"no token lies at patch \(0, 1\)"),
        ({"survivor": -1}, "survivor -1 stands for no patch of image 0"),
        ({"survivor": 999}, "survivor 999 stands for no patch of image 0"),
        ({"survivor": 0, "patch": (0, 0)}, "expected one of them"),
        ({"image": 3}, "image 3: there are images"),
    ],
)
def test_nothing_to_follow(chosen: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_lineage(traced(holes=5), picture(), **chosen)


# --- layers -----------------------------------------------------------------------------------


def test_bars_are_as_high_as_what_is_held() -> None:
    ax = draw_layers([8, 8, 4, 2], [8, 8, 8, 8], label="tokens")
    full, held = ax.containers
    assert [bar.get_height() for bar in full] == [8] * 4
    assert [bar.get_height() for bar in held] == [8, 8, 4, 2]
    assert [bar.get_x() + bar.get_width() / 2 for bar in held] == pytest.approx([0, 1, 2, 3])
    assert ax.get_title("left") == "tokens: 69% of full over all layers"


@pytest.mark.parametrize(("held", "full"), [([], []), ([1], [1, 2])])
def test_layers_come_in_pairs(held: Any, full: Any) -> None:
    with pytest.raises(ValueError, match=f"{len(held)} layers compressed and {len(full)} in full"):
        draw_layers(held, full)


# --- all --------------------------------------------------------------------------------------

DRAWN: dict[str, Any] = {
    "guidance": lambda trace, ax: draw_guidance(trace, picture(), ax=ax),
    "window": lambda trace, ax: draw_window(trace, 0, picture(), ax=ax),
    "merges": lambda trace, ax: draw_merges(trace, picture(), ax=ax),
    "layers": lambda trace, ax: draw_layers([2, 1], [2, 2], ax=ax),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_can_be_saved_and_touch_nothing_global(draw: Any, kind: str) -> None:
    trace = traced()
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert draw(trace, right) is right
    assert not left.images
    for made in (figure, draw(trace, None).figure):
        file = io.BytesIO()
        made.savefig(file, format=kind)
        assert file.tell() > 1000
    assert not plt.get_fignums()


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_multiples_can_be_saved(kind: str) -> None:
    trace = traced()
    for figure in (draw_lineage(trace, picture(), patch=(1, 1)), draw_stages(trace, picture())):
        file = io.BytesIO()
        figure.savefig(file, format=kind)
        assert file.tell() > 1000
    assert not plt.get_fignums()
