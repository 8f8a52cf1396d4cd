"""Agreement and hard questions, counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.factory import make_row
from lightkv_gnn.evaluation.hard import agreement, hard_ones, with_hard

scores = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=9)


@given(scores, st.randoms())
def test_hard_accuracy_is_that_of_what_smaller_pictures_lose(small, random):
    mine = [random.choice([0.0, 1.0]) for _ in small]
    size = {"questions": len(small)}
    row = make_row(scores=tuple(mine), **size)
    found = with_hard(row, make_row("downsample", scores=tuple(small), **size))
    hard = [a for a, b in zip(mine, small, strict=True) if b < 1]
    assert found.hard_questions == len(hard) == len(hard_ones(small))
    easy = [a for a, b in zip(mine, small, strict=True) if b == 1]
    if not hard:
        assert found.hard_accuracy is None
        return
    # Hard and easy questions together are all of them.
    assert found.hard_accuracy * len(hard) + sum(easy) == pytest.approx(sum(mine))


def test_agreement_is_of_words():
    full = ("a red disc", "two", "no", "yes")
    assert agreement(full, full) == 1.0
    assert agreement((" a  red disc", "three", "no", "no"), full) == 0.5
    assert agreement((), full) is agreement(full, ()) is None
    with pytest.raises(ValueError, match="zip"):
        agreement(full[:3], full)


def test_questions_have_to_be_the_same():
    with pytest.raises(ValueError, match="20 questions were asked of smaller pictures"):
        with_hard(make_row(), make_row("downsample", questions=20))
