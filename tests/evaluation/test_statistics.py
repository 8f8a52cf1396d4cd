"""Intervals and tests: brute force, closed values, symmetry, coverage."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from statistics import fmean, stdev

import numpy as np
import pytest

from lightkv_gnn.evaluation import statistics
from lightkv_gnn.evaluation.statistics import (
    difference_over_seeds,
    mcnemar,
    over_seeds,
    paired_difference,
    score_interval,
    t_interval,
    t_test,
)
from lightkv_gnn.intervals import wilson

QUANTILES = {1: 12.706, 2: 4.303, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042}
"""Student's t within which 95 % lie, from printed tables."""


def test_wilson_against_printed_values():
    assert wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 1.96**2 / (10 + 1.96**2)))


@pytest.mark.parametrize(("right", "asked"), [(0, 7), (1, 7), (3, 7), (950, 1000)])
def test_ends_of_wilson_solve_the_score_equation(right, asked):
    """|share - p| = z * sqrt(p (1 - p) / n) at both ends, but where an end is the share itself."""
    share = right / asked
    for end in wilson(right, asked):
        error = 1.96 * math.sqrt(end * (1 - end) / asked)
        assert abs(share - end) == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize(("right", "asked"), [(0, 7), (3, 7), (999, 1000)])
def test_wilson_is_symmetric(right, asked):
    low, high = wilson(right, asked)
    assert wilson(asked - right, asked) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("right", "asked"), [(3, 0), (4, 3), (-1, 3)])
def test_wilson_refuses_more_successes_than_trials(right, asked):
    with pytest.raises(ValueError, match="successes"):
        wilson(right, asked)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_wilson_covers_the_share_as_often_as_it_says(share):
    """Exactly, over all outcomes: near 95 %, as Brown et al. found."""
    asked = 60
    covered = 0.0
    for right in range(asked + 1):
        low, high = wilson(right, asked)
        chance = math.comb(asked, right) * share**right * (1 - share) ** (asked - right)
        covered += chance * (low <= share <= high)
    assert 0.93 < covered < 0.98


def test_scores_of_0_and_1_get_wilson_and_others_the_bootstrap():
    assert score_interval([1, 0, 1, 1]) == wilson(3, 4)
    scores = np.random.default_rng(0).random(400).tolist()
    half = 1.96 * stdev(scores) / math.sqrt(len(scores))
    expected = (fmean(scores) - half, fmean(scores) + half)
    assert score_interval(scores) == pytest.approx(expected, abs=0.003)
    assert score_interval(scores, seed=1) == score_interval(scores, seed=1)
    assert score_interval(scores, seed=1) != score_interval(scores, seed=2)


def test_bootstrap_against_all_samples():
    """Of four scores there are 256 samples; their means' distribution is the bootstrap's limit."""
    scores = [0.1, 0.2, 0.6, 0.9]
    means = sorted(fmean(sample) for sample in product(scores, repeat=4))
    drawn = statistics._resampled_means(scores, seed=0)
    for mean in {round(mean, 6) for mean in means}:
        exact = fmean(each <= mean + 1e-9 for each in means)
        assert (drawn <= mean + 1e-9).mean() == pytest.approx(exact, abs=0.02)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(200):
        scores = rng.choice([0, 0.5, 1], p=[0.2, 0.3, 0.5], size=80).tolist()
        low, high = score_interval(scores, seed)
        covered += low <= 0.65 <= high
    assert 0.9 < covered / 200 < 0.99


def test_bootstrap_of_no_scores_is_refused():
    with pytest.raises(ValueError, match="no scores"):
        paired_difference([], [])


@pytest.mark.parametrize(("here", "there"), [(0, 0), (3, 3), (0, 5), (5, 0), (2, 7), (8, 1)])
def test_mcnemar_against_all_tosses(here, there):
    scores = [1.0] * here + [0.0] * there + [1.0, 0.0]
    base = [0.0] * here + [1.0] * there + [1.0, 0.0]
    tosses = here + there
    as_uneven = sum(
        abs(2 * sum(toss) - tosses) >= abs(here - there) for toss in product((0, 1), repeat=tosses)
    )
    assert mcnemar(scores, base) == pytest.approx(float(Fraction(as_uneven, 2**tosses)))
    assert mcnemar(scores, base) == mcnemar(base, scores)


