"""Rows as an evaluation would leave them, drawn instead of run."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightkv_gnn import __version__
from lightkv_gnn.evaluation.rows import Row, StageLoss
from lightkv_gnn.evaluation.statistics import paired_difference, score_interval


def make_row(
    method: str = "mean",
    right: float = 0.8,
    *,
    seed: int = 0,
    depth: int = 0,
    retention: float = 0.55,
    questions: int = 60,
    binary: bool = True,
    **fields: Any,
) -> Row:
    """A row whose questions are answered in the same order of ease by every method."""
    ease = np.random.default_rng(seed).permutation(questions) / questions
    scores = ease < right if binary else np.clip(right + 0.3 * (0.5 - ease), 0, 1)
    base = np.ones(questions)
    values = tuple(float(score) for score in scores)
    accuracy = float(np.mean(values))
    interval = score_interval(values)
    difference = paired_difference(values, tuple(base))
    none = method == "none"
    held = 1.0 if none else retention
    row = {
        "suite": "cued",
        "group": "vqa",
        "method": method,
        "retention": 1.0 if none else retention,
        "depth": -1 if none else depth,
        "seed": seed,
        "questions": questions,
        "accuracy": accuracy,
        "low": interval.low,
        "high": interval.high,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "p_value": difference.p_value,
        "held": held,
        "kv_bytes": 2048 * held,
        "kv_ratio": held,
        "flops": 5e6 * held,
        "flops_ratio": held,
        "seconds": 0.0123,
        "stages": () if none else (StageLoss(depth, 64, 32, 0.1234, 0.25 - right / 5),) * 2,
        "scores": values,
        "version": __version__,
        "agreement": 1.0 if none else right / 2,
        "hard_accuracy": None if none else right / 4,
        "hard_questions": 0 if none else questions // 2,
        "prefill_seconds": 0.01,
        "method_seconds": 0.0 if none else 0.002,
        "effective_rank": 4.5,
        "attention_entropy": None if none else 1.25,
        "answers": ("word",) * questions if none else (),
    }
    return Row(**{**row, **fields})


def make_rows(seeds: int = 1, **fields: Any) -> list[Row]:
    """No compression and three methods at two depths and two budgets."""
    rows = []
    for seed in range(seeds):
        rows.append(make_row("none", 1.0, seed=seed, **fields))
        for depth in (0, 2):
            for retention in (0.55, 0.25):
                for method, worse in (("guided", 0.02), ("mean", 0.3), ("random", 0.35)):
                    right = 1 - worse * (2 - depth / 2) * (1 - retention)
                    rows.append(
                        make_row(
                            method, right, seed=seed, depth=depth, retention=retention, **fields
                        )
                    )
    return rows
