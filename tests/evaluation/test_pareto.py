"""The figure of KV against accuracy: a front, and few lines that are named beside them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.factory import make_row, make_rows
from lightkv_gnn.evaluation import pareto
from lightkv_gnn.evaluation.pooling import pool

points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_beats(found):
    front = pareto.front(found)
    for cost, value in found:
        beaten = any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in found)
        assert ((cost, value) in front) == (not beaten)
    for (cheap, low), (dear, high) in itertools.pairwise(front):
        assert cheap < dear
        assert low < high


def test_few_have_a_line_and_some_always():
    right = {f"m{number}": number / 20 for number in range(12)}
    right |= {"ours": 0.2, "random_pruning": 0.1, "downsample": 0.15, "none": 1.0, "oracle": 1.0}
    names = pareto.chosen(pool([make_row(name, share) for name, share in right.items()]))
    assert names == ["ours", "downsample", "random_pruning", "m11", "m10", "m9"]
    assert len(names) == pareto.LINES <= len(pareto.COLOURS)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_lines_are_named_where_they_end_and_hard_questions_are_beside():
    small = [make_row("downsample", 0.4, depth=-1, retention=share) for share in (0.5, 0.3)]
    rows = [*make_rows(questions=300), *small]
    canvas = pareto.draw(pool(rows))
    assert not canvas.legends
    assert len(canvas.axes) == 4  # two depths, all questions and hard ones
    for ax in canvas.axes:
        assert sorted(texts(ax)) == ["downsample", "guided", "mean", "random"]
        heights = sorted(text.get_position()[1] for text in ax.texts)
        low, high = ax.get_ylim()
        gaps = [b - a for a, b in itertools.pairwise(heights)]
        assert min(gaps) > 0.7 * pareto.APART * (high - low)
        assert low <= heights[0] <= heights[-1] <= high
    entries = [entry for entry in pool(rows) if entry.first.depth in (0, -1)]
    points = [(entry.mean("kv_ratio"), entry.accuracy) for entry in entries[1:]]
    (front,) = [one for one in canvas.axes[0].lines if one.get_linestyle() == ":"]
    assert front.get_xydata().tolist() == pytest.approx(np.array(pareto.front(points)))
    value = {label: ax.get_ylabel() for label, ax in zip("ab", canvas.axes, strict=False)}
    assert value == {"a": "accuracy", "b": "accuracy on hard questions"}
    hard = canvas.axes[1]
    guided = next(text for text in hard.texts if text.get_text() == "guided")
    assert guided.xy[1] == pytest.approx((1 - 0.02 * 2 * 0.45) / 4)


def test_without_hard_questions_there_is_one_panel_a_depth():
    rows = make_rows(hard_accuracy=None)
    assert len(pareto.draw(pool(rows)).axes) == 2
    assert pareto.draw(pool([make_row("none")])) is None


def test_depths_with_budgets_of_their_own_share_a_panel():
    def row(name, depth, retention):
        return make_row(name, 0.4, depth=depth, retention=retention, hard_accuracy=None)

    none = make_row("none", hard_accuracy=None)
    swept = [row(name, depth, 0.2 + depth / 10) for name in "ab" for depth in range(5)]
    (ax,) = pareto.draw(pool([*swept, none])).axes
    assert ax.get_title() == "a budget for each depth"
    alone = [row("a", depth, 0.5) for depth in range(3)]
    (ax,) = pareto.draw(pool([*alone, row("b", 0, 0.5), none])).axes
    assert ax.get_title() == "first compressed after layer 0"