def test_paired_difference_turns_with_the_pair():
    rng = np.random.default_rng(0)
    scores, base = rng.random(50).tolist(), (rng.random(50) * 0.9).tolist()
    there, back = paired_difference(scores, base), paired_difference(base, scores)
    assert there.value == pytest.approx(-back.value)
    assert there.low == pytest.approx(-back.high, abs=0.01)
    assert there.high == pytest.approx(-back.low, abs=0.01)
    assert there.p_value == pytest.approx(back.p_value, abs=0.03)


def test_pairing_uses_the_pairs():
    """A small difference that every question shares is seen, however unlike the questions are."""
    base = np.random.default_rng(0).random(40).tolist()
    found = paired_difference([score + 0.01 for score in base], base)
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    assert found.p_value < 0.001


def test_no_difference_has_p_of_1():
    assert paired_difference([0.5, 0.2], [0.5, 0.2]) == (0, 0, 0, 1)
    assert paired_difference([1, 0], [1, 0]) == (0, 0, 0, 1)


def test_p_of_the_bootstrap_is_about_uniform_without_a_difference():
    rng = np.random.default_rng(5)
    drawn = rng.choice([0, 0.5, 1], size=(200, 2, 60)).tolist()
    found = [paired_difference(*pair, seed).p_value for seed, pair in enumerate(drawn)]
    assert 0.01 < fmean(p < 0.05 for p in found) < 0.1
    assert 0.4 < fmean(p < 0.5 for p in found) < 0.6


def test_unequal_numbers_of_scores_are_not_paired():
    with pytest.raises(ValueError, match="2 scores cannot be paired with 3"):
        paired_difference([1, 0], [1, 0, 1])


@pytest.mark.parametrize(("degrees", "quantile"), QUANTILES.items())
def test_t_against_printed_tables(degrees, quantile):
    values = np.random.default_rng(0).random(degrees + 1).tolist()
    low, high = t_interval(values)
    half = quantile * stdev(values) / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=2e-4)
    assert (high + low) / 2 == pytest.approx(fmean(values))


def test_t_has_closed_forms_for_one_and_two_degrees():
    for t in (0.1, 1.0, 7.0):
        assert statistics._t_within(t, 1) == pytest.approx(2 / math.pi * math.atan(t))
        assert statistics._t_within(t, 2) == pytest.approx(t / math.sqrt(2 + t * t))


def test_t_tends_to_the_normal_distribution():
    for t in (0.5, 1.0, 1.96):
        assert statistics._t_within(t, 4001) == pytest.approx(math.erf(t / math.sqrt(2)), abs=1e-3)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_t_test_and_t_interval_agree(seeds):
    """p is 0.05 where 0 is an end of the interval."""
    values = np.random.default_rng(seeds).random(seeds)
    low, high = t_interval(values.tolist())
    for end in (low, high):
        assert t_test((values - end).tolist()) == pytest.approx(0.05)
    assert t_test(values.tolist()) == pytest.approx(t_test((-values).tolist()))


def test_t_test_without_variation():
    assert t_test([0.0, 0.0]) == 1
    assert t_test([0.1, 0.1]) == 0


def test_one_seed_has_its_own_interval():
    scores, base = [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]
    assert over_seeds([scores]) == score_interval(scores)
    assert difference_over_seeds([(scores, base)]) == paired_difference(scores, base)


def test_seeds_that_differ_widen_the_interval():
    agree = [[1.0] * 70 + [0.0] * 30] * 2
    differ = [[1.0] * 90 + [0.0] * 10, [1.0] * 50 + [0.0] * 50]
    assert over_seeds(agree) == wilson(140, 200)  # Student's has no width here
    unbounded = t_interval([0.9, 0.5])
    assert unbounded.low < 0 < 1 < unbounded.high
    assert over_seeds(differ) == (0, 1)
    closer = [[1] * right + [0] * (100 - right) for right in (60, 50, 55)]
    assert over_seeds(closer) == t_interval([0.6, 0.5, 0.55])
    assert over_seeds(differ)[0] < wilson(140, 200).low


def test_seeds_count_alike_whatever_their_number_of_questions():
    few, many = ([0.0] * 10, [1.0] * 10), ([0.0] * 30, [0.0] * 30)
    assert difference_over_seeds([few, many]).value == pytest.approx(-0.5)


def test_seeds_that_disagree_are_not_significant_together():
    """All questions together would be; but the next model may go either way."""
    better, worse = ([1.0] * 100, [0.0] * 100), ([0.0] * 20, [1.0] * 20)
    together = difference_over_seeds([better, worse])
    assert mcnemar(better[0] + worse[0], better[1] + worse[1]) < 1e-6
    assert together.p_value == t_test([1.0, -1.0]) == 1
    assert together.low < 0 < together.high
