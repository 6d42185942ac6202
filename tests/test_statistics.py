"""The tests of seeds, against values known from elsewhere."""

import math

import numpy as np
import pytest
from scipy import stats

from wganlab.statistics import (
    combined,
    flipped,
    interval,
    largest_spread,
    median_interval,
    rank_interval,
    seeds_for_power,
    share_test,
    sign_flip_test,
    sign_test,
    signed_rank_test,
    t_test,
)

VALUES = [0.8, -0.3, 1.1, 0.4, 1.9, -0.2, 0.7, 0.5, 2.2]


def test_interval_of_known_values() -> None:
    # t(0.975, 2) = 4.302653, sd of 1, 2, 3 is 1
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert math.isnan(interval([1.0])[1])


@pytest.mark.parametrize("bound", [-0.5, 0.0, 0.4, 1.0])
def test_p_values_are_those_of_scipy(bound: float) -> None:
    shifted = np.array(VALUES) - bound
    assert t_test(VALUES, bound) == pytest.approx(stats.ttest_1samp(VALUES, bound, alternative="greater").pvalue)
    assert sign_flip_test(VALUES, bound) == pytest.approx(
        stats.permutation_test((shifted,), np.sum, permutation_type="samples", alternative="greater").pvalue
    )
    above, n = int((shifted > 0).sum()), int((shifted != 0).sum())
    assert sign_test(VALUES, bound) == pytest.approx(stats.binomtest(above, n, 0.5, alternative="greater").pvalue)
    if 0 not in shifted:
        exact = stats.wilcoxon(shifted, alternative="greater", method="exact").pvalue
        assert signed_rank_test(VALUES, bound) == pytest.approx(exact)


def test_shares_are_tested_by_the_binomial_distribution() -> None:
    expected = stats.binomtest(3, 10, 0.1, alternative="greater").pvalue
    assert share_test([1, 1, 1, *[0] * 7], 0.1) == pytest.approx(expected)
    assert share_test([0] * 8, 0.0) == 1
    # of differences of 0 and 1, sign flips are McNemar's exact test: 6 of 6 discordant pairs
    assert sign_flip_test([1] * 6 + [0] * 10, 0.0) == pytest.approx(0.5**6)


def test_infinite_values_are_the_most_extreme_ranks() -> None:
    assert signed_rank_test([1.0, 2.0, 3.0, math.inf], 0.0) == signed_rank_test([1.0, 2.0, 3.0, 4.0], 0.0) == 1 / 16
    assert signed_rank_test([1.0, 2.0, 3.0, -math.inf], 0.0) == signed_rank_test([1.0, 2.0, 3.0, -4.0], 0.0) == 7 / 16


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.004])
def test_the_interval_of_ranks_holds_what_their_test_does_not_reject(alpha: float) -> None:
    centre, low, high = rank_interval(VALUES, level=1 - 2 * alpha)
    pairs = sorted((a + b) / 2 for i, a in enumerate(VALUES) for b in VALUES[i:])
    assert centre == pytest.approx(pairs[22]), "the middle one of 45"
    assert low < centre < high
    mirrored = [-value for value in VALUES]
    for bound, rejected in ((low - 1e-6, True), (low + 1e-6, False)):
        assert (signed_rank_test(VALUES, bound) <= alpha) == rejected
    for bound, rejected in ((high + 1e-6, True), (high - 1e-6, False)):
        assert (signed_rank_test(mirrored, -bound) <= alpha) == rejected


def test_the_interval_of_few_or_infinite_ranks_is_infinite() -> None:
    assert rank_interval([1.0, 2.0], level=0.95)[1:] == (-math.inf, math.inf)
    centre, low, high = rank_interval([*range(7), math.inf], level=1 - 2 / 2**7)
    assert (centre, low, high) == (3.5, 0.5, math.inf)


def test_values_without_spread_are_judged_by_their_signs() -> None:
    assert t_test([25.0] * 8, 24.5) == 1 / 256
    assert t_test([25.0] * 8, 25.0) == 1
    assert t_test([5.0], 1.0) == 1


def test_many_values_have_their_signs_drawn() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 30)
    assert flipped(values) == pytest.approx(t_test([*values], 0.0), abs=0.01)
    assert flipped(np.ones(40)) == pytest.approx(1 / 2**16), "never zero"


def test_the_median_has_an_interval_of_two_of_the_values() -> None:
    values = [float(value) for value in range(1, 9)]
    assert median_interval(values, level=1 - 2 / 256) == (4.5, 1, 8)
    assert median_interval(values, level=1 - 2 * 9 / 256) == (4.5, 2, 7)
    assert median_interval(values, level=0.999) == (4.5, -math.inf, math.inf)


def test_stages_combine_by_inverse_normals() -> None:
    assert combined([0.03], [8]) == 0.03
    z = (stats.norm.isf(0.05) * 2 + stats.norm.isf(0.2) * 3) / math.sqrt(13)
    assert combined([0.05, 0.2], [4, 9]) == pytest.approx(stats.norm.sf(z))


def test_seeds_for_power_are_those_of_the_noncentral_t() -> None:
    n = seeds_for_power(1.0, 1.2, 0.01)
    assert n is not None
    for seeds, enough in ((n, True), (n - 1, False)):
        critical = stats.t.isf(0.01, seeds - 1)
        assert (stats.nct.sf(critical, seeds - 1, 1 / 1.2 * math.sqrt(seeds)) >= 0.8) == enough
    assert seeds_for_power(0.0, 1.0, 0.05) is None
    assert seeds_for_power(5.0, 0.1, 0.005) == 8, "fewer could not reach the level by any exact test"
    assert largest_spread([1.0, 2.0, 3.0]) == pytest.approx(math.sqrt(2 / stats.chi2.ppf(0.2, 2)))
