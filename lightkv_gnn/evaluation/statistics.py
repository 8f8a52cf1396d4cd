"""Intervals and tests for mean scores, alone, in pairs, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from lightkv_gnn.intervals import Interval, wilson

RESAMPLES = 10_000
"""Bootstrap samples."""

BLOCK = 500
"""Of them at a time, for memory."""


class Difference(NamedTuple):
    """Of two means of paired scores, with its 95 % interval and two-sided p value."""

    value: float
    low: float
    high: float
    p_value: float


def score_interval(scores: Sequence[float], seed: int = 0) -> Interval:
    """Of a mean score: Wilson's where every score is 0 or 1, else the bootstrap's."""
    if _binary(scores):
        return wilson(round(sum(scores)), len(scores))
    return _percentiles(_resampled_means(scores, seed))


def paired_difference(scores: Sequence[float], base: Sequence[float], seed: int = 0) -> Difference:
    """Mean of ``scores`` less that of ``base``, which are of the same questions in the same order.

    The interval is the percentile bootstrap's over questions.  The p value is McNemar's exact one
    where every score is 0 or 1, else that of the bootstrap: twice the smaller share of resampled
    means on either side of 0.

    Source: Davison and Hinkley 1997, "Bootstrap methods and their application", sections 4.4 and
    5.3.

    Args:
        scores: Of one method.
        base: Of the other.
        seed: Of the resampling.

    Raises:
        ValueError: There are no scores, or not as many of one as of the other.
    """
    if len(scores) != len(base):
        raise ValueError(
            f"{len(scores)} scores cannot be paired with {len(base)}: "
            "expected the same questions in the same order"
        )
    differences = [score - other for score, other in zip(scores, base, strict=True)]
    means = _resampled_means(differences, seed)
    if _binary(scores) and _binary(base):
        p_value = mcnemar(scores, base)
    else:
        tail = min((means <= 0).sum(), (means >= 0).sum())
        p_value = min(1.0, 2 * (float(tail) + 1) / (RESAMPLES + 1))
    return Difference(fmean(differences), *_percentiles(means), p_value)


def mcnemar(scores: Sequence[float], base: Sequence[float]) -> float:
    """Two-sided p value of McNemar's exact test: are the questions that differ a fair coin?

    With b questions right only here and c right only there, twice the probability of at most
    ``min(b, c)`` heads in ``b + c`` tosses, at most 1.

    Source: McNemar 1947; Fagerland, Lydersen and Laake 2013, "The McNemar test for binary
    matched-pairs data", Eq. 3.
    """
    pairs = list(zip(scores, base, strict=True))
    here, there = pairs.count((1, 0)), pairs.count((0, 1))
    tosses = here + there
    tail = sum(math.comb(tosses, heads) for heads in range(min(here, there) + 1))
    return min(1.0, 2 * tail / 2**tosses)


def t_interval(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of the mean of two or more values.

    Source: Student 1908: ``mean ± t * s / sqrt(n)`` with n - 1 degrees of freedom.
    """
    half = _t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values) - half, fmean(values) + half)


def t_test(values: Sequence[float]) -> float:
    """Two-sided p value of Student's test that the mean of two or more values is 0."""
    mean, error = fmean(values), stdev(values) / math.sqrt(len(values))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 1 - _t_within(abs(mean) / error, len(values) - 1)


def over_seeds(scores: Sequence[Sequence[float]]) -> Interval:
    """Of the mean over seeds of the mean scores.

    With one seed, :func:`score_interval`.  With more, Student's over the seeds, widened where
    needed to hold that of all questions together: seeds that happen to agree, as at 100 %, would
    else promise certainty.  Scores lie between 0 and 1, and so does the interval.

    Args:
        scores: For each seed, those of its questions.
    """
    together = score_interval([score for seed in scores for score in seed])
    if len(scores) == 1:
        return together
    low, high = _hull(together, t_interval([fmean(seed) for seed in scores]))
    return Interval(max(0.0, low), min(1.0, high))


def difference_over_seeds(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """Mean over seeds of the paired differences.

    With one seed, :func:`paired_difference`.  With more, Student's over the seeds, where interval
    and p value are at least those of all questions together.

    Args:
        pairs: For each seed, the scores of both methods on its questions.

    Raises:
        ValueError: Scores that cannot be paired.
    """
    single = [paired_difference(*pair).value for pair in pairs]
    together = paired_difference(
        [score for scores, _ in pairs for score in scores],
        [score for _, base in pairs for score in base],
    )
    if len(pairs) == 1:
        return together
    hull = _hull(Interval(together.low, together.high), t_interval(single))
    return Difference(fmean(single), *hull, max(together.p_value, t_test(single)))


def _binary(scores: Sequence[float]) -> bool:
    return all(score in (0, 1) for score in scores)


def _resampled_means(values: Sequence[float], seed: int) -> np.ndarray:
    """Means of samples with replacement; equal values are drawn together, by their number."""
    if not values:
        raise ValueError("there are no scores")
    different, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    rng = np.random.default_rng(seed)
    sums = [
        rng.multinomial(len(values), counts / len(values), size=BLOCK) @ different
        for _ in range(RESAMPLES // BLOCK)
    ]
    return np.concatenate(sums) / len(values)


def _percentiles(means: np.ndarray) -> Interval:
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(low), float(high))


def _hull(one: Interval, other: Interval) -> Interval:
    return Interval(min(one.low, other.low), max(one.high, other.high))


def _t_within(t: float, degrees: int) -> float:
    """Probability that Student's t lies within ±t.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0))


def _t_quantile(degrees: int) -> float:
    """The t that ±t holds 95 % within."""
    low, high = 0.0, 13.0  # 12.71 with one degree of freedom, less with more
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if _t_within(middle, degrees) > 0.95 else (middle, high)
    return high
