"""As many tokens as planned, without an engine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lightkv_gnn as lk
from lightkv_gnn.vllm.merging import PictureMerger
from lightkv_gnn.vllm.plan import Placed, plan_picture, spread_positions
from lightkv_gnn.vllm.settings import MATCHERS, Settings

SIDES = st.integers(4, 9)


@settings(deadline=None)
@given(
    st.lists(st.tuples(SIDES, SIDES, st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=3),
    st.sampled_from([0.02, 0.25, 0.5, 0.8, 1]),
    st.integers(1, 4),
)
def test_produced_as_planned(tiles: list[tuple[int, ...]], retention: float, windows: int) -> None:
    chosen = Settings(retention, windows)
    whole = sum(lk.graphs.Tile(*tile).tokens for tile in tiles)
    free = sum(rows * cols for rows, cols, *_ in tiles)
    planned = plan_picture(chosen, *tiles)
    merged = PictureMerger(chosen)(torch.randn(whole, 3), *tiles)
    assert len(merged) == planned.kept
    # Each window keeps its share, rounded up.
    kept = planned.kept - (whole - free)
    assert retention * free <= kept + 1e-6 < retention * free + len(tiles) * windows**2


def test_a_whole_picture_is_left_alone() -> None:
    features = torch.randn(16, 3)
    assert PictureMerger(Settings(1))(features, (4, 4)) is features


def test_too_small_for_the_windows() -> None:
    with pytest.raises(ValueError, match="1x9 tokens, too few for 2x2 windows"):
        plan_picture(Settings(0.5), (1, 9))


def test_features_of_another_picture() -> None:
    with pytest.raises(ValueError, match=r"expected .token, channel. with 36 tokens"):
        PictureMerger(Settings(0.5))(torch.randn(25, 3), (6, 6))


@pytest.mark.parametrize("matcher", MATCHERS)
def test_pictures_do_not_depend_on_each_other(matcher: str) -> None:
    """Nor does the second time depend on the first, nor what else is random on either."""
    features, chosen = torch.randn(2, 36, 5), Settings(0.5, matcher=matcher)
    merger, state = PictureMerger(chosen), torch.get_rng_state()
    for one in features:
        assert torch.equal(merger(one, (6, 6)), PictureMerger(chosen)(one, (6, 6)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("rows", "cols"), [(3, 2), (2, 3)])
def test_whole_pictures_have_their_rows_and_columns(rows: int, cols: int) -> None:
    found = spread_positions(11, [Placed(2, (rows, cols), (6,))])
    picture = [[2, 2 + row, 2 + col] for row in range(rows) for col in range(cols)]
    assert found.T.tolist() == [[0] * 3, [1] * 3, *picture, *([n] * 3 for n in (5, 6, 7))]


@settings(deadline=None)
@given(SIDES, SIDES, st.data())
def test_fewer_tokens_move_no_text(rows: int, cols: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, rows * cols))
    whole = spread_positions(3 + rows * cols, [Placed(2, (rows, cols), (rows * cols,))])
    found = spread_positions(3 + kept, [Placed(2, (rows, cols), (kept,))])
    assert torch.equal(found[:, :2], whole[:, :2])
    assert torch.equal(found[:, -1], whole[:, -1])
    places = [tuple(one) for one in found[:, 2:-1].T.tolist()]
    assert len(set(places)) == kept
    assert set(places) <= {tuple(one) for one in whole[:, 2:-1].T.tolist()}
    assert places == sorted(places)
