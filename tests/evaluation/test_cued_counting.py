"""Counting, where two tokens that are one are one too few."""

from __future__ import annotations

import pytest

from evaluation.cued_scores import LAST, MEAN, PRUNE, Exam, keep_top, quickly, saliency
from lightkv_gnn.evaluation.cued import CountingSuite

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def exam(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Exam:
    suite = CountingSuite(recipe=quickly(CountingSuite, pytestconfig, steps=800, batch=16))
    return Exam(suite, suite.subject(0, tmp_path_factory.mktemp("models")), questions=512)


def test_the_model_counts_uncompressed(exam: Exam) -> None:
    assert exam.accuracy() >= 0.97


@pytest.mark.parametrize("options", [{}, LAST, MEAN], ids=["guided", "last", "mean"])
def test_merging_makes_cells_fewer(exam: Exam, options: dict) -> None:
    assert exam.accuracy(0.5, **options) < 0.7


def test_behind_the_layer_that_counts_merging_costs_nothing(exam: Exam) -> None:
    assert exam.accuracy(0.0, 0.5) >= exam.accuracy() - 0.01


def test_one_counted_cell_less_costs_what_one_background_cell_less_does_not(exam: Exam) -> None:
    one = 1.5 / 36
    score = saliency(exam.subject, 6)
    assert exam.accuracy(one, matcher=keep_top(score), **PRUNE) >= exam.accuracy() - 0.03
    assert exam.accuracy(one, matcher=keep_top(lambda x: -score(x)), **PRUNE) < 0.9
