"""Tests and intervals for the seeds of a study, which are few.

A test answers "is the centre of these values above a bound?" with a one-sided p-value. The tests of paired differences
assume that these are symmetric about their centre, as differences of two arms are that do equally well; Student's t
also that they are roughly normal. The sign test assumes nothing.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean, median, stdev

import numpy as np
from scipy.special import bdtr, bdtrc, betaincinv, chdtri, nctdtr, stdtr, stdtrit  # scipy.stats takes a second

#: Rate at which a study may be wrong about any of its claims.
ALPHA = 0.05
#: Fewest seeds that a verdict takes.
MIN_SEEDS = 8
#: Share of ALPHA that the first look at a study spends; of what is left, each further look spends as large a share.
FIRST_LOOK = 0.8
#: Up to so many values all their signs are enumerated, above that as many are drawn.
ENUMERATED = 16
#: The largest number of seeds that is considered.
MOST_SEEDS = 1000

Test = Callable[[Sequence[float], float], float]


def t_test(values: Sequence[float], bound: float) -> float:
    """Student's t of "the mean is above the bound"; 1 below two values."""
    if len(values) < 2:
        return 1.0
    mean, spread = fmean(values), stdev(values)
    if spread <= 1e-12 * abs(mean):  # no spread to judge by
        return sign_test(values, bound)
    return float(stdtr(len(values) - 1, (bound - mean) / spread * math.sqrt(len(values))))


def sign_test(values: Sequence[float], bound: float) -> float:
    """Exact test of "the median is above the bound"; values that equal it speak for neither side."""
    above, below = (sum(sign * (value - bound) > 0 for value in values) for sign in (1, -1))
    return float(bdtrc(above - 1, above + below, 0.5)) if above else 1.0


def share_test(values: Sequence[float], bound: float) -> float:
    """Exact binomial test of "the probability of a 1 is above the bound", of values 0 and 1."""
    ones = round(sum(values))
    return float(bdtrc(ones - 1, len(values), min(1.0, max(0.0, bound)))) if ones else 1.0


def sign_flip_test(values: Sequence[float], bound: float) -> float:
    """Exact test of "the centre of symmetry is above the bound": how many choices of signs have as large a sum.

    Of differences of 0 and 1 it is McNemar's exact test.
    """
    return flipped(np.asarray(values, dtype=float) - bound)


def signed_rank_test(values: Sequence[float], bound: float) -> float:
    """Wilcoxon's exact signed-rank test of "the centre of symmetry is above the bound"; values may be infinite."""
    differences = np.asarray(values, dtype=float) - bound
    sizes, inverse, counts = np.unique(np.abs(differences), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse] * np.sign(differences)
    return flipped(ranks if len(sizes) else differences)


def flipped(differences: np.ndarray) -> float:
    """The share of choices of signs under which the differences have at least the sum that they have."""
    n = len(differences)
    if n <= ENUMERATED:
        signs = (np.arange(2**n)[:, None] >> np.arange(n) & 1) * 2 - 1
    else:  # with the signs that were found: never zero, and still exact (Phipson & Smyth 2010, 1603.05766)
        drawn = np.random.default_rng(0).integers(0, 2, (2**ENUMERATED - 1, n)) * 2 - 1
        signs = np.concatenate([np.where(differences < 0, -1, 1)[None], drawn])
    sums, found = signs @ np.abs(differences), differences.sum()
    return float(np.mean(sums >= found - 1e-9 * np.abs(differences).sum()))


def combined(p_values: Sequence[float], sizes: Sequence[int]) -> float:
    """The p-value of several stages of independent values, by the weighted inverse normal method (Lehmacher & Wassmer
    1999): weights are the roots of the sizes of the stages."""
    normal = NormalDist()
    scores = [normal.inv_cdf(1 - min(max(p, 1e-15), 1 - 1e-15)) for p in p_values]
    total = sum(math.sqrt(size) * score for size, score in zip(sizes, scores, strict=True)) / math.sqrt(sum(sizes))
    return p_values[0] if len(p_values) == 1 else 1 - normal.cdf(total)


def level(claims: int, look: int = 1) -> float:
    """The level of each one-sided test of a study of so many claims, at its first or a later look.

    Whatever is decided at whichever look, some claim is decided wrongly in at most ALPHA of all studies (Bonferroni).
    """
    return ALPHA / claims * FIRST_LOOK * (1 - FIRST_LOOK) ** (look - 1)


