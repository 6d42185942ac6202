"""Statistics of a few seeds: intervals, tests, their correction for multiplicity, and the number of seeds needed.

All of Student's t, for values of independent seeds (paired differences among them): near exact where these are roughly
normal, on the safe side where they are symmetric with heavy tails. Values that are all equal have no spread to judge
by: there the sign test stands in.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit  # Student's t as scipy.stats computes it, whose import takes a second

#: Rate at which a study may be wrong about any of its claims.
ALPHA = 0.05
#: The largest number of seeds that is considered.
MOST_SEEDS = 1000


def interval(values: Sequence[float], *, level: float = 1 - ALPHA) -> tuple[float, float, float]:
    """Mean of the values and its confidence interval: (mean, low, high); not a number where there are too few."""
    mean = fmean(values) if values else math.nan
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def exceeds(values: Sequence[float], bound: float) -> float:
    """One-sided p-value of "the mean is above the bound"; 1 below two values."""
    if bound == -math.inf:
        return 0.0
    if len(values) < 2 or bound == math.inf:
        return 1.0
    mean, spread = fmean(values), stdev(values)
    if spread <= 1e-12 * abs(mean):
        return 0.5 ** len(values) if mean > bound else 1.0
    return float(stdtr(len(values) - 1, (bound - mean) / spread * math.sqrt(len(values))))


def between(values: Sequence[float], low: float, high: float) -> tuple[bool, float]:
    """Whether the mean lies between two bounds, either of which may be infinite; and the p-value of the answer.

    "Inside" takes both one-sided tests (equivalence), "outside" the better one of two, corrected. The answer is what
    the values speak for, and its p-value is doubled for having looked at both.
    """
    mirrored = [-value for value in values]
    inside = max(exceeds(values, low), exceeds(mirrored, -high))
    tests = [exceeds(mirrored, -low)] * math.isfinite(low) + [exceeds(values, high)] * math.isfinite(high)
    outside = len(tests) * min(tests, default=1.0)
    return inside <= outside, min(1.0, 2 * min(inside, outside))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the chance of any false one among them stays below alpha."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def seeds_needed(values: Sequence[float], low: float, high: float, *, alpha: float = ALPHA) -> int | None:
    """The number of seeds that would decide, with the same mean and standard deviation; None above MOST_SEEDS.

    An estimate: half of all studies of that size would remain undecided.
    """
    if len(values) < 2:
        return None
    mean, spread = fmean(values), stdev(values)
    for n in range(2, MOST_SEEDS + 1):
        half = -float(stdtrit(n - 1, alpha / 2)) * spread / math.sqrt(n)
        decided = (low + half < mean < high - half) or mean + half < low or mean - half > high
        if decided if spread else 2 * 0.5**n < alpha:
            return n
    return None
