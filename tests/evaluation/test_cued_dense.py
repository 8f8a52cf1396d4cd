"""A digit in every cell, all of them asked for: nothing is redundant."""

from __future__ import annotations

import pytest
import torch

import lightkv_gnn as lk
from evaluation.cued_scores import MEAN, Exam, quickly
from lightkv_gnn.evaluation.cued import Dense

CELLS = 36

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def exam(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Exam:
    suite = Dense(recipe=quickly(Dense, pytestconfig, batch=8))
    return Exam(suite, suite.subject(0, tmp_path_factory.mktemp("models")), questions=64)


def test_the_model_reads_uncompressed(exam: Exam) -> None:
    assert exam.accuracy() >= 0.99


@pytest.mark.parametrize("options", [{}, MEAN], ids=["guided", "mean"])
def test_a_lighter_cache_reads_worse(exam: Exam, options: dict) -> None:
    """That accuracy stays above 95 % of the full is false where nothing is redundant."""
    assert exam.accuracy(0.5, **options) < 0.8


def test_the_cache_is_lighter(exam: Exam) -> None:
    batch = exam.batches(None)[1][0]
    config = lk.LightKVConfig([lk.Stage(0, 1, 0.5)])
    with torch.no_grad(), lk.attach(exam.subject.model, config) as handle:
        exam.subject.model(**batch.inputs)
        assert handle.ledger.retention < 0.7


@pytest.mark.parametrize("merges", [1, 4])
def test_a_merge_costs_the_digits_it_is_made_of_and_no_other(exam: Exam, merges: int) -> None:
    found = exam.accuracy((merges + 0.5) / CELLS)
    assert 1 - (2 * merges + 0.5) / CELLS <= found <= 1 - 0.5 * merges / CELLS