def interval(values: Sequence[float], *, level: float = 1 - ALPHA) -> tuple[float, float, float]:
    """Mean of the values and its confidence interval: (mean, low, high); not a number where there are too few."""
    mean = fmean(values) if values else math.nan
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def median_interval(values: Sequence[float], *, level: float = 1 - ALPHA) -> tuple[float, float, float]:
    """Median of the values and the interval of :func:`sign_test`, whose ends are two of the values.

    It is infinite where all of the values are too few for the level.
    """
    if not values:
        return math.nan, math.nan, math.nan
    ordered, n = sorted(values), len(values)
    # the k-th smallest is above the median with the probability of fewer than k heads in n tosses
    k = sum(bdtr(k, n, 0.5) <= (1 - level) / 2 for k in range(n // 2))
    low, high = (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)
    return median(values), low, high


def rank_interval(values: Sequence[float], *, level: float = 1 - ALPHA) -> tuple[float, float, float]:
    """The estimate of Hodges and Lehmann 1963, the median of the means of all pairs, and the interval of
    :func:`signed_rank_test`, whose ends are two of these means. It is infinite where the values are too few.
    """
    if not values:
        return math.nan, math.nan, math.nan
    n, (i, j) = len(values), np.tril_indices(len(values))
    # of one that is infinitely worse and one that is infinitely better, the mean is taken for 0
    pairs = np.nan_to_num((np.asarray(values)[i] + np.asarray(values)[j]) / 2, posinf=math.inf, neginf=-math.inf)
    ways = np.ones(1)  # in which a sum of ranks comes about, of 2^n
    for rank in range(1, n + 1):
        ways = np.convolve(ways, [1.0, *[0.0] * (rank - 1), 1.0])
    k = int(np.sum(np.cumsum(ways) / 2.0**n <= (1 - level) / 2))
    low, high = (float(end) for end in np.sort(pairs)[[k - 1, -k]]) if k else (-math.inf, math.inf)
    return median(pairs.tolist()), low, high


def share_interval(values: Sequence[float], *, level: float = 1 - ALPHA) -> tuple[float, float, float]:
    """Share of values that are 1, and the exact interval of :func:`share_test` (Clopper & Pearson 1934)."""
    n, ones, tail = len(values), round(sum(values)), (1 - level) / 2
    if not n:
        return math.nan, math.nan, math.nan
    low = float(betaincinv(ones, n - ones + 1, tail)) if ones else 0.0
    high = float(betaincinv(ones + 1, n - ones, 1 - tail)) if ones < n else 1.0
    return ones / n, low, high


def share_difference_interval(values: Sequence[float], *, level: float = 1 - ALPHA) -> tuple[float, float, float]:
    """Mean of paired differences of 0 and 1, and its interval: the exact one of the share of 1, less that of -1.

    It takes half the error for each (Bonferroni), and so is wider than McNemar's test asks for.
    """
    (_, *one), (_, *other) = (
        share_interval([float(value == sign) for value in values], level=(1 + level) / 2) for sign in (1, -1)
    )
    return (fmean(values) if values else math.nan), one[0] - other[1], one[1] - other[0]


def seeds_for_share(share: float, bound: float, alpha: float, *, power: float = 0.8) -> int | None:
    """The number of seeds with which :func:`share_test` finds a share above a bound; None above MOST_SEEDS."""
    if share <= bound:
        return None
    for n in range(2, MOST_SEEDS + 1):
        ones = np.arange(n + 1)
        enough = ones[bdtrc(ones - 1, n, min(1.0, max(0.0, bound))) < alpha]  # so many decide it
        if len(enough) and bdtrc(enough[0] - 1, n, share) >= power:
            return n
    return None


def seeds_for_power(effect: float, spread: float, alpha: float, *, power: float = 0.8) -> int | None:
    """The number of seeds with which a one-sided test finds an effect with the given power; None above MOST_SEEDS.

    That of the t test, and enough for an exact test to reach alpha at all.
    """
    if effect <= 0:
        return None
    for n in range(math.ceil(-math.log2(alpha)), MOST_SEEDS + 1):
        critical = float(stdtrit(n - 1, 1 - alpha))
        if spread == 0 or 1 - nctdtr(n - 1, effect / spread * math.sqrt(n), critical) >= power:
            return n
    return None


def largest_spread(values: Sequence[float]) -> float:
    """The upper end of a one-sided 80% interval of the standard deviation."""
    return stdev(values) * math.sqrt((len(values) - 1) / float(chdtri(len(values) - 1, 0.8)))
