"""The confidence interval of a share of right answers."""

from __future__ import annotations

import math
from typing import NamedTuple

Z = 1.96
"""Standard normal quantile of two-sided 95 %."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def wilson(successes: int, trials: int, z: float = Z) -> Interval:
    """Wilson score interval of a proportion.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001, "Interval estimation for a binomial
    proportion", Eq. 4.

    Raises:
        ValueError: There are no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    share = successes / trials
    scale = 1 + z**2 / trials
    middle = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))
